"""ReLU and ReLU6 with a slope on their dead sides: as functions, as modules, and as calls replaced in flight."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode, handle_torch_function, has_torch_function_unary

from tangentune.networks.features import Extractor


def leaky_relu6(z: Tensor, slope: float, inplace: bool = False) -> Tensor:
    """`z` inside [0, 6], slope `slope` on both sides of it; at the kinks the derivative is `slope`.

    Seen by torch function modes as one call, like the functions of torch.nn.functional.

    Example:
        >>> leaky_relu6(torch.tensor([-2.0, 3.0, 8.0]), 0.5)
        tensor([-1.,  3.,  7.])
    """
    if has_torch_function_unary(z):
        return handle_torch_function(leaky_relu6, (z,), z, slope, inplace=inplace)
    if inplace:  # the derivative needs the value that is overwritten
        return z.copy_(leaky_relu6(z.clone(), slope))
    return F.relu6(z).lerp_(z, slope)  # nothing else holds the clipped values, and no derivative needs them


@final
class LeakyReLU6(nn.Module):
    """`leaky_relu6` as a module; takes the place of `nn.ReLU6` and `nn.Hardtanh(0, 6)`.

    Example:
        >>> LeakyReLU6(0.1)(torch.tensor([-1.0, 16.0]))
        tensor([-0.1000,  7.0000])
    """

    def __init__(self, leaky_slope: float, inplace: bool = False):
        super().__init__()
        self.leaky_slope, self.inplace = leaky_slope, inplace

    def forward(self, z: Tensor) -> Tensor:
        """Elementwise, the same shape."""
        return leaky_relu6(z, self.leaky_slope, self.inplace)

    def extra_repr(self) -> str:
        """Slope and kind, for `print(network)`."""
        return f"leaky_slope={self.leaky_slope}, inplace={self.inplace}"


def _relu(slope: float, input: Tensor, inplace: bool = False) -> Tensor:
    return F.leaky_relu(input, slope, inplace)


def _relu_in_place(slope: float, input: Tensor) -> Tensor:
    return F.leaky_relu(input, slope, inplace=True)


def _relu6(slope: float, input: Tensor, inplace: bool = False) -> Tensor:
    return leaky_relu6(input, slope, inplace)


def _hardtanh(
    slope: float, input: Tensor, min_val: float = -1.0, max_val: float = 1.0, inplace: bool = False
) -> Tensor | None:
    return leaky_relu6(input, slope, inplace) if (min_val, max_val) == (0, 6) else None


def _hardtanh_in_place(slope: float, input: Tensor, min_val: float = -1.0, max_val: float = 1.0) -> Tensor | None:
    return _hardtanh(slope, input, min_val, max_val, inplace=True)


# Each takes the slope and the call's own arguments; None: this call is no ReLU.
_REPLACEMENTS: dict[Any, Callable[..., Tensor | None]] = {
    F.relu: _relu,
    torch.relu: _relu,
    Tensor.relu: _relu,
    torch.relu_: _relu_in_place,
    Tensor.relu_: _relu_in_place,
    F.relu6: _relu6,
    F.hardtanh: _hardtanh,
    F.hardtanh_: _hardtanh_in_place,
}


@final
class Leak(TorchFunctionMode):
    """While it is on, ReLU and ReLU6 of floating-point tensors leak; `noted` is called at each.

    Example:
        >>> with Leak(0.1):
        ...     F.relu(torch.tensor([-1.0, 2.0]))
        tensor([-0.1000,  2.0000])
    """

    def __init__(self, slope: float, noted: Callable[[], None] | None = None):
        super().__init__()
        self.slope, self.noted = slope, noted

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Call `func`, or what stands in for it."""
        kwargs = kwargs or {}
        replacement = _REPLACEMENTS.get(func)
        if replacement is None or not first_tensor(args, kwargs).is_floating_point():
            return func(*args, **kwargs)
        output = replacement(self.slope, *args, **kwargs)
        if output is None:
            return func(*args, **kwargs)
        if self.noted is not None:
            self.noted()
        return output


@final
@dataclass(frozen=True)
class LeakyFeatures:
    """A feature function that runs with the leak, also in methods that are no module's forward.

    Example:
        >>> LeakyFeatures(lambda module, x: F.relu(module(x)), 0.5)(nn.Identity(), torch.tensor([-1.0]))
        tensor([-0.5000])
    """

    extract: Extractor
    slope: float

    def __call__(self, module: nn.Module, x: Tensor) -> Any:
        """What `extract` returns."""
        with Leak(self.slope):
            return self.extract(module, x)


class LeakingForward(nn.Module):
    """Abstract: put before a network's class, it runs that class's forward with the leak (`leaking_class`)."""

    leaky_slope: float

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The network's own forward."""
        with Leak(self.leaky_slope):
            return super().forward(*args, **kwargs)

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Copy and pickle by the class it was made from: this one can be imported under no name."""
        _, _, *state = super().__reduce_ex__(protocol)
        return (_blank, (type(self).__bases__[1],), *state)


@cache
def leaking_class(kind: type[nn.Module]) -> type[nn.Module]:
    """The subclass of a network's class whose forward leaks; made once."""
    fields = {"__module__": kind.__module__, "__doc__": kind.__doc__}
    return type(f"Leaky{kind.__name__}", (LeakingForward, kind), fields)


def first_tensor(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """The tensor that an activation is applied to."""
    return args[0] if args else kwargs["input"]


def _blank(kind: type[nn.Module]) -> nn.Module:
    """An instance without state, which copying or unpickling then sets."""
    made = leaking_class(kind)
    return made.__new__(made)
