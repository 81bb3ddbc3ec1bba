"""A source behind a fit, as the estimators use it."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from tangentune.estimators.fitted import Choice, State
from tangentune.estimators.solved import AbstractSolved
from tangentune.estimators.source import check_source_options, fit_source, read_source
from tangentune.estimators.source_kernels import class_facts
from tangentune.estimators.training_set import TrainingSet
from tangentune.kernels.fit import Fitted
from tangentune.networks.backbone import Backbone
from tangentune.pictures.load import Pictures


class AbstractSourced(AbstractSolved):
    """Reads a source, weighs it and tells what came of it; abstract."""

    likelihood: str
    outer_steps: str | int
    damping: str | float
    n_jobs: int | None
    source_: dict[str, Any] | None

    def _check_source_options(self) -> None:
        """Refuse a source that this estimator cannot use."""
        check_source_options(self.likelihood, self.outer_steps)

    def _read_source(self, source: Any, pictures: Pictures, backbone: Backbone) -> tuple[Pictures, NDArray]:
        contract = backbone.contract
        return read_source(source, pictures, contract, n_jobs=self.n_jobs, verbose=self.verbose)

    def _put_behind(self, training: TrainingSet, source: tuple[Pictures, NDArray], chosen: Choice) -> TrainingSet:
        """The training set with a source behind it if that helps; the damping is chosen again with it."""
        encoded = self._encode(chosen.labels, chosen.sample_weight)
        damping, fixed = self.damping_, not isinstance(self.damping, str)
        with torch.no_grad():
            found = fit_source(
                training, self.model_.map, self._reading, source, (chosen, encoded), (damping, fixed), self._room
            )
        self.relative_damping_, self.damping_ = self.relative_damping_ * found.damping / damping, found.damping
        self.source_, self.source_ids_, self.source_effects_ = found.facts, source[0].ids, found.effects
        self._stale = found.training.source is not None
        return found.training

    def _adopt(self, backbone: Backbone, pictures: Pictures, fitted: Fitted) -> None:
        super()._adopt(backbone, pictures, fitted)
        self.source_, self.source_ids_, self.source_effects_ = None, [], np.zeros(0)

    def _publish(self, state: State) -> None:
        super()._publish(state)
        said, source = state.encoded.said, state.training.source
        if said is not None and source is not None:
            assert self.source_ is not None
            assert state.encoded.classes is not None
            self.source_ = {**self.source_, "classes": class_facts(source, said.labels, state.encoded.classes)}
