"""Ordinary fine-tuning of every layer."""

from __future__ import annotations

import copy
import time
from dataclasses import dataclass
from typing import Any, final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from tangentune.backbone import Backbone
from tangentune.baselines.inputs import class_positions, mean_features
from tangentune.baselines.settings import FineTuneSettings
from tangentune.baselines.training import Labelled, train
from tangentune.baselines.validation import Validation, split_rows
from tangentune.errors import InputError
from tangentune.heads import probe_head
from tangentune.imaging.pictures import Pictures
from tangentune.memory import warm_pages


@final
@dataclass(frozen=True, eq=False)
class FineTuned:
    """A fine-tuned copy of a backbone with its head, and what training it cost.

    Attributes:
        backbone: the tuned copy, in eval mode, parameters frozen again.
        head: linear layer from features to one logit a class.
        classes: (C,) labels in the order of the logits, sorted.
        settings: how it was trained.
        losses: mean training loss of each epoch; cross-entropy in nats.
        seconds: wall time of training, with the head's warm start and without any prediction.
        cpu_seconds: processor time of the same; fair where other programs share the machine.
        validation: how it did on the pictures kept aside; None where there were none.
        temperature: what logits are divided by before the softmax: fitted to the pictures kept aside, else 1.
            Logits of a squared loss are near 0 and `target_scale`; without a temperature their softmax is flat.
    """

    backbone: Backbone
    head: nn.Linear
    classes: NDArray[Any]
    settings: FineTuneSettings
    losses: tuple[float, ...]
    seconds: float
    cpu_seconds: float
    validation: Validation | None = None
    temperature: float = 1.0

    def logits(self, pictures: Pictures, *, batch_size: int = 64, flip: bool = False) -> Tensor:
        """(n, C) logits; `flip` averages them over each picture and its mirror image."""
        return self.head(mean_features(self.backbone, pictures, batch_size, flip))

    def predict_proba(self, pictures: Pictures, *, batch_size: int = 64, flip: bool = False) -> Tensor:
        """(n, C) class probabilities."""
        return (self.logits(pictures, batch_size=batch_size, flip=flip) / self.temperature).softmax(dim=1)

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
        forward pass (two with `flip`) for the probe; a forward pass an epoch over pictures kept aside.

    Raises:
        InputError: labels are missing or of one class only, pictures are to be kept aside but no class has
            two, or training diverged (`DivergedError`).
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
    classes, positions = class_positions(pictures)
    tuned = copy.deepcopy(backbone)
    if pictures.pixels.ndim == 4:  # a quarter faster on a processor, the same up to rounding
        tuned.module.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    tuned.module.eval().requires_grad_(True)
    with warm_pages():
        data, kept_aside = _keep_aside(tuned, pictures, positions, settings)
        head = _start_head(tuned, data, settings)
        losses, validation = train(tuned, head, data, kept_aside, settings, verbose)
    for part in (tuned.module, head):
        part.eval().requires_grad_(False)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    temperature = 1.0 if validation is None else validation.temperature
    return FineTuned(tuned, head, classes, settings, tuple(losses), wall, cpu, validation, temperature)


def _keep_aside(
    tuned: Backbone, pictures: Pictures, positions: NDArray[np.int64], settings: FineTuneSettings
) -> tuple[Labelled, Labelled | None]:
    """Pictures to train on, and those to validate on."""
    targets = torch.from_numpy(positions).to(next(tuned.module.parameters()).device)
    if not settings.validation_share:
        return Labelled(pictures, targets), None
    rows, others = split_rows(positions, settings.validation_share, settings.seed)
    if not len(others):
        message = "validation_share needs a class of two pictures at least; every class here has one: set it to 0"
        raise InputError(message)
    return Labelled(pictures.select(rows), targets[rows]), Labelled(pictures.select(others), targets[others])


def _start_head(tuned: Backbone, data: Labelled, settings: FineTuneSettings) -> nn.Linear:
    """The head before the first step, in the features' dtype and on their device."""
    if settings.head_start in ("probe", "calibrated_probe"):
        features = mean_features(tuned, data.pictures, 64, settings.flip)
        return probe_head(features, data.positions, calibrated=settings.head_start == "calibrated_probe")
    width = mean_features(tuned, data.pictures.select([0]), 1, False)
    head = nn.Linear(width.shape[1], int(data.positions.max()) + 1)
    generator = torch.Generator().manual_seed(settings.seed)
    bound = 0.0 if settings.head_start == "zero" else width.shape[1] ** -0.5  # PyTorch's own scale
    with torch.no_grad():
        head.weight.uniform_(-bound, bound, generator=generator)
        head.bias.zero_()
    return head.to(width)
