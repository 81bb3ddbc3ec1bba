"""The training loop of gradient features: one dual forward pass and one plain backward pass a step."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor
from torch.nn import functional as F
from tqdm.auto import tqdm

from tangentune.jacobian.linearization import Linearization
from tangentune.methods.fine_tuning.labelled import network_input
from tangentune.methods.fine_tuning.schedule import rate_factor
from tangentune.methods.fine_tuning.training import DivergedError
from tangentune.methods.gradient_features.groups import make_optimiser
from tangentune.methods.gradient_features.settings import GradientFeatureSettings
from tangentune.networks.backbone import Backbone


@final
@dataclass(frozen=True, eq=False)
class Kept:
    """Activations at the cut.

    Attributes:
        views: one (n, ...) tensor, or a second one of the mirrored pictures.
    """

    views: tuple[Tensor, ...]

    def __call__(self, rows: Tensor, mirrored: Tensor | None) -> Tensor:
        """Activations of some pictures, some of them mirrored."""
        z = self.views[0][rows]
        return _layout(z if mirrored is None else _choose(mirrored, self.views[1][rows], z))


@final
@dataclass(frozen=True, eq=False)
class Made:
    """Network inputs, made from the pixels at every step.

    Attributes:
        backbone: for its contract.
        pixels: (n, ...).
    """

    backbone: Backbone
    pixels: Tensor

    def __call__(self, rows: Tensor, mirrored: Tensor | None) -> Tensor:
        """Network inputs of some pictures, some of them mirrored."""
        x = network_input(self.backbone, self.pixels[rows])
        return x if mirrored is None else _layout(_choose(mirrored, x.flip(-1), x))


def train(
    lin: Linearization,
    inputs: Kept | Made,
    positions: Tensor,
    settings: GradientFeatureSettings,
    flip: bool,
    verbose: int,
) -> list[float]:
    """Train the linearisation's own tangent in place; mean loss of each epoch.

    Args:
        lin: the network, or its part above the cut, with om_bar as its head.
        inputs: from rows and mirroring to what `lin` takes.
        positions: (n,) classes as positions.
        settings: rates and the rest.
        flip: whether there are mirrored inputs to draw from.
        verbose: 1 shows a progress bar.

    Raises:
        DivergedError: the loss or the tangent became NaN or infinite.
    """
    u = dict(lin.tangent.named_parameters())
    optimiser = make_optimiser(u, settings)
    generator = torch.Generator().manual_seed(settings.seed)
    n = len(positions)
    per_epoch = math.ceil(n / settings.batch_size)
    steps, step, losses = per_epoch * settings.epochs, 0, []
    with tqdm(total=steps, desc="gradient features", unit="step", disable=not verbose, delay=1.0, leave=None) as bar:
        for epoch in range(1, settings.epochs + 1):
            total = 0.0
            for rows in torch.randperm(n, generator=generator).tensor_split(per_epoch):
                mirrored = torch.rand(len(rows), generator=generator) < 0.5 if flip else None
                loss, grads = gradient(lin, inputs(rows, mirrored), positions[rows], settings)
                for name, value in u.items():
                    value.grad = grads[name]
                factor = rate_factor(step, steps, settings.warmup, settings.schedule)
                for group in optimiser.param_groups:
                    group["lr"] = factor * group["peak"]
                optimiser.step()
                total, step = total + loss * len(rows) / n, step + 1
                bar.update()
            losses.append(total)
            if not math.isfinite(total) or not all(bool(torch.isfinite(value).all()) for value in u.values()):
                message = f"gradient features diverged in epoch {epoch}; lower the learning rate"
                raise DivergedError(message)
    return losses


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


def _choose(mirrored: Tensor, yes: Tensor, no: Tensor) -> Tensor:
    return torch.where(mirrored.to(no.device).reshape(-1, *[1] * (no.ndim - 1)), yes, no)


def _layout(z: Tensor) -> Tensor:
    """The layout in which convolutions are a quarter faster on a processor."""
    return z.contiguous(memory_format=torch.channels_last) if z.ndim == 4 else z
