"""A linear probe by what is smaller, the kernel of its features or their sums; factored once for every damping."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

from torch import Tensor

from tangentune.solvers.ridge import RidgeFactor, factor_ridge, loo_errors, solve
from tangentune.solvers.sums import SumsFactor, TangentSums


@final
@dataclass(frozen=True, eq=False)
class Probe:
    """Ridge regression on features (n, d) for targets (n, C): n^2 (n + d), or n d^2 + d^3 for n > d."""

    features: Tensor
    targets: Tensor
    factor: RidgeFactor | SumsFactor

    @classmethod
    def of(cls, features: Tensor, targets: Tensor) -> Probe:
        """Of features and targets in float64."""
        if len(features) <= features.shape[1]:
            return cls(features, targets, factor_ridge(features @ features.T))
        return cls(features, targets, TangentSums.of(features, targets, "features").factor())

    @property
    def unit(self) -> float:
        """Mean eigenvalue of the centred kernel, which has n - 1 of them: the unit of relative damping."""
        if isinstance(self.factor, RidgeFactor):
            return self.factor.mean_eigenvalue
        return float(self.factor.values.sum()) / (len(self.features) - 1)

    def best(self, dampings: Tensor) -> float:
        """Which of some dampings has the least leave-one-out error."""
        if isinstance(self.factor, RidgeFactor):
            return float(dampings[loo_errors(self.factor, self.targets, dampings).argmin()])
        return float(dampings[self.factor.loo_errors(self.features, self.targets, dampings).argmin()])

    def loo(self, damping: float) -> Tensor:
        """(n, C) predictions of every picture by the probe without it, exact."""
        if isinstance(self.factor, RidgeFactor):
            return solve(self.factor, self.targets, damping).loo
        return self.factor.leave_one_out(self.features, self.targets, damping)

    def weights(self, damping: float) -> tuple[Tensor, Tensor]:
        """Weights (d, C) and intercept (C,)."""
        if isinstance(self.factor, RidgeFactor):
            solution = solve(self.factor, self.targets, damping)
            return self.features.T @ solution.dual, solution.intercept
        found = self.factor.fit(damping)
        return found.coef, found.intercept
