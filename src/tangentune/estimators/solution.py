"""The solved problem of a fitted model, and its solution after an edit.

Feature map, the kernel's choice and damping stay as the fit left them. A solution is never changed: every edit makes a
new one, by updating the inverse of the system, whose error is watched.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tangentune.errors import SingularError
from tangentune.estimators.training_set import TrainingSet
from tangentune.solvers import balancing
from tangentune.solvers.edits import append, append_rows, narrow, remove, retarget, reweight
from tangentune.solvers.leave_out import leave_out, loo
from tangentune.solvers.low_rank import FeatureKernel
from tangentune.solvers.source.leave_out import SourcePrediction, target_leave_out, target_loo
from tangentune.solvers.system import System, build, refinement, refresh, residual, spot_check

DRIFT = 1e-10  # relative error of the inverse at which it is computed afresh
UNSURE = 1e-6  # relative error of the solution at which it is refused: leave-one-out is hardly better than that
LARGE_SHARE = 2  # changing more than 1/2 of the pictures costs more than solving anew


@final
@dataclass(frozen=True, eq=False)
class ActivePictures:
    """Which pictures of a training set count, in the order of every fitted attribute, as what."""

    positions: NDArray[np.int64]  # (n,)
    labels: NDArray[Any]  # (n,) or (n, k), as given
    sample_weight: NDArray[np.float64]  # (n,) as given, class weights not in them

    def __len__(self) -> int:
        return len(self.positions)

    def keep(self, kept: NDArray) -> ActivePictures:
        """Only the pictures at some places, or where a mask is true."""
        return ActivePictures(self.positions[kept], self.labels[kept], self.sample_weight[kept])


@final
@dataclass(frozen=True, eq=False)
class Targets:
    """Labels as the solver takes them."""

    classes: NDArray | None  # (C,); None for numbers
    targets: Tensor  # (n, C)
    weights: Tensor  # (n,) with class weights
    source: SourcePrediction | None = None  # what a source alone predicts for the pictures; None without one
    balanced: bool = False  # class weights, which are other ones of a fit to fewer pictures

    @property
    def balance(self) -> Tensor | None:
        """(n,) class positions that the weights are balanced for; None where they are not."""
        return self.targets.argmax(1) if self.balanced else None

    @property
    def left(self) -> Tensor:
        """(n, C) what of the targets is left to explain."""
        return self.targets if self.source is None else self.targets.to(self.source.response) - self.source.offset


Encode = Callable[[NDArray, NDArray], Targets]  # labels (n, ...) and sample weights (n,)


@final
@dataclass(frozen=True, eq=False)
class Solution:
    """A problem and its solution: targets, system, relative `error` of its inverse and, `step`, of its dual."""

    targets: Targets
    system: System
    error: float
    step: float

    @property
    def loo(self) -> Tensor:
        """(n, C) prediction of each picture by the fit without it."""
        source, out = self.targets.source, torch.empty_like(self.system.targets)
        for members, system in balancing.views(self.system, self.targets.balance):
            out[members] = (loo(system) if source is None else target_loo(system, source))[members]
        return out

    def leave_out(self, groups: Tensor) -> Tensor:
        """(n, C) prediction of each picture by the fit without its group."""
        balance, source = self.targets.balance, self.targets.source
        if balance is None:
            return leave_out(self.system, groups) if source is None else target_leave_out(self.system, source, groups)
        out, groups, held = torch.empty_like(self.system.targets), groups.to(self.system.targets.device), self.targets
        for group in torch.unique(groups).tolist():
            system = balancing.without(self.system, balance, groups == group)
            other = Solution(replace(held, balanced=False), system, self.error, self.step)
            out[groups == group] = other.leave_out(groups)[groups == group]
        return out


def solve(training: TrainingSet, active: ActivePictures, encode: Encode, damping: float) -> Solution:
    """Solve from the kernel; cost n^3."""
    targets, index = _targets(training, active, encode), torch.from_numpy(active.positions)
    whole = len(index) == len(training) and bool((index == torch.arange(len(index))).all())
    kernel = training.kernel
    if isinstance(kernel, FeatureKernel):
        kernel = kernel if whole else kernel.select(index)
    else:
        index = index.to(kernel.device)
        kernel = kernel if whole else kernel[index][:, index]
    system = build(kernel, targets.left, damping, targets.weights)
    return _checked(targets, system, *residual(system))


def update(
    solution: Solution, before: ActivePictures, active: ActivePictures, encode: Encode, training: TrainingSet
) -> Solution:
    """The solution that a fit to another choice of pictures, labels and weights would give, to rounding, from this one.

    Active pictures that stay come first, in their order. Cost n^2 a picture that leaves, comes or changes its weight.
    """
    stays = np.isin(before.positions, active.positions)
    if _mostly_changed(stays, active):
        return solve(training, active, encode, solution.system.damping)
    targets = _targets(training, active, encode)
    try:
        system = _updated(solution.system, stays, active, targets, training)
    except SingularError:  # so ill-conditioned that a corner of the inverse is not positive definite
        return solve(training, active, encode, solution.system.damping)
    moved = system.inverse is not solution.system.inverse
    error, left = residual(system, inverse=moved)
    error = error if moved else max(error, solution.error)
    if not error <= DRIFT:
        system = refresh(system)
        error, left = residual(system)
    return _checked(targets, system, error, left)


def follow(
    system: System, before: ActivePictures, active: ActivePictures, after: Solution, training: TrainingSet
) -> System:
    """A problem at another damping taken through the edit that led to the solution `after`; it shares its kernel.

    Equal to the problem of `after` solved anew at that damping, to rounding. Cost as of `update`.
    """
    anew, inverse = replace(after.system, damping=system.damping), system.inverse
    stays = np.isin(before.positions, active.positions)
    if _mostly_changed(stays, active):
        return refresh(anew)
    try:
        system = _updated(system, stays, active, after.targets, training, after.system.kernel)
    except SingularError:
        return refresh(anew)
    return system if system.inverse is inverse or spot_check(system) <= DRIFT else refresh(anew)


def _mostly_changed(stays: NDArray, active: ActivePictures) -> bool:
    """Whether solving anew is cheaper than what leaves, `stays` being false, and comes."""
    kept = int(stays.sum())
    return (len(stays) - kept + len(active) - kept) * LARGE_SHARE > len(active)


def _checked(targets: Targets, system: System, residual: float, left: Tensor) -> Solution:
    """The solution, unless float64 does not carry it."""
    step = refinement(system, left)
    size = float(system.dual.abs().max())
    # Coefficients that are rounding, of constant targets, may be wrong: what they add to a prediction is nothing.
    matters = max(size, float(system.targets.abs().max() / system.kernel.diagonal().max()))
    error = step * size / matters if size else 0.0
    if not error <= UNSURE:
        enough = f"use a damping of at least {10 * system.damping * error / UNSURE:.0e}"
        known = f"the solution is known to {error:.0e} of its size only, where {UNSURE:.0e} is asked for"
        raise SingularError(f"damping {system.damping:g} is too small for these pictures: {known}; {enough}")
    return Solution(targets, system, residual, step)


def _targets(training: TrainingSet, active: ActivePictures, encode: Encode) -> Targets:
    plain, source = encode(active.labels, active.sample_weight), training.source
    if source is None:
        return plain
    assert plain.classes is not None
    positions = torch.from_numpy(active.positions).to(source.cross.device)
    targets, weights = plain.targets.to(source.cross), plain.weights.to(source.cross)
    return replace(plain, source=source.predict(positions, targets, weights, plain.classes))


def _updated(
    system: System,
    stays: NDArray,
    active: ActivePictures,
    targets: Targets,
    training: TrainingSet,
    kernel: Tensor | FeatureKernel | None = None,
) -> System:
    """The problem of another choice of pictures; its `kernel`, where one is at hand already."""
    kept, wanted = int(stays.sum()), training.kernel
    if isinstance(wanted, FeatureKernel) and isinstance(system.kernel, FeatureKernel):
        before = system.kernel.lost.shape[1]
        if wanted.lost.shape[1] > before and torch.equal(wanted.lost[:, :before], system.kernel.lost):
            system = narrow(system, replace(system.kernel, lost=wanted.lost))
        elif not torch.equal(wanted.lost, system.kernel.lost):
            raise SingularError("the landmarks are not independent")  # and the problem is solved anew
    if kept < len(stays):
        left = kernel if kept == len(active) else None
        system = remove(system, torch.from_numpy(np.flatnonzero(~stays)), left)
    if kept < len(active):
        places = torch.from_numpy(active.positions)
        if isinstance(training.kernel, FeatureKernel):
            grown = training.kernel.select(places)
            blank = torch.zeros(len(places) - kept, system.targets.shape[1], dtype=torch.float64)
            system = append_rows(system, grown, blank, targets.weights[kept:].to(system.weights))
            return _retargeted(system, targets)
        old, new = places[:kept], places[kept:]
        rows = training.kernel[new]
        blank = rows.new_zeros(len(new), system.targets.shape[1])
        system = append(system, rows[:, old], rows[:, new], blank, targets.weights[kept:].to(rows), kernel)
    return _retargeted(system, targets)


def _retargeted(system: System, targets: Targets) -> System:
    """With the weights and targets that are asked for."""
    system = reweight(system, targets.weights.to(system.weights))
    left = targets.left.to(system.targets)
    return system if torch.equal(left, system.targets) else retarget(system, left)
