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
from tangentune.methods.fine_tuning.labelled import network_input
from tangentune.methods.fine_tuning.training import Training
from tangentune.methods.gradient_features.settings import GradientFeatureSettings
from tangentune.networks.backbone import Backbone

HEAD = ("head.weight", "head.bias")
Inputs = Callable[[Tensor, Tensor | None], Tensor]  # network inputs by rows and, where some are mirrored, by which


def cached_inputs(views: Sequence[Tensor]) -> Inputs:
    """Activations at the cut that were kept: (n, ...), and with mirror images a second time of those."""

    def inputs(rows: Tensor, mirrored: Tensor | None) -> Tensor:
        z = views[0][rows]
        return _layout(z if mirrored is None else _choose(mirrored, views[1][rows], z))

    return inputs


def fresh_inputs(backbone: Backbone, pixels: Tensor) -> Inputs:
    """Network inputs, made from the pixels at every step."""

    def inputs(rows: Tensor, mirrored: Tensor | None) -> Tensor:
        x = network_input(backbone, pixels[rows])
        return x if mirrored is None else _layout(_choose(mirrored, x.flip(-1), x))

    return inputs


def train(
    lin: Linearization, inputs: Inputs, positions: Tensor, settings: GradientFeatureSettings, flip: bool, verbose: int
) -> tuple[float, ...]:
    """Train the linearisation's own tangent in place; mean loss of each epoch.

    `lin` is the network, or its part above the cut, with om_bar as its head; `flip`: there are mirrored inputs.
    """
    u, n, losses = dict(lin.tangent.named_parameters()), len(positions), []

    def learn(rows: Tensor, generator: torch.Generator) -> float:
        mirrored = torch.rand(len(rows), generator=generator) < 0.5 if flip else None
        loss, grads = gradient(lin, inputs(rows, mirrored), positions[rows], settings)
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


def _choose(mirrored: Tensor, yes: Tensor, no: Tensor) -> Tensor:
    return torch.where(mirrored.to(no.device).reshape(-1, *[1] * (no.ndim - 1)), yes, no)


def _layout(z: Tensor) -> Tensor:
    """The layout in which convolutions are a quarter faster on a processor."""
    return z.contiguous(memory_format=torch.channels_last) if z.ndim == 4 else z
