"""How gradient features are trained: a dual forward pass and a plain backward pass a step, and a rate for each part."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import repeat

import torch
from torch import Tensor
from torch.nn import functional as F

from tangentune.errors import DivergedError
from tangentune.jacobian.linearization import Linearization
from tangentune.methods.fine_tuning.training import Training
from tangentune.methods.gradient_features.settings import GradientFeatureSettings

HEAD = ("head.weight", "head.bias")


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

    training = Training(n, learn, lambda: _optimiser(u, settings), 1.0, "gradient features")
    for mean in training.epochs(settings, repeat(torch.Generator().manual_seed(settings.seed)), verbose):
        losses.append(mean)
        if not math.isfinite(mean) or not all(bool(torch.isfinite(value).all()) for value in u.values()):
            message = f"gradient features diverged in epoch {len(losses)}; lower the learning rate"
            raise DivergedError(message)
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


def _optimiser(u: Mapping[str, Tensor], settings: GradientFeatureSettings) -> torch.optim.Optimizer:
    """An optimiser over the tangent; the peak rate of each of its groups is the group's `factor`."""
    body = [value for name, value in u.items() if name not in HEAD]
    parts = [(body, settings.learning_rate, settings.weight_decay)] if body else []
    for name, decay in zip(HEAD, (settings.weight_decay, 0.0), strict=True):
        if name in u:
            parts.append(([u[name]], settings.head_learning_rate, decay))
    groups = [{"params": values, "factor": rate, "weight_decay": decay} for values, rate, decay in parts]
    if settings.optimiser == "sgd":
        return torch.optim.SGD(groups, lr=settings.learning_rate, momentum=settings.momentum)
    return torch.optim.AdamW(groups, lr=settings.learning_rate)
