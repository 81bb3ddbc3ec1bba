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
from tangentune.solvers.edits import append, remove, retarget, reweight
from tangentune.solvers.leave_out import leave_out, loo
from tangentune.solvers.low_rank import FeatureInverse, FeatureKernel
from tangentune.solvers.row_edits import edited
from tangentune.solvers.source.leave_out import SourcePrediction, target_leave_out, target_loo
from tangentune.solvers.system import System, build, on_rows, refinement, refresh, residual, spot_check

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
    """A problem and its solution: targets, system, relative `error` of its inverse and, `step`, of its dual.

    `wary` is the same problem at another damping, where someone keeps one: edits take it along, and it shares the
    kernel.
    """

    targets: Targets
    system: System
    error: float
    step: float
    wary: System | None = None

    def on_rows(self, kernel: FeatureKernel) -> Solution:
        """The same on rows of its pictures alone."""
        system, wary = on_rows(self.system, kernel), self.wary
        if wary is not None:
            wary = system if wary is self.system else on_rows(wary, kernel)
        return replace(self, system=system, wary=wary)

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
    stays, system, wary = np.isin(before.positions, active.positions), solution.system, solution.wary
    if _mostly_changed(stays, active):
        return _beside(solve(training, active, encode, system.damping), wary)
    targets = _targets(training, active, encode)
    try:
        found = _updated([system] if wary in (None, system) else [system, wary], stays, active, targets, training)
    except SingularError:  # so ill-conditioned that a corner of the inverse is not positive definite
        return _beside(solve(training, active, encode, system.damping), wary)
    moved = not _same_inverse(found[0], system)
    error, left = residual(found[0], inverse=moved)
    error = error if moved else max(error, solution.error)
    if not error <= DRIFT:
        found[0] = refresh(found[0])
        error, left = residual(found[0])
    after = _checked(targets, found[0], error, left)
    if len(found) == 1 or (moved and not spot_check(found[1]) <= DRIFT):
        return _beside(after, wary)
    return replace(after, wary=found[1])


def _beside(solution: Solution, wary: System | None) -> Solution:
    """The solution with its problem at the damping of another one, if there is one; n^3, or D^3, if it is not its own.

    Where an edit takes a problem along, the same comes of it, to rounding.
    """
    if wary is None:
        return solution
    system = solution.system
    return replace(solution, wary=system if wary.damping == system.damping else refresh(system, damping=wary.damping))


def _same_inverse(one: System, other: System) -> bool:
    if isinstance(one.inverse, FeatureInverse) and isinstance(other.inverse, FeatureInverse):
        return one.inverse.core is other.inverse.core
    return one.inverse is other.inverse


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
    systems: list[System], stays: NDArray, active: ActivePictures, targets: Targets, training: TrainingSet
) -> list[System]:
    """The problems, at one damping or two, of another choice of pictures; they share their kernel."""
    places, first = torch.from_numpy(active.positions), systems[0]
    left, weights = targets.left.to(first.targets), targets.weights.to(first.weights)
    if isinstance(training.kernel, FeatureKernel):
        kept = torch.from_numpy(np.flatnonzero(stays)).to(left.device)
        return edited(systems, training.kernel.select(places.to(left.device)), kept, left, weights)
    found = [_updated_matrix(first, stays, places, left, weights, training.kernel, None)]
    for one in systems[1:]:
        found.append(_updated_matrix(one, stays, places, left, weights, training.kernel, found[0].kernel))
    return found


def _updated_matrix(
    system: System, stays: NDArray, places: Tensor, targets: Tensor, weights: Tensor, whole: Tensor,
    kernel: Tensor | FeatureKernel | None,
) -> System:  # fmt: skip
    """A problem on a matrix; its `kernel`, where one is at hand already, is that of the pictures at `places`."""
    kept = int(stays.sum())
    if kept < len(stays):
        left = kernel if kept == len(places) else None
        system = remove(system, torch.from_numpy(np.flatnonzero(~stays)), left)
    if kept < len(places):
        old, new = places[:kept], places[kept:]
        rows = whole[new]
        blank = rows.new_zeros(len(new), system.targets.shape[1])
        system = append(system, rows[:, old], rows[:, new], blank, weights[kept:], kernel)
    system = reweight(system, weights)
    return system if torch.equal(targets, system.targets) else retarget(system, targets)
