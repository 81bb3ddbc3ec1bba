"""The optimiser of fine-tuning, with a rate for each layer."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn

from tangentune.errors import BackboneError
from tangentune.methods.fine_tuning.schedule import layer_factors
from tangentune.methods.fine_tuning.settings import FineTuneSettings


def make_optimiser(module: nn.Module, heads: Iterable[nn.Linear], settings: FineTuneSettings) -> torch.optim.Optimizer:
    """The optimiser after the first backward pass, which tells the parameters that the features depend on.

    Every group holds its `factor`, by which the peak rate is multiplied; that of the heads is 1.

    Raises:
        BackboneError: no parameter of the module has a gradient.
    """
    names = [name for name, parameter in module.named_parameters() if parameter.grad is not None]
    if not names:
        message = "the backbone's `features` must use the module that it is given; it uses another"
        raise BackboneError(message)
    factors = layer_factors(names, settings.layer_decay)
    by_factor: dict[float, list[nn.Parameter]] = {}
    for name, parameter in module.named_parameters():
        by_factor.setdefault(factors.get(name, 1.0), []).append(parameter)
    by_factor.setdefault(1.0, []).extend(parameter for head in heads for parameter in head.parameters())
    groups = [{"params": parameters, "factor": factor} for factor, parameters in by_factor.items()]
    if settings.optimiser == "sgd":
        return torch.optim.SGD(groups, momentum=0.9, weight_decay=settings.weight_decay, fused=True)
    return torch.optim.AdamW(groups, weight_decay=settings.weight_decay, fused=True)
