"""Rows of one parameter as a file takes them: never all rows of a batch beside each other, and stock operators only.

A matrix's row is `sum over positions t of outer(g_t, a_t)`. All that is asked of it are its inner products with C fixed
matrices and its squared length in the metric, and for each of the two there is more than one way. Channels stay before
positions, as convolutions have them: a convolution with the metric's matrix as its kernel turns both sides.

Products of batches are `torch.bmm`, and with one matrix `times`: `@` repeats a matrix for every picture where a graph
keeps the number of pictures open, and copies megabytes of weights at each prediction.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from tangentune.deployment.frames import Convolution, frames
from tangentune.kernels.metric import Whitening

MEMORY = 20  # multiply-adds in the time that a number takes to be written and read again
BLOCK = 36  # rows of a matrix that small ones are put into
NARROW = 4  # as many times a multiply-add takes in a product with few columns


@final
@dataclass(frozen=True, eq=False)
class Positions:
    """`g` (n, o, T) and `a` (n, i, T): a row `sum_t outer(g_t, a_t)` of o i numbers."""

    g: Tensor
    a: Tensor

    def explicit(self) -> Tensor:
        """(n, o i); cost T o i."""
        return torch.bmm(self.g, self.a.transpose(1, 2)).flatten(1)

    @property
    def sizes(self) -> tuple[int, int, int]:
        """Positions, outputs and inputs."""
        return self.g.shape[2], self.g.shape[1], self.a.shape[1]


@final
@dataclass(frozen=True, eq=False)
class LinearRow:
    """Of a linear layer: cotangents (n, T, o) and inputs (n, T, i)."""

    g: Tensor
    x: Tensor

    def positions(self, metric: Whitening | None) -> Positions:
        """Both sides, in the metric; cost T (o k + i l)."""
        g, a = self.g, self.x
        if metric is not None:
            g, a = times(g, metric.left[0]), times(a, metric.right[0])
        return Positions(g.transpose(1, 2), a.transpose(1, 2))


@final
@dataclass(frozen=True, eq=False)
class ConvolutionRow:
    """Of a convolution's kernel; `together` brings (N, c, T) of N = n repeats to (n, c, positions)."""

    g: Tensor  # (N, o, *out)
    x: Tensor  # (N, i, *in)
    way: Convolution
    together: Callable[[Tensor], Tensor]
    repeats: int

    def positions(self, metric: Whitening | None) -> Positions | None:
        """Both sides, in the metric; None for groups, and for larger kernels without a metric."""
        if self.way.groups > 1:
            return None
        if metric is None:
            if max(self.way.kernel) > 1:
                return None
            seen = frames(self.g, self.x, self.way)
            return Positions(self.together(seen.g), self.together(seen.places()[0]))
        return Positions(*map(self.together, (self._outputs(metric), self._inputs(metric))))

    def _outputs(self, metric: Whitening) -> Tensor:
        """`left^T g` (N, k, T), as a convolution: products of a matrix with a batch would copy the matrix."""
        ones = [1] * len(self.way.kernel)
        once = Convolution(ones, ones, [0] * len(ones), ones, 1)
        return once(self.g, metric.left[0].T.reshape(*metric.left.shape[:0:-1], *ones)).flatten(2)

    def _inputs(self, metric: Whitening) -> Tensor:
        """`right^T a` (N, l, T): another convolution of the input, no place of the kernel is ever copied."""
        return self.way(self.x, metric.right[0].T.unflatten(1, (-1, *self.way.kernel))).flatten(2)

    def one_side_first(self, metric: Whitening) -> Tensor | None:
        """(n, k l) from positions of which only one side is in the metric, the other turned after their sum.

        None where both sides take fewer multiply-adds, `T (o k + i l + k l)`, than the inputs and then the outputs,
        `T (i + o) l + o k l`.
        """
        g, outputs, inputs = self.g.flatten(2), metric.left.shape[1], metric.right.shape[1]
        few_outputs, few_inputs, positions = metric.left.shape[2], metric.right.shape[2], self.repeats * g.shape[2]
        both = outputs * wide(few_outputs) + inputs * wide(few_inputs) + few_outputs * wide(few_inputs)
        rest = outputs * few_outputs * few_inputs, inputs * few_outputs * few_inputs
        by_inputs = positions * (inputs + outputs) * wide(few_inputs) + rest[0]
        by_outputs = positions * (inputs + outputs) * wide(few_outputs) + rest[1]
        plain = all(side == 1 for side in (*self.way.kernel, *self.way.stride))
        if by_inputs < positions * both and (by_inputs < by_outputs or not plain):
            product = self._summed(torch.bmm(self._inputs(metric), g.transpose(1, 2)).flatten(1))
            return times(product.unflatten(1, (few_inputs, outputs)), metric.left[0]).transpose(1, 2).flatten(1)
        if plain and by_outputs < positions * both:
            product = self._summed(torch.bmm(self._outputs(metric), self.x.flatten(2).transpose(1, 2)).flatten(1))
            return times(product.unflatten(1, (few_outputs, inputs)), metric.right[0]).flatten(1)
        return None

    def explicit(self) -> Tensor:
        """(n, groups o i places); cost T groups o i places."""
        seen, groups = frames(self.g, self.x, self.way), self.way.groups
        g = seen.g
        if groups == g.shape[1] == seen.x.shape[1]:  # a channel alone: no product of matrices
            return self._summed(seen.by_channel().flatten(1))
        a = torch.stack(seen.places(), 2).flatten(1, 2)
        if groups == 1:
            return Positions(self.together(g), self.together(a)).explicit()
        g, a = (t.reshape(-1, t.shape[1] // groups, t.shape[2]) for t in (g, a))
        return self._summed(Positions(g, a).explicit().unflatten(0, (-1, groups)).flatten(1))

    def _summed(self, whole: Tensor) -> Tensor:
        whole = self.together(whole.unsqueeze(2))
        return whole.sum(2) if whole.shape[2] > 1 else whole.squeeze(2)


MatrixRow = LinearRow | ConvolutionRow
Row = MatrixRow | Tensor  # a vector's is (n, k)


def whole_row(rows: Sequence[Row]) -> Tensor:
    """(n, width): the sum over a parameter's uses."""
    parts = list[Tensor]()
    for row in rows:
        if isinstance(row, Tensor):
            parts.append(row)
        else:
            parts.append(row.explicit() if isinstance(row, ConvolutionRow) else row.positions(None).explicit())
    return parts[0] if len(parts) == 1 else torch.stack(parts).sum(0)


def joined(rows: Sequence[Row], metric: Whitening | None) -> Positions | None:
    """Several uses of one matrix as one with more positions, in the metric; None where a row is made otherwise."""
    found = [None if isinstance(row, Tensor) else row.positions(metric) for row in rows]
    known = [one for one in found if one is not None]
    if len(known) < len(rows):
        return None
    if len(known) == 1:
        return known[0]
    return Positions(torch.cat([one.g for one in known], 2), torch.cat([one.a for one in known], 2))


def at_positions(row: Positions, columns: int) -> bool:
    """Whether C inner products take less time by weights at every position than from the row itself."""
    positions = row.sizes[0]
    return columns * positions < positions + MEMORY + NARROW * columns


def position_products(row: Positions, weights: Tensor) -> Tensor:
    """(n, C) inner products with `weights` (C, o i), the row never formed: `sum_t g_t^T W a_t`, wider side first."""
    _, outputs, inputs = row.sizes
    own, forward = weights.unflatten(1, (outputs, inputs)), outputs >= inputs
    wide, narrow = (row.g, row.a) if forward else (row.a, row.g)
    side = own.permute(1, 2, 0) if forward else own.permute(2, 1, 0)  # (wide, narrow, C)
    spread = times(wide.transpose(1, 2), side.flatten(1))  # (n, T, narrow C)
    narrow = narrow.transpose(1, 2).flatten(1)[:, None]
    return torch.bmm(narrow, spread.flatten(1).unflatten(1, (-1, len(weights))))[:, 0]


def wide(columns: int) -> int:
    """What a product with few columns takes, as if it had more."""
    return max(columns, 16)


def times(values: Tensor, matrix: Tensor) -> Tensor:
    """(n, T, k) times (k, m), as one product for all."""
    return (values.flatten(0, 1) @ matrix).unflatten(0, (-1, values.shape[1]))


def by_pairs(row: Positions) -> bool:
    """Whether a squared length costs less from pairs of positions than from the row itself."""
    positions, outputs, inputs = row.sizes
    return positions * (inputs + outputs) < inputs * outputs


def pair_length(row: Positions) -> Tensor:
    """(n,) `|G A^T|^2 = sum_st (A^T A)_st (G^T G)_st` with `A` (i, T) and `G` (o, T)."""
    a, g = row.a, row.g
    return (torch.bmm(a.transpose(1, 2), a) * torch.bmm(g.transpose(1, 2), g)).flatten(1).sum(1)


def row_length(whole: Tensor, metric: Whitening | None) -> Tensor:
    """(n,) squared length of explicit rows (n, width) in their metric."""
    if metric is None:
        return squared(whole).sum(1)
    groups, outputs, inputs = len(metric.left), metric.left.shape[1], metric.right.shape[1]
    if outputs == 1 == inputs:
        return squared(whole * (metric.left * metric.right).flatten()).sum(1)
    if outputs == 1:
        turned = torch.bmm(whole.unflatten(1, (groups, inputs)).transpose(0, 1), metric.right)
        return squared(turned * metric.left).sum((0, 2))
    blocks = whole.unflatten(1, (groups, outputs, inputs)).transpose(0, 1).flatten(1, 2)  # (groups, n o, i)
    turned = torch.bmm(blocks, metric.right).unflatten(1, (-1, outputs)).transpose(2, 3)  # (groups, n, l, o)
    return squared(torch.bmm(turned.flatten(1, 2), metric.left).unflatten(1, (-1, turned.shape[2]))).sum((0, 2, 3))


def side_by_side(metric: Whitening) -> Whitening:
    """A metric of many small groups with one output each as one of fewer, each with several of them on its diagonal:
    a product of matrices takes as long as thousands of multiply-adds, however small.
    """
    groups, outputs, inputs = len(metric.left), metric.left.shape[1], metric.right.shape[1]
    together = next(count for count in range(max(1, BLOCK // inputs), 0, -1) if groups % count == 0)
    if outputs > 1 or inputs == 1 or together == 1:
        return metric
    parts = (metric.left * metric.right).reshape(-1, together, inputs, 1, metric.right.shape[2])
    right = (parts * torch.eye(together).to(parts)[:, None, :, None]).reshape(groups // together, together * inputs, -1)
    return Whitening(right.new_ones(len(right), 1, 1), right)


def squared(values: Tensor) -> Tensor:
    """As a product: runtimes take powers one number at a time."""
    return values * values


def folded(weights: Tensor, metric: Whitening | None) -> Tensor:
    """(C, width) weights of plain rows from those of rows in the metric: `<W, L^T P R> = <L W R^T, P>`."""
    if metric is None:
        return weights
    blocks = weights.unflatten(1, (len(metric.left), metric.left.shape[2], metric.right.shape[2]))
    return (metric.left @ blocks @ metric.right.transpose(1, 2)).flatten(1)
