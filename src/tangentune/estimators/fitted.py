"""Edits of a fitted problem: pictures leave, come, change their label or weight; each equals a refit of the same map.

The feature map, the kernel's choice and the damping stay as the fit left them. A state is never changed: every edit
makes a new one, by updating the inverse of the system, whose error is watched.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tangentune.estimators.training_set import TrainingSet
from tangentune.jacobian.task_vector import TaskVector
from tangentune.kernels.feature_map import TangentMap
from tangentune.solvers.edits import append, remove, retarget, reweight
from tangentune.solvers.leave_out import leave_out, loo
from tangentune.solvers.source.leave_out import SourcePrediction, target_leave_out, target_loo
from tangentune.solvers.system import System, build, refresh, residual

DRIFT = 1e-10  # relative error of the inverse at which it is computed afresh
LARGE_SHARE = 2  # changing more than 1/2 of the pictures costs more than solving anew


@final
@dataclass(frozen=True, eq=False)
class Encoded:
    """Labels as the solver takes them: `classes` (None for numbers), `targets` (n, C), `weights` (n,); and a source."""

    classes: NDArray | None
    targets: Tensor
    weights: Tensor
    said: SourcePrediction | None = None

    @property
    def open(self) -> Tensor:
        """(n, C) what of the targets is left to explain."""
        return self.targets if self.said is None else self.targets.to(self.said.response) - self.said.offset


Encode = Callable[[NDArray, NDArray], Encoded]  # labels (n, ...) and sample weights (n,)


@final
@dataclass(frozen=True, eq=False)
class Choice:
    """Which pictures of a training set count, as what.

    Attributes:
        active: (n,) positions in the training set, in the order of every fitted attribute.
        labels: (n,) or (n, k) as given.
        sample_weight: (n,) as given, class weights not in it.
    """

    active: NDArray[np.int64]
    labels: NDArray[Any]
    sample_weight: NDArray[np.float64]

    def keep(self, kept: NDArray) -> Choice:
        """Only the pictures at some positions, or where a mask is true."""
        return Choice(self.active[kept], self.labels[kept], self.sample_weight[kept])


@final
@dataclass(frozen=True, eq=False)
class State:
    """A training set, what of it counts, as what, the solved problem, and the relative `error` of its inverse."""

    training: TrainingSet
    choice: Choice
    encoded: Encoded
    system: System
    error: float

    @property
    def loo(self) -> Tensor:
        """(n, C) prediction of each picture by the fit without it."""
        return loo(self.system) if self.encoded.said is None else target_loo(self.system, self.encoded.said)

    def leave_out(self, groups: Tensor) -> Tensor:
        """(n, C) prediction of each picture by the fit without its group."""
        said = self.encoded.said
        return leave_out(self.system, groups) if said is None else target_leave_out(self.system, said, groups)

    def __len__(self) -> int:
        return len(self.choice.active)


@final
@dataclass(frozen=True, eq=False)
class Step:
    """What taking an edit back needs: its name, the choice before; the rest only where the feature map changed."""

    edit: str
    choice: Choice
    training: TrainingSet | None = None
    feature_map: TangentMap | None = None
    task: TaskVector | None = None


def solved(training: TrainingSet, choice: Choice, encode: Encode, damping: float) -> State:
    """Solve from the kernel; cost n^3."""
    encoded, index = _encoded(training, choice, encode), torch.from_numpy(choice.active)
    index = index.to(training.kernel.device)
    whole = len(index) == len(training) and bool((index == torch.arange(len(index), device=index.device)).all())
    kernel = training.kernel if whole else training.kernel[index][:, index]
    system = build(kernel, encoded.open.to(kernel), damping, encoded.weights.to(kernel))
    return State(training, choice, encoded, system, residual(system))


def edited(state: State, choice: Choice, encode: Encode, training: TrainingSet | None = None) -> State:
    """The state of another choice of pictures, labels and weights, from this one.

    Args:
        state: solved.
        choice: pictures that stay must come first, in their order; new ones after them.
        encode: of the estimator.
        training: the training set, if it has grown.

    Returns:
        The state a fit of the same feature map and damping would give, to rounding. Cost n^2 for every picture that
        leaves, comes or changes its weight, and n^2 C for labels.
    """
    training = state.training if training is None else training
    stays = np.isin(state.choice.active, choice.active)
    kept = int(stays.sum())
    changed = len(state) - kept + len(choice.active) - kept
    if changed * LARGE_SHARE > len(choice.active):
        return solved(training, choice, encode, state.system.damping)
    encoded = _encoded(training, choice, encode)
    try:
        system = _updated(state, choice, stays, encoded, training)
    except torch.linalg.LinAlgError:  # so ill-conditioned that a corner of the inverse is not positive definite
        return solved(training, choice, encode, state.system.damping)
    error = residual(system)
    if not error <= DRIFT:
        system = refresh(system)
        error = residual(system)
    return State(training, choice, encoded, system, error)


def _encoded(training: TrainingSet, choice: Choice, encode: Encode) -> Encoded:
    """Labels and weights as the solver takes them, and what a source says about the pictures."""
    plain, source = encode(choice.labels, choice.sample_weight), training.source
    if source is None:
        return plain
    assert plain.classes is not None
    active = torch.from_numpy(choice.active).to(source.cross.device)
    targets, weights = plain.targets.to(source.cross), plain.weights.to(source.cross)
    return replace(plain, said=source.said(active, targets, weights, plain.classes))


def _updated(state: State, choice: Choice, stays: NDArray, encoded: Encoded, training: TrainingSet) -> System:
    system, kept = state.system, int(stays.sum())
    if kept < len(state):
        system = remove(system, torch.from_numpy(np.flatnonzero(~stays)))
    if kept < len(choice.active):
        old, new = (torch.from_numpy(choice.active[part]) for part in (slice(kept), slice(kept, None)))
        rows = training.kernel[new]
        blank = rows.new_zeros(len(new), system.targets.shape[1])
        system = append(system, rows[:, old], rows[:, new], blank, encoded.weights[kept:].to(rows))
    system = reweight(system, encoded.weights.to(system.weights))
    targets = encoded.open.to(system.targets)
    return system if torch.equal(targets, system.targets) else retarget(system, targets)
