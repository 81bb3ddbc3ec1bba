"""Answers of a fitted model that can be judged, and their scores on labelled pictures.

A picture of the fit itself, known by its pixels, is answered by the model fitted without it.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

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
    predict = model.predict if isinstance(model, TangentRegressor) else model.predict_proba
    found = answers_by(predict, model.fitted_, pictures)
    if found.known:
        warnings.warn(known_sentence(found.known, len(pictures)), stacklevel=2)
    return found


def known_sentence(known: int, count: int) -> str:
    """How pictures of the fit are answered."""
    sentence = f"{known} of {count} pictures are ones that the model was fitted on"
    return f"{sentence}; each is answered by the model fitted without it (leave-one-out)."


def answers_by(predict: Callable[[Pictures], NDArray[np.float64]], fitted: FittedModel, pictures: Pictures) -> Answers:
    """What `predict` says of pictures that a model was not fitted on, and of the others the model without them."""
    copies = fitted.fitted_on(pictures)
    known = np.array([bool(same) for same in copies], bool)
    names = [fitted.ids[same[0]] if same else None for same in copies]
    if not known.any():
        return Answers(predict(pictures), names)
    rest = None if known.all() else predict(pictures.select(~known))
    left_out = _without(fitted, [same for same in copies if same])
    values = np.empty((len(pictures), *left_out.shape[1:]))
    values[known] = left_out
    if rest is not None:
        values[~known] = rest
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


@dataclass(frozen=True, eq=False)
class Judged:
    """Answers to m labelled pictures: `targets` are classes by their position (m,), labels (m, L), or numbers."""

    targets: NDArray[Any]
    answers: Answers
    scores: dict[str, float]  # as `class_scores`, `label_scores` or `number_scores` has them
    labels: tuple[LabelScore, ...] = ()  # scores of each label, where a picture has several


def judge(model: TangentClassifier | TangentRegressor, pictures: Pictures, found: Answers | None = None) -> Judged:
    """Answer labelled pictures, each that the model was fitted on by the model without it, and score the answers.

    Answers that are there already, `found`, are not asked for again. Labels are refused as by `targets_of`.
    """
    given = targets_of(model, pictures)
    found = honest_answers(model, pictures) if found is None else found
    if isinstance(model, TangentRegressor):
        return Judged(given, found, number_scores(given, found.values))
    if model.thresholds_ is not None:
        rows = label_rows(model.classes_.tolist(), given, found.values, model.thresholds_)
        return Judged(given, found, label_scores(given, found.values, model.thresholds_), tuple(rows))
    return Judged(given, found, class_scores(given, found.values))


def targets_of(model: TangentClassifier | TangentRegressor, pictures: Pictures) -> NDArray[Any]:
    """The labels of pictures as `Judged` has them.

    Class names are compared as text, so that folder names fit number classes; a label that is missing, no class of the
    model, or no number for a regressor, is an InputError.
    """
    if pictures.labels is None:
        raise InputError("these pictures have no labels to compare with")
    if isinstance(model, TangentRegressor):
        return numeric_labels(pictures.labels, pictures.ids)
    if model.thresholds_ is not None:
        return label_matrix(model.fitted_.task.read_labels(pictures, model.classes_))
    column = {str(name): i for i, name in enumerate(model.classes_.tolist())}
    given = as_classes(np.array([str(label) for label in pictures.labels.tolist()]), np.array(list(column))).tolist()
    if unknown := [i for i, label in enumerate(given) if label not in column]:
        such = f"{given[unknown[0]]!r} of {pictures.ids[unknown[0]]}; it knows {some(list(column), 8)}"
        raise InputError(
            f"{len(unknown)} of {len(pictures)} pictures have labels that the model does not know, such as {such}"
        )
    return np.array([column[label] for label in given], np.int64)
