"""Scores of a fitted model on labelled pictures it has not seen."""

from __future__ import annotations

import numpy as np

from tangentune.errors import InputError
from tangentune.estimators.classifier import TangentClassifier
from tangentune.estimators.regressor import TangentRegressor
from tangentune.estimators.summary import class_scores, number_scores
from tangentune.pictures.load import Pictures, numeric_labels


def score_pictures(model: TangentClassifier | TangentRegressor, pictures: Pictures) -> dict[str, float]:
    """Accuracy, NLL, ECE and Brier score of a classifier; R2 and RMSE of a regressor.

    Class names are compared as text, so that folder names fit number classes.

    Raises:
        InputError: there are no labels, or one is no class of the model, or no number for a regressor.
    """
    if pictures.labels is None:
        message = "these pictures have no labels to compare with"
        raise InputError(message)
    if isinstance(model, TangentRegressor):
        return number_scores(numeric_labels(pictures.labels, pictures.ids), model.predict(pictures))
    column = {str(name): i for i, name in enumerate(model.classes_.tolist())}
    unknown = [i for i, label in enumerate(pictures.labels.tolist()) if str(label) not in column]
    if unknown:
        first, names = unknown[0], list(column)
        known = ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
        message = (
            f"{len(unknown)} of {len(pictures)} pictures have labels that the model does not know, such as "
            f"{str(pictures.labels[first])!r} of {pictures.ids[first]}; it knows {known}"
        )
        raise InputError(message)
    labels = np.array([column[str(label)] for label in pictures.labels.tolist()], np.int64)
    return class_scores(labels, model.predict_proba(pictures))
