"""Rates and decays of the parts of the tangent: the authors' NTK parametrisation as parameter groups.

Their code trains `What` in `W = s What`, with `s^2 = 1 / C_out` for a weight of C_out outputs and `s^2 = 0.1` for a
bias. The gradient in What is s times that in W, and a step in What moves W by s times as much. So at rate lr, decay d:

- SGD, `What -= lr (s g + d What)`, is `W -= s^2 lr (g + d / s^2 W)`: rate `lr / C_out` and decay `C_out d`, for a bias
  `0.1 lr` and `10 d`. Momentum is linear in the gradients, so it changes nothing.
- AdamW, whose step has the size of the rate whatever the gradient's: rate `s lr`, decay `d / s`, and `epsilon / s`.

Two choices of ours, where their code says nothing or does harm: per-channel scales of norms, which they fold into the
convolutions, go as biases do; and w1 is left out, as its fan-out is the number of classes, with which its rate would
fall (`head_learning_rate = learning_rate / C` does as they do).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from tangentune.methods.gradient_features.settings import GradientFeatureSettings

HEAD = ("head.weight", "head.bias")
VECTOR_SCALE = 0.1
_EPSILON = 1e-8


def ntk_scale(parameter: Tensor) -> float:
    """`s^2` of a parameter: 1 / outputs, and 0.1 for biases and other vectors.

    Example:
        >>> ntk_scale(torch.zeros(50, 3, 3, 3)), ntk_scale(torch.zeros(50))
        (0.02, 0.1)
    """
    return 1 / parameter.shape[0] if parameter.ndim > 1 else VECTOR_SCALE


def make_optimiser(u: Mapping[str, Tensor], settings: GradientFeatureSettings) -> torch.optim.Optimizer:
    """An optimiser over the tangent; the peak rate of each of its groups is in the group's "peak".

    Args:
        u: what is learnt, by name; changed in place by the optimiser's steps.
        settings: rates, decay and the rest.
    """
    plain = settings.optimiser == "sgd"
    groups: dict[tuple[float, float, float], list[Tensor]] = {}
    for name, value in u.items():
        rate = settings.head_learning_rate if name in HEAD else settings.learning_rate
        square = ntk_scale(value) if settings.ntk_scaling and name not in HEAD else 1.0
        factor = square if plain else square**0.5
        decay = 0.0 if name == "head.bias" else settings.weight_decay / factor
        groups.setdefault((factor * rate, decay, _EPSILON / factor), []).append(value)
    rows: list[dict[str, Any]] = [
        {"params": values, "peak": peak, "weight_decay": decay} | ({} if plain else {"eps": epsilon})
        for (peak, decay, epsilon), values in groups.items()
    ]
    if plain:
        return torch.optim.SGD(rows, lr=settings.learning_rate, momentum=settings.momentum)
    return torch.optim.AdamW(rows, lr=settings.learning_rate)
