"""Linear layers, with or without sharing over positions."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from tangentune.jacobian.layers.entry import Entry
from tangentune.jacobian.layers.use import (
    FactorSample,
    Use,
    by_sample,
    matrix_factors,
    pairs_or_rows,
    roles,
    rule,
    vector_rows,
)


class LinearUse(Use):
    """`x W^T + b` with x (n, ..., i): positions are everything between sample and feature."""

    def __init__(self, x: Tensor, weight: Tensor, bias: Tensor | None):
        self.x, self.roles = x.detach(), roles(weight=weight, bias=bias)

    def _positions(self, x: Tensor, n: int) -> Tensor:
        return by_sample(x, n).reshape(n, -1, x.shape[-1])

    def rows(self, role: str, g: Tensor, n: int) -> Entry:
        """Weight: (g, x) per position; bias: the sum of g."""
        g = self._positions(g, n)
        return vector_rows(g.sum(1)) if role == "bias" else pairs_or_rows(self._positions(self.x, n), g)

    def matrix(self, role: str) -> tuple[int, int, int] | None:
        """One matrix for all positions."""
        return None if role == "bias" else (1, *self.roles[role].shape)  # type: ignore[return-value]

    def inputs(self, role: str, g: Tensor) -> Tensor:
        """Everything but the feature axis is a position, wherever the samples are."""
        return self.x.reshape(1, -1, self.x.shape[-1])

    def cotangents(self, role: str, g: Tensor) -> Tensor:
        """In the same order."""
        return g.reshape(1, -1, g.shape[-1])

    def factors(self, role: str, g: Tensor, n: int, positions: int) -> FactorSample | None:
        """Input and output second moments over positions."""
        if role == "bias":
            return None
        return matrix_factors(self._positions(self.x, n), self._positions(g, n), positions)


@rule(F.linear)
def linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Use:
    """Parse `torch.nn.functional.linear`."""
    return LinearUse(input, weight, bias)
