"""The training loop of ordinary fine-tuning."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from tangentune.backbone import Backbone
from tangentune.baselines.augment import random_views
from tangentune.baselines.inputs import mean_features, network_input
from tangentune.baselines.schedule import layer_factors, rate_factor
from tangentune.baselines.settings import FineTuneSettings
from tangentune.baselines.validation import Validation, judge
from tangentune.errors import BackboneError, InputError
from tangentune.imaging.pictures import Pictures

_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


class DivergedError(InputError):
    """Training ended in NaN or infinity; a lower rate is the usual cure."""


@final
@dataclass(frozen=True, eq=False)
class Labelled:
    """Pictures with their classes as positions (n,), on the network's device."""

    pictures: Pictures
    positions: Tensor


def train(
    tuned: Backbone,
    head: nn.Linear,
    data: Labelled,
    kept_aside: Labelled | None,
    settings: FineTuneSettings,
    verbose: int,
) -> tuple[list[float], Validation | None]:
    """Train backbone and head in place; mean loss of each epoch, and the validation when pictures are kept aside.

    Raises:
        DivergedError: the loss, a weight or a validation logit became NaN or infinite.
        BackboneError: the backbone's `features` function uses another module than it is given.
    """
    loop, losses = _Loop(tuned, head, data, settings), []
    watch = None if kept_aside is None else _Watch(tuned, head, kept_aside, settings.patience)
    with tqdm(total=loop.steps, desc="fine-tuning", unit="step", disable=not verbose, delay=1.0, leave=None) as bar:
        for _ in range(settings.epochs):
            losses.append(loop.epoch(bar))
            if watch is not None and watch.is_enough():
                break
    if not all(bool(torch.isfinite(p).all()) for part in (tuned.module, head) for p in part.parameters()):
        raise _diverged(len(losses))
    return losses, None if watch is None else watch.result()


def loss_of(logits: Tensor, positions: Tensor, settings: FineTuneSettings) -> Tensor:
    """Mean loss of a batch of (n, C) logits.

    Cross-entropy in nats, or `1/2 sum_c (logit_c - target_scale [c = class])^2`.

    Example:
        >>> settings = FineTuneSettings(loss="squared", target_scale=2.0)
        >>> loss_of(torch.tensor([[1.0, 1.0]]), torch.tensor([0]), settings).item()
        1.0
    """
    if settings.loss == "cross_entropy":
        return F.cross_entropy(logits, positions, label_smoothing=settings.label_smoothing)
    targets = settings.target_scale * F.one_hot(positions, logits.shape[1]).to(logits)
    return 0.5 * (logits - targets).square().sum() / len(logits)


