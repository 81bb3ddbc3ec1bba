"""Pictures kept aside: how they are chosen, and how training is judged, and ended, by them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from tangentune.errors import BackboneError, InputError, diverged
from tangentune.methods.fine_tuning.labelled import LabelledPictures, mean_features
from tangentune.networks.backbone import Backbone
from tangentune.pictures.pictures import Pictures
from tangentune.solvers.calibration import fit_temperature, probabilities
from tangentune.solvers.metrics import accuracy, nll


@final
@dataclass(frozen=True)
class Validation:
    """How training looked on the pictures that were kept aside.

    Attributes:
        pictures: how many they were.
        accuracies: share of right predictions after each epoch.
        nlls: log-loss after each epoch, in nats, at the temperature fitted to it.
        kept: the epoch whose weights were kept, counted from 1.
        temperature: what the kept logits are divided by to be honest on these pictures.
    """

    pictures: int
    accuracies: tuple[float, ...]
    nlls: tuple[float, ...]
    kept: int
    temperature: float

    @property
    def accuracy(self) -> float:
        """That of the weights that were kept."""
        return self.accuracies[self.kept - 1]

    @property
    def nll(self) -> float:
        """That of the weights that were kept."""
        return self.nlls[self.kept - 1]


def split_rows(positions: NDArray[np.int64], share: float, seed: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Rows to train on and rows kept aside, both ascending, class by class.

    Of a class with two pictures or more one at least is kept aside and one at least is trained on; a class with a
    single picture is trained on.
    """
    rng = np.random.default_rng(seed)
    held = []
    for position in range(int(positions.max()) + 1):
        rows = rng.permutation(np.flatnonzero(positions == position))
        count = min(len(rows) - 1, max(1, round(share * len(rows))))
        held.append(rows[:count])
    kept_aside = np.sort(np.concatenate(held))
    return np.setdiff1d(np.arange(len(positions)), kept_aside), kept_aside


def keep_aside(
    tuned: Backbone, pictures: Pictures, positions: NDArray[np.int64], share: float, seed: int
) -> tuple[LabelledPictures, LabelledPictures | None]:
    """Pictures to train on, and the share of each class to validate on (None for a share of 0)."""
    targets = torch.from_numpy(positions).to(tuned.device)
    if not share:
        return LabelledPictures(pictures, targets), None
    split = split_rows(positions, share, seed)
    if not len(split[1]):
        raise InputError(
            "validation_share needs a class of two pictures at least; every class here has one: set it to 0"
        )
    training, kept_aside = (LabelledPictures(pictures.select(rows), targets[rows]) for rows in split)
    return training, kept_aside


@final
class Watch:
    """Judges the network, with the first head, after each epoch.

    With a `patience` training may stop early, and the weights of the best epoch, those of all heads too, come back.
    """

    def __init__(
        self, tuned: Backbone, heads: tuple[nn.Linear, ...], kept_aside: LabelledPictures, patience: int
    ) -> None:
        self.tuned, self.head, self.kept_aside, self.patience = tuned, heads[0], kept_aside, patience
        self.parts = (tuned.module, *heads)
        self.scores: list[tuple[float, float, float]] = []
        self.kept = 0
        self.weights: list[dict[str, Tensor]] = []

    def is_enough(self) -> bool:
        """Look once more; whether `patience` epochs went by without a better result."""
        self.tuned.module.eval()
        try:
            features = mean_features(self.tuned, self.kept_aside.pictures, 64, False)
        except BackboneError as error:
            raise diverged(len(self.scores) + 1) from error
        with torch.no_grad():
            logits = self.head(features)
        if not bool(torch.isfinite(logits).all()):
            raise diverged(len(self.scores) + 1)
        self.scores.append(_judged(logits, self.kept_aside.positions))
        better = self.kept == 0 or self.scores[-1][:2] > self.scores[self.kept - 1][:2]
        if better or not self.patience:
            self.kept = len(self.scores)
        if better and self.patience:
            self.weights = [{k: v.detach().clone() for k, v in part.state_dict().items()} for part in self.parts]
        return 0 < self.patience <= len(self.scores) - self.kept

    def result(self) -> Validation:
        """The curve; brings the best weights back if training could stop early."""
        for part, weights in zip(self.parts, self.weights, strict=False):
            part.load_state_dict(weights)
        accuracies, likelihoods, temperatures = zip(*self.scores, strict=True)
        nlls, count = tuple(-value for value in likelihoods), len(self.kept_aside.pictures)
        return Validation(count, accuracies, nlls, self.kept, temperatures[self.kept - 1])


def _judged(logits: Tensor, positions: Tensor) -> tuple[float, float, float]:
    """Of (n, C) logits accuracy, then minus the log-loss (higher is better) at the fitted temperature, and that."""
    scores, given = logits.double(), positions.cpu().numpy()
    temperature = fit_temperature(scores, positions, prior=None)  # as others scale: no prior from leave-one-out
    proba = probabilities(scores, temperature).cpu().numpy()
    return accuracy(given, proba.argmax(1)), -nll(given, proba), temperature
