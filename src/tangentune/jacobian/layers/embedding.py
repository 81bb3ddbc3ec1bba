"""Embedding tables: each position adds its cotangent to the row it looked up."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from tangentune.jacobian.layers.entry import Entry, Rows
from tangentune.jacobian.layers.use import Use, by_sample, roles, rule


class EmbeddingUse(Use):
    """`table[index]`; `padding_idx` positions get no gradient, as in torch."""

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
    input: Tensor,
    weight: Tensor,
    padding_idx: int | None = None,
    max_norm: float | None = None,
    norm_type: float = 2.0,
    scale_grad_by_freq: bool = False,
    sparse: bool = False,
) -> Use | None:
    """Parse `embedding`; tables that are renormalised or frequency-scaled go to the generic rule."""
    if max_norm is not None or scale_grad_by_freq:
        return None
    return EmbeddingUse(input, weight, padding_idx)
