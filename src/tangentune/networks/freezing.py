"""Make a network fit to be linearised: unwrapped, copied, frozen, in eval mode; refuse what cannot be."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from tangentune.errors import BackboneError, first_line
from tangentune.networks.features import tensors_in
from tangentune.pictures.names import some


def frozen_copy(module: object) -> nn.Module:
    """A frozen deep copy in eval mode; a BackboneError if it is no network or cannot be copied or linearised."""
    module = _unwrapped(module)
    refuse_unusable(module)
    kept = (t for part in module.modules() for t in tensors_in(list(vars(part).values())) if t.grad_fn is not None)
    try:  # activations of an earlier pass stay behind; a network that calculates with one shows it, as NaN
        copied = copy.deepcopy(module, {id(t): torch.full_like(t, torch.nan, requires_grad=False) for t in kept})
    except Exception as error:  # any __deepcopy__ of the user's may run here
        raise BackboneError(
            f"the network {type(module).__name__} cannot be copied ({first_line(error)}); take what cannot be copied "
            "off its attributes"
        ) from error
    return freeze(copied)


def freeze(module: nn.Module) -> nn.Module:
    """Put a network that can be linearised (`refuse_unusable`) into eval mode and freeze its parameters, in place.

    float16 and bfloat16 become float32: the small digits that gradients of single pictures and their sums live on.
    """
    refuse_unusable(module)
    module.eval()
    if any(_is_narrow(t) for t in (*module.parameters(), *module.buffers())):
        module._apply(lambda t: t.float() if _is_narrow(t) else t)
    for part in module.modules():  # also where a `train` of its own kept a part in training mode
        part.training = False
    return module.requires_grad_(False)


def _is_narrow(tensor: Tensor) -> bool:
    return tensor.is_floating_point() and tensor.element_size() < 4


def refuse_unusable(module: nn.Module) -> None:
    """Raise a BackboneError, with the part and the reason, for networks without a fixed function of parameters."""
    tensors = [*module.named_parameters(), *module.named_buffers()]
    lazy = [name for name, tensor in tensors if is_lazy(tensor)]
    meta = [name for name, tensor in tensors if tensor.is_meta]
    devices = sorted({str(tensor.device) for _, tensor in tensors})
    parts = module.named_modules()
    scripted = [name for name, part in parts if isinstance(part, torch.jit.ScriptModule) and [*part.parameters()]]
    norms = [(name, part) for name, part in module.named_modules() if isinstance(part, nn.modules.batchnorm._BatchNorm)]
    by_batch = [name for name, norm in norms if norm.running_mean is None]
    if scripted:
        where = f" at {scripted[0]!r}" if scripted[0] else ""
        problem = f"a scripted or traced network hides its layers{where}; give the network it was made from"
    elif lazy:
        problem = f"{lazy[0]} has no shape yet (a lazy layer); run the network on one batch before giving it"
    elif meta:
        problem = f"{meta[0]} is on the meta device and so has no values; load the weights before giving the network"
    elif not any(p.is_floating_point() for p in module.parameters()):
        problem = (
            f"the network {type(module).__name__} has no floating-point parameters, so there is nothing to "
            "linearise (a quantised network must be given in its floating-point form)"
        )
    elif len(devices) > 1:
        problem = f"the network is spread over {', '.join(devices)}; move it to one device"
    elif by_batch:
        problem = (
            f"BatchNorm without running statistics (track_running_stats=False) at {some(by_batch)}: it normalises by "
            "the batch even in eval mode, so a picture's features depend on its batch mates; train with "
            "running statistics or use GroupNorm"
        )
    else:
        return
    raise BackboneError(problem)


def _unwrapped(module: object) -> nn.Module:
    """The network inside torch.compile, DataParallel or DistributedDataParallel."""
    if isinstance(module, type) or not isinstance(module, nn.Module):
        what = f"the class {module.__name__}" if isinstance(module, type) else f"a {type(module).__name__}"
        named = "names of pre-trained networks go to load_backbone(name)"
        raise BackboneError(f"Backbone takes a torch.nn.Module, not {what}; {named}")
    inner = getattr(module, "_orig_mod", None)
    if isinstance(module, nn.DataParallel | nn.parallel.DistributedDataParallel):
        inner = module.module
    return _unwrapped(inner) if isinstance(inner, nn.Module) else module
