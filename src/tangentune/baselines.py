"""What the tangent kernel is compared with: ordinary fine-tuning of every layer, made as strong as is usual.

Cross-entropy, Adam with warm-up and cosine decay, mirrored pictures, and a linear head that starts at zero,
at random, or from the linear probe ("linear probe, then fine-tune": Kumar et al. 2022, ICLR, section 3.4).
On few pictures a head that starts flat (zero, or the uncalibrated probe) beats a random or a confident one by far.
"""

from __future__ import annotations

import copy
import math
import time
from dataclasses import dataclass
from typing import Any, Literal, final, get_args, get_type_hints

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from tangentune.backbone import Backbone
from tangentune.calibration import fit_temperature
from tangentune.errors import BackboneError, InputError
from tangentune.imaging.pictures import Pictures, normalise
from tangentune.solvers.ridge import factor_ridge, loo_errors, solve

_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


@final
@dataclass(frozen=True)
class FineTuneSettings:
    """Choices of ordinary fine-tuning; the defaults were the best of those in docs/results/finetune_accuracy.json.

    Attributes:
        learning_rate: peak rate of Adam, the same for all layers.
        epochs: passes over the pictures.
        batch_size: largest batch; an epoch is cut into equal batches, so that none is tiny.
        weight_decay: decoupled (AdamW); 0 is plain Adam.
        warmup: share of all steps in which the rate rises linearly from nearly zero, in [0, 1).
        schedule: what the rate does after the warm-up: "cosine" decay to zero or "constant".
        flip: mirror each picture left-right with probability 1/2 at every step (vectors are left alone).
        head_start: "zero", "probe" or "calibrated_probe" (see `probe_head`), or "random".
        batchnorm: "eval" keeps the pre-trained statistics, "train" uses and updates those of the batches.
        seed: order of the pictures, mirroring and a random head.

    Raises:
        InputError: a number is out of range or a choice is unknown.
    """

    learning_rate: float = 1e-4
    epochs: int = 15
    batch_size: int = 32
    weight_decay: float = 0.0
    warmup: float = 0.1
    schedule: Literal["cosine", "constant"] = "cosine"
    flip: bool = True
    head_start: Literal["zero", "probe", "calibrated_probe", "random"] = "zero"
    batchnorm: Literal["eval", "train"] = "eval"
    seed: int = 0

    def __post_init__(self) -> None:
        for name, annotation in get_type_hints(FineTuneSettings).items():
            value, choices = getattr(self, name), get_args(annotation)
            if choices and value not in choices:
                message = f"{name} is {value!r}; use one of {', '.join(map(repr, choices))}"
                raise InputError(message)
        for name, low in {"learning_rate": 1e-12, "epochs": 1, "batch_size": 1, "weight_decay": 0}.items():
            if not low <= getattr(self, name) < math.inf:
                message = f"{name} is {getattr(self, name)}; it must be a number of at least {low:g}"
                raise InputError(message)
        if not 0 <= self.warmup < 1:
            message = f"warmup is {self.warmup}; it is a share of the steps, at least 0 and below 1"
            raise InputError(message)


@final
@dataclass(frozen=True, eq=False)
class FineTuned:
    """A fine-tuned copy of a backbone with its head, and what training it cost.

    Attributes:
        backbone: the tuned copy, in eval mode, parameters frozen again.
        head: linear layer from features to one logit a class.
        classes: (C,) labels in the order of the logits, sorted.
        settings: how it was trained.
        losses: mean training cross-entropy of each epoch, in nats.
        seconds: wall time of training, with the head's warm start and without any prediction.
        cpu_seconds: processor time of the same; fair where other programs share the machine.
    """

    backbone: Backbone
    head: nn.Linear
    classes: NDArray[Any]
    settings: FineTuneSettings
    losses: tuple[float, ...]
    seconds: float
    cpu_seconds: float

    def logits(self, pictures: Pictures, *, batch_size: int = 64, flip: bool = False) -> Tensor:
        """(n, C) logits; `flip` averages them over each picture and its mirror image."""
        return self.head(_mean_features(self.backbone, pictures, batch_size, flip))

    def predict_proba(self, pictures: Pictures, *, batch_size: int = 64, flip: bool = False) -> Tensor:
        """(n, C) class probabilities."""
        return self.logits(pictures, batch_size=batch_size, flip=flip).softmax(dim=1)

    def predict(self, pictures: Pictures, *, batch_size: int = 64, flip: bool = False) -> NDArray[Any]:
        """(n,) most likely labels."""
        best = self.logits(pictures, batch_size=batch_size, flip=flip).argmax(dim=1)
        return self.classes[best.cpu().numpy()]


