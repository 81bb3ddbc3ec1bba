"""What takes the place of an eigendecomposition where pictures are many: a few solutions, and sums of features.

An eigendecomposition serves every damping, but costs about ten times the Cholesky factorisation of one, and nine
matrices of memory. The choice made on a part of the pictures says where to begin; the best damping is a few steps away.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar, final

import torch
from torch import Tensor

from tangentune.errors import SingularError
from tangentune.kernels.choice import ABOVE, BELOW, RELATIVE_DAMPINGS, SAME, KernelChoice, Scored, damping_path
from tangentune.kernels.stages import FitSettings
from tangentune.solvers.leave_out import loo
from tangentune.solvers.low_rank import FeatureInverse, FeatureKernel, sums_of
from tangentune.solvers.ridge import Solution, factor_ridge, solve
from tangentune.solvers.sums import TangentSums
from tangentune.solvers.sums_path import log_evidence
from tangentune.solvers.system import System, build, build_on_rows

T = TypeVar("T")
LEAST_STEP = 3e-4  # share of the error by which a step must lower it: towards no damping it falls for ever, by nothing
DAMPINGS = torch.cat([BELOW[:-1], RELATIVE_DAMPINGS, ABOVE[1:]])

_DECADES = range(len(BELOW) - 1, len(BELOW) + len(RELATIVE_DAMPINGS) - 1, 6)  # of the grid that every fit tries


@final
@dataclass(frozen=True, eq=False)
class Walked:
    """A solved problem of many pictures, and the dampings that were tried for it."""

    solution: Solution
    unit: float  # of relative damping
    path: tuple[Tensor, Tensor]  # dampings, ascending, and the leave-one-out error along them
    error: float  # leave-one-out
    criterion: float
    flat: bool  # whether the kernel tells no picture from another, to rounding

    def scored(self, choice: KernelChoice) -> Scored:
        """The choice, scored on all pictures."""
        damping, count = self.solution.damping, len(self.solution.loo)
        return Scored(choice, damping, damping / self.unit, self.error, self.criterion, count)


def walk(kernel: Tensor, targets: Tensor, weights: Tensor, start: float, settings: FitSettings) -> Walked:
    """The best damping of a kernel (n, n), found from the relative damping `start` by steps along the usual grid.

    By leave-one-out each step costs n^3 and four matrices; by evidence it is an eigendecomposition. A damping that was
    given is taken as it is.
    """
    targets, weights = targets.to(kernel), weights.to(kernel)
    unit, flat = mean_eigenvalue(kernel, weights)
    given = settings.fixed.damping
    if settings.criterion == "evidence" and given is None:
        factor = factor_ridge(kernel, weights)
        dampings, errors, values = damping_path(factor, targets, settings.criterion)
        best = int(values.argmin())
        solution = solve(factor, targets, float(dampings[best]))
        return Walked(solution, unit, (dampings, errors), float(errors[best]), float(values[best]), flat)
    grid, place = _grid(unit, start, given)

    def attempt(damping: float) -> tuple[float, Solution] | None:
        try:
            system = build(kernel, targets, damping, weights)
        except SingularError:  # float64 does not carry it
            return None
        found = Solution(system.dual, system.bias, damping, loo(system))
        return float(weights @ (found.loo - targets).square().sum(1) / weights.sum()), found

    found, error, path = _step(grid, place, attempt)
    return Walked(found, unit, path, error, error, flat)


def walk_rows(
    kernel: FeatureKernel, targets: Tensor, weights: Tensor, start: float, settings: FitSettings, judges: Tensor
) -> tuple[Walked, System]:
    """The same on feature rows: each step D^3, and the leave-one-out error is that of the pictures at `judges` (k,).

    What landmarks cannot span is noise to them, so that the best damping may be far above `start`, that of the kernel:
    one of each decade is tried first. Landmarks know themselves, so that theirs would ask for too little damping
    (docs/decisions/0020). With it the solved problem of all pictures.
    """
    sums, given = sums_of(kernel, targets, weights), settings.fixed.damping
    unit, flat = mean_eigenvalue(kernel, weights)
    some = kernel.select(judges).compacted()

    def attempt(damping: float) -> tuple[float, float] | None:
        try:
            found = FeatureInverse.of(some, weights[judges], sums, damping)
        except SingularError:
            return None
        left = (targets[judges] - found.fitted) / (1 - weights[judges] * found.heights)[:, None]
        return float(weights[judges] @ left.square().sum(1) / weights[judges].sum()), damping

    if settings.criterion == "evidence" and given is None:
        dampings = DAMPINGS * unit
        values = -log_evidence(sums, len(kernel), dampings)
        damping, criterion = float(dampings[int(values.argmin())]), float(values.min())
        error = (attempt(damping) or (math.inf, damping))[0]
        path = (dampings.new_tensor([damping]), dampings.new_tensor([error]))
    else:
        damping, error, path = _step(*_grid(unit, start, given), attempt, wide=True)
        criterion = error
    system = build_on_rows(kernel, targets, damping, weights, sums)
    solution = Solution(system.dual, system.bias, damping, loo(system))
    return Walked(solution, unit, path, error, criterion, flat), system


def _grid(unit: float, start: float, given: float | None) -> tuple[list[float], int]:
    """Dampings to try, and where to begin."""
    if given is not None:
        return [given], 0
    return (DAMPINGS * unit).tolist(), int((DAMPINGS / start).log().abs().argmin())


def _step(
    grid: list[float], place: int, attempt: Callable[[float], tuple[float, T] | None], *, wide: bool = False
) -> tuple[T, float, tuple[Tensor, Tensor]]:
    """What has the lowest error, its error, and all that were tried: here, then up or down while it helps.

    If `wide`, from the best of every decade of the usual dampings, and of `place`.
    """
    tried, found = dict[int, float](), None
    for there in sorted({place, *_DECADES}) if wide and len(grid) > 1 else ():
        one = attempt(grid[there])
        tried[there] = math.inf if one is None else one[0]
        if one is not None and (found is None or one[0] < tried[place]):
            found, place = one, there
    for step in (0, 3, -3, 1, -1):  # half a decade at a time, then a sixth
        while 0 <= (there := place + step) < len(grid) and there not in tried:
            one = attempt(grid[there])
            tried[there] = math.inf if one is None else one[0]
            if one is None or (found is not None and not tried[there] < (1 - LEAST_STEP) * tried[place]):
                break
            found, place = one, there
    if found is None:
        raise SingularError(f"damping {grid[place]:g} leaves the least-squares problem singular; use a larger damping")
    kept = sorted(there for there, error in tried.items() if math.isfinite(error))
    path = torch.tensor([[grid[there], tried[there]] for there in kept], dtype=torch.float64)
    return found[1], tried[place], (path[:, 0], path[:, 1])


def mean_eigenvalue(kernel: Tensor | FeatureKernel, weights: Tensor) -> tuple[float, bool]:
    """`ridge`'s unit of relative damping without the eigenvalues, by their sum; and whether that is but rounding."""
    total, size = weights @ kernel.diagonal(), float((weights * kernel.diagonal()).mean())
    mean = float(total - weights @ (kernel @ weights) / weights.sum()) / (len(kernel) - 1)
    flat = not mean > SAME * size
    return (size or 1.0) if flat else mean, flat


def probe_predictions(phi: Tensor, targets: Tensor, weights: Tensor, normalize: bool) -> Tensor:
    """(n, C) leave-one-out predictions of a linear probe on features (n, d), at its best damping: n d^2 + d^3."""
    features = phi.double()
    if normalize:
        features = torch.nn.functional.normalize(features, dim=1)
    targets, weights = targets.to(features), weights.to(features)
    factor = TangentSums.of(features, targets, "features", weights).factor()
    dampings = RELATIVE_DAMPINGS * float(factor.values.sum() / (len(features) - 1))
    errors = factor.loo_errors(features, targets, dampings, weights)
    return factor.leave_one_out(features, targets, float(dampings[int(errors.argmin())]), weights)
