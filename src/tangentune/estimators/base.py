"""What the estimators share: options, loading, fitting, prediction, storage."""

from __future__ import annotations

import os
import warnings
from abc import abstractmethod
from dataclasses import replace
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from sklearn.utils.validation import _check_sample_weight, check_is_fitted, check_random_state
from torch import Tensor

from tangentune.errors import InputError
from tangentune.estimators import saving as persistence
from tangentune.estimators.estimator_inputs import load_vectors
from tangentune.estimators.fitted import Choice, solved
from tangentune.estimators.options import read_options
from tangentune.estimators.outer_steps import Expansion
from tangentune.estimators.sourced import AbstractSourced
from tangentune.estimators.training_set import ROWS_SHARE, extend, first_set
from tangentune.jacobian.rows import RowPlan
from tangentune.jacobian.survey import survey
from tangentune.kernels.batches import PictureBatches, with_progress
from tangentune.kernels.cost import estimate_cost
from tangentune.kernels.feature_map import TangentModel, decision
from tangentune.kernels.fit import fit_tangent
from tangentune.kernels.stages import FitSettings
from tangentune.memory import Meter, default_budget, warm_pages
from tangentune.networks.backbone import Backbone, load_backbone
from tangentune.networks.parameters import select_parameters, used_parameters
from tangentune.pictures.load import Pictures, duplicate_sentences, load_pictures