def fine_tune(
    backbone: Backbone,
    pictures: Pictures,
    settings: FineTuneSettings | None = None,
    *,
    verbose: int = 0,
) -> FineTuned:
    """Train a copy of the backbone and a linear head on labelled pictures, all layers moving.

    Args:
        backbone: left as it is; a deep copy is trained, on the device its parameters are on.
        pictures: at the backbone's size, with class labels.
        settings: rate, epochs and the rest; None takes the defaults.
        verbose: 1 shows a progress bar with the time left.

    Returns:
        The tuned copy with its head. Cost: `epochs` forward and backward passes over the pictures, and one
        forward pass (two with `flip`) for the probe.

    Raises:
        InputError: labels are missing or of one class only, or training diverged.
        BackboneError: the backbone's `features` function uses another module than it is given.

    Example:
        >>> dots = torch.tensor([[0.0, 0.0], [0.0, 1.0], [4.0, 4.0], [4.0, 5.0]])
        >>> train = Pictures(dots, np.array(["low", "low", "high", "high"]), ["a", "b", "c", "d"])
        >>> tuned = fine_tune(Backbone(nn.Linear(2, 3)), train, FineTuneSettings(epochs=2, head_start="probe"))
        >>> tuned.predict(train).tolist()
        ['low', 'low', 'high', 'high']
    """
    settings = settings or FineTuneSettings()
    wall, cpu = time.perf_counter(), time.process_time()
    classes, positions = _class_positions(pictures)
    tuned = copy.deepcopy(backbone)
    if pictures.pixels.ndim == 4:  # a quarter faster on a processor, the same up to rounding
        tuned.module.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    tuned.module.eval().requires_grad_(True)
    targets = torch.from_numpy(positions).to(next(tuned.module.parameters()).device)
    head = _start_head(tuned, pictures, targets, settings)
    tuned.module.train()
    for part in tuned.module.modules():
        if settings.batchnorm == "eval" and isinstance(part, _BATCH_NORMS):
            part.eval()
    losses = _train(tuned, head, pictures, targets, settings, verbose)
    for part in (tuned.module, head):
        part.eval().requires_grad_(False)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    return FineTuned(tuned, head, classes, settings, tuple(losses), wall, cpu)


def probe_head(features: Tensor, positions: Tensor, *, calibrated: bool = False) -> nn.Linear:
    """Linear probe: ridge regression on one-hot targets, damping chosen by the exact leave-one-out error.

    Args:
        features: (n, d).
        positions: (n,) classes as 0..C-1, each at least once.
        calibrated: scale the outputs to logits of honest probabilities, again by leave-one-out: some ten
            times as large. The training loss then starts near zero, a poor place to fine-tune from.

    Returns:
        A linear layer d -> C in the features' dtype. Cost n^2 (n + d).

    Example:
        >>> head = probe_head(torch.tensor([[0.0], [1.0], [4.0], [5.0]]), torch.tensor([0, 0, 1, 1]))
        >>> head(torch.tensor([[0.5], [4.5]])).argmax(1).tolist()
        [0, 1]
    """
    centre = features.double().mean(0)
    centred = features.double() - centre
    targets = F.one_hot(positions).double()
    factor = factor_ridge(centred @ centred.T)
    dampings = max(factor.mean_eigenvalue, 1e-12) * torch.logspace(-4, 3, 57, dtype=torch.float64)
    damping = float(dampings[loo_errors(factor, targets, dampings).argmin()])
    solution = solve(factor, targets, damping)
    scale = 1 / fit_temperature(solution.loo, positions) if calibrated else 1.0
    weight = scale * (centred.T @ solution.dual).T
    head = nn.Linear(features.shape[1], targets.shape[1]).to(features)
    with torch.no_grad():
        head.weight.copy_(weight)
        head.bias.copy_(scale * solution.intercept - weight @ centre)
    return head


def rate_factor(step: int, steps: int, warmup: float, schedule: str) -> float:
    """What the peak learning rate is multiplied by at `step` of `steps` (0-based).

    Example:
        >>> [round(rate_factor(s, 6, 1 / 3, "cosine"), 3) for s in range(6)]
        [0.5, 1.0, 1.0, 0.854, 0.5, 0.146]
    """
    rising = round(warmup * steps)
    if step < rising:
        return (step + 1) / rising
    if schedule == "constant":
        return 1.0
    return 0.5 * (1.0 + math.cos(math.pi * (step - rising) / (steps - rising)))


