"""Answers of a fitted model that can be judged, and their scores on labelled pictures.

A picture of the fit itself, known by its pixels, is answered by the model fitted without it.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from tangentune.errors import InputError
from tangentune.estimators.classifier import TangentClassifier
from tangentune.estimators.fitted import FittedModel, solved
from tangentune.estimators.regressor import TangentRegressor
from tangentune.estimators.summary import LabelScore, class_scores, label_rows, label_scores, number_scores
from tangentune.estimators.tasks import as_given
from tangentune.estimators.user_input import as_classes
from tangentune.pictures.label_sets import label_matrix
from tangentune.pictures.load import Pictures, numeric_labels
from tangentune.pictures.names import some
from tangentune.solvers.likelihoods import LEAST_SQUARES


@dataclass(frozen=True, eq=False)
class Answers:
    """Class probabilities (m, C), or numbers in the shape of the targets; `fitted_on` the id of the equal picture of
    the fit, where there is one: such an answer is leave-one-out, exact.
    """

    values: NDArray[np.float64]
    fitted_on: list[str | None]

    @property
    def known(self) -> int:
        """Pictures that the model was fitted on."""
        return sum(name is not None for name in self.fitted_on)


def honest_answers(model: TangentClassifier | TangentRegressor, pictures: Pictures) -> Answers:
    """What a model says of pictures; of those that it was fitted on, what it says without them, with a warning."""
    copies = model.fitted_.fitted_on(pictures)
    known = np.array([bool(same) for same in copies], bool)
    predict = model.predict if isinstance(model, TangentRegressor) else model.predict_proba
    names = [model.fitted_.ids[same[0]] if same else None for same in copies]
    if not known.any():
        return Answers(predict(pictures), names)
    rest = None if known.all() else predict(pictures.select(~known))
    left_out = _without(model.fitted_, [same for same in copies if same])
    values = np.empty((len(pictures), *left_out.shape[1:]))
    values[known] = left_out
    if rest is not None:
        values[~known] = rest
    sentence = f"{known.sum()} of {len(pictures)} pictures are ones that the model was fitted on"
    warnings.warn(f"{sentence}; each is answered by the model fitted without it (leave-one-out).", stacklevel=2)
    return Answers(values, names)


def _without(fitted: FittedModel, copies: list[list[int]]) -> NDArray[np.float64]:
    """(m, ...) answers to pictures of the fit without them; equal pictures are left out together."""
    outcome, task = fitted.outcome, fitted.task
    first, several = [same[0] for same in copies], [same for same in copies if len(same) > 1]
    classes = len(outcome.classes) > 0
    if several and (not classes or task.likelihood == LEAST_SQUARES):
        groups = np.arange(len(fitted.active))
        for same in several:
            groups[same] = same[0]
        scores = solved(fitted).leave_out(torch.from_numpy(groups)).cpu()
        found = outcome.probabilities(scores).numpy() if classes else scores.numpy()
    else:
        found = outcome.proba if classes else outcome.loo
    return found[first] if classes else as_given(found[first], fitted.active.labels)


def score_pictures(model: TangentClassifier | TangentRegressor, pictures: Pictures) -> tuple[dict[str, float], int]:
    """Scores, as `class_scores`, `label_scores` or `number_scores` has them, and how many of the pictures the model was
    fitted on.

    Class names are compared as text, so that folder names fit number classes; a label that is missing, no class of the
    model, or no number for a regressor, is an InputError.
    """
    if pictures.labels is None:
        raise InputError("these pictures have no labels to compare with")
    if isinstance(model, TangentRegressor):
        numbers = numeric_labels(pictures.labels, pictures.ids)
        found = honest_answers(model, pictures)
        return number_scores(numbers, found.values), found.known
    if model.thresholds_ is not None:
        scores, _, known = score_labels(model, pictures)
        return scores, known
    column = {str(name): i for i, name in enumerate(model.classes_.tolist())}
    given = as_classes(np.array([str(label) for label in pictures.labels.tolist()]), np.array(list(column))).tolist()
    if unknown := [i for i, label in enumerate(given) if label not in column]:
        such = f"{given[unknown[0]]!r} of {pictures.ids[unknown[0]]}; it knows {some(list(column), 8)}"
        raise InputError(
            f"{len(unknown)} of {len(pictures)} pictures have labels that the model does not know, such as {such}"
        )
    labels = np.array([column[label] for label in given], np.int64)
    found = honest_answers(model, pictures)
    return class_scores(labels, found.values), found.known


def score_labels(model: TangentClassifier, pictures: Pictures) -> tuple[dict[str, float], list[LabelScore], int]:
    """Scores of several labels a picture, those of each label, and how many of the pictures the model was fitted on."""
    assert model.thresholds_ is not None
    given = label_matrix(model.fitted_.task.read_labels(pictures, model.classes_))
    found = honest_answers(model, pictures)
    rows = label_rows(model.classes_.tolist(), given, found.values, model.thresholds_)
    return label_scores(given, found.values, model.thresholds_), rows, found.known