@final
class _Loop:
    """What goes on from step to step: the optimiser, the count and the random numbers."""

    def __init__(self, tuned: Backbone, head: nn.Linear, data: Labelled, settings: FineTuneSettings) -> None:
        self.tuned, self.head, self.data, self.settings = tuned, head, data, settings
        self.generator = torch.Generator().manual_seed(settings.seed)
        self.per_epoch = math.ceil(len(data.pictures) / settings.batch_size)
        self.steps = self.per_epoch * settings.epochs
        self.step = 0
        self.optimiser: torch.optim.Optimizer | None = None

    def epoch(self, bar: tqdm) -> float:
        """One pass over the pictures; their mean loss."""
        self._set_modes()
        n, total = len(self.data.pictures), 0.0
        for rows in torch.randperm(n, generator=self.generator).tensor_split(self.per_epoch):
            total += self._learn(rows) * len(rows) / n
            bar.update()
        return total

    def _learn(self, rows: Tensor) -> float:
        """One step on some pictures; their mean loss before it."""
        module, settings = self.tuned.module, self.settings
        x = network_input(self.tuned, self.data.pictures.pixels[rows])
        x = random_views(x, self.generator, flip=settings.flip, crop=settings.crop)
        logits = self.head(self.tuned.feature_function(module, x))
        loss = loss_of(logits, self.data.positions[rows], settings)
        if not torch.isfinite(loss):
            raise _diverged(self.step // self.per_epoch + 1)
        loss.backward()
        if self.optimiser is None:
            self.optimiser = _optimiser(module, self.head, settings)
        rate = settings.learning_rate * rate_factor(self.step, self.steps, settings.warmup, settings.schedule)
        for group in self.optimiser.param_groups:
            group["lr"] = rate * group["factor"]
        self.optimiser.step()
        self.optimiser.zero_grad()
        self.step += 1
        return float(loss.detach())

    def _set_modes(self) -> None:
        self.tuned.module.train()
        for part in self.tuned.module.modules():
            if self.settings.batchnorm == "eval" and isinstance(part, _BATCH_NORMS):
                part.eval()


@final
class _Watch:
    """Judges the network after each epoch and remembers the best weights if training may stop early."""

    def __init__(self, tuned: Backbone, head: nn.Linear, kept_aside: Labelled, patience: int) -> None:
        self.tuned, self.head, self.kept_aside, self.patience = tuned, head, kept_aside, patience
        self.scores: list[tuple[float, float, float]] = []
        self.kept = 0
        self.weights: list[dict[str, Tensor]] = []

    def is_enough(self) -> bool:
        """Look once more; whether `patience` epochs went by without a better result."""
        self.tuned.module.eval()
        try:
            features = mean_features(self.tuned, self.kept_aside.pictures, 64, False)
        except BackboneError as error:
            raise _diverged(len(self.scores) + 1) from error
        with torch.no_grad():
            logits = self.head(features)
        if not bool(torch.isfinite(logits).all()):
            raise _diverged(len(self.scores) + 1)
        self.scores.append(judge(logits, self.kept_aside.positions))
        better = self.kept == 0 or _order(self.scores[-1]) > _order(self.scores[self.kept - 1])
        if better or not self.patience:
            self.kept = len(self.scores)
        if better and self.patience:
            parts = (self.tuned.module, self.head)
            self.weights = [{k: v.detach().clone() for k, v in part.state_dict().items()} for part in parts]
        return 0 < self.patience <= len(self.scores) - self.kept

    def result(self) -> Validation:
        """The curve; brings the best weights back if training could stop early."""
        for part, weights in zip((self.tuned.module, self.head), self.weights, strict=False):
            part.load_state_dict(weights)
        accuracies, nlls, temperatures = zip(*self.scores, strict=True)
        return Validation(len(self.kept_aside.pictures), accuracies, nlls, self.kept, temperatures[self.kept - 1])


def _order(score: tuple[float, float, float]) -> tuple[float, float]:
    """Higher is better: accuracy, then log-loss."""
    return score[0], -score[1]


def _optimiser(module: nn.Module, head: nn.Linear, settings: FineTuneSettings) -> torch.optim.Optimizer:
    """The optimiser after the first backward pass, which tells the parameters that the features depend on."""
    names = [name for name, parameter in module.named_parameters() if parameter.grad is not None]
    if not names:
        message = "the backbone's `features` must use the module that it is given; it uses another"
        raise BackboneError(message)
    factors = layer_factors(names, settings.layer_decay)
    by_factor: dict[float, list[nn.Parameter]] = {}
    for name, parameter in module.named_parameters():
        by_factor.setdefault(factors.get(name, 1.0), []).append(parameter)
    by_factor.setdefault(1.0, []).extend(head.parameters())
    groups = [{"params": parameters, "factor": factor} for factor, parameters in by_factor.items()]
    if settings.optimiser == "sgd":
        return torch.optim.SGD(groups, momentum=0.9, weight_decay=settings.weight_decay, fused=True)
    return torch.optim.AdamW(groups, weight_decay=settings.weight_decay, fused=True)


def _diverged(epoch: int) -> DivergedError:
    return DivergedError(f"fine-tuning diverged in epoch {epoch}; lower the learning rate")
