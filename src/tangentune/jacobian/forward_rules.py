"""Tangents of the functions that take most of the time: each in as few passes over the data as it needs.

A rule takes the call's own arguments and returns the tangent of its output, or None: dual numbers, please.
All other functions are differentiated by torch itself (`forward_mode`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from tangentune.jacobian.forward_mode import RULES, Rule, tangent_of
from tangentune.networks.leaky import leaky_relu6


def rule(*functions: Any) -> Callable[[Rule], Rule]:
    """Register a rule for some functions, which share a signature."""

    def register(given: Rule) -> Rule:
        for function in functions:
            RULES[function] = given
        return given

    return register


def _bilinear(call: Callable[..., Tensor], x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor | None:
    """`call(dx, W) + call(x, dW) + db`, whichever are there; `call` takes input, weight and bias."""
    dx, dw, db = tangent_of(x), tangent_of(weight), None if bias is None else tangent_of(bias)
    if dw is None:
        return None if dx is None else call(dx, weight, db)
    through = call(x, dw, db)
    return through if dx is None else through.add_(call(dx, weight, None))


@rule(F.linear)
def linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor | None:
    """Linear layers."""
    return _bilinear(F.linear, input, weight, bias)


@rule(F.conv2d, F.conv1d)
def conv(
    input: Tensor, weight: Tensor, bias: Tensor | None = None, stride: Any = 1, padding: Any = 0,
    dilation: Any = 1, groups: int = 1,
) -> Tensor | None:  # fmt: skip
    """Convolutions with any stride, padding, dilation and groups."""
    function = F.conv2d if weight.dim() == 4 else F.conv1d

    def call(x: Tensor, w: Tensor, b: Tensor | None) -> Tensor:
        return function(x, w, b, stride, padding, dilation, groups)

    return _bilinear(call, input, weight, bias)


@rule(F.batch_norm)
def batch_norm(
    input: Tensor, running_mean: Tensor | None, running_var: Tensor | None, weight: Tensor | None = None,
    bias: Tensor | None = None, training: bool = False, momentum: float = 0.1, eps: float = 1e-5,
) -> Tensor | None:  # fmt: skip
    """BatchNorm with fixed statistics: one multiply-add for the input, one for scale and shift."""
    if training or running_mean is None or running_var is None:
        return None
    shape = (-1, *[1] * (input.dim() - 2))
    inverse = (running_var + eps).rsqrt()
    dx = tangent_of(input)
    dw = None if weight is None else tangent_of(weight)
    db = None if bias is None else tangent_of(bias)
    shift = db
    slope = None if dw is None else dw * inverse
    if slope is not None:
        shift = -running_mean * slope if db is None else db - running_mean * slope
    if dx is None:
        if slope is None or shift is None:
            return None if shift is None else shift.view(shape).expand_as(input).clone()
        return torch.addcmul(shift.view(shape), input, slope.view(shape))
    scale = (inverse if weight is None else inverse * weight).view(shape)
    out = dx * scale if shift is None else torch.addcmul(shift.view(shape), dx, scale)
    return out if slope is None else out.addcmul_(input, slope.view(shape))


@rule(F.relu, F.relu_, torch.relu, torch.relu_, torch.Tensor.relu, torch.Tensor.relu_)
def relu(input: Tensor, inplace: bool = False) -> Tensor | None:
    """ReLU; derivative 0 at exactly 0, as autograd has it."""
    tangent = tangent_of(input)
    return None if tangent is None else torch.ops.aten.threshold_backward(tangent, input, 0)


@rule(F.relu6)
def relu6(input: Tensor, inplace: bool = False) -> Tensor | None:
    """ReLU6."""
    return hardtanh(input, 0.0, 6.0)


@rule(F.hardtanh)
def hardtanh(input: Tensor, min_val: float = -1.0, max_val: float = 1.0, inplace: bool = False) -> Tensor | None:
    """A clamp; derivative 0 at its ends."""
    tangent = tangent_of(input)
    return None if tangent is None else torch.ops.aten.hardtanh_backward(tangent, input, min_val, max_val)


@rule(F.leaky_relu)
def leaky_relu(input: Tensor, negative_slope: float = 0.01, inplace: bool = False) -> Tensor | None:
    """Leaky ReLU."""
    tangent = tangent_of(input)
    return None if tangent is None else torch.ops.aten.leaky_relu_backward(tangent, input, negative_slope, False)


def _without_padding(tangent: Tensor, padding_idx: int | None) -> Tensor:
    """A padding entry never moves: autograd gives it no gradient, so its column of J is zero."""
    if padding_idx is None:
        return tangent
    tangent = tangent.clone()
    tangent[padding_idx] = 0
    return tangent


@rule(F.embedding)
def embedding(
    input: Tensor, weight: Tensor, padding_idx: int | None = None, max_norm: float | None = None, *_: Any, **__: Any
) -> Tensor | None:
    """Looked-up rows of a table."""
    tangent = tangent_of(weight)
    if tangent is None or max_norm is not None:
        return None
    return F.embedding(input, _without_padding(tangent, padding_idx))


@rule(F.embedding_bag)
def embedding_bag(
    input: Tensor, weight: Tensor, offsets: Tensor | None = None, max_norm: float | None = None, norm_type: float = 2,
    scale_grad_by_freq: bool = False, mode: str = "mean", sparse: bool = False,
    per_sample_weights: Tensor | None = None, include_last_offset: bool = False, padding_idx: int | None = None,
) -> Tensor | None:  # fmt: skip
    """Sums and means of looked-up rows, linear in the table and in the sample weights; torch has no forward mode."""
    if mode == "max" or max_norm is not None:
        return None

    def call(table: Tensor, weights: Tensor | None) -> Tensor:
        settings = {"mode": mode, "include_last_offset": include_last_offset, "padding_idx": padding_idx}
        return F.embedding_bag(input, table, offsets, per_sample_weights=weights, **settings)

    table = tangent_of(weight)
    scale = None if per_sample_weights is None else tangent_of(per_sample_weights)
    out = None if table is None else call(_without_padding(table, padding_idx), per_sample_weights)
    if scale is not None:
        out = call(weight, scale) if out is None else out + call(weight, scale)
    return out


@rule(leaky_relu6)
def leaky_clamp(z: Tensor, slope: float, inplace: bool = False) -> Tensor | None:
    """ReLU6 with a leak on both sides."""
    tangent = tangent_of(z)
    return None if tangent is None else torch.ops.aten.hardtanh_backward(tangent, z, 0.0, 6.0).lerp_(tangent, slope)
