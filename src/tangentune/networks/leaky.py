"""Leaky ReLU in place of ReLU, in a copy of a network whose parameters keep their names.

A unit whose input is negative has exactly zero rows of the Jacobian under ReLU; a leak keeps it alive. Modules change
their class. Functional uses (`F.relu(x)`) are replaced under a torch function mode around forwards and features.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from typing import Any, Generic, TypeVar, final

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode, handle_torch_function, has_torch_function_unary

from tangentune._torch import usual_torch
from tangentune.errors import BackboneError, InputError
from tangentune.networks.backbone import Backbone
from tangentune.networks.features import Extractor, Loaded, own_output

__all__ = ["Leak", "Leaky", "LeakyReLU6", "leaky", "leaky_relu6"]

Network = TypeVar("Network", nn.Module, Backbone)


@final
@dataclass(frozen=True, eq=False)
class Leaky(Generic[Network]):
    """A network with a leak, and what was and was not replaced; made by `leaky`."""

    network: Network  # the copy, a Backbone or a module as was given
    slope: float
    modules: tuple[str, ...]  # names of the modules replaced; functional uses are replaced where they happen
    unreached: tuple[str, ...]  # what may still be a ReLU, one sentence each

    def __str__(self) -> str:
        told = f"slope {self.slope:g}: {len(self.modules)} modules and all functional uses within reach replaced"
        return "; ".join([told, *self.unreached])


@usual_torch
def leaky(network: Network, slope: float = 0.01) -> Leaky[Network]:
    """A copy of a network in which every ReLU and ReLU6 that can be found leaks.

    ReLU becomes `max(z, slope z)` (Maas et al. 2013). ReLU6 becomes leaky on both sides (`leaky_relu6`), our choice:
    the Jacobian is dead on both. Other activations (GELU, SiLU, hard swish) and clamps at zero are left alone, but a
    hard sigmoid written by hand as `relu6(x + 3) / 6` cannot be told apart. Slope 0 gives a plain copy; 0.01 is our
    default, the LQF paper's slope is not known to us. The features drift: `networks.healing` brings BatchNorm
    statistics back.

    Args:
        network: a module or a Backbone, left as it is; the copy has the same parameters under the same names.
        slope: of the leak, in [0, 1).

    Raises:
        InputError: the slope is out of range or the network leaks already.
        BackboneError: the network is scripted.

    Example:
        >>> result = leaky(nn.Sequential(nn.Linear(2, 2), nn.ReLU()), 0.1)
        >>> print(result)
        slope 0.1: 1 modules and all functional uses within reach replaced
        >>> result.network[1](torch.tensor([-1.0, 2.0]))
        tensor([-0.1000,  2.0000])
    """
    if not 0 <= slope < 1:
        raise InputError(f"slope is {slope}; a leak is at least 0 (none) and below 1 (no nonlinearity at all)")
    module = network.module if isinstance(network, Backbone) else network
    extract = network.feature_function.extract if isinstance(network, Backbone) else own_output
    if isinstance(module, torch.jit.ScriptModule):
        raise BackboneError("a scripted or traced network hides its activations; give the network it was made from")
    if isinstance(extract, LeakyFeatures) or any(isinstance(p, LeakingForward | LeakyReLU6) for p in module.modules()):
        raise InputError("the network leaks already; start from the original to give it another slope")
    copied = copy.deepcopy(module)
    modules, unreached = _let_leak(copied, slope) if slope else ((), ())
    if not isinstance(network, Backbone):
        return Leaky(copied, slope, modules, unreached)
    name = network.name
    if slope:
        extract, name = LeakyFeatures(extract, slope), f"{name}, leaky {slope:g}"
    changed = Backbone.from_loaded(Loaded(copied, network.contract, extract), name)
    return Leaky(changed, slope, modules, unreached)


def _let_leak(module: nn.Module, slope: float) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Let ReLU modules and forwards of one's own leak, where they stand; names of the ReLUs, and what is unreached."""
    names, unreached = [], _out_of_reach(module)
    for name, part in module.named_modules():
        kind, field = type(part), "leaky_slope"
        if kind is nn.ReLU:
            become, field = nn.LeakyReLU, "negative_slope"
        elif kind is nn.ReLU6 or (kind is nn.Hardtanh and (part.min_val, part.max_val) == (0, 6)):
            become = LeakyReLU6
        elif _runs_own_code(part):
            become = leaking_class(kind)
        else:
            continue
        part.__class__ = become  # so that hooks, sharing and names stay
        vars(part)[field] = slope
        if not issubclass(become, LeakingForward):
            names.append(name)
    return tuple(names), unreached


