"""Pictures kept aside: how they are chosen, and how training is judged by them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from tangentune.metrics import accuracy, nll
from tangentune.solvers.calibration import fit_temperature, probabilities


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

    Of a class with two pictures or more one at least is kept aside and one at least is trained on; a class with
    a single picture is trained on.

    Example:
        >>> train, held = split_rows(np.array([0, 0, 0, 0, 0, 1, 1, 2]), 0.2, seed=0)
        >>> len(train), len(held)
        (6, 2)
    """
    rng = np.random.default_rng(seed)
    held = []
    for position in range(int(positions.max()) + 1):
        rows = rng.permutation(np.flatnonzero(positions == position))
        count = min(len(rows) - 1, max(1, round(share * len(rows))))
        held.append(rows[:count])
    kept_aside = np.sort(np.concatenate(held))
    return np.setdiff1d(np.arange(len(positions)), kept_aside), kept_aside


def judge(logits: Tensor, positions: Tensor) -> tuple[float, float, float]:
    """Accuracy, log-loss at the fitted temperature, and that temperature, of (n, C) logits."""
    scores, given = logits.double(), positions.cpu().numpy()
    temperature = fit_temperature(scores, positions)
    proba = probabilities(scores, temperature).cpu().numpy()
    return accuracy(given, proba.argmax(1)), nll(given, proba), temperature
