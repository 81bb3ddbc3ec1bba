"""Is it the same network? A digest of its parameters, and a fingerprint of the features they give."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from tangentune.errors import BackboneError
from tangentune.networks.determinism import close

FINGERPRINT_TOLERANCE = 1e-3  # another device, thread count or library rounds differently, another layer far more


def parameter_digest(module: nn.Module) -> str:
    """sha256 over names, types, shapes and values of all parameters and saved buffers, in order.

    The same on every device. Cost: reads every value once, about a second per gigabyte.

    Example:
        >>> net = nn.Linear(2, 1)
        >>> before = parameter_digest(net)
        >>> _ = net.weight.data.add_(1)
        >>> before == parameter_digest(net)
        False
    """
    digest = hashlib.sha256()
    for name, tensor in module.state_dict().items():
        if isinstance(tensor, Tensor):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)};".encode())
            values = tensor.detach().cpu().contiguous().reshape(-1)
            digest.update(values.view(torch.uint8).numpy().data)
    return digest.hexdigest()


def fingerprint(phi: Tensor) -> list[float]:
    """Width, norm and first eight values of one picture's features (1, d)."""
    values = phi[0].detach().double().cpu()
    return [float(values.numel()), float(values.norm()), *(float(value) for value in values[:8])]


def describe_network(module: nn.Module) -> dict[str, Any]:
    """Class path, parameter count, dtype and digest, as JSON-able fields."""
    dtypes = dict.fromkeys(str(p.dtype).removeprefix("torch.") for p in module.parameters())
    return {
        "class": f"{type(module).__module__}.{type(module).__qualname__}",
        "parameters": sum(p.numel() for p in module.parameters()),
        "dtype": ", ".join(dtypes),
        "digest": parameter_digest(module),
    }


def refuse_other_network(
    name: str, module: nn.Module, print_again: Callable[[], list[float] | None], description: dict[str, Any]
) -> None:
    """Raise unless a network is the one described.

    Args:
        name: what to call the network at hand.
        module: the network at hand.
        print_again: its fingerprint, computed only when the parameters agree.
        description: what `Backbone.describe` gave.

    Raises:
        BackboneError: if parameters or fingerprint differ.
    """
    was = (
        f"{description['name']!r} ({description['class']}, {description['parameters']:,} parameters, "
        f"{description['dtype']})"
    )
    if parameter_digest(module) != description["digest"]:
        message = (
            f"backbone {name!r} has other parameters than {was}, with which the model was fitted; give that network"
        )
        raise BackboneError(message)
    now, then = print_again(), description["fingerprint"]
    if now is None or then is None:
        return
    if now[0] != then[0] or not close(torch.tensor(now[1:]), torch.tensor(then[1:]), FINGERPRINT_TOLERANCE):
        message = (
            f"backbone {name!r} has the parameters of {was} but gives other features; check that its layers "
            "and `features` are those the model was fitted with"
        )
        raise BackboneError(message)
