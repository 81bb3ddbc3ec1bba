"""Backward operators in terms of ordinary ones, for runtimes that only know how to go forwards.

torch has such terms for most (`core_aten_decompositions`); here are those of convolutions and of pooling.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from operator import getitem
from typing import Any

import torch
from torch import Tensor, fx
from torch._decomp import core_aten_decompositions
from torch.nn import functional as F

from tangentune.deployment.frames import Convolution, framed
from tangentune.errors import LayerError

aten: Any = torch.ops.aten
STEEP = 1e20  # what is positive and not rounding is above 1 after it


def plain_operators() -> dict[Any, Callable[..., Any]]:
    """The table for `make_fx`: torch's own, and what it lacks."""
    return core_aten_decompositions() | {
        aten.convolution_backward.default: convolution_backward,
        aten.threshold_backward.default: threshold_backward,
        aten.max_pool2d_with_indices_backward.default: max_pool_backward,
        aten.avg_pool2d_backward.default: average_pool_backward,
        aten._adaptive_avg_pool2d_backward.default: adaptive_pool_backward,
    }


def writes_over(node: fx.Node) -> bool:
    """Whether an operator changes one of its inputs."""
    return isinstance(node.target, torch._ops.OpOverload) and node.target._schema.is_mutable


def without_writing_over(graph: fx.Graph) -> None:
    """Operators like `div_` as `div`, where nothing else sees the value that they change."""
    for node in filter(writes_over, graph.nodes):
        name, overload = node.target._schema.name.removeprefix("aten::"), node.target._overloadname
        plain = getattr(getattr(aten, name.removesuffix("_"), None), overload, None)
        own = node.args[0]
        made = (own.args[0] if own.target is getitem else own).target  # one of several outputs, of a batch norm say
        fresh = isinstance(made, torch._ops.OpOverload) and not any(each.alias_info for each in made._schema.arguments)
        if plain is not None and name.endswith("_") and fresh and len(own.users) == 1:
            node.target = plain


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
    kernel, size, axes = weight.shape[2:], x.shape[2:], range(weight.dim() - 2)
    turned = weight.unflatten(0, (groups, -1)).transpose(1, 2).flatten(0, 1).flip(*range(2, weight.dim()))
    before = [dilation[axis] * (kernel[axis] - 1) - padding[axis] for axis in axes]
    whole = [size[axis] + dilation[axis] * (kernel[axis] - 1) for axis in axes]
    same = all(2 * side + s == w for side, s, w in zip(before, grad.shape[2:], whole, strict=True))
    if max(stride) == 1 and min(before) >= 0 and same:
        inner = before
    else:
        grad, inner = framed(grad, before, whole, stride), [0] * len(kernel)
    back = Convolution(kernel, [1] * len(kernel), inner, dilation, groups)
    return back(grad, turned, None, groups), None, None


def threshold_backward(grad: Tensor, result: Tensor, threshold: float) -> Tensor:
    """ReLU's: where the result is above."""
    return grad * positive(result - threshold if threshold else result)


def positive(x: Tensor, sign: int = 1) -> Tensor:
    """1 where a number, or for -1 its negative, is above 0; else 0.

    Without a choice for each number, which costs runtimes ten times as much.
    """
    return F.hardtanh(x * (sign * STEEP), 0, 1)


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
        rows = [[0.0] * length for _ in range(cells)]
        for j, row in enumerate(rows):
            first, last = j * length // cells, -(-(j + 1) * length // cells)
            row[first:last] = [1 / (last - first)] * (last - first)
        matrix = torch.tensor(rows, dtype=grad.dtype)
        grad = (grad.transpose(axis, -1) @ matrix).transpose(axis, -1)
    return grad
