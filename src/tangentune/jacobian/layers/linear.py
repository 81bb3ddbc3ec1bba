"""Linear layers, with or without sharing over positions."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from tangentune.jacobian.layers.entry import Entry
from tangentune.jacobian.layers.use import Use, by_sample, pairs_or_rows, roles, rule, thinned, vector_rows


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

    def inputs(self, role: str, g: Tensor, n: int, most: int | None = None) -> Tensor:
        """Everything but the feature axis is a position."""
        return self._stacked(self.x, n, most)

    def cotangents(self, role: str, g: Tensor, n: int, most: int | None = None) -> Tensor:
        """In the same order."""
        return self._stacked(g, n, most)

    def _stacked(self, x: Tensor, n: int, most: int | None) -> Tensor:
        """All positions wherever the samples are, or some of each sample."""
        return x.reshape(1, -1, x.shape[-1]) if most is None else thinned(self._positions(x, n), most)


@rule(F.linear)
def linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Use:
    """Parse `torch.nn.functional.linear`."""
    return LinearUse(input, weight, bias)
