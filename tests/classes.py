"""A small classification problem of three classes with an explicit kernel, for tests of the probabilistic solvers."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

F64 = torch.float64


@dataclass(frozen=True)
class Problem:
    """Features of the pictures and of new ones, class positions of both, weights."""

    x: Tensor
    new: Tensor
    classes: Tensor
    new_classes: Tensor
    weights: Tensor

    @property
    def kernel(self) -> Tensor:
        """(n, n)."""
        return self.x @ self.x.T

    @property
    def cross(self) -> Tensor:
        """(m, n)."""
        return self.new @ self.x.T

    @property
    def own(self) -> Tensor:
        """(m,)."""
        return self.new.square().sum(1)


def three_classes(n: int = 30, width: int = 6, seed: int = 0, separation: float = 1.0) -> Problem:
    """Overlapping clouds, as many new pictures as old; counts of 1/2, 1/3 and 1/6."""
    generator = torch.Generator().manual_seed(seed)
    centres = separation * torch.randn(3, width, generator=generator, dtype=F64)
    classes = torch.tensor([0, 1, 0, 1, 0, 2]).repeat(n // 3 + 1)[: 2 * n]
    x = centres[classes] + torch.randn(2 * n, width, generator=generator, dtype=F64)
    weights = torch.rand(n, generator=generator, dtype=F64) * 2 + 0.3
    return Problem(x[:n], x[n:], classes[:n], classes[n:], weights)