def _train(
    tuned: Backbone,
    head: nn.Linear,
    pictures: Pictures,
    targets: Tensor,
    settings: FineTuneSettings,
    verbose: int,
) -> list[float]:
    """Run all epochs in place; mean loss of each."""
    generator = torch.Generator().manual_seed(settings.seed)
    parameters = [*tuned.module.parameters(), *head.parameters()]
    optimiser = torch.optim.AdamW(parameters, weight_decay=settings.weight_decay, fused=True)
    per_epoch = math.ceil(len(pictures) / settings.batch_size)
    steps, losses = per_epoch * settings.epochs, []
    with tqdm(total=steps, desc="fine-tuning", unit="step", disable=not verbose) as bar:
        for epoch in range(settings.epochs):
            order = torch.randperm(len(pictures), generator=generator).tensor_split(per_epoch)
            total = 0.0
            for k, rows in enumerate(order):
                factor = rate_factor(epoch * per_epoch + k, steps, settings.warmup, settings.schedule)
                optimiser.param_groups[0]["lr"] = settings.learning_rate * factor
                x = _network_input(tuned, pictures.pixels[rows])
                if settings.flip and x.ndim == 4:
                    mirrored = torch.rand(len(x), generator=generator).to(x.device) < 0.5
                    x = torch.where(mirrored[:, None, None, None], x.flip(-1), x)
                loss = F.cross_entropy(head(tuned.feature_function(tuned.module, x)), targets[rows])
                if not torch.isfinite(loss):
                    message = f"fine-tuning diverged in epoch {epoch + 1}; lower the learning rate"
                    raise InputError(message)
                optimiser.zero_grad()
                loss.backward()
                if all(p.grad is None for p in tuned.module.parameters()):
                    message = "the backbone's `features` must use the module that it is given; it uses another"
                    raise BackboneError(message)
                optimiser.step()
                total += float(loss.detach()) * len(rows) / len(pictures)
                bar.update()
            losses.append(total)
    return losses


def _start_head(tuned: Backbone, pictures: Pictures, targets: Tensor, settings: FineTuneSettings) -> nn.Linear:
    """The head before the first step, in the features' dtype and on their device."""
    if settings.head_start in ("probe", "calibrated_probe"):
        features = _mean_features(tuned, pictures, 64, settings.flip)
        return probe_head(features, targets, calibrated=settings.head_start == "calibrated_probe")
    width = _mean_features(tuned, pictures.select([0]), 1, False)
    head = nn.Linear(width.shape[1], int(targets.max()) + 1)
    generator = torch.Generator().manual_seed(settings.seed)
    bound = 0.0 if settings.head_start == "zero" else width.shape[1] ** -0.5  # PyTorch's own scale
    with torch.no_grad():
        head.weight.uniform_(-bound, bound, generator=generator)
        head.bias.zero_()
    return head.to(width)


def _class_positions(pictures: Pictures) -> tuple[NDArray[Any], NDArray[np.int64]]:
    """Sorted classes and every picture's position among them."""
    labels = pictures.labels
    if labels is None or labels.ndim != 1 or labels.dtype.kind == "f":
        message = "fine-tuning needs one class label per picture; give labels= or class folders"
        raise InputError(message)
    classes, positions = np.unique(labels, return_inverse=True)
    if len(classes) < 2:
        message = f"fine-tuning needs pictures of two classes at least; these have {classes.tolist()}"
        raise InputError(message)
    return classes, positions


@torch.no_grad()
def _mean_features(backbone: Backbone, pictures: Pictures, batch_size: int, flip: bool) -> Tensor:
    """(n, d) features; `flip` averages those of each picture and its mirror image."""
    rows = []
    for pixels in pictures.pixels.split(batch_size):
        x = _network_input(backbone, pixels)
        views = [x, x.flip(-1)] if flip and x.ndim == 4 else [x]
        rows.append(torch.stack([backbone.features(view) for view in views]).mean(0))
    return torch.cat(rows)


def _network_input(backbone: Backbone, pixels: Tensor) -> Tensor:
    """Pixels normalised by the contract, where and as the parameters are."""
    weight = next(backbone.module.parameters())
    x = normalise(pixels.to(weight.device), backbone.contract, weight.dtype)
    return x.contiguous(memory_format=torch.channels_last) if x.ndim == 4 else x