def _runs_own_code(part: nn.Module) -> bool:
    """Whether a part's forward is not torch.nn's: only there, and in torch's transformers, is a ReLU no module."""
    if isinstance(part, torch.jit.ScriptModule | LeakyReLU6) or "forward" in vars(part):
        return False
    home = next(kind.__module__ for kind in type(part).__mro__ if "forward" in vars(kind))
    return home == "torch.nn.modules.transformer" or not home.startswith(("torch.nn.modules.", "torch.nn.utils."))


def _out_of_reach(module: nn.Module) -> tuple[str, ...]:
    """A sentence on each part whose code cannot be looked into."""
    told = []
    for name, part in module.named_modules():
        named = f"{name or 'the network'} ({type(part).__name__})"
        if isinstance(part, torch.jit.ScriptModule):
            if not isinstance(module.get_submodule(name.rpartition(".")[0]), torch.jit.ScriptModule):
                told.append(f"{named} is scripted or traced: its activations stay as they are")
        elif isinstance(part, nn.RNNBase) and part.mode.startswith("RNN_RELU"):
            told.append(f"{named} has its ReLU inside the recurrence: it stays as it is")
        elif "forward" in vars(part):
            told.append(f"{named} has a forward set on the instance: functional uses in it may stay as they are")
        elif hasattr(part, "_orig_mod"):
            told.append(f"{named} is compiled: functional uses in it may stay as they are")
    return tuple(told)


def leaky_relu6(z: Tensor, slope: float, inplace: bool = False) -> Tensor:
    """`z` inside [0, 6], slope `slope` on both sides of it; at the kinks the derivative is `slope`.

    Seen by torch function modes as one call, like the functions of torch.nn.functional.
    """
    if has_torch_function_unary(z):
        return handle_torch_function(leaky_relu6, (z,), z, slope, inplace=inplace)
    if inplace:  # the derivative needs the value that is overwritten
        return z.copy_(leaky_relu6(z.clone(), slope))
    return F.relu6(z).lerp_(z, slope)  # nothing else holds the clipped values, and no derivative needs them


@final
class LeakyReLU6(nn.Module):
    """`leaky_relu6` as a module; takes the place of `nn.ReLU6` and `nn.Hardtanh(0, 6)`."""

    def __init__(self, leaky_slope: float, inplace: bool = False):
        super().__init__()
        self.leaky_slope, self.inplace = leaky_slope, inplace

    def forward(self, z: Tensor) -> Tensor:
        """Elementwise, the same shape."""
        return leaky_relu6(z, self.leaky_slope, self.inplace)

    def extra_repr(self) -> str:
        """Slope and whether in place, for `print(network)`."""
        return f"leaky_slope={self.leaky_slope}, inplace={self.inplace}"


def _relu(slope: float, input: Tensor, inplace: bool = False) -> Tensor:
    return F.leaky_relu(input, slope, inplace)


def _relu6(slope: float, input: Tensor, inplace: bool = False) -> Tensor:
    return leaky_relu6(input, slope, inplace)


def _hardtanh(
    slope: float, input: Tensor, min_val: float = -1.0, max_val: float = 1.0, inplace: bool = False
) -> Tensor | None:
    return leaky_relu6(input, slope, inplace) if (min_val, max_val) == (0, 6) else None


# Each takes the slope and the call's own arguments; None: this call is no ReLU.
_REPLACEMENTS: dict[Any, Callable[..., Tensor | None]] = {
    **dict.fromkeys((F.relu, torch.relu, Tensor.relu), _relu),
    **dict.fromkeys((torch.relu_, Tensor.relu_), partial(_relu, inplace=True)),
    F.relu6: _relu6,
    F.hardtanh: _hardtanh,
    F.hardtanh_: partial(_hardtanh, inplace=True),
}


@final
class Leak(TorchFunctionMode):
    """While it is on, ReLU and ReLU6 of floating-point tensors leak."""

    def __init__(self, slope: float):
        super().__init__()
        self.slope = slope

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        replacement, output = _REPLACEMENTS.get(func), None
        if replacement is not None and (args[0] if args else kwargs["input"]).is_floating_point():
            output = replacement(self.slope, *args, **kwargs)
        return func(*args, **kwargs) if output is None else output


@final
@dataclass(frozen=True)
class LeakyFeatures:
    """A feature function that runs with the leak, also in methods that are no module's forward."""

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


def _blank(kind: type[nn.Module]) -> nn.Module:
    """An instance without state, which copying or unpickling then sets."""
    made = leaking_class(kind)
    return made.__new__(made)
