"""Ordinary fine-tuning of every layer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor
from torch.nn import functional as F

from tangentune._torch import usual_torch
from tangentune.memory import warm_pages
from tangentune.methods.fine_tuning.classifier import LinearClassifier, spent
from tangentune.methods.fine_tuning.labelled import class_positions, for_head, mean_features, training_views
from tangentune.methods.fine_tuning.settings import FineTuneSettings
from tangentune.methods.fine_tuning.training import loss_of, start_head, trainable_copy, tune
from tangentune.methods.fine_tuning.validation import Validation, keep_aside
from tangentune.networks.backbone import Backbone
from tangentune.networks.heads import ridge_head
from tangentune.pictures.label_sets import rarest_label
from tangentune.pictures.pictures import Pictures


@dataclass(frozen=True, eq=False)
class TunedClassifier(LinearClassifier):
    """A tuned copy of a backbone with its head, and how its training went.

    Attributes:
        losses: mean training loss of each epoch; cross-entropy in nats.
        validation: how it did on the pictures kept aside; None where there were none.
        temperature: fitted to the pictures kept aside, else 1. Logits of a squared loss are near 0 and `target_scale`;
            without a temperature their softmax is flat.
    """

    losses: tuple[float, ...]
    validation: Validation | None


@final
@dataclass(frozen=True, eq=False)
class FineTuned(TunedClassifier):
    """A fine-tuned copy of a backbone with its head, what training it cost, and the `settings` it was trained by."""

    settings: FineTuneSettings


@usual_torch
def fine_tune(
    backbone: Backbone, pictures: Pictures, settings: FineTuneSettings | None = None, *, verbose: int = 0
) -> FineTuned:
    """Train a copy of the backbone and a linear head on labelled pictures, all layers moving.

    Args:
        backbone: left as it is; a deep copy is trained, on the device its parameters are on.
        pictures: at the backbone's size, with class labels.
        settings: rate, epochs and the rest; None takes the defaults.
        verbose: 1 shows a progress bar with the time left.

    Returns:
        The tuned copy with its head. Cost: `epochs` forward and backward passes over the pictures, and one forward pass
        (two with `flip`) for the probe; a forward pass an epoch over pictures kept aside.

    Raises:
        InputError: labels are missing or of one class only, pictures are to be kept aside but no class has two, or
            training diverged (`DivergedError`).
        BackboneError: the backbone's `features` function uses another module than it is given.

    Example:
        >>> import numpy as np
        >>> dots = torch.tensor([[0.0, 0.0], [0.0, 1.0], [4.0, 4.0], [4.0, 5.0]])
        >>> train = Pictures(dots, np.array(["low", "low", "high", "high"]), ["a", "b", "c", "d"])
        >>> tuned = fine_tune(Backbone(torch.nn.Linear(2, 3)), train, FineTuneSettings(epochs=2, head_start="probe"))
        >>> tuned.predict(train).tolist()
        ['low', 'low', 'high', 'high']
    """
    settings = settings or FineTuneSettings()
    began = spent()
    classes, positions = class_positions(pictures)
    tuned = trainable_copy(backbone, pictures, settings.frozen)
    with warm_pages():
        data, others = keep_aside(tuned, pictures, positions, settings.validation_share, settings.seed)
        head = start_head(tuned, data, settings.head_start, settings.flip, settings.seed)

        def loss(rows: Tensor, generator: torch.Generator) -> Tensor:
            x = training_views(tuned, data.pictures.pixels_at(rows), generator, settings)
            return loss_of(head(tuned.feature_function(tuned.module, x)), data.positions[rows], settings)

        losses, validation = tune(tuned, (head,), loss, len(data.pictures), others, settings, "fine-tuning", verbose)
    temperature = 1.0 if validation is None else validation.temperature
    return FineTuned(tuned, classes, *spent(began), head, losses, validation, settings, temperature=temperature)


def tune_labels(backbone: Backbone, pictures: Pictures, targets: Tensor, settings: FineTuneSettings) -> Backbone:
    """A trained copy of the backbone, as of `fine_tune`, for targets (n, L) of 0 and 1: several labels a picture.

    It starts from a ridge probe f and follows the binary cross-entropy of 2 f - 1, summed over labels: what the
    cross-entropy of two classes is whose probes are f and 1 - f. The squared error hardly moved a network in as many
    steps (docs/decisions/0029).
    """
    tuned = trainable_copy(backbone, pictures, settings.frozen)
    with warm_pages():
        wanted = targets.to(tuned.device)
        few, some = for_head(pictures, rarest_label(targets.bool().cpu().numpy()))
        head = ridge_head(mean_features(tuned, few, 64, settings.flip), wanted[some])

        def loss(rows: Tensor, generator: torch.Generator) -> Tensor:
            x = training_views(tuned, pictures.pixels_at(rows), generator, settings)
            logits = 2 * head(tuned.feature_function(tuned.module, x)) - 1
            each = F.binary_cross_entropy_with_logits(logits, wanted[rows].to(logits), reduction="none")
            return each.sum() / len(rows)

        tune(tuned, (head,), loss, len(pictures), None, settings, "fine-tuning", 0)
    return tuned
