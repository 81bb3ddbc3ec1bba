"""A small network with batch norm and dropout, and modules made of a function: for tests of any network's contract."""

from __future__ import annotations

from typing import Any, cast

import pytest
import torch
from torch import nn

from tangentune.networks import backbone
from tangentune.networks.features import Loaded

SIZE = (3, 8, 8)


def small_net() -> Any:
    """Eight features after module "5", five scores after module "6"; BatchNorm and dropout inside."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3),
        nn.BatchNorm2d(8),
        nn.ReLU(inplace=True),
        nn.Dropout(0.5),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 5),
    )


def shorten(patch: pytest.MonkeyPatch) -> None:
    """From now on "mobilenet_v2" names the first five of its blocks, with their weights.

    A third of the time for what is not about the network: pictures are told apart, by less of it.
    """
    whole = backbone.load_network

    def short(name: str) -> Loaded:
        loaded = whole(name)
        if name == "mobilenet_v2":
            network = cast(Any, loaded.module)
            network.features = network.features[:5]
            scores = network.classifier[1]
            scores.weight, scores.in_features = nn.Parameter(scores.weight[:, :32].detach().clone()), 32
        return loaded

    patch.setattr(backbone, "load_network", short)


class Around(nn.Module):
    """A network whose forward is an arbitrary function of (body, x)."""

    def __init__(self, body, forward):
        super().__init__()
        self.body, self.rule = body, forward

    def forward(self, x):
        return self.rule(self.body, x)


class Lambda(nn.Module):
    """A layer that is an arbitrary function of x."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)
