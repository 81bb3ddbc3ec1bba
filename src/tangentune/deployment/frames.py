"""Values put into a larger frame of zeros, and what each place of a kernel sees, without gathering single numbers.

A runtime moves a number in the time of some forty multiply-adds, and more where it moves few beside each other. So
columns, of which rows have few, are moved by a product with a matrix of zeros and ones, rows as a whole; and a place of
a kernel is one stretch of the flat frame: where output q stands at `s q` of a frame of zeros as wide as the padded
input, place k sees the input `k . (width, 1)` further, for all outputs alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
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


def convolution(
    weight: Tensor, stride: Any = 1, padding: Any = 0, dilation: Any = 1, groups: int = 1
) -> Convolution:
    """Settings as torch writes them: for each axis one number, or a list of one or of all."""
    axes = weight.dim() - 2
    lists = [[value] if isinstance(value, int) else list(value) for value in (stride, padding, dilation)]
    each = [values * axes if len(values) == 1 else values for values in lists]
    return Convolution(list(weight.shape[2:]), *each, groups)


def framed(t: Tensor, before: Sequence[int], size: Sequence[int], step: Sequence[int]) -> Tensor:
    """(N, C, H, W) in zeros of another size: entry (i, j) at `before + step (i, j)`; rows beyond are cut off."""
    height, width = t.shape[2:]
    if (before[1], size[1], step[1]) != (0, width, 1):
        if step[1] == 1 and width > FEW:
            t = F.pad(t, (before[1], size[1] - before[1] - width))
        else:
            places = [[float(j == before[1] + step[1] * i) for j in range(size[1])] for i in range(width)]
            moved = t.flatten(0, 2) @ torch.tensor(places, dtype=t.dtype)
            t = moved.unflatten(0, (-1, t.shape[1], height))
    if step[0] > 1:
        t = F.pad(t.unsqueeze(3), (0, 0, 0, step[0] - 1)).flatten(2, 3)
    after = size[0] - before[0] - height * step[0]
    if not (before[0] or after):
        return t
    return F.pad(t.flatten(2), (before[0] * size[1], after * size[1])).unflatten(2, (size[0], size[1]))


def seen(g: Tensor, x: Tensor, way: Convolution) -> tuple[Tensor, list[Tensor]]:
    """A convolution's output cotangent (N, o, *out) as (N, o, T), and for each place of its kernel the input (N, i, T)
    that meets it; positions of a frame, most of whose cotangents may be 0.
    """
    kernel, stride, padding, dilation = way.kernel, way.stride, way.padding, way.dilation
    if len(kernel) == 1:
        g, x = g.unsqueeze(2), x.unsqueeze(2)
        kernel, stride, padding, dilation = (1, *kernel), (1, *stride), (0, *padding), (1, *dilation)
    height, width = (side + 2 * pad for side, pad in zip(x.shape[2:], padding, strict=True))
    rows = g.shape[2] * stride[0]
    last = (kernel[0] - 1) * dilation[0] * width + (kernel[1] - 1) * dilation[1]
    height = max(height, -(-(last + rows * width) // width))  # so that every stretch ends inside
    flat = framed(x, padding, (height, width), (1, 1)).flatten(2)
    places = product(*map(range, kernel))
    starts = [i * dilation[0] * width + j * dilation[1] for i, j in places]
    return framed(g, (0, 0), (rows, width), stride).flatten(2), [
        flat if flat.shape[2] == rows * width else flat.narrow(2, start, rows * width) for start in starts
    ]
