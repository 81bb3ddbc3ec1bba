"""Values put into a larger frame of zeros, and what each place of a kernel sees, without gathering single numbers.

A runtime moves a number in the time of some forty multiply-adds, and more where it moves few beside each other. So
columns, of which rows have few, are moved by a product with a matrix of zeros and ones, rows as a whole; and a place of
a kernel is one stretch of the flat frame: where output q stands at `s q` of a frame of zeros as wide as the padded
input, place k sees the input `k . (width, 1)` further, for all outputs alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor
from torch.nn import functional as F

FEW = 24  # columns that a product moves faster than a copy row by row


@final
@dataclass(frozen=True)
class Convolution:
    """Settings of a convolution in one or two dimensions."""

    kernel: Sequence[int]
    stride: Sequence[int]
    padding: Sequence[int]
    dilation: Sequence[int]
    groups: int

    def __call__(self, x: Tensor, weight: Tensor, bias: Tensor | None = None, groups: int = 1) -> Tensor:
        """With another weight."""
        none = [0] * len(self.kernel)
        return torch.ops.aten.convolution.default(
            x, weight, bias, self.stride, self.padding, self.dilation, False, none, groups
        )


def convolution(weight: Tensor, stride: Any = 1, padding: Any = 0, dilation: Any = 1, groups: int = 1) -> Convolution:
    """Settings as torch writes them: for each axis one number, or a list of one or of all."""
    axes = weight.dim() - 2
    lists = [[value] if isinstance(value, int) else list(value) for value in (stride, padding, dilation)]
    steps, around, apart = (values * axes if len(values) == 1 else values for values in lists)
    return Convolution(list(weight.shape[2:]), steps, around, apart, groups)


def framed(t: Tensor, before: Sequence[int], size: Sequence[int], step: Sequence[int]) -> Tensor:
    """(N, C, H, W) in zeros of another size: entry (i, j) at `before + step (i, j)`; rows beyond are cut off."""
    (height, width), wide = t.shape[2:], size[1] * step[0]  # a row with the rows of zeros that follow it
    if (before[1], wide, step[1]) != (0, width, 1):
        if max(step) == 1 and width > FEW:
            t = F.pad(t, (before[1], wide - before[1] - width))
        else:
            places = [[float(j == before[1] + step[1] * i) for j in range(wide)] for i in range(width)]
            t = (t.flatten(0, 2) @ torch.tensor(places, dtype=t.dtype)).unflatten(0, (-1, t.shape[1], height))
    after = size[0] - before[0] - height * step[0]
    if before[0] or after:
        t = F.pad(t.flatten(2), (before[0] * size[1], after * size[1]))
    return t.reshape(-1, t.shape[1], *size)


@final
@dataclass(frozen=True, eq=False)
class Frames:
    """The output cotangent `g` (N, o, T) and the padded input `x` (N, i, longer) of a convolution as flat frames of
    one width; row r and column c of the kernel see `x` from `rows[r] + columns[c]` on.
    """

    g: Tensor
    x: Tensor
    rows: list[int]
    columns: list[int]

    def places(self) -> list[Tensor]:
        """What each place of the kernel sees, (N, i, T)."""
        length = self.g.shape[2]
        if self.x.shape[2] == length:
            return [self.x]
        return [self.x.narrow(2, row + column, length) for row in self.rows for column in self.columns]

    def by_channel(self) -> Tensor:
        """(N, C, places) of `sum_t g_t x_(t + row + column)`, a channel alone: g moved by columns, x by rows."""
        last = self.columns[-1]
        g = F.pad(self.g, (last, last)) if last else self.g
        length = self.g.shape[2] + last
        moved = [g.narrow(2, last - column, length) if last else g for column in self.columns]
        seen = [self.x.narrow(2, row, length) for row in self.rows]
        whole = torch.cat([(a * b).sum(2) for a in seen for b in moved], 1)
        return whole.unflatten(1, (len(seen) * len(moved), -1)).transpose(1, 2)


def frames(g: Tensor, x: Tensor, way: Convolution) -> Frames:
    """Frames of the output cotangent (N, o, *out) and the input (N, i, *in) of a convolution."""
    kernel, stride, padding, dilation = way.kernel, way.stride, way.padding, way.dilation
    if len(kernel) == 1:
        g, x = g.unsqueeze(2), x.unsqueeze(2)
        kernel, stride, padding, dilation = (1, *kernel), (1, *stride), (0, *padding), (1, *dilation)
    height, width = (side + 2 * pad for side, pad in zip(x.shape[2:], padding, strict=True))
    rows, columns = ([i * step * far for i in range(count)]
                     for count, step, far in zip(kernel, dilation, (width, 1), strict=True))  # fmt: skip
    taken = g.shape[2] * stride[0]
    height = max(height, -(-(rows[-1] + columns[-1]) // width) + taken)  # so that the last place ends inside
    return Frames(
        framed(g, (0, 0), (taken, width), stride).flatten(2),
        framed(x, padding, (height, width), (1, 1)).flatten(2), rows, columns,
    )  # fmt: skip
