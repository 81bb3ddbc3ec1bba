"""Linear layers, with or without sharing over positions, and embedding tables, which look their rows up."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from tangentune.jacobian.layers.entry import Entry, Rows
from tangentune.jacobian.layers.use import Use, by_sample, pairs_or_rows, roles, rule, thinned, vector_rows


class LinearUse(Use):
    """`x W^T + b` with x (n, ..., i): positions are everything between sample and feature."""

    def __init__(self, x: Tensor, weight: Tensor, bias: Tensor | None):
        self.held, self.roles = x.detach(), roles(weight=weight, bias=bias)

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


class EmbeddingUse(Use):
    """`table[index]`: a position adds its cotangent to the row it looked up, but for `padding_idx`, as in torch."""

    def __init__(self, index: Tensor, weight: Tensor, padding_idx: int | None):
        self.index, self.roles, self.padding_idx = index, roles(weight=weight), padding_idx

    def rows(self, role: str, g: Tensor, n: int) -> Entry:
        """Scatter-add of cotangents, (n, 1, 1, entries, width)."""
        table = self.roles["weight"]
        index = by_sample(self.index, n).reshape(n, -1)
        values = g.reshape(n, -1, table.shape[1])
        if self.padding_idx is not None:
            values = values.masked_fill((index == self.padding_idx % len(table))[..., None], 0)
        out = values.new_zeros(n, *table.shape).scatter_add_(1, index[..., None].expand_as(values), values)
        return Rows(out.reshape(n, 1, -1, 1, 1))


@rule(F.embedding)
def embedding(
    input: Tensor, weight: Tensor, padding_idx: int | None = None, max_norm: float | None = None,
    norm_type: float = 2.0, scale_grad_by_freq: bool = False, sparse: bool = False,
) -> Use | None:  # fmt: skip
    """Parse `embedding`; tables that are renormalised or frequency-scaled go to the generic rule."""
    if max_norm is not None or scale_grad_by_freq:
        return None
    return EmbeddingUse(input, weight, padding_idx)
