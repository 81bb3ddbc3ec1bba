"""BatchNorm statistics that follow a changed network, without labels.

A leak changes what every later layer sees; one pass over unlabelled pictures brings the statistics back in line.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from dataclasses import replace
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from tangentune._torch import usual_torch
from tangentune.errors import InputError
from tangentune.networks.backbone import Backbone
from tangentune.networks.features import Loaded, own_output
from tangentune.networks.freezing import freeze

Network = TypeVar("Network", nn.Module, Backbone)
_BATCH_NORM = nn.modules.batchnorm._BatchNorm


@usual_torch
def heal_batchnorm(network: Network, inputs: Iterable[Tensor], *, reference: Network | None = None) -> Network:
    """A copy of a network whose BatchNorm statistics fit it again, from one pass over unlabelled inputs.

    With the original network as `reference`, its trained statistics are kept and moved by what the change makes of
    the batches' own statistics: the difference of the means, the ratio of the variances. Without it they are replaced
    by those of the inputs, which is right only where the inputs are like those of pre-training: on other pictures it
    costs more than a leak does. Few pictures give noisy statistics: use some hundred, in batches of 32 or more.

    Args:
        network: a module or a Backbone, left as it is; the copy is in eval mode.
        inputs: batches of two or more normalised network inputs (n, ...), each gone through once and counted by its
            size; for a Backbone `pictures.batches(backbone.contract)`.
        reference: the network before the change, of the same kind, with the same layers. Cost: one forward pass, of
            both networks.

    Example:
        >>> healed = heal_batchnorm(nn.BatchNorm1d(1), [torch.tensor([[1.0], [3.0]])])
        >>> healed.running_mean.item(), healed.running_var.item()
        (2.0, 2.0)
    """
    networks = [network] if reference is None else [network, reference]
    modules = [copy.deepcopy(n.module if isinstance(n, Backbone) else n).eval() for n in networks]
    norms: list[list[Any]] = [
        [part for part in module.modules() if isinstance(part, _BATCH_NORM) and part.running_mean is not None]
        for module in modules
    ]
    if not norms[0] or len({len(own) for own in norms}) > 1:
        counts = " and ".join(str(len(own)) for own in norms)
        raise InputError(
            f"healing needs BatchNorm with running statistics, as many in the reference; there are {counts}"
        )
    trained = [(norm.running_mean.clone(), norm.running_var.clone()) for norm in norms[-1]]
    _estimate(networks, modules, norms, inputs)
    if reference is not None:
        for norm, before, (mean, var) in zip(*norms, trained, strict=True):
            norm.running_mean += mean - before.running_mean
            # What a norm divides by has its epsilon inside: a channel that is always zero then stays so.
            ratio = (norm.running_var + norm.eps) / (before.running_var + norm.eps)
            norm.running_var = ((var + norm.eps) * ratio - norm.eps).clamp_min(0)
    if not isinstance(network, Backbone):
        return modules[0]
    source = f"{network.contract.source}; batch statistics re-estimated"
    contract = replace(network.contract, sha256=None, source=source)  # the hash of the weight file no longer holds
    return Backbone.from_loaded(Loaded(freeze(modules[0]), contract, network.feature_function.extract), network.name)


def _estimate(networks: list[Any], modules: list[nn.Module], norms: list[list[Any]], inputs: Iterable[Tensor]) -> None:
    """Replace the statistics of all norms by means over the batches', weighted by size; one pass."""
    everyone = [norm for own in norms for norm in own]
    momenta, seen = [norm.momentum for norm in everyone], 0
    for norm in everyone:
        norm.reset_running_stats()
        norm.train()
    for x in inputs:
        if len(x) < 2:
            raise InputError("a batch of one picture has no variance; give batches of two or more, better of 32")
        seen += len(x)
        for norm in everyone:
            norm.momentum = len(x) / seen
        for network, module in zip(networks, modules, strict=True):
            run = network.feature_function if isinstance(network, Backbone) else own_output
            like = next(p for p in module.parameters() if p.is_floating_point())
            with torch.no_grad():
                run(module, x.to(like) if x.is_floating_point() else x.to(like.device))
    if not seen:
        raise InputError("no batch was given; BatchNorm statistics need pictures")
    for norm, momentum in zip(everyone, momenta, strict=True):
        norm.momentum = momentum
        norm.eval()
