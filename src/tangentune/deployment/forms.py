"""Rows of one parameter as a file takes them: never all rows of a batch beside each other, and stock operators only.

A matrix's row is `sum over positions t of outer(g_t, a_t)`. All that is asked of it are its inner products with C fixed
matrices and its squared length in the metric, and for each of the two there is more than one way.

Products of batches are `torch.bmm`, and with one matrix `times`: `@` repeats a matrix for every picture where a graph
keeps the number of pictures open, and copies megabytes of weights at each prediction.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any, final

import torch
from torch import Tensor
from torch.nn import functional as F

from tangentune.kernels.metric import Whitening

MEMORY = 20  # multiply-adds in the time that a number takes to be written and read again
NARROW = 4  # as many times a multiply-add takes in a product with few columns


@final
@dataclass(frozen=True, eq=False)
class MatrixRow:
    """`g` (n, groups, T, o), and inputs at each place of a kernel (n, groups, T, i): a row (groups, o, i places)."""

    g: Tensor
    places: tuple[Tensor, ...]

    @property
    def sizes(self) -> tuple[int, int, int]:
        """Positions, outputs and inputs of a group."""
        return self.g.shape[2], self.g.shape[3], self.places[0].shape[3] * len(self.places)

    def explicit(self) -> Tensor:
        """(n, groups o i places); cost T groups o i places."""
        if self.g.shape[3] == 1 == self.places[0].shape[3]:  # a channel alone: no product of matrices
            parts = [(self.g * a).flatten(2).sum(2) for a in self.places]
        else:
            g, groups = self.g.flatten(0, 1).transpose(1, 2), self.g.shape[1]
            parts = [torch.bmm(g, a.flatten(0, 1)).unflatten(0, (-1, groups)) for a in self.places]
        return (parts[0] if len(parts) == 1 else torch.stack(parts, -1)).flatten(1)

    def inputs(self) -> Tensor:
        """(n, T, i places) of one without groups."""
        parts = [a[:, 0] for a in self.places]
        return parts[0] if len(parts) == 1 else torch.stack(parts, -1).flatten(2)

    def views_together(self, views: int) -> MatrixRow:
        """Of pictures seen several times, all of one view before the next: views are further positions."""

        def together(t: Tensor) -> Tensor:
            return t.unflatten(0, (views, -1)).permute(1, 2, 0, 3, 4).flatten(2, 3)

        return self if views == 1 else MatrixRow(together(self.g), tuple(map(together, self.places)))


Row = MatrixRow | Tensor  # a vector's is (n, k)


def whole_row(rows: Sequence[Row]) -> Tensor:
    """(n, width): the sum over a parameter's uses."""
    parts = [row.explicit() if isinstance(row, MatrixRow) else row for row in rows]
    return parts[0] if len(parts) == 1 else torch.stack(parts).sum(0)


def joined(rows: Sequence[Row]) -> MatrixRow | None:
    """Several uses of one matrix as one with more positions; None for anything else, and for groups."""
    found = [row for row in rows if isinstance(row, MatrixRow) and row.g.shape[1] == 1]
    if len(found) < len(rows):
        return None
    g, a = (torch.cat(parts, 1) if len(parts) > 1 else parts[0]
            for parts in ([row.g[:, 0] for row in found], [row.inputs() for row in found]))  # fmt: skip
    return MatrixRow(g[:, None], (a[:, None],))


def at_positions(row: MatrixRow, columns: int) -> bool:
    """Whether C inner products take less time by weights at every position than from the row itself."""
    positions = row.sizes[0]
    return columns * positions < positions + MEMORY + NARROW * columns


def position_products(row: MatrixRow, weights: Tensor) -> Tensor:
    """(n, C) inner products with `weights` (C, o i), the row never formed: `sum_t g_t^T W a_t`, wider side first."""
    _, outputs, inputs = row.sizes
    own, forward = weights.unflatten(1, (outputs, inputs)), outputs >= inputs
    wide, narrow = (row.g, row.places[0]) if forward else (row.places[0], row.g)
    side = own.permute(1, 2, 0) if forward else own.permute(2, 1, 0)  # (wide, narrow, C)
    spread = times(wide[:, 0], side.flatten(1))  # (n, T, narrow C)
    return torch.bmm(narrow[:, 0].flatten(1)[:, None], spread.flatten(1).unflatten(1, (-1, len(weights))))[:, 0]


