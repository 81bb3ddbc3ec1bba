"""What torch keeps for a whole thread or process: modes that a caller left on, and settings that a pass needs.

Modes of the caller (inference mode, autocast, another default type or device, gradients switched off, TF32) would
change the numbers, or end in an error from the middle of a fit. So every public function that calculates runs as torch
does when it has just been imported, `usual_torch`, and no product on a GPU is rounded to TF32.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import wraps
from threading import Lock
from types import FunctionType
from typing import Any, TypeVar, final

import torch

Public = TypeVar("Public", bound=Callable[..., Any])


@final
class Held:
    """A setting of the whole process, in force as long as any thread holds it, and then as it was before.

    Without the count, the thread that ends first would take the setting from the others, or restore theirs.
    """

    def __init__(self, setting: Callable[[], AbstractContextManager[Any]]):
        self.holders, self._setting, self._lock, self._open = 0, setting, Lock(), ExitStack()

    @contextmanager
    def __call__(self) -> Iterator[None]:
        with self._lock:
            if not self.holders:
                self._open.enter_context(self._setting())
            self.holders += 1
        try:
            yield
        finally:
            with self._lock:
                self.holders -= 1
                if not self.holders:
                    self._open.close()


@contextmanager
def _default_float32() -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@contextmanager
def _no_tf32() -> Iterator[None]:
    """Ten bits of a product's 23 are all that TF32 keeps, and cuDNN takes it for convolutions unless told otherwise."""
    backends: Any = torch.backends
    cudnn, matmul = backends.cudnn, backends.cuda.matmul
    named = hasattr(matmul, "fp32_precision")  # from torch 2.9 on; the older name would not come back as it was
    first = (matmul, "fp32_precision", "ieee") if named else (matmul, "allow_tf32", False)
    places: list[tuple[Any, str, Any]] = [first]
    try:
        before = [getattr(*first[:2]), cudnn.allow_tf32]
        places.append((cudnn, "allow_tf32", False))
    except RuntimeError:  # convolutions were set by the new name, and the old one is refused
        before = [matmul.fp32_precision, cudnn.conv.fp32_precision]
        places.append((cudnn.conv, "fp32_precision", "ieee"))
    for place, name, value in places:
        setattr(place, name, value)
    try:
        yield
    finally:
        for (place, name, _), value in zip(places, before, strict=True):
            setattr(place, name, value)


_float32, _whole_products = Held(_default_float32), Held(_no_tf32)


@contextmanager
def usual_modes() -> Iterator[None]:
    """Torch's modes as they are when it has just been imported; costs a microsecond or two where they are."""
    with ExitStack() as modes:
        if torch.is_inference_mode_enabled():
            modes.enter_context(torch.inference_mode(False))
        if not torch.is_grad_enabled():
            modes.enter_context(torch.enable_grad())
        for kind in ("cpu", "cuda"):
            if torch.is_autocast_enabled(kind):
                modes.enter_context(torch.autocast(kind, enabled=False))
        if torch.empty(0).device.type != "cpu":  # `get_default_device` of torch 2.6 does not see a `with torch.device`
            modes.enter_context(torch.device("cpu"))
        if torch.get_default_dtype() != torch.float32 or _float32.holders:
            modes.enter_context(_float32())
        if torch.backends.cuda.is_built():
            modes.enter_context(_whole_products())
        yield


def usual_torch(thing: Public) -> Public:
    """Decorates a public function, or a class: all its public methods and properties; they run in `usual_modes`.

    Example:
        >>> @usual_torch
        ... def zero():
        ...     return torch.zeros(())
        >>> with torch.device("meta"):
        ...     zero().item()
        0.0
    """
    kind: Any = thing
    if not isinstance(kind, type):
        return _wrapped(thing)
    for name, member in list(vars(kind).items()):
        if name.startswith("_"):
            continue
        if isinstance(member, property):
            setattr(kind, name, property(_wrapped(member.fget), member.fset, member.fdel, member.__doc__))
        elif isinstance(member, classmethod | staticmethod):
            setattr(kind, name, type(member)(_wrapped(member.__func__)))
        elif inspect.isfunction(member):
            setattr(kind, name, _wrapped(member))
    return thing


def _wrapped(function: Any) -> Any:
    modes = usual_modes

    def run(*args: Any, **kwargs: Any) -> Any:
        with modes():
            return function(*args, **kwargs)

    def step(*args: Any, **kwargs: Any) -> Iterator[Any]:
        found = function(*args, **kwargs)
        while True:  # the modes are the function's between two yields, and the caller's outside
            with modes():
                try:
                    value = next(found)
                except StopIteration:
                    return
            yield value

    made = step if inspect.isgeneratorfunction(function) else run
    # With the globals of the function's own module, so that tools which go by them find it there (doctest does).
    return wraps(function)(FunctionType(made.__code__, function.__globals__, closure=made.__closure__))
