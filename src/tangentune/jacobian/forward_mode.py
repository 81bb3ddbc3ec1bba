"""Forward mode beside an ordinary forward pass: every tensor may carry a tangent, and no tape records it.

`torch.func.jvp` records the tangent's own graph as soon as a gradient is wanted. The gradient of a linearised
network needs none: `d <e, J u> / du = J^T e` is an ordinary backward pass of the primal. So the primal keeps its
tape here and the tangent has none: one dual forward and one plain backward a step.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode

from tangentune._torch import Held
from tangentune.errors import LayerError
from tangentune.jacobian.layers.use import registry
from tangentune.networks.features import tensors_in
from tangentune.networks.leaky import leaky_relu6
from tangentune.networks.passes import PlainPointwise

# The tangent of a call's output from the call's own arguments; None: dual numbers, please.
RULES: dict[Any, Callable[..., Tensor | None]] = {}
rule = registry(RULES)
_IN_PLACE = ("__setitem__", "__iadd__", "__isub__", "__imul__", "__itruediv__", "__imatmul__")


def tangent_of(x: Tensor | None) -> Tensor | None:
    """The tangent that `x` carries, if any."""
    return getattr(x, "_tangentune", (None, None))[1]


def primal_of(x: Tensor) -> Tensor:
    """The tensor on autograd's tape that `x` stands for."""
    primal = getattr(x, "_tangentune", (None, None))[0]
    return x if primal is None else primal


def carry(x: Tensor, tangent: Tensor | None) -> Tensor:
    """Let `x` itself, a leaf, carry a tangent of its own shape."""
    x._tangentune = (None, tangent)  # type: ignore[attr-defined]
    return x


def _stand_in(primal: Tensor, tangent: Tensor | None) -> Tensor:
    """What the network gets to hold in place of a taped tensor.

    The tape keeps what functions were called with; the tangent goes as soon as the network lets go of the stand-in.
    """
    if tangent is None:
        return primal
    out = primal.detach()
    out._tangentune = (primal, tangent)  # type: ignore[attr-defined]
    return out


class ForwardMode(TorchFunctionMode):
    """While active, outputs of torch functions carry the tangents that follow from those of their inputs.

    Functions are watched, not modules, as in `Recorder`. A function without a rule of its own is run once more on dual
    numbers; where torch has no forward rule for it (LSTM), by two backward passes.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if all(tangent_of(t) is None for t in tensors_in(args, kwargs)):
            return func(*args, **kwargs)
        in_place = _in_place(func, kwargs)
        output = None if in_place else func(*_map(primal_of, args), **_map(primal_of, kwargs))
        if not in_place and not tensors_in(output):  # `x.shape` and the like
            return output
        with torch.no_grad():
            tangents = _tangents(func, args, kwargs)
        if not in_place:
            left = iter(tangents)
            return _map(lambda value: _stand_in(value, next(left)), output)
        changed = args[0]
        func(*_map(primal_of, args), **_map(primal_of, kwargs))
        changed._tangentune = (primal_of(changed), tangents[0])
        return None if func is torch.Tensor.__setitem__ else changed


# Attention by plain matrix products, the only kind with a forward rule; the former choice comes back after.
math_attention = Held(partial(sdpa_kernel, SDPBackend.MATH))


@contextmanager
def weight_gradients() -> Iterator[None]:
    """For forward passes whose parameters take gradients: what torch can differentiate, and does right."""
    with math_attention(), PlainPointwise():
        yield


def _tangents(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Tensor | None]:
    """Tangents of a call's tensor outputs, in order."""
    rule = RULES.get(func)
    if rule is not None:
        tangent = rule(*args, **kwargs)
        if tangent is not None:
            return [tangent]
    try:
        return _by_dual_numbers(func, args, kwargs)
    except (NotImplementedError, RuntimeError) as no_forward_rule:
        try:
            return _by_two_backwards(func, args, kwargs)
        except (NotImplementedError, RuntimeError):
            raise LayerError(
                f"the network calls {getattr(func, '__name__', func)}, which torch can differentiate neither forward "
                "nor twice backward; leave the parameters before it out with `params`, or use another layer"
            ) from no_forward_rule


@cache
def _load_formulas() -> None:
    """Let torch compile its forward formulas, which it does with a deprecated tool of its own: not ours to report."""
    with warnings.catch_warnings(), forward_ad.dual_level():
        warnings.simplefilter("ignore", DeprecationWarning)
        forward_ad.make_dual(torch.zeros(1), torch.ones(1)).tanh()


def _by_dual_numbers(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Tensor | None]:
    _load_formulas()
    in_place = _in_place(func, kwargs)

    def dual(t: Tensor) -> Tensor:
        primal = t.detach().clone() if in_place else t.detach()
        tangent = tangent_of(t)
        return primal if tangent is None else forward_ad.make_dual(primal, tangent.clone() if in_place else tangent)

    with forward_ad.dual_level():
        new_args, new_kwargs = _map(dual, args), _map(dual, kwargs)
        output = func(*new_args, **new_kwargs)
        if func is torch.Tensor.__setitem__:
            output = new_args[0]
        return [forward_ad.unpack_dual(t).tangent for t in tensors_in(output)]


