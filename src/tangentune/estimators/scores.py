"""Scores of a fitted model on labelled pictures it has not seen."""

from __future__ import annotations

from typing import Any

import numpy as np

from tangentune import metrics
from tangentune.errors import InputError
from tangentune.pictures.load import Pictures, numeric_labels


def score_pictures(model: Any, pictures: Pictures) -> dict[str, float]:
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
    if not hasattr(model, "classes_"):
        targets, predicted = numeric_labels(pictures.labels, pictures.ids), model.predict(pictures)
        return {"r2": metrics.r2(targets, predicted), "rmse": metrics.rmse(targets, predicted)}
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
    proba = model.predict_proba(pictures)
    return {
        "accuracy": metrics.accuracy(labels, proba.argmax(axis=1)),
        "nll": metrics.nll(labels, proba),
        "ece": metrics.ece(labels, proba),
        "brier": metrics.brier(labels, proba),
    }


def _some(names: list[str]) -> str:
    return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
