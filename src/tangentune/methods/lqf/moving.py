"""The network moved towards the task before it is linearised: what closes most of LQF's gap to fine-tuning.

The kernel of a small pre-trained network turns towards the labels within the first steps of fine-tuning, and one
linearisation cannot follow (docs/decisions/0010). So some of these steps come first, at a rate that pictures kept
aside choose, staying put among the choices, and the linear problem is posed where they end.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor
from torch.nn import functional as F

from tangentune.errors import DivergedError
from tangentune.methods.fine_tuning.fit import fine_tune
from tangentune.methods.fine_tuning.labelled import mean_features
from tangentune.methods.fine_tuning.settings import FineTuneSettings
from tangentune.methods.fine_tuning.validation import split_rows
from tangentune.methods.lqf.settings import LQFSettings
from tangentune.networks.backbone import Backbone
from tangentune.networks.heads import probe_head
from tangentune.pictures.pictures import Pictures
from tangentune.solvers.calibration import fit_temperature

KEPT_ASIDE = 0.2  # of each class


@final
@dataclass(frozen=True)
class Move:
    """How the network was moved before it was linearised; made by `move`.

    Attributes:
        epochs: passes of fine-tuning over the pictures.
        rate: their peak rate; 0: the network stayed.
        errors: for each rate tried, 0 for staying, the mean squared error of a probe on the pictures kept aside, which
            neither it nor the network had seen; a rate at which training diverged is left out.
        temperature: of the softmax of that probe's outputs at the chosen rate.
    """

    epochs: int
    rate: float
    errors: dict[float, float]
    temperature: float


def move(
    backbone: Backbone, pictures: Pictures, positions: Tensor, settings: LQFSettings
) -> tuple[Backbone, Move | None]:
    """The network after `settings.moves` epochs at the best of `settings.move_rates`, and how it was chosen.

    Where training on all pictures goes wrong, by the error on those kept aside, the network of the trial is kept.
    The same network and None for vectors, on which moving was not measured, and where no class has two pictures. Cost:
    `moves` epochs on four fifths of the pictures for each rate, and on all of them for the chosen one.
    """
    apart = pictures.pixels.ndim == 4 and settings.moves > 0
    kept, aside = split_rows(positions.cpu().numpy(), KEPT_ASIDE, settings.seed)
    if not apart or not len(aside):
        return backbone, None
    known, new = pictures.select(kept), pictures.select(aside)
    labels, wanted = positions[kept], positions[aside]
    found: dict[float, tuple[float, float]] = {}
    trial = backbone  # the network of the best rate, which has not seen the pictures kept aside
    for rate in (0.0, *settings.move_rates):
        try:
            there = _moved(backbone, known, rate, settings)
        except DivergedError:
            continue
        found[rate] = _judged(there, (known, labels), (new, wanted), settings)
        if found[rate] == min(found.values()):
            trial = there
    best = min(found, key=lambda rate: found[rate][0])
    errors = {rate: error for rate, (error, _) in found.items()}
    try:  # what has seen them all does better on those kept aside, unless training has gone wrong
        there = _moved(backbone, pictures, best, settings)
        ruined = _judged(there, (known, labels), (new, wanted), settings)[0] > found[best][0]
    except DivergedError:
        there, ruined = trial, False
    return trial if ruined else there, Move(settings.moves, best, errors, found[best][1])


def _moved(backbone: Backbone, pictures: Pictures, rate: float, settings: LQFSettings) -> Backbone:
    if not rate:
        return backbone
    choices = FineTuneSettings(
        learning_rate=rate, epochs=settings.moves, batch_size=settings.batch_size, head_start="probe",
        flip=settings.flip, seed=settings.seed,
    )  # fmt: skip
    return fine_tune(backbone, pictures, choices).backbone


@torch.no_grad()
def _judged(
    backbone: Backbone, known: tuple[Pictures, Tensor], new: tuple[Pictures, Tensor], settings: LQFSettings
) -> tuple[float, float]:
    """Mean squared error of a probe fitted to the known pictures, on the new ones, and its temperature there."""
    features = (mean_features(backbone, part, 64, settings.flip) for part, _ in (known, new))
    head = probe_head(next(features), known[1])
    outputs = head(next(features)).double()
    errors = (outputs - F.one_hot(new[1], outputs.shape[1])).square().sum(1)
    return float(errors.mean()), fit_temperature(outputs, new[1])
