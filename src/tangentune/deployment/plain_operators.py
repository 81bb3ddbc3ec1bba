"""Backward operators in terms of ordinary ones, for runtimes that only know how to go forwards.

torch has such terms for most (`core_aten_decompositions`); here are those of convolutions and of pooling.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._decomp import core_aten_decompositions
from torch.nn import functional as F

from tangentune.errors import LayerError

aten: Any = torch.ops.aten


def plain_operators() -> dict[Any, Callable[..., Any]]:
    """The table for `make_fx`: torch's own, and what it lacks."""
    return core_aten_decompositions() | {
        aten.convolution_backward.default: convolution_backward,
        aten.max_pool2d_with_indices_backward.default: max_pool_backward,
        aten.avg_pool2d_backward.default: average_pool_backward,
        aten._adaptive_avg_pool2d_backward.default: adaptive_pool_backward,
    }


def convolution_backward(
    grad: Tensor, x: Tensor, weight: Tensor, _bias: Any, stride: Sequence[int], padding: Sequence[int],
    dilation: Sequence[int], transposed: bool, _output_padding: Any, groups: int, mask: Sequence[bool],
) -> tuple[Tensor, None, None]:  # fmt: skip
    """The input's gradient of a convolution, as a convolution with the kernel turned round.

    Input pixel p sees output pixel q through place k where `s q + d k - pad = p`: so q runs over the gradient spread
    out by the step s, zeros between, and -k over the kernel, with `d (K - 1) - pad` zeros around.
    """
    if transposed or mask[1] or mask[2]:
        raise LayerError("exported files have no rule for transposed convolutions; use another network")
    kernel, size = weight.shape[2:], x.shape[2:]
    for axis, step in enumerate(stride):
        if step > 1:
            grad = _spread(grad, 2 + axis, step)
    around: list[int] = []
    for axis in reversed(range(len(kernel))):
        before = dilation[axis] * (kernel[axis] - 1) - padding[axis]
        after = size[axis] - grad.shape[2 + axis] + dilation[axis] * (kernel[axis] - 1) - before
        around += [before, after]
    turned = weight.unflatten(0, (groups, -1)).transpose(1, 2).flatten(0, 1).flip(*range(2, weight.dim()))
    sides = {(before, after) for before, after in zip(around[::2], around[1::2], strict=True)}
    if all(before == after >= 0 for before, after in sides):
        inner = around[::-2]
    else:
        grad, inner = F.pad(grad, around), [0] * len(kernel)
    ones = [1] * len(kernel)
    return (
        aten.convolution.default(grad, turned, None, ones, inner, dilation, False, [0] * len(kernel), groups),
        None,
        None,
    )


def _spread(grad: Tensor, axis: int, step: int) -> Tensor:
    """Entries `step` apart along an axis, zeros between: (.., L, ..) -> (.., step (L - 1) + 1, ..)."""
    length = grad.shape[axis]
    spread = torch.stack([grad, *[torch.zeros_like(grad)] * (step - 1)], axis + 1).flatten(axis, axis + 1)
    return spread.narrow(axis, 0, step * (length - 1) + 1)


def max_pool_backward(
    grad: Tensor,
    x: Tensor,
    _kernel: Any,
    _stride: Any,
    _padding: Any,
    _dilation: Any,
    _ceil_mode: bool,
    indices: Tensor,
) -> Tensor:
    """Each output's gradient goes to the pixel that was largest."""
    zeros = torch.zeros_like(x).flatten(2)
    return zeros.scatter_add(2, indices.flatten(2), grad.flatten(2)).reshape(x.shape)


def average_pool_backward(
    grad: Tensor, x: Tensor, kernel: Sequence[int], stride: Sequence[int], padding: Sequence[int], ceil_mode: bool,
    count_include_pad: bool, divisor: int | None,
) -> Tensor:  # fmt: skip
    """A convolution's, with a kernel of equal entries for each channel."""
    whole = kernel[0] * kernel[-1] if divisor is None else divisor
    if ceil_mode or not (count_include_pad or divisor or not any(padding)):
        raise LayerError(
            "exported files have no rule for average pooling that rounds its size up or leaves its padding out"
        )
    weight = x.new_full((x.shape[1], 1, kernel[0], kernel[-1]), 1 / whole)
    step, around = ([value[0], value[-1]] for value in (stride or kernel, padding))
    mask = (True, False, False)
    return convolution_backward(grad, x, weight, None, step, around, [1, 1], False, None, x.shape[1], mask)[0]


def adaptive_pool_backward(grad: Tensor, x: Tensor) -> Tensor:
    """Adaptive pooling is a matrix along each axis: row j is the mean over `floor(j L / m) ... ceil((j + 1) L / m)`."""
    for axis in (2, 3):
        length, cells = x.shape[axis], grad.shape[axis]
        matrix = torch.zeros(cells, length, dtype=grad.dtype)
        for j in range(cells):
            first, last = j * length // cells, -(-(j + 1) * length // cells)
            matrix[j, first:last] = 1 / (last - first)
        grad = (grad.transpose(axis, -1) @ matrix).transpose(axis, -1)
    return grad
