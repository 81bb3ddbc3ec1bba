"""Forward mode beside an ordinary forward pass: every tensor may carry a tangent, and no tape records it.

`torch.func.jvp` records the tangent's own graph as soon as a gradient is wanted. The gradient of a linearised
network needs none: `d <e, J u> / du = J^T e` is an ordinary backward pass of the primal. So the primal keeps its
tape here and the tangent has none: one dual forward and one plain backward a step.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode

from tangentune.errors import LayerError
from tangentune.networks.features import tensors_in

Rule = Callable[..., Tensor | None]
RULES: dict[Any, Rule] = {}  # of forward_rules: the tangent of a call, from its tangents and its own arguments
_IN_PLACE = ("__setitem__", "__iadd__", "__isub__", "__imul__", "__itruediv__", "__imatmul__")


def tangent_of(x: Tensor) -> Tensor | None:
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

    Functions are watched, not modules, as in `Recorder`. A function without a rule of its own is run once more
    on dual numbers; where torch has no forward rule for it (LSTM, embedding bags), by two backward passes.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Call `func` and let its outputs carry their tangents."""
        kwargs = kwargs or {}
        if all(tangent_of(t) is None for t in tensors_in((args, kwargs))):
            return func(*args, **kwargs)
        in_place = _in_place(func, kwargs)
        output = None if in_place else func(*_map(primal_of, args), **_map(primal_of, kwargs))
        if not in_place and not any(True for _ in tensors_in(output)):  # `x.shape` and the like
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


@contextmanager
def math_attention() -> Iterator[None]:
    """Attention by plain matrix products, the only kind with a forward rule; the former choice comes back after."""
    with sdpa_kernel(SDPBackend.MATH):
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
            message = (
                f"the network calls {getattr(func, '__name__', func)}, which torch can differentiate neither forward "
                "nor twice backward; leave the parameters before it out with `params`, or use another layer"
            )
            raise LayerError(message) from no_forward_rule


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
        values = list(tensors_in(output))
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
    if isinstance(tree, tuple | list):
        mapped = [_map(function, item) for item in tree]
        return type(tree)(*mapped) if hasattr(tree, "_fields") else type(tree)(mapped)
    if isinstance(tree, dict):
        return {key: _map(function, item) for key, item in tree.items()}
    return tree