def times(values: Tensor, matrix: Tensor) -> Tensor:
    """(n, T, k) times (k, m), as one product for all."""
    return (values.flatten(0, 1) @ matrix).unflatten(0, (-1, values.shape[1]))


def in_metric(row: MatrixRow, metric: Whitening) -> MatrixRow:
    """A matrix's row without groups in the few coordinates of its metric; cost T (o k + i l)."""
    g, a = times(row.g[:, 0], metric.left[0]), times(row.inputs(), metric.right[0])
    return MatrixRow(g[:, None], (a[:, None],))


def by_pairs(row: MatrixRow | None, metric: Whitening | None) -> bool:
    """Whether a squared length costs less from pairs of positions than from the row itself."""
    if row is None:
        return False
    positions, outputs, inputs = row.sizes
    if metric is None:
        return positions * (inputs + outputs) < inputs * outputs
    pairs = positions * (inputs**2 + outputs**2) + positions**2 * (inputs + outputs)
    return pairs < outputs * inputs * (outputs + inputs)


def pair_length(row: MatrixRow, metric: Whitening | None) -> Tensor:
    """(n,) `|L^T G^T A R|^2 = sum_st (A R R^T A^T)_st (G L L^T G^T)_st` with `A` (T, i) and `G` (T, o)."""
    a, g = row.places[0][:, 0], row.g[:, 0]
    if metric is not None:
        a, g = times(a, metric.right[0]), times(g, metric.left[0])
    return (torch.bmm(a, a.transpose(1, 2)) * torch.bmm(g, g.transpose(1, 2))).flatten(1).sum(1)


def row_length(whole: Tensor, metric: Whitening | None) -> Tensor:
    """(n,) squared length of explicit rows (n, width) in their metric."""
    if metric is None:
        return whole.square().sum(1)
    groups, outputs, inputs = len(metric.left), metric.left.shape[1], metric.right.shape[1]
    if outputs == 1 == inputs:
        return (whole * (metric.left * metric.right).flatten()).square().sum(1)
    blocks = whole.unflatten(1, (groups, outputs, inputs)).transpose(0, 1).flatten(1, 2)  # (groups, n o, i)
    turned = torch.bmm(blocks, metric.right).unflatten(1, (-1, outputs)).transpose(2, 3)  # (groups, n, l, o)
    if outputs == 1:
        return (turned[..., 0] * metric.left).square().sum((0, 2))
    return torch.bmm(turned.flatten(1, 2), metric.left).unflatten(1, (-1, turned.shape[2])).square().sum((0, 2, 3))


def folded(weights: Tensor, metric: Whitening | None) -> Tensor:
    """(C, width) weights of plain rows from those of rows in the metric: `<W, L^T P R> = <L W R^T, P>`."""
    if metric is None:
        return weights
    blocks = weights.unflatten(1, (len(metric.left), metric.left.shape[2], metric.right.shape[2]))
    return (metric.left @ blocks @ metric.right.transpose(1, 2)).flatten(1)


def kernel_places(
    x: Tensor, kernel: Sequence[int], stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int],
    size: Sequence[int],
) -> Iterator[Tensor]:  # fmt: skip
    """What each place of a kernel sees at every output position: views (N, C, *size) of the padded input."""
    around: list[Any] = [side for pad in reversed(padding) for side in (pad, pad)]
    x = F.pad(x, around) if any(around) else x
    for place in product(*map(range, kernel)):
        seen = x
        for axis, i in enumerate(place):
            start, step = i * dilation[axis], stride[axis]
            part = slice(start, start + step * (size[axis] - 1) + 1, step)
            if (part.start, part.stop, part.step) != (0, x.shape[2 + axis], 1):
                seen = seen[(slice(None),) * (2 + axis) + (part,)]
        yield seen
