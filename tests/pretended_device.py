"""A device that is not there: tensors on "pretend" hold their values on the CPU, and behave as an accelerator's would.

PyTorch's Python back-end registration makes the device; every operation on its tensors comes through `_run`, which
refuses what CUDA refuses (a tensor on the CPU, unless it has no dimensions, beside one on the device) and counts what
makes an accelerator wait: values, masks and sizes that travel to the CPU, by the line of `tangentune` that asks.
Once `register` was called there is no way back, so a process of its own does.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

NAME = "pretend"
WAITS = {
    "aten._local_scalar_dense", "aten.equal", "aten.nonzero", "aten.masked_select", "aten._unique2", "aten.bincount",
    "aten.unique_dim", "aten.unique_consecutive", "aten.repeat_interleave",
}  # fmt: skip
MEET = {"aten.copy_", "aten._to_copy", "aten.set_"}  # tensors of two devices may
AT_CPU_PLACES = {"aten.index", "aten.index_put", "aten.index_put_", "aten._index_put_impl_"}  # CUDA takes them too

waits: Counter[str] = Counter()
arrivals: Counter[str] = Counter()  # copies to the device
_LIBRARIES: list[torch.library.Library] = []


_DATA = cast(Any, Tensor.data)


class Pretended(Tensor):
    """Values `held` on the CPU, under the name of another device."""

    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor) -> Pretended:
        return cast(Any, Tensor)._make_wrapper_subclass(
            cls, held.shape, strides=held.stride(), storage_offset=held.storage_offset(), dtype=held.dtype,
            layout=held.layout, device=torch.device(NAME, 0),
        )  # fmt: skip

    def __init__(self, held: Tensor) -> None:
        self.held = held

    def __repr__(self, **_: Any) -> str:
        return f"Pretended({self.held!r})"

    @property
    def data(self) -> Tensor:
        return _DATA.__get__(self)

    @data.setter
    def data(self, new: Pretended) -> None:
        _DATA.__set__(self, new)
        self.held = new.held

    def tolist(self) -> Any:
        return self.cpu().tolist()

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


def register() -> torch.device:
    """The device, made."""
    _setup_privateuseone_for_python_backend(NAME)
    library = torch.library.Library("_", "IMPL")
    library.fallback(lambda func, *args, **kwargs: _run(func, args, kwargs), "PrivateUse1")
    own = torch.library.Library("aten", "IMPL")
    for op in (torch.ops.aten.copy_.default, torch.ops.aten.lift_fresh.default, torch.ops.aten.linspace.default):
        own.impl(op, lambda *args, op=op, **kwargs: _run(op, args, kwargs), "PrivateUse1")
    _LIBRARIES.extend([library, own])
    return torch.device(NAME, 0)


def _run(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """One operation, on the values held."""
    name = func._schema.name.replace("::", ".")
    tensors = [value for value in _leaves((args, tuple(kwargs.values()))) if isinstance(value, Tensor)]
    there = [tensor for tensor in tensors if isinstance(tensor, Pretended)]
    here = [tensor for tensor in tensors if not isinstance(tensor, Pretended)]
    _check(name, args, there, here)
    goal = kwargs.get("device")
    target = there and name not in MEET if goal is None else torch.device(goal).type == NAME
    if name == "aten._to_copy" and goal is None:
        target = bool(there)
    held_kwargs = {key: _each(_held, value) for key, value in kwargs.items()}
    held_kwargs |= {} if goal is None else {"device": "cpu"}
    if name == "aten.copy_":
        target = isinstance(args[0], Pretended)
    _count(name, args, there, here, bool(target))
    held_args = _each(_held, args)
    out = func(*held_args, **held_kwargs)
    same = {id(held): given for held, given in zip(_leaves(held_args), _leaves(args), strict=True)}
    same |= {id(_held(value)): value for value in kwargs.values() if isinstance(value, Pretended)}

    def own(value: Any) -> Any:
        if not isinstance(value, Tensor) or not target:
            return value
        if id(value) not in same:
            return Pretended(value)
        given = same[id(value)]
        if (given.shape, given.stride()) != (value.shape, value.stride()):  # `squeeze_`, or an output made to fit
            given.data = Pretended(value)
        return given

    return _each(own, out)


def _leaves(value: Any) -> list[Any]:
    """What lists and tuples hold; `torch.utils._pytree` knows more kinds, and would take half of the time."""
    return [leaf for one in value for leaf in _leaves(one)] if isinstance(value, list | tuple) else [value]


def _each(change: Callable[[Any], Any], value: Any) -> Any:
    """The same lists and tuples of changed values."""
    if isinstance(value, list | tuple):
        return type(value)([_each(change, one) for one in value])
    return change(value)


def _held(value: Any) -> Any:
    return value.held if isinstance(value, Pretended) else value


def _check(name: str, args: tuple[Any, ...], there: list[Pretended], here: list[Tensor]) -> None:
    """As CUDA would refuse."""
    if not there or name in MEET:
        return
    allowed = {id(tensor) for tensor in args[1] or () if tensor is not None} if name in AT_CPU_PLACES else set()
    if name in AT_CPU_PLACES and not isinstance(args[0], Pretended):
        allowed = set()
    mixed = [tensor for tensor in here if tensor.dim() and id(tensor) not in allowed]
    if mixed:
        shapes = ", ".join(str(tuple(tensor.shape)) for tensor in mixed)
        raise RuntimeError(f"all tensors must be on the same device; {name} met {shapes} on the CPU at {_line()}")


def _count(name: str, args: tuple[Any, ...], there: list[Pretended], here: list[Tensor], target: bool) -> None:
    """What waits for the device, or travels to it."""
    if not there:
        if target and here:
            arrivals[f"{name} {_line()}"] += 1
        return
    masks = name in AT_CPU_PLACES and any(
        isinstance(place, Pretended) and place.dtype in (torch.bool, torch.uint8) for place in args[1]
    )
    leaves = name in ("aten._to_copy", "aten.copy_") and not target
    if name in WAITS or masks or leaves:
        waits[f"{name} {_line()}"] += 1
    elif target and any(tensor.dim() for tensor in here):
        arrivals[f"{name} {_line()}"] += 1


def _line() -> str:
    """The innermost line of tangentune."""
    frame = sys._getframe(2)
    while frame is not None:
        path = Path(frame.f_code.co_filename)
        if "tangentune" in path.parts and path.name != "passes.py":  # it watches every call
            return f"{'/'.join(path.parts[path.parts.index('tangentune') + 1 :])}:{frame.f_lineno}"
        frame = frame.f_back
    return "outside"