class AbstractTangentEstimator(AbstractSourced):
    """What both estimators share; abstract."""

    def __init__(
        self,
        backbone: str | Backbone,
        *,
        subset: str = "all",
        probes: int = 1,
        probe_space: str = "pca",
        metric_power: str | float = "loo",
        body_scale: str | float = "loo",
        normalize: str | bool = "loo",
        damping: str | float = "loo",
        likelihood: str = "least_squares",
        class_weight: Any = None,
        augment: str | None = None,
        outer_steps: str | int = 0,
        input_size: int | tuple[int, int] | None = None,
        batch_size: int = 32,
        memory_budget: int | str | None = None,
        device: str | torch.device | None = None,
        random_state: Any = 0,
        n_jobs: int | None = None,
        verbose: int = 0,
    ):
        self.backbone = backbone
        self.subset = subset
        self.probes = probes
        self.probe_space = probe_space
        self.metric_power = metric_power
        self.body_scale = body_scale
        self.normalize = normalize
        self.damping = damping
        self.likelihood = likelihood
        self.class_weight = class_weight
        self.augment = augment
        self.outer_steps = outer_steps
        self.input_size = input_size
        self.batch_size = batch_size
        self.memory_budget = memory_budget
        self.device = device
        self.random_state = random_state
        self.n_jobs = n_jobs
        self.verbose = verbose

    # -- fitting ---------------------------------------------------------------------------------------------------

    def fit(self, X: Any, y: Any = None, sample_weight: ArrayLike | None = None, *, source: Any = None) -> Self:
        """Solve for the whole network at once.

        Args:
            X: a folder root/class/file, a CSV file (path,label), a list of paths, an array (n, C, H, W) or
                (n, H, W, C), a torch Dataset, `Pictures`; or vectors (n, k) for a backbone without input size.
            y: labels; None takes those of the source.
            sample_weight: (n,) weights of the pictures; weight 0 leaves a picture out.
            source: pictures of related data, of a classifier's: a manifest that `tangentune select` wrote, a folder of
                class folders, a CSV file, or labelled `Pictures`. They become weighted rows of the same problem
                (multi-task kernel ridge), each class standing for the target classes it lies near, or for the one of
                its name; how much they count is chosen by leave-one-out of the pictures X alone, and may be nothing.

        Returns:
            The estimator itself.

        Raises:
            InputError: if pictures, labels or options cannot be used; the message says which and what to do.
            BudgetError: if the work cannot keep `memory_budget`.
        """
        backbone = self._load_backbone()
        settings = self._settings(backbone)
        meter = Meter(backbone.device)
        if source is not None:
            self._check_source_options()
        with warm_pages():
            with meter.stage("pictures"):
                pictures = self._load(X, y, backbone, labelled=True)
                behind = None if source is None else self._read_source(source, pictures, backbone)
            given = np.ones(len(pictures)) if sample_weight is None else sample_weight
            given = _check_sample_weight(given, pictures.pixels, dtype=np.float64)
            labels = self._read_labels(pictures)
            self._check_options(labels)
            self._warn(pictures, labels)
            encoded = self._encode(labels, given)
            check_weights(encoded.weights.numpy(), pictures.ids)
            kept = np.flatnonzero(encoded.weights.numpy() > 0)
            settings = self._decidable(settings, encoded.targets[torch.from_numpy(kept)])
            used = pictures if len(kept) == len(pictures) else pictures.select(kept)
            with meter.stage("outer steps"):
                expansion, moves = self._expand(backbone, used, settings, self.outer_steps)
            points = (-1,) * len(used) if expansion is None else tuple(expansion.fold.tolist())
            source = self._opened(used, points, backbone)
            with meter.stage("survey"):
                tangent = self._survey(backbone, source)
            if expansion is not None:
                tangent = replace(tangent, module=expansion.mean, points=expansion.points)
            rows = torch.from_numpy(kept)
            fitted = fit_tangent(tangent, source, encoded.targets[rows], encoded.weights[rows], settings, meter)
            self._adopt(backbone, pictures, fitted)
            self.outer_steps_ = 0 if expansion is None else expansion.steps
            self.task_vector_ = None if expansion is None else expansion.task
            self.outer_selection_ = moves
            with meter.stage("system"):
                self._room, self._seed = settings.memory_budget // ROWS_SHARE, settings.seed
                training = first_set(used, kept, points, fitted.factor.kernel, fitted.rows, self._room)
                if len(used) < len(pictures):  # pictures of weight 0: known, but without a say
                    rest = np.flatnonzero(encoded.weights.numpy() == 0)
                    others = pictures.select(rest)
                    training = extend(training, fitted.model.map, self._opened, others, rest, self._room)
                chosen = Choice(np.argsort(training.numbers), labels, given)
            if behind is not None:
                with meter.stage("source"):
                    training = self._put_behind(training, behind, chosen)
            with meter.stage("system"):
                self._publish(solved(training, chosen, self._encode, self.damping_))
        self.fit_report_ = meter.report() | {
            "n": len(pictures),
            "outputs": encoded.targets.shape[1],
            "passes": fitted.passes,
            "parameters": sum(dict(tangent.module.named_parameters())[name].numel() for name in tangent.names),
            "threads": torch.get_num_threads(),
            "device": str(backbone.device),
        }
        return self

    def plan(self, X: Any, y: Any = None) -> dict[str, Any]:
        """What `fit` would cost, from one small trial batch: seconds, peak bytes, passes, and the way of each layer.

        Returns:
            Keys `n`, `seconds`, `peak_bytes`, `passes`, `parameters` and `layers` (name, held as, Gram strategy,
            bytes a picture). Cost: about a second.
        """
        backbone = self._load_backbone()
        settings = self._settings(backbone)
        with warm_pages():
            pictures = self._load(X, y, backbone, labelled=True)
            source = self._opened(pictures, None, backbone)
            plan = estimate_cost(self._survey(backbone, source), source, settings, self._outputs(pictures))
            plan["seconds"] += self._moving_seconds(backbone, pictures, settings)
        return plan

    def _outputs(self, pictures: Pictures) -> int:
        return 1 if pictures.labels is None else len(np.unique(pictures.labels))

    def _load_backbone(self) -> Backbone:
        backbone = load_backbone(self.backbone) if isinstance(self.backbone, str) else self.backbone
        if not isinstance(backbone, Backbone):
            message = f"backbone is a {type(backbone).__name__}; give a name or Backbone(module, input_size=..., ...)"
            raise InputError(message)
        backbone = backbone.with_size(self.input_size)
        return backbone if self.device is None else backbone.to(self.device)

    def _settings(self, backbone: Backbone) -> FitSettings:
        state = self.random_state
        seed = int(state) if isinstance(state, int | np.integer) else int(check_random_state(state).randint(2**31))
        options = self.get_params(deep=False)
        return read_options(options, seed, default_budget(backbone.device), backbone.contract.input_size is not None)

    def _load(self, X: Any, y: Any, backbone: Backbone, labelled: bool, reset: bool = True) -> Pictures:
        if backbone.contract.input_size is None:
            return load_vectors(self, X, y, labelled, reset)
        return load_pictures(
            X, y, contract=backbone.contract, n_jobs=self.n_jobs, verbose=self.verbose, need_labels=labelled
        )

    def _decidable(self, settings: FitSettings, targets: Tensor) -> FitSettings:
        """Settings without the choices that leave-one-out cannot make with these targets."""
        return settings

    @abstractmethod
    def _moving_seconds(self, backbone: Backbone, pictures: Pictures, settings: FitSettings) -> float:
        """What `_expand` will take."""

    @abstractmethod
    def _expand(
        self, backbone: Backbone, pictures: Pictures, settings: FitSettings, steps: str | int
    ) -> tuple[Expansion | None, list[dict[str, float]]]:
        """Points of expansion moved towards the labels, if asked for, and what was tried."""

    def _warn(self, pictures: Pictures, labels: NDArray) -> None:
        sentences = self._check_labels(labels, pictures.ids)
        if pictures.pixels.dim() == 4:
            for sentence in sentences + duplicate_sentences(pictures.pixels, pictures.labels, pictures.ids):
                warnings.warn(sentence, stacklevel=3)

    def _survey(self, backbone: Backbone, source: PictureBatches) -> RowPlan:
        module, features = backbone.module, backbone.feature_function
        x = next(iter(source.batches(list(range(min(2, source.count))))))
        backbone.check(x)
        moving = select_parameters(module, self.subset, used_parameters(module, features, x))
        return survey(module, features, moving, x)

    # -- prediction ------------------------------------------------------------------------------------------------

    def _scores(self, X: Any) -> NDArray:
        """Raw scores (n, C) of new pictures."""
        check_is_fitted(self)
        pictures = self._load(X, None, self.backbone_, labelled=False, reset=False)
        return self._decide(self._current_model(), pictures)

    def _decide(self, model: TangentModel, pictures: Pictures) -> NDArray:
        source = self._opened(pictures)
        with warm_pages(), torch.no_grad():
            parts = [decision(model, x) for x in with_progress(source, self.verbose)]
        return torch.cat(parts).cpu().numpy()

    def _labelled(self, X: Any, y: Any) -> tuple[Any, NDArray]:
        """Pictures loaded once with their labels, for scoring a folder."""
        check_is_fitted(self)
        if y is not None:
            return X, np.asarray(y)
        pictures = load_pictures(X, contract=self.backbone_.contract, n_jobs=self.n_jobs, verbose=self.verbose)
        assert pictures.labels is not None
        return pictures, pictures.labels

    # -- storage ---------------------------------------------------------------------------------------------------

    def save_pretrained(self, directory: str | os.PathLike[str], *, pictures: bool = True) -> None:
        """Write the model: safetensors, JSON, the log of its edits, and a README.md a person can read; atomic.

        Args:
            directory: where; a model there is replaced.
            pictures: keep the training pictures at the network's size, which explanations and edits of the saved model
                need; without them it predicts, and tells its leave-one-out predictions.

        Raises:
            StoreError: if the directory cannot be written or holds something else.
        """
        check_is_fitted(self)
        persistence.save(self, directory, pictures)

    @classmethod
    def from_pretrained(
        cls, directory: str | os.PathLike[str], *, backbone: Backbone | None = None, device: Any = None
    ) -> Self:
        """Read what `save_pretrained` wrote; predictions are bit-equal on the same machine.

        Args:
            directory: a saved model.
            backbone: needed if the model was fitted on a network of your own; checked against the saved hash.
            device: where to run.

        Raises:
            StoreError: if the directory is no model, damaged, or written by a newer version.
            BackboneError: if the backbone is not the one the model was fitted on.
        """
        return persistence.load(cls, directory, backbone, device)

    def __sklearn_tags__(self) -> Any:
        """Tags: dense 2-D input without NaN."""
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = False
        tags.input_tags.allow_nan = False
        return tags


def check_weights(weights: NDArray, ids: list[str]) -> None:
    """Refuse negative weights, and fewer than two pictures that count."""
    if not (weights >= 0).all():
        message = f"picture {ids[int(np.argmin(weights))]} has a negative weight; weights must be 0 or more"
        raise InputError(message)
    count = int((weights > 0).sum())
    if count < 2:
        message = f"n_samples={count} with positive weight is not enough; least squares needs at least 2 pictures"
        raise InputError(message)
