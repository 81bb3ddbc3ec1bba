"""The training loop of fine-tuning, for any loss of a backbone with linear heads."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, final

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm.auto import tqdm

from tangentune.errors import DivergedError, diverged
from tangentune.methods.fine_tuning.optimiser import make_optimiser
from tangentune.methods.fine_tuning.schedule import rate_factor
from tangentune.methods.fine_tuning.settings import FineTuneSettings
from tangentune.methods.fine_tuning.watch import Watch
from tangentune.networks.backbone import Backbone

__all__ = ["DivergedError", "Training", "batch_norms", "loss_of", "train"]

_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


@final
@dataclass(frozen=True, eq=False)
class Training:
    """What is trained, and on what.

    Attributes:
        tuned: its module's parameters move.
        heads: so do those of these.
        count: pictures of an epoch.
        loss: mean loss of some of them, given their rows and the generator of their random views.
        name: what the progress bar says.
    """

    tuned: Backbone
    heads: tuple[nn.Linear, ...]
    count: int
    loss: Callable[[Tensor, torch.Generator], Tensor]
    name: str

    @property
    def parts(self) -> tuple[nn.Module, ...]:
        """All that moves."""
        return (self.tuned.module, *self.heads)


def train(training: Training, watch: Watch | None, settings: FineTuneSettings, verbose: int) -> list[float]:
    """Train backbone and heads in place; mean loss of each epoch.

    Args:
        training: what is trained.
        watch: looks after each epoch and may stop; `watch.result()` is for the caller.
        settings: of these the loss, the head's start and the pictures kept aside are not read here.
        verbose: 1 shows a progress bar with the time left.

    Raises:
        DivergedError: the loss, a weight or a validation logit became NaN or infinite.
        BackboneError: the backbone's `features` function uses another module than it is given.
    """
    loop, losses = _Loop(training, settings), []
    with tqdm(total=loop.steps, desc=training.name, unit="step", disable=not verbose, delay=1.0, leave=None) as bar:
        for _ in range(settings.epochs):
            losses.append(loop.epoch(bar))
            if watch is not None and watch.is_enough():
                break
    if not all(bool(torch.isfinite(p).all()) for part in training.parts for p in part.parameters()):
        raise diverged(len(losses))
    return losses


def loss_of(
    logits: Tensor, positions: Tensor, settings: FineTuneSettings, reduction: Literal["mean", "none"] = "mean"
) -> Tensor:
    """Mean loss of a batch of (n, C) logits, or ("none") that of each of its rows.

    Cross-entropy in nats, or `1/2 sum_c (logit_c - target_scale [c = class])^2`.

    Example:
        >>> settings = FineTuneSettings(loss="squared", target_scale=2.0)
        >>> loss_of(torch.tensor([[1.0, 1.0]]), torch.tensor([0]), settings).item()
        1.0
    """
    if settings.loss == "cross_entropy":
        return F.cross_entropy(logits, positions, label_smoothing=settings.label_smoothing, reduction=reduction)
    squares = (logits - settings.target_scale * F.one_hot(positions, logits.shape[1]).to(logits)).square()
    return 0.5 * (squares.sum() / len(logits) if reduction == "mean" else squares.sum(1))


def batch_norms(module: nn.Module) -> list[nn.Module]:
    """The layers that normalise by statistics of the batch while they are in training mode."""
    return [part for part in module.modules() if isinstance(part, _BATCH_NORMS)]


@final
class _Loop:
    """What goes on from step to step: the optimiser, the count and the random numbers."""

    def __init__(self, training: Training, settings: FineTuneSettings) -> None:
        self.training, self.settings = training, settings
        self.generator = torch.Generator().manual_seed(settings.seed)
        self.per_epoch = math.ceil(training.count / settings.batch_size)
        self.steps = self.per_epoch * settings.epochs
        self.step = 0
        self.optimiser: torch.optim.Optimizer | None = None

    def epoch(self, bar: tqdm) -> float:
        """One pass over the pictures; their mean loss."""
        self._set_modes()
        n, total = self.training.count, 0.0
        for rows in torch.randperm(n, generator=self.generator).tensor_split(self.per_epoch):
            total += self._learn(rows) * len(rows) / n
            bar.update()
        return total

    def _learn(self, rows: Tensor) -> float:
        """One step on some pictures; their mean loss before it."""
        settings = self.settings
        loss = self.training.loss(rows, self.generator)
        if not torch.isfinite(loss):
            raise diverged(self.step // self.per_epoch + 1)
        loss.backward()
        if self.optimiser is None:
            self.optimiser = make_optimiser(self.training.tuned.module, self.training.heads, settings)
        rate = settings.learning_rate * rate_factor(self.step, self.steps, settings.warmup, settings.schedule)
        for group in self.optimiser.param_groups:
            group["lr"] = rate * group["factor"]
        self.optimiser.step()
        self.optimiser.zero_grad()
        self.step += 1
        return float(loss.detach())

    def _set_modes(self) -> None:
        module = self.training.tuned.module
        module.train()
        if self.settings.batchnorm == "eval":
            for part in batch_norms(module):
                part.eval()
