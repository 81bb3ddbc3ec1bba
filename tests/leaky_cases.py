"""Leaky ReLU by hand, a network of the user's own that uses a function, and forward mode; for the leaky tests."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

SLOPE = 0.1
Z = torch.tensor([-8.0, -1.0, -0.0, 0.0, 0.5, 6.0, 7.0, 100.0], dtype=torch.float64)


def relu_by_hand(z: Tensor) -> Tensor:
    return torch.where(z > 0, z, SLOPE * z)


def relu6_by_hand(z: Tensor) -> Tensor:
    return torch.where(z < 0, SLOPE * z, torch.where(z > 6, 6 + SLOPE * (z - 6), z))


class Written(nn.Module):
    """A network of the user's own whose forward is a function; at top level, so that it pickles."""

    def __init__(self, function: Callable[[Tensor], Tensor]):
        super().__init__()
        self.weight, self.function = nn.Parameter(torch.ones(1, dtype=torch.float64)), function

    def forward(self, z: Tensor) -> Tensor:
        return self.function(z * self.weight)


def pushed(function: Callable[[Any], Tensor], values: dict[str, Tensor], directions: dict[str, Tensor]) -> Tensor:
    """Jacobian times directions, by torch's own forward mode."""
    with forward_ad.dual_level():
        duals = {name: forward_ad.make_dual(value.detach(), directions[name]) for name, value in values.items()}
        tangent = forward_ad.unpack_dual(function(duals)).tangent
    assert tangent is not None
    return tangent