def _by_two_backwards(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Tensor | None]:
    """`J t` as the gradient of `<J^T r, t>` in r: for functions that only know how to go backwards."""
    moving: list[Tensor] = []
    tangents: list[Tensor] = []

    def leaf(t: Tensor) -> Tensor:
        tangent = tangent_of(t)
        if tangent is None:
            return t.detach()
        moving.append(t.detach().clone().requires_grad_())
        tangents.append(tangent)
        return moving[-1]

    with torch.enable_grad():
        output = func(*_map(leaf, args), **_map(leaf, kwargs))
        values = tensors_in(output)
        found: list[Tensor | None] = [None] * len(values)
        for k, value in enumerate(values):
            if not value.requires_grad:
                continue
            cotangent = torch.zeros_like(value).requires_grad_()
            pulled = torch.autograd.grad(value, moving, cotangent, create_graph=True, allow_unused=True)
            used = [(p, t) for p, t in zip(pulled, tangents, strict=True) if p is not None and p.requires_grad]
            if used:
                inner = sum((p * t).sum() for p, t in used)
                found[k] = torch.autograd.grad(inner, cotangent, retain_graph=True)[0]  # type: ignore[arg-type]
    return [None if t is None else t.detach() for t in found]


def _in_place(func: Any, kwargs: dict[str, Any]) -> bool:
    name = getattr(func, "__name__", "")
    return (name.endswith("_") and not name.endswith("__")) or name in _IN_PLACE or bool(kwargs.get("inplace"))


def _map(function: Callable[[Tensor], Tensor], tree: Any) -> Any:
    """Apply to all tensors in nested tuples, lists and mappings."""
    if isinstance(tree, Tensor):
        return function(tree)
    if isinstance(tree, (tuple, list)):
        mapped = [_map(function, item) for item in tree]
        return type(tree)(*mapped) if hasattr(tree, "_fields") else type(tree)(mapped)
    if isinstance(tree, dict):
        return {key: _map(function, item) for key, item in tree.items()}
    return tree


# -- rules for the functions that take most of the time: each in as few passes over the data as it needs ---------------


def _bilinear(call: Callable[..., Tensor], x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor | None:
    """`call(dx, W) + call(x, dW) + db`, whichever are there; `call` takes input, weight and bias."""
    dx, dw, db = tangent_of(x), tangent_of(weight), tangent_of(bias)
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
    dx, dw, shift = tangent_of(input), tangent_of(weight), tangent_of(bias)
    slope = None if dw is None else dw * inverse
    if slope is not None:
        shift = -running_mean * slope if shift is None else shift - running_mean * slope
    if dx is None:
        if slope is None or shift is None:
            return None if shift is None else shift.view(shape).expand_as(input).clone()
        return torch.addcmul(shift.view(shape), input, slope.view(shape))
    scale = (inverse if weight is None else inverse * weight).view(shape)
    out = dx * scale if shift is None else torch.addcmul(shift.view(shape), dx, scale)
    return out if slope is None else out.addcmul_(input, slope.view(shape))


def _slope(backward: Callable[..., Tensor], x: Tensor, *settings: Any) -> Tensor | None:
    """An elementwise function's own backward, which multiplies by the derivative, on the tangent."""
    tangent = tangent_of(x)
    return None if tangent is None else backward(tangent, x, *settings)


@rule(F.relu, F.relu_, torch.relu, torch.relu_, torch.Tensor.relu, torch.Tensor.relu_)
def relu(input: Tensor, inplace: bool = False) -> Tensor | None:
    """ReLU; derivative 0 at exactly 0, as autograd has it."""
    return _slope(torch.ops.aten.threshold_backward, input, 0)


@rule(F.relu6)
def relu6(input: Tensor, inplace: bool = False) -> Tensor | None:
    """ReLU6."""
    return hardtanh(input, 0.0, 6.0)


@rule(F.hardtanh)
def hardtanh(input: Tensor, min_val: float = -1.0, max_val: float = 1.0, inplace: bool = False) -> Tensor | None:
    """A clamp; derivative 0 at its ends."""
    return _slope(torch.ops.aten.hardtanh_backward, input, min_val, max_val)


@rule(F.leaky_relu)
def leaky_relu(input: Tensor, negative_slope: float = 0.01, inplace: bool = False) -> Tensor | None:
    """Leaky ReLU."""
    return _slope(torch.ops.aten.leaky_relu_backward, input, negative_slope, False)


@rule(leaky_relu6)
def leaky_clamp(z: Tensor, slope: float, inplace: bool = False) -> Tensor | None:
    """ReLU6 with a leak on both sides."""
    tangent = tangent_of(z)
    return None if tangent is None else torch.ops.aten.hardtanh_backward(tangent, z, 0.0, 6.0).lerp_(tangent, slope)


def _without_padding(tangent: Tensor, padding_idx: int | None) -> Tensor:
    """A padding entry never moves: autograd gives it no gradient, so its column of J is zero."""
    if padding_idx is not None:
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

    table, scale = tangent_of(weight), tangent_of(per_sample_weights)
    out = None if table is None else call(_without_padding(table, padding_idx), per_sample_weights)
    if scale is not None:
        out = call(weight, scale) if out is None else out + call(weight, scale)
    return out
