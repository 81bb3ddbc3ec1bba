"""A weighted least-squares problem with explicit features, refitted outright: what systems are compared with."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from tangentune.solvers.system import System, build

VARIANTS = [(width, intercept, zeros) for width in (1, 3) for intercept in (True, False) for zeros in (False, True)]


@dataclass(frozen=True, eq=False)
class Refits:
    """Rows (N, p) and targets (N, C); fits are solved in feature space, never by the kernel."""

    rows: Tensor
    targets: Tensor
    weights: Tensor
    damping: float = 0.3
    intercept: bool = True
    width: int = 1

    @property
    def pictures(self) -> int:
        return len(self.rows) // self.width

    def system(self) -> System:
        kernel = self.rows @ self.rows.T
        return build(
            kernel, self.targets, self.damping, self.weights, intercept=self.intercept, width=self.width
        )  # fmt: skip

    def coefficients(self, kept: Tensor | None = None) -> Tensor:
        """(p + 1, C) of the fit to the kept rows, intercept last."""
        kept = torch.ones(len(self.rows), dtype=torch.bool) if kept is None else kept
        ones = torch.full_like(self.rows[:, :1], float(self.intercept))
        x = torch.cat([self.rows, ones], 1)[kept]
        matrix = x.T @ (self.weights[kept, None] * x)
        penalty = torch.full((x.shape[1],), self.damping, dtype=x.dtype)
        penalty[-1] = 0.0 if self.intercept else 1.0
        return torch.linalg.solve(matrix + penalty.diag(), x.T @ (self.weights[kept, None] * self.targets[kept]))

    def predict(self, rows: Tensor, kept: Tensor | None = None) -> Tensor:
        found = self.coefficients(kept)
        return rows @ found[:-1] + found[-1]

    def without(self, *pictures: int) -> Tensor:
        """(N,) rows of the other pictures."""
        kept = torch.ones(self.pictures, dtype=torch.bool)
        kept[list(pictures)] = False
        return kept.repeat_interleave(self.width)

    def edited(self, **fields: Tensor) -> Refits:
        return replace(self, **fields)


def random(n: int, *, width: int = 1, intercept: bool = True, zeros: bool = False, seed: int = 0) -> Refits:
    """Twelve features of which the kernel has full meaning; uneven weights, some 0: whole pictures and single rows."""
    generator = torch.Generator().manual_seed(seed)
    size = n * width
    rows = torch.randn(size, 12, generator=generator, dtype=torch.float64)
    columns = 1 if width > 1 else 4
    targets = 1 + torch.randn(size, columns, generator=generator, dtype=torch.float64)
    weights = 0.2 + torch.rand(size, generator=generator, dtype=torch.float64)
    if zeros:
        weights[: 2 * width] = 0
        weights[4 * width] = 0
        weights[5 * width] = 1e-9
    return Refits(rows, targets, weights, intercept=intercept, width=width)


def new_rows(n: int, seed: int = 9) -> Tensor:
    return torch.randn(n, 12, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
