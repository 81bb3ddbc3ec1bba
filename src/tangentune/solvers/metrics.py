"""Scores of predictions: accuracy, log-loss, calibration, confusion; F1 and average precision; R2 and RMSE of numbers.

scikit-learn gives those that are its own, after our checks. The log-loss is ours, since scikit-learn's also
clips from above (by 1e-7 in float32), and so is R2, since scikit-learn's has no answer for one case or for infinity.
scikit-learn is loaded where it is used: a second and a half that `tangentune select` need not wait for.

Classes are positions 0..C-1 here (the column of the probability table), never names.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tangentune.errors import InputError

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

_NORMAL = 1.959964  # 95 %: the usual seven digits of the normal quantile


@dataclass(frozen=True)
class Reliability:
    """How often predictions of a given confidence are right; one entry per bin, empty bins are NaN."""

    edges: FloatArray  # of the bins, in [0, 1], (bins + 1,)
    confidence: FloatArray  # mean probability of the predicted class
    accuracy: FloatArray  # share of right predictions
    counts: IntArray


def accuracy(labels: ArrayLike, predicted: ArrayLike) -> float:
    """Share of predictions equal to the label; names or positions, shape (n,) both.

    Example:
        >>> accuracy(["cat", "dog", "dog"], ["cat", "dog", "cat"])
        0.6666666666666666
    """
    given, guess = _same_length(labels, predicted)
    return float(np.mean(given == guess))


def accuracy_interval(share: float, n: int) -> tuple[float, float]:
    """95 % interval (Wilson 1927) of a share measured on n cases.

    Example:
        >>> low, high = accuracy_interval(0.9, 100)
        >>> round(low, 3), round(high, 3)
        (0.826, 0.945)
    """
    hits = round(share * n)
    middle, shrunk = (hits + _NORMAL**2 / 2) / (n + _NORMAL**2), hits * (n - hits) / n + _NORMAL**2 / 4
    half = _NORMAL * shrunk**0.5 / (n + _NORMAL**2)
    return (0.0 if hits == 0 else middle - half), (1.0 if hits == n else middle + half)


def mean_interval(cases: ArrayLike) -> tuple[float, float]:
    """95 % interval of a mean by the normal approximation, from one number a case; of a single case it is all there is.

    Example:
        >>> low, high = mean_interval([1.0, 2.0, 3.0, 2.0])
        >>> round(low, 3), round(high, 3)
        (1.2, 2.8)
    """
    values = np.asarray(cases, np.float64)
    if len(values) < 2:
        return -np.inf, np.inf
    half = _NORMAL * float(values.std(ddof=1)) / len(values) ** 0.5
    return float(values.mean()) - half, float(values.mean()) + half


def nll(labels: ArrayLike, proba: ArrayLike) -> float:
    """Mean negative log-probability of the given class, in nats; labels (n,) are positions, probabilities (n, C).

    A probability of zero counts as the smallest step of its own precision, as in scikit-learn's `log_loss`.

    Example:
        >>> round(nll([0, 1], [[0.5, 0.5], [0.5, 0.5]]), 4)
        0.6931
    """
    return float(np.mean(case_nll(labels, proba)))


def case_nll(labels: ArrayLike, proba: ArrayLike) -> FloatArray:
    """Negative log-probability of the given class, one number per case, shape (n,); see `nll`."""
    given, table = _labels_and_table(labels, proba)
    precision = table.dtype if np.issubdtype(table.dtype, np.floating) else np.dtype(np.float64)
    chosen = table[np.arange(len(given)), given].astype(np.float64)
    return -np.log(np.clip(chosen, np.finfo(precision).eps, 1.0))


def brier(labels: ArrayLike, proba: ArrayLike) -> float:
    """Mean squared distance between the probabilities and the one-hot label, in [0, 2]; lower is better.

    Example:
        >>> brier([0, 1], [[1.0, 0.0], [0.5, 0.5]])
        0.25
    """
    return float(np.mean(case_brier(labels, proba)))


def case_brier(labels: ArrayLike, proba: ArrayLike) -> FloatArray:
    """The same of each case, shape (n,)."""
    given, table = _labels_and_table(labels, proba)
    distance = table.astype(np.float64)  # a copy: the caller's table stays as it is
    distance[np.arange(len(given)), given] -= 1.0
    return np.sum(distance**2, axis=1)


def reliability(labels: ArrayLike, proba: ArrayLike, bins: int = 15) -> Reliability:
    """Confidence against accuracy of the predicted class, in bins of equal width (upper edges included)."""
    if bins < 1:
        raise InputError(f"a reliability curve needs at least one bin, not {bins}")
    given, table = _labels_and_table(labels, proba)
    confidence = table.max(axis=1).astype(np.float64)
    right = table.argmax(axis=1) == given
    edges = np.linspace(0.0, 1.0, bins + 1)
    where = np.clip(np.searchsorted(edges, confidence, side="left") - 1, 0, bins - 1)
    counts = np.bincount(where, minlength=bins)
    with np.errstate(invalid="ignore"):
        mean_confidence = np.bincount(where, weights=confidence, minlength=bins) / counts
        share_right = np.bincount(where, weights=right, minlength=bins) / counts
    return Reliability(edges, mean_confidence, share_right, counts.astype(np.int64))


def ece(labels: ArrayLike, proba: ArrayLike, bins: int = 15) -> float:
    """Expected calibration error (Guo et al. 2017, eq. 3): mean gap of confidence and accuracy, in [0, 1].

    Top class, bins of equal width. Biased upwards when bins hold few cases: compare only at equal n and bins.

    Example:
        >>> round(ece([0, 0], [[0.9, 0.1], [0.7, 0.3]], bins=10), 6)  # right twice, 80 % sure on average
        0.2
    """
    curve = reliability(labels, proba, bins)
    filled = curve.counts > 0
    gap = np.abs(curve.confidence[filled] - curve.accuracy[filled])
    return float(np.sum(gap * curve.counts[filled]) / curve.counts.sum())


def confusion_matrix(labels: ArrayLike, predicted: ArrayLike, n_classes: int) -> IntArray:
    """Counts of (given, predicted) pairs, shape (C, C); row = given class, column = predicted class."""
    from sklearn.metrics import confusion_matrix as counts

    given, guess = _same_length(labels, predicted)
    _check_positions(given, n_classes, "label")
    _check_positions(guess, n_classes, "prediction")
    return counts(given, guess, labels=np.arange(n_classes))


def average_precision(targets: ArrayLike, scores: ArrayLike) -> FloatArray:
    """Area under precision against recall of each label, (L,): targets and scores (n, L); NaN of a label nobody has.

    Example:
        >>> average_precision([[1], [0], [1]], [[0.9], [0.8], [0.7]]).round(4).tolist()
        [0.8333]
    """
    from sklearn.metrics import average_precision_score

    given, found = _columns(targets, scores)
    pairs = zip(given.T.astype(np.int64), found.T, strict=True)
    return np.array([average_precision_score(y, score) if y.any() else np.nan for y, score in pairs])


def label_counts(targets: ArrayLike, predicted: ArrayLike) -> IntArray:
    """Right, wrongly given and missed pictures of each label, (L, 3), of matrices (n, L) of 0 and 1.

    Example:
        >>> label_counts([[1], [0], [1]], [[1], [1], [0]]).tolist()
        [[1, 1, 1]]
    """
    given, found = (part.astype(bool) for part in _columns(targets, predicted))
    parts = (given & found, ~given & found, given & ~found)
    return np.stack([part.sum(axis=0) for part in parts], axis=1).astype(np.int64)


def f1(counts: ArrayLike) -> FloatArray:
    """F1 of `label_counts` (..., 3): 2 right / (2 right + wrong + missed), 0 where nothing is right.

    Example:
        >>> f1([[1, 1, 1], [0, 0, 0]]).tolist()
        [0.5, 0.0]
    """
    right, wrong, missed = np.moveaxis(np.asarray(counts, np.float64), -1, 0)
    return 2 * right / np.maximum(2 * right + wrong + missed, 1)


def r2(targets: ArrayLike, predicted: ArrayLike) -> float:
    """Share of the targets' variance explained; 1 is perfect, 0 is the mean's score. Outputs are averaged.

    Constant targets give 1 when they are met exactly and 0 otherwise (scikit-learn's convention).

    Example:
        >>> r2([1.0, 2.0, 3.0], [1.0, 2.0, 3.0])
        1.0
    """
    given, guess = _columns(targets, predicted)
    residual = np.sum((given - guess) ** 2, axis=0)
    spread = np.sum((given - given.mean(axis=0)) ** 2, axis=0)
    varied = spread > 0
    scores = np.where(residual == 0, 1.0, 0.0)
    scores[varied] = 1.0 - residual[varied] / spread[varied]
    return float(scores.mean())


def rmse(targets: ArrayLike, predicted: ArrayLike) -> float:
    """Root of the mean squared error, in the targets' own unit; all outputs together.

    Example:
        >>> rmse([0.0, 0.0], [3.0, 4.0])
        3.5355339059327378
    """
    given, guess = _columns(targets, predicted)
    return float(np.sqrt(np.mean((given - guess) ** 2)))


def _columns(targets: ArrayLike, predicted: ArrayLike) -> tuple[FloatArray, FloatArray]:
    given, guess = _same_length(np.asarray(targets, np.float64), np.asarray(predicted, np.float64))
    given, guess = given.reshape(len(given), -1), guess.reshape(len(guess), -1)
    if given.shape != guess.shape:
        raise InputError(f"targets have shape {given.shape} but predictions {guess.shape}")
    return given, guess


def _labels_and_table(labels: ArrayLike, proba: ArrayLike) -> tuple[IntArray, NDArray]:
    table = np.asarray(proba)
    if table.ndim != 2:
        raise InputError(f"probabilities must have shape (cases, classes), not {table.shape}")
    given, table = _same_length(labels, table)
    _check_positions(given, table.shape[1], "label")
    return given.astype(np.int64), table


def _check_positions(positions: NDArray, n_classes: int, what: str) -> None:
    if not np.issubdtype(positions.dtype, np.integer):
        raise InputError(f"each {what} must be a class position (an integer), not of type {positions.dtype}")
    if positions.min() < 0 or positions.max() >= n_classes:
        raise InputError(f"{what}s run from {positions.min()} to {positions.max()}, but there are {n_classes} classes")


def _same_length(labels: ArrayLike, predicted: ArrayLike) -> tuple[NDArray, NDArray]:
    """Both as arrays, of as many cases."""
    given, guess = np.asarray(labels), np.asarray(predicted)
    if given.ndim == 0 or guess.ndim == 0 or len(given) != len(guess):
        raise InputError(f"labels and predictions differ in number: shapes {given.shape} and {guess.shape}")
    if len(given) == 0:
        raise InputError("nothing to score: there is not one case")
    return given, guess
