"""How gradient features are trained: a dual forward pass and a plain backward pass a step, and a rate for each part.

Rates and decays of the parts of the tangent are the authors' NTK parametrisation as parameter groups.
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

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import repeat
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from tangentune.errors import DivergedError
from tangentune.jacobian.linearization import Linearization
from tangentune.methods.fine_tuning.training import Training
from tangentune.methods.gradient_features.settings import GradientFeatureSettings

HEAD = ("head.weight", "head.bias")
VECTOR_SCALE = 0.1
_EPSILON = 1e-8


def train(
    lin: Linearization,
    views: Callable[[Tensor], Sequence[Tensor]],
    positions: Tensor,
    settings: GradientFeatureSettings,
    flip: bool,
    verbose: int,
) -> tuple[float, ...]:
    """Train the linearisation's own tangent in place; mean loss of each epoch.

    `lin` is the network, or its part above the cut, with om_bar as its head; `views` its inputs by rows, and with
    `flip` those of the mirror images.
    """
    u, n, losses = dict(lin.tangent.named_parameters()), len(positions), []

    def learn(rows: Tensor, generator: torch.Generator) -> float:
        x, *mirrored = views(rows)
        if flip:
            chosen = (torch.rand(len(rows), generator=generator) < 0.5).to(x.device)
            x = torch.where(chosen.reshape(-1, *[1] * (x.ndim - 1)), mirrored[0], x)
        if x.ndim == 4:  # the layout in which convolutions are a quarter faster on a processor
            x = x.contiguous(memory_format=torch.channels_last)
        loss, grads = gradient(lin, x, positions[rows], settings)
        for name, value in u.items():
            value.grad = grads[name]
        return loss * len(rows) / n

    training = Training(n, learn, lambda: make_optimiser(u, settings), 1.0, "gradient features")
    for mean in training.epochs(settings, repeat(torch.Generator().manual_seed(settings.seed)), verbose):
        losses.append(mean)
        if not math.isfinite(mean) or not all(bool(torch.isfinite(value).all()) for value in u.values()):
            raise DivergedError(f"gradient features diverged in epoch {len(losses)}; lower the learning rate")
    return tuple(losses)


def gradient(
    lin: Linearization, x: Tensor, positions: Tensor, settings: GradientFeatureSettings
) -> tuple[float, dict[str, Tensor]]:
    """Mean loss of a batch at the linearisation's own tangent, and its gradient there."""
    found: list[float] = []

    def cotangent(f0: Tensor, jv: Tensor) -> Tensor:
        outputs = (jv if settings.variant == "gradient" else f0 + jv).double()
        targets = F.one_hot(positions, outputs.shape[1]).to(outputs)
        if settings.loss == "squared":
            errors = outputs - targets
            found.append(0.5 * float(errors.square().sum()) / len(x))
        else:
            errors = outputs.softmax(1) - targets
            found.append(float(F.cross_entropy(outputs, positions)))
        return errors / len(x)

    grads = lin.step(x, dict(lin.tangent.named_parameters()), cotangent)[2]
    return found[0], grads


def ntk_scale(parameter: Tensor) -> float:
    """`s^2` of a parameter: 1 / outputs, and 0.1 for biases and other vectors.

    Example:
        >>> ntk_scale(torch.zeros(50, 3, 3, 3)), ntk_scale(torch.zeros(50))
        (0.02, 0.1)
    """
    return 1 / parameter.shape[0] if parameter.ndim > 1 else VECTOR_SCALE


def make_optimiser(u: Mapping[str, Tensor], settings: GradientFeatureSettings) -> torch.optim.Optimizer:
    """An optimiser over the tangent `u`, by name; the peak rate of each of its groups is the group's `factor`."""
    plain = settings.optimiser == "sgd"
    groups: dict[tuple[float, float, float], list[Tensor]] = {}
    for name, value in u.items():
        rate = settings.head_learning_rate if name in HEAD else settings.learning_rate
        square = ntk_scale(value) if settings.ntk_scaling and name not in HEAD else 1.0
        factor = square if plain else square**0.5
        decay = 0.0 if name == "head.bias" else settings.weight_decay / factor
        groups.setdefault((factor * rate, decay, _EPSILON / factor), []).append(value)
    rows: list[dict[str, Any]] = [
        {"params": values, "factor": peak, "weight_decay": decay} | ({} if plain else {"eps": epsilon})
        for (peak, decay, epsilon), values in groups.items()
    ]
    if plain:
        return torch.optim.SGD(rows, lr=settings.learning_rate, momentum=settings.momentum)
    return torch.optim.AdamW(rows, lr=settings.learning_rate)
