"""The solved problem that a fitted estimator stands on: which pictures, their kernel, the system, the primal model."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import replace
from itertools import chain

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.base import BaseEstimator
from sklearn.utils.validation import check_is_fitted
from torch import Tensor

from tangentune.errors import InputError
from tangentune.estimators.fitted import Choice, Encoded, State, Step, solved
from tangentune.estimators.source_kernels import SourceSet
from tangentune.estimators.training_set import TrainingSet, parts, with_rows
from tangentune.kernels.batches import PictureBatches, picture_batches, with_progress
from tangentune.kernels.feature_map import FeatureRows, TangentModel, primal
from tangentune.kernels.fit import Fitted
from tangentune.memory import warm_pages
from tangentune.networks.backbone import Backbone
from tangentune.pictures.load import Pictures
from tangentune.solvers.system import System

Parts = Iterator[tuple[Tensor, FeatureRows]]


class AbstractSolved(BaseEstimator):
    """Keeps a solved problem and sets the fitted attributes that follow from it; abstract."""

    augment: str | None
    batch_size: int
    verbose: int
    _training: TrainingSet
    _choice: Choice
    _system: System | None  # None: a loaded model's, until it is asked for
    _encoded: Encoded  # of the same
    likelihood_: dict[str, float]  # of a classifier: what the search of its likelihood found
    _error: float  # of the system's inverse, relative
    _room: int  # bytes that the rows of the training set may take
    _seed: int  # of the probes and the outer steps
    _undo: list[Step]

    @abstractmethod
    def _read_labels(self, pictures: Pictures) -> NDArray:
        """The labels of some pictures, refused if this estimator cannot use them."""

    @abstractmethod
    def _check_options(self, labels: NDArray) -> None:
        """Refuse options that no fit to these labels can follow."""

    @abstractmethod
    def _check_labels(self, labels: NDArray, ids: list[str]) -> list[str]:
        """Refuse labels of a whole set that cannot be fitted; sentences about what looks odd."""

    @abstractmethod
    def _encode(self, labels: NDArray, sample_weight: NDArray) -> Encoded:
        """Labels as (n, C) targets, and sample weights with class weights."""

    @abstractmethod
    def _describe_loo(self, state: State) -> None:
        """Set the attributes that follow from leave-one-out predictions."""

    def _adopt(self, backbone: Backbone, pictures: Pictures, fitted: Fitted) -> None:
        """Set every fitted attribute that edits leave alone."""
        choice, feature_map = fitted.scored.choice, fitted.model.map
        self.backbone_, self.model_, self._stale = backbone, fitted.model, False
        self.edits_, self._undo, self._next_number = [], [], len(pictures)
        self.likelihood_ = {}
        self.damping_, self.relative_damping_ = fitted.scored.damping, fitted.scored.relative_damping
        self.metric_power_, self.normalize_, self.body_scale_ = choice.power, choice.normalize, choice.body_scale
        scales = {block: choice.body_scale * scale for block, scale in feature_map.block_scales.items()}
        self.block_scales_ = {"head": 1.0, **scales}
        self.block_shares_ = fitted.shares
        self.selection_ = [scored.row() for scored in fitted.tried]
        self.probes_ = feature_map.probes.cpu().numpy()
        dampings, errors = fitted.path
        self.damping_path_ = {"damping": dampings.cpu().numpy(), "loo_error": errors.cpu().numpy()}

    def _publish(self, state: State) -> None:
        """Set every fitted attribute that an edit changes."""
        self._training, self._choice, self._system = state.training, state.choice, state.system
        self._encoded, self._error = state.encoded, state.error
        system, chosen, names = state.system, state.choice, state.training.pictures.ids
        self.ids_, self.targets_ = [names[i] for i in chosen.active], chosen.labels
        self.dual_coef_, self.intercept_ = system.dual.cpu().numpy(), system.bias.cpu().numpy()
        self._describe_loo(state)

    @property
    def kernel_(self) -> NDArray[np.float64]:
        """(n, n) kernel of the pictures the model stands on; with a source, what is left of it."""
        return self._solved().system.kernel.cpu().numpy()

    @property
    def pictures_(self) -> Pictures:
        """The pictures the model stands on, as the network sees them."""
        pictures, active = self._training.pictures, self._choice.active
        whole = np.array_equal(active, np.arange(len(pictures)))
        return pictures if whole else pictures.select(active)

    def _solved(self) -> State:
        """The solved problem; a loaded model solves it when it is first asked for."""
        check_is_fitted(self)
        if self._system is None:
            state = solved(self._training, self._choice, self._encode, self.damping_)
            self._system, self._encoded, self._error = state.system, state.encoded, state.error
        return State(self._training, self._choice, self._encoded, self._system, self._error)

    def _current_model(self) -> TangentModel:
        """The primal model; after an edit its weights are summed again, in one pass over the rows."""
        if self._stale:
            state, feature_map = self._solved(), self.model_.map
            with warm_pages(), torch.no_grad():
                training = self._with_rows()
                dual = training.kernel.new_zeros(len(training), len(self.intercept_))
                dual[torch.from_numpy(state.choice.active)] = state.system.dual
                rows = parts(training, feature_map, self._reading)
                if training.source is not None:
                    rows, dual = self._with_source_parts(training.source, rows, dual)
                self.model_ = primal(feature_map, rows, dual, state.system.bias)
            self._stale = False
        return self.model_

    def _with_source_parts(self, source: SourceSet, rows: Parts, dual: Tensor) -> tuple[Parts, Tensor]:
        """Rows and coefficients of the training pictures, then those of the source pictures."""
        state, count = self._solved(), len(dual)
        assert state.encoded.said is not None
        active = torch.from_numpy(state.choice.active).to(dual.device)
        after = source.pictures.parts(self.model_.map, self._reading)
        coefficients = source.dual(active, state.system.dual, state.encoded.said.labels)
        return chain(rows, ((index + count, found) for index, found in after)), torch.cat([dual, coefficients])

    def _with_rows(self) -> TrainingSet:
        """The training set, its rows in memory from now on if they fit."""
        self._check_pictures()
        with warm_pages(), torch.no_grad():
            self._training = with_rows(self._training, self.model_.map, self._reading, self._room)
        return self._training

    def _check_pictures(self) -> None:
        """Refuse what needs the training pictures where a loaded model has none."""
        check_is_fitted(self)
        if not self._training.has_pictures:
            message = (
                "this model was saved without its pictures, which explanations of new pictures and edits need; fit it "
                "again and save it with them"
            )
            raise InputError(message)

    def _reading(self, pictures: Pictures, points: tuple[int, ...]) -> PictureBatches:
        """Training pictures as inputs, with a progress bar."""
        source, label = self._opened(pictures, points), "reading the training pictures"
        return replace(source, batches=lambda index: with_progress(source, self.verbose, label, index))

    def _opened(
        self, pictures: Pictures, points: tuple[int, ...] | None = None, backbone: Backbone | None = None
    ) -> PictureBatches:
        """Pictures as inputs of the fitted network, or of one about to be fitted."""
        views = 2 if self.augment == "flip" and pictures.pixels.dim() == 4 else 1
        return picture_batches(pictures, backbone or self.backbone_, max(1, self.batch_size // views), points)
