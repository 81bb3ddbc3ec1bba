"""Scores of a fitted model, and on labelled pictures it has not seen."""

from __future__ import annotations

from typing import Any, Protocol, TypeGuard

import numpy as np
from numpy.typing import NDArray

from tangentune import metrics
from tangentune.errors import InputError
from tangentune.networks.backbone import Backbone
from tangentune.pictures.load import Pictures, numeric_labels


class FittedEstimator(Protocol):
    """What is read of a fitted estimator, all of it public; a regressor, or a classifier, which has more."""

    backbone_: Backbone
    pictures_: Pictures
    ids_: list[str]
    targets_: NDArray
    loo_predictions_: NDArray[np.float64]
    source_: dict[str, Any] | None
    fit_report_: dict[str, Any]


class Predictor(FittedEstimator, Protocol):
    """One that is asked about new pictures."""

    def predict(self, X: Any) -> NDArray:
        """Class or numbers of each picture."""
        ...


class FittedClassifier(Predictor, Protocol):
    """What a classifier has besides."""

    classes_: NDArray
    loo_proba_: NDArray[np.float64]

    def predict_proba(self, X: Any) -> NDArray:
        """Probabilities (n, C)."""
        ...


def is_classifier(model: FittedEstimator) -> TypeGuard[FittedClassifier]:
    """Whether a fitted estimator is a classifier."""
    return hasattr(model, "classes_")


def class_scores(labels: NDArray[np.int64], proba: NDArray[np.float64]) -> dict[str, float]:
    """Accuracy, NLL, ECE and Brier score of probabilities (n, C) for classes by position (n,)."""
    return {
        "accuracy": metrics.accuracy(labels, proba.argmax(axis=1)),
        "nll": metrics.nll(labels, proba),
        "ece": metrics.ece(labels, proba),
        "brier": metrics.brier(labels, proba),
    }


def number_scores(targets: NDArray, predicted: NDArray) -> dict[str, float]:
    """R2 and RMSE."""
    return {"r2": metrics.r2(targets, predicted), "rmse": metrics.rmse(targets, predicted)}


def score_pictures(model: Predictor, pictures: Pictures) -> dict[str, float]:
    """Accuracy, NLL, ECE and Brier score of a classifier; R2 and RMSE of a regressor.

    Args:
        model: a fitted `TangentClassifier` or `TangentRegressor`.
        pictures: with labels; class names are compared as text, so that folder names fit number classes.

    Raises:
        InputError: a label is no class of the model, or no number for a regressor.
    """
    if pictures.labels is None:
        message = "these pictures have no labels to compare with"
        raise InputError(message)
    if not is_classifier(model):
        return number_scores(numeric_labels(pictures.labels, pictures.ids), model.predict(pictures))
    column = {str(name): i for i, name in enumerate(model.classes_.tolist())}
    unknown = [i for i, label in enumerate(pictures.labels.tolist()) if str(label) not in column]
    if unknown:
        first = unknown[0]
        message = (
            f"{len(unknown)} of {len(pictures)} pictures have labels that the model does not know, such as "
            f"{str(pictures.labels[first])!r} of {pictures.ids[first]}; it knows {_some(list(column))}"
        )
        raise InputError(message)
    labels = np.array([column[str(label)] for label in pictures.labels.tolist()], np.int64)
    return class_scores(labels, model.predict_proba(pictures))


def _some(names: list[str]) -> str:
    return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
