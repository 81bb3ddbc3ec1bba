"""One pass through a network that others use at the same time, and what torch does wrong on the way.

A pass changes a network: a hook that ends it early, parameters put in the place of others, an activation that a module
keeps on itself. So a pass runs through modules of its own, new ones round the same tensors. Nothing has to be put
back, no other thread sees it, and what the modules kept goes when the pass does.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from types import MethodType
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils import checkpoint as checkpointing

from tangentune._torch import Held

_OWN = "_tangentune_own"  # marks modules that belong to one pass
_PLAIN = frozenset({bool, int, float, str, type(None), type, torch.dtype, torch.device, torch.Size})
_UNTOUCHED = frozenset(  # of a module's own tables, those that no pass changes
    f"_{name}_hooks" for name in ("backward", "backward_pre", "state_dict", "state_dict_pre", "load_state_dict_pre")
) | {"_load_state_dict_post_hooks", "_non_persistent_buffers_set"}


def own_modules(module: nn.Module, replaced: Mapping[str, Tensor] | None = None) -> nn.Module:
    """A network's modules anew, round the same tensors, for one pass; perhaps with other tensors for some parameters.

    Whatever modules hold in lists, mappings, bound methods or partial functions comes along; a parameter that is used
    in several places is replaced in all. A network in training mode, or one of a pass already, is given back as it is:
    nobody else has it. Cost: a millisecond and a half for two hundred modules.
    """
    if not replaced and (module.training or _OWN in vars(module)):
        return module
    twins: dict[int, Any] = {}
    if replaced:
        parameters = dict(module.named_parameters(remove_duplicate=False))
        twins = {id(parameters[name]): tensor for name, tensor in replaced.items()}
    return _twin(module, twins)


def _twin(value: Any, twins: dict[int, Any]) -> Any:
    """What stands for a value in the new modules: itself, unless it is or holds modules or replaced parameters."""
    known = twins.get(id(value))
    if known is not None:
        return known
    kind = type(value)
    if kind is dict or kind is OrderedDict:
        made = twins[id(value)] = kind()
        for key, own in value.items():
            made[key] = own if type(own) in _PLAIN else _twin(own, twins)
        return made
    if isinstance(value, nn.Module):
        scripted = isinstance(value, torch.jit.ScriptModule)  # without parameters, or it would be no backbone
        return value if scripted else _module_twin(value, twins)
    if kind is list:
        made = twins[id(value)] = []
        made.extend(_twin(own, twins) for own in value)
        return made
    if kind is set:
        return value.copy()
    if kind is tuple:
        return tuple(_twin(own, twins) for own in value)
    if kind is MethodType:
        return MethodType(value.__func__, _twin(value.__self__, twins))
    if kind is partial:
        return partial(_twin(value.func, twins), *_twin(value.args, twins), **_twin(value.keywords, twins))
    return value


def _module_twin(module: nn.Module, twins: dict[int, Any]) -> nn.Module:
    """A module anew, made for speed: this runs for every module of a network in every pass."""
    twin = twins[id(module)] = object.__new__(type(module))
    state = twin.__dict__
    state.update(module.__dict__)
    for key, own in module.__dict__.items():
        kind = type(own)
        if kind in _PLAIN or key in _UNTOUCHED or (kind is tuple and _PLAIN.issuperset(map(type, own))):
            continue
        state[key] = kind() if (kind is dict or kind is OrderedDict) and not own else _twin(own, twins)
    if "_orig_mod" in module._modules:  # torch.compile's wrapper runs code of the old module
        state["forward"] = state["_modules"]["_orig_mod"]
    state[_OWN] = True
    return twin


@final
class _AtOnce:
    """Stands for torch's `CheckpointFunction`: calls the function, and keeps what its backward pass needs."""

    @staticmethod
    def apply(function: Any, _keep_random_state: bool, *args: Any) -> Any:
        """The function's own output."""
        return function(*args)


def _nothing_around(*_: Any, **__: Any) -> Iterator[None]:
    """Stands for torch's preparations around a checkpointed call."""
    yield


@contextmanager
def _checkpoints_off() -> Iterator[None]:
    parts = {"CheckpointFunction": _AtOnce, "_checkpoint_without_reentrant_generator": _nothing_around}
    before = {name: getattr(checkpointing, name) for name in parts}
    for name, part in parts.items():
        setattr(checkpointing, name, part)
    try:
        yield
    finally:
        for name, part in before.items():
            setattr(checkpointing, name, part)


# While held, `torch.utils.checkpoint.checkpoint` just calls its function: a repeated forward pass is seen by no
# recorder, and torch's functional transforms refuse it. Elsewhere in the process it costs memory; no number changes.
no_checkpoints = Held(_checkpoints_off)


@final
class PlainPointwise(TorchFunctionMode):
    """While on, strided 1 x 1 convolutions whose weight wants a gradient run in plain memory order.

    In channels-last order oneDNN's weight gradient of these reads past the end of its memory.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Call `func`, a strided 1 x 1 convolution with its arguments laid out anew."""
        kwargs = kwargs or {}
        if func is torch.conv2d:
            args, kwargs = _laid_out(*args, **kwargs)
        return func(*args, **kwargs)


def _laid_out(input: Tensor, weight: Tensor, *args: Any, **kwargs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    stride = args[1] if len(args) > 1 else kwargs.get("stride", 1)
    pointwise = weight.shape[2:] == (1, 1) and weight.requires_grad
    if pointwise and (stride if isinstance(stride, int) else max(stride)) > 1:
        # Strides of axes of length one tell the order to oneDNN, and `contiguous` leaves them as they are.
        input, weight = input.contiguous(), weight.flatten(1).unflatten(1, (-1, 1, 1))
    return (input, weight, *args), kwargs
