"""What a person watches while labels are corrected: figures of the whole model, of each class, and who is confused.

All of them are leave-one-out figures, exact: what a fit without the picture says of it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import numpy as np
from numpy.typing import NDArray

from tangentune.errors import InputError
from tangentune.estimators.fitted import FittedModel
from tangentune.solvers import metrics


@final
@dataclass(frozen=True)
class Figures:
    """The whole model, judged by leaving each of its pictures out."""

    n: int
    classes: int
    accuracy: float
    interval: tuple[float, float]  # of the accuracy, 95 %
    log_loss: float  # in nats
    calibration_error: float  # mean gap of confidence and accuracy, 15 bins


@final
@dataclass(frozen=True)
class ClassFigures:
    """One class: how many pictures bear its name, and the share of them that the others would give it as well."""

    name: str
    count: int
    accuracy: float


def positions_of(fitted: FittedModel) -> NDArray[np.int64]:
    """(n,) column of each picture's label."""
    return np.searchsorted(fitted.outcome.classes, fitted.active.labels)


def whole(fitted: FittedModel) -> Figures:
    """Figures of a fitted classifier; n C."""
    return judged(positions_of(fitted), fitted.outcome.proba)


def judged(given: NDArray[np.int64], proba: NDArray[np.float64]) -> Figures:
    """Figures of probabilities (n, C) for labels at the positions `given` (n,)."""
    accuracy = float((proba.argmax(1) == given).mean())
    interval = metrics.accuracy_interval(accuracy, len(given))
    losses = metrics.nll(given, proba), metrics.ece(given, proba)
    return Figures(len(given), proba.shape[1], accuracy, interval, *losses)


def of_classes(fitted: FittedModel) -> list[ClassFigures]:
    """One entry a class, in the order of the columns."""
    names, given = fitted.outcome.classes.tolist(), positions_of(fitted)
    right = fitted.outcome.proba.argmax(1) == given
    counts = np.bincount(given, minlength=len(names))
    hits = np.bincount(given, weights=right, minlength=len(names))
    return [ClassFigures(str(name), int(n), float(hit / n)) for name, n, hit in zip(names, counts, hits, strict=True)]


def confusion(fitted: FittedModel) -> NDArray[np.int64]:
    """(C, C) counts: row = the label given, column = what the others say."""
    proba = fitted.outcome.proba
    return metrics.confusion_matrix(positions_of(fitted), proba.argmax(1), proba.shape[1])


def members(fitted: FittedModel, label: str, predicted: str | None) -> list[int]:
    """Numbers of the pictures of a label, or of one cell of the confusion."""
    names = [str(name) for name in fitted.outcome.classes.tolist()]
    for name in (label, *([] if predicted is None else [predicted])):
        if name not in names:
            raise InputError(f"there is no class {name!r}; the classes are: {', '.join(names)}")
    chosen = positions_of(fitted) == names.index(label)
    if predicted is not None:
        chosen &= fitted.outcome.proba.argmax(1) == names.index(predicted)
    return fitted.numbers[chosen].tolist()
