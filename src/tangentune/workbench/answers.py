"""Why the model says so: of a training picture from the kernel alone, of a new one from its rows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tangentune.errors import InputError
from tangentune.estimators.explanations import ood_scores, open_shares
from tangentune.estimators.fitted import FittedModel, solved
from tangentune.estimators.solution import Solution
from tangentune.reports.explanation import Explanation, PictureEffect, familiarity, without_labels
from tangentune.solvers import balancing
from tangentune.solvers.edits import remove
from tangentune.solvers.leave_out import contributions, light, pair_influence
from tangentune.solvers.likelihoods import LEAST_SQUARES
from tangentune.solvers.system import fitted as predicted

Ranked = tuple[tuple[str, float], ...]  # classes with their probabilities, likeliest first


@final
@dataclass(frozen=True)
class Reason:
    """What one training picture does to an answer's lead: the score of the class named less the runner-up's."""

    number: int
    id: str
    label: str
    influence: float  # what the lead would lose without it; exact
    contribution: float  # its term in the sum that the lead is


@final
@dataclass(frozen=True)
class Answer:
    """What the model says of a training picture."""

    number: int
    id: str
    label: str
    without_label: Ranked  # classes by the model fitted without the picture: its leave-one-out answer
    with_label: Ranked | None  # the same by the model with it; None of another likelihood than least squares
    supports: tuple[Reason, ...]  # training pictures that speak most for the class named first in `without_label`
    opposes: tuple[Reason, ...]  # those that speak most against it
    distance: float  # its out-of-distribution score among the other pictures
    familiar: str  # the same in words
    history: tuple[tuple[str, str], ...]  # when and how it was changed, oldest first


@final
@dataclass(frozen=True)
class NewAnswer:
    """What the model says of a new picture; the fields are those of `Answer`, `known` an equal picture's number."""

    id: str
    classes: Ranked
    supports: tuple[Reason, ...]
    opposes: tuple[Reason, ...]
    distance: float
    familiar: str
    known: int | None  # then `classes` are those of the model without it


def of_training(fitted: FittedModel, place: int, top: int, history: tuple[tuple[str, str], ...]) -> Answer:
    """The answer about the picture at a position; n C where weights are not balanced and no source stands behind."""
    solution, outcome = solved(fitted), fitted.outcome
    names = [str(name) for name in outcome.classes.tolist()]
    order = np.argsort(-outcome.proba[place], kind="stable")
    best, runner_up = int(order[0]), int(order[1])
    effects, shares = _effects(solution, place)

    def lead(values: Tensor) -> NDArray[np.float64]:
        return (values[:, best] - values[:, runner_up]).cpu().numpy()

    supports, opposes = _reasons(fitted, lead(effects), lead(shares), top, place)
    distance = _distance(solution, place)
    return Answer(
        number=int(fitted.numbers[place]),
        id=fitted.ids[place],
        label=str(fitted.active.labels[place]),
        without_label=_ranked(names, outcome.proba[place]),
        with_label=_with_label(fitted, solution, place, names),
        supports=supports,
        opposes=opposes,
        distance=distance,
        familiar=familiarity(distance),
        history=history,
    )


def of_new(fitted: FittedModel, explanation: Explanation, same: list[int]) -> NewAnswer:
    """An explanation of the reports, pictures by their numbers; `same` are the positions of equal pictures."""

    def reason(effect: PictureEffect) -> Reason:
        number = int(fitted.numbers[effect.position])
        return Reason(number, effect.id, effect.label, effect.influence, effect.contribution)

    (lead,) = explanation.attributions
    classes = tuple((one.label, float(one.confidence or 0)) for one in explanation.answers)
    supports, opposes = (tuple(map(reason, side)) for side in (lead.raised, lead.lowered))
    words = familiarity(explanation.distance)
    known = int(fitted.numbers[same[0]]) if same else None
    return NewAnswer(explanation.id, classes, supports, opposes, explanation.distance, words, known)


def pixels(fitted: FittedModel, place: int) -> NDArray[np.uint8]:
    """The stored picture at a position as the network sees it, (H, W, 3)."""
    fitted.check_pictures()
    image = fitted.training.pictures.thumbnail(int(fitted.active.positions[place]))
    if image is None:
        raise InputError("this model was fitted to vectors, which cannot be shown")
    return np.asarray(image.convert("RGB"))


def _effects(solution: Solution, place: int) -> tuple[Tensor, Tensor]:
    """Influence and contribution (n, C) of every picture on the answer that leaves the one at a position out."""
    system, balance, source = solution.system, solution.targets.balance, solution.targets.source
    if balance is None and source is None and not light(system, place):
        return pair_influence(system, place)
    n, gone = system.pictures, torch.tensor([place])
    rest = torch.arange(n) != place
    left = remove(balancing.without(system, balance, gone), gone)
    if source is not None:
        left, _ = without_labels(source, system.weights, left, [place])
    kernel = system.kernel[place][None, rest]
    effects, shares = torch.zeros(2, n, system.targets.shape[1]).to(system.targets)
    effects[rest] = balancing.influence(left, None if balance is None else balance[rest], kernel)[0]
    shares[rest] = contributions(left, kernel)[0]
    return effects, shares


def _with_label(fitted: FittedModel, solution: Solution, place: int, names: list[str]) -> Ranked | None:
    if fitted.task.likelihood != LEAST_SQUARES:
        return None
    scores, source = predicted(solution.system, slice(place, place + 1))[0], solution.targets.source
    scores = scores if source is None else scores + source.response[place] @ source.labels
    return _ranked(names, fitted.outcome.probabilities(scores[None])[0].cpu().numpy())


def _ranked(names: list[str], proba: NDArray[np.float64]) -> Ranked:
    return tuple((names[c], float(proba[c])) for c in np.argsort(-proba, kind="stable"))


def _reasons(
    fitted: FittedModel, effects: NDArray, shares: NDArray, top: int, place: int
) -> tuple[tuple[Reason, ...], tuple[Reason, ...]]:
    """The `top` pictures of the largest effect either way, largest first."""
    order = np.argsort(-effects, kind="stable")
    order = order[order != place]
    up, down = order[effects[order] > 0][:top], order[effects[order] < 0][::-1][:top]
    numbers, ids, labels = fitted.numbers, fitted.ids, fitted.active.labels

    def reason(i: int) -> Reason:
        return Reason(int(numbers[i]), ids[i], str(labels[i]), float(effects[i]), float(shares[i]))

    return tuple(map(reason, up.tolist())), tuple(map(reason, down.tolist()))


def _distance(solution: Solution, place: int) -> float:
    """Out-of-distribution score of a picture of the fit, itself left out, among the others."""
    shares, weighty = open_shares(solution), solution.system.weights > 0
    share = shares[place : place + 1].clone()
    weighty[place] = False
    known = np.sort(shares[weighty].cpu().numpy())
    return float(ood_scores(known, share)[0])
