"""Why a fitted model answers as it does about one picture: which training pictures made the answer, and how much.

A classifier's answer is explained by its lead: the score of the class it names less that of the runner-up. A
regressor's is explained by each predicted number, and several labels by the score of each that is given, or else of the
likeliest. A picture that is one of the training pictures is answered by the
model fitted without it: its own label would explain everything.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, cast, final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tangentune.errors import nice_number
from tangentune.estimators.classifier import TangentClassifier
from tangentune.estimators.explanations import known_shares, ood_scores, open_share
from tangentune.estimators.regressor import TangentRegressor
from tangentune.estimators.solution import Solution
from tangentune.pictures.label_sets import SEPARATOR
from tangentune.pictures.load import Pictures
from tangentune.reports.pages import Estimator, is_classifier
from tangentune.solvers import balancing
from tangentune.solvers.balancing import influence
from tangentune.solvers.edits import remove, retarget
from tangentune.solvers.leave_out import contributions
from tangentune.solvers.likelihoods import LEAST_SQUARES
from tangentune.solvers.posterior import variance
from tangentune.solvers.source.coupling import coupling_without
from tangentune.solvers.source.leave_out import SourcePrediction
from tangentune.solvers.system import System

_Without = Callable[[int], "Prediction | None"]  # the answer of a model fitted without one of the problem's pictures
EDGE = 0.95  # a share of training pictures beyond which a picture is called unusual


@final
@dataclass(frozen=True)
class Prediction:
    """What a model says: a class name, or a number as text; `confidence` is a probability, None where there is none."""

    label: str
    confidence: float | None


@final
@dataclass(frozen=True)
class PictureEffect:
    """What one training picture did to one answer."""

    position: int  # in `ids_`
    id: str
    label: str  # given
    influence: float  # what the lead (or number) would lose if the model had been fitted without it; exact
    contribution: float  # its term in the sum that the lead (or number) is
    without: Prediction | None  # the answer of the model fitted without it; None where another likelihood answers


@final
@dataclass(frozen=True)
class Attribution:
    """Where one lead, or one predicted number, comes from."""

    name: str  # of the target, if there are several; else empty
    answer: Prediction  # what is explained
    against: Prediction | None  # the runner-up, None for numbers
    total: float  # the lead, or the number: `intercept` and the contributions of all training pictures together
    intercept: float
    raised: tuple[PictureEffect, ...]  # the pictures of the largest influence, largest first
    lowered: tuple[PictureEffect, ...]  # and those in the other direction
    largest: tuple[PictureEffect, ...]  # the pictures of the largest contributions, largest first
    counts: tuple[int, int]  # how many pictures raised and lowered it
    error: float | None = None  # standard deviation of the number; None for classes
    scatter: float | None = None  # and of a new observation of it

    @property
    def strongest(self) -> PictureEffect | None:
        """The picture of the largest influence, if any has some."""
        return max((*self.raised[:1], *self.lowered[:1]), key=lambda effect: abs(effect.influence), default=None)


@final
@dataclass(frozen=True)
class Explanation:
    """One answer explained."""

    id: str  # of the picture
    position: int  # among the pictures that were asked about
    given: str | None  # its label, if it is a training picture, which the answer then leaves out
    answers: tuple[Prediction, ...]  # classes or labels with probabilities, likeliest first; of numbers the numbers
    distance: float  # its `ood_score`
    attributions: tuple[Attribution, ...]  # one of a classifier, one a target of a regressor, one a label that is given
    said: tuple[str, ...] | None = None  # of several labels a picture those that are given


@final
@dataclass(frozen=True, eq=False)
class _Asked:
    """One picture as the problem sees it that answers."""

    system: System
    kernel: Tensor  # (1, N)
    scores: Tensor  # (C,)
    before: Tensor  # (C,) before any training picture is heard: the intercept, and what a source says
    variance: Tensor
    own: Tensor  # prior variance
    places: NDArray[np.int64]  # positions of the problem's pictures in `ids_`
    same: list[int]  # those of training pictures left out of it
    balance: Tensor | None  # (N,) classes of the problem's pictures, if their weights are balanced

    @property
    def influence(self) -> Tensor:
        """(N, C) of the problem's pictures."""
        return influence(self.system, self.balance, self.kernel)[0]

    @property
    def shares(self) -> Tensor:
        """(N, C) of the problem's pictures."""
        return contributions(self.system, self.kernel)[0]


def explain(model: Estimator, pictures: Pictures, top: int = 8) -> list[Explanation]:
    """Explain a fitted model's answer about each of m pictures, naming up to `top` training pictures either way."""
    proba = model.predict_proba(pictures) if is_classifier(model) and model.likelihood != LEAST_SQUARES else None
    copies, state, known = model.fitted_.copies_of(pictures), model.solution_, known_shares(model.solution_)
    out: list[Explanation] = []
    for seen in model.kernel_to_training(pictures):
        for row, own, from_source in zip(seen.kernel, seen.own, seen.source, strict=True):
            i = len(out)
            asked = _asked(state, row[None], own[None], from_source, copies[i])
            said = None
            if is_classifier(model) and model.thresholds_ is not None:
                answers, attributions, said = _attribute_labels(model, asked, top)
            elif is_classifier(model):
                answers = _ranked_classes(model, asked, None if proba is None else proba[i])
                attributions = (_attribute_lead(model, asked, answers, top),)
            else:
                numbers = cast(TangentRegressor, model)
                attributions = tuple(_attribute_number(numbers, asked, k, top) for k in range(len(asked.scores)))
                answers = tuple(one.answer for one in attributions)
            given = label_text(model, model.targets_[asked.same[0]]) if asked.same else None
            distance = float(ood_scores(known, open_share(asked.variance, asked.own))[0])
            out.append(Explanation(pictures.ids[i], i, given, answers, distance, attributions, said))
    return out


def _asked(state: Solution, kernel: Tensor, own: Tensor, from_source: Tensor, same: list[int]) -> _Asked:
    system = state.system
    rest = np.setdiff1d(np.arange(system.pictures), same)
    if same and int((system.weights[torch.from_numpy(rest)] > 0).sum()) < 2:  # nobody else could answer
        rest, same = np.arange(system.pictures), []
    gone, balance = torch.tensor(same, dtype=torch.int64), state.targets.balance
    if same:
        system = remove(balancing.without(system, balance, gone), gone)
    balance, kernel = None if balance is None else balance[rest], kernel[:, torch.from_numpy(rest)]
    if same and state.targets.source is not None:
        system, from_source = without_labels(state.targets.source, state.system.weights, system, same)
    before = system.bias + from_source
    scores = (kernel @ system.dual)[0] + before
    return _Asked(system, kernel, scores, before, variance(system, kernel, own), own, rest, same, balance)


def without_labels(
    predicted: SourcePrediction, weights: Tensor, system: System, same: list[int]
) -> tuple[System, Tensor]:
    """The problem without some pictures, their labels gone from the source's prediction too; that of them (C,)."""
    gone = torch.tensor(same, device=weights.device)
    labels = coupling_without(predicted.means, gone)
    rest = torch.ones_like(weights, dtype=torch.bool)
    rest[gone] = False
    left = predicted.means.targets[rest] - predicted.response[rest] @ labels
    return retarget(system, left), predicted.response[same[0]] @ labels


def _ranked_classes(model: TangentClassifier, asked: _Asked, proba: NDArray | None) -> tuple[Prediction, ...]:
    if proba is None:
        values = model.fitted_.outcome.probabilities(asked.scores[None])[0].cpu().numpy()
    else:
        values = model.loo_proba_[asked.same[0]] if asked.same else proba
    order = np.argsort(-values, kind="stable")
    return tuple(Prediction(str(model.classes_[c]), float(values[c])) for c in order)


def _attribute_lead(model: TangentClassifier, asked: _Asked, answers: tuple[Prediction, ...], top: int) -> Attribution:
    """Where the lead of a classifier's answer over the runner-up comes from."""
    names = [str(name) for name in model.classes_]
    best, runner_up = (names.index(answer.label) for answer in answers[:2])

    def lead(values: Tensor) -> NDArray[np.float64]:
        return (values[..., best] - values[..., runner_up]).cpu().numpy()

    influence = asked.influence

    def without(place: int) -> Prediction | None:
        if model.likelihood != LEAST_SQUARES:
            return None
        proba = model.fitted_.outcome.probabilities((asked.scores - influence[place])[None])[0]
        return Prediction(names[int(proba.argmax())], float(proba.max()))

    shares = lead(asked.shares)
    found = _largest(model, asked, lead(influence), shares, without, top)
    total, intercept = float(lead(asked.scores)), float(lead(asked.before))
    return Attribution("", answers[0], answers[1], total, intercept, **found)


def _attribute_labels(
    model: TangentClassifier, asked: _Asked, top: int
) -> tuple[tuple[Prediction, ...], tuple[Attribution, ...], tuple[str, ...]]:
    """Labels by probability; where the scores of those given, or else of the likeliest, come from; who is given."""
    calibration = model.fitted_.outcome.labels
    assert calibration is not None
    names, scores, influence = model.classes_.tolist(), asked.scores.cpu(), asked.influence.cpu()
    proba = calibration.probabilities(scores)
    given = calibration.decide(proba)
    order = sorted(range(len(names)), key=lambda k: (-int(given[k]), -float(proba[k])))
    said = tuple(str(names[k]) for k in order if given[k])

    def attribution(k: int) -> Attribution:
        def without(place: int) -> Prediction:
            other = scores.clone()
            other[k] -= influence[place, k]
            left = calibration.probabilities(other)
            word = names[k] if calibration.decide(left)[k] else f"not {names[k]}"
            return Prediction(str(word), float(left[k]))

        found = _largest(model, asked, influence[:, k].numpy(), asked.shares[:, k].cpu().numpy(), without, top)
        answer = Prediction(str(names[k]), float(proba[k]))
        return Attribution(answer.label, answer, None, float(scores[k]), float(asked.before[k]), **found)

    answers = tuple(Prediction(str(names[k]), float(proba[k])) for k in order)
    return answers, tuple(attribution(k) for k in order[: max(1, len(said))]), said


def _attribute_number(model: TangentRegressor, asked: _Asked, k: int, top: int) -> Attribution:
    """Where one number of a regressor's answer comes from."""
    value, noise = float(asked.scores[k]), float(model.noise_[k])
    spread = float(asked.variance) * noise / asked.system.damping
    influence = asked.influence[:, k].cpu().numpy()
    shares = asked.shares[:, k].cpu().numpy()

    def without(place: int) -> Prediction:
        return Prediction(numbers_text(value - influence[place]), None)

    name = f"target {k + 1}" if len(asked.scores) > 1 else ""
    found = _largest(model, asked, influence, shares, without, top)
    bars = {"error": spread**0.5, "scatter": (spread + noise) ** 0.5}
    return Attribution(name, Prediction(numbers_text(value), None), None, value, float(asked.before[k]), **found | bars)


def _largest(
    model: Estimator, asked: _Asked, influence: NDArray, shares: NDArray, without: _Without, top: int
) -> dict[str, Any]:
    """The pictures with the largest effect, as fields of an attribution."""

    def effect(i: int) -> PictureEffect:
        position = int(asked.places[i])
        names = (str(model.ids_[position]), label_text(model, model.targets_[position]))
        return PictureEffect(position, *names, float(influence[i]), float(shares[i]), without(i))

    order = np.argsort(-influence, kind="stable")
    up, down = order[influence[order] > 0], order[influence[order] < 0][::-1]
    largest = np.argsort(-np.abs(shares), kind="stable")
    lists = {"raised": up, "lowered": down, "largest": largest}
    found = {name: tuple(map(effect, which[:top].tolist())) for name, which in lists.items()}
    return {**found, "counts": (len(up), len(down))}


def familiarity(distance: float) -> str:
    """An out-of-distribution score in words."""
    if distance > 1:
        excess = f"{100 * (distance - 1):.0f} %" if distance < 10 else f"{distance:.0f} times"
        words = "more uncertain than the most distant of them. Do not rely on the answer."
        return f"Unlike every training picture: {excess} {words}"
    farther = 100 * (1 - distance)
    if distance > EDGE:
        share = f"only {farther:.0f} % of the training pictures lie" if farther >= 0.5 else "no training picture lies"
        return f"Unusual: {share} as far from the others."
    if distance > 0.5:
        return f"Within the usual range: {100 - farther:.0f} % of the training pictures lie nearer to the others."
    return f"Familiar: nearer to the training pictures than {farther:.0f} % of them are to the others."


def label_text(model: Estimator, label: Any) -> str:
    """A label of a model's pictures for people: a class name, several with ; between, or numbers with four digits."""
    if is_classifier(model) and model.thresholds_ is not None:  # names, or a row of 0 and 1
        names = label if isinstance(label, tuple) else model.classes_[np.asarray(label) > 0].tolist()
        return SEPARATOR.join(names)
    return str(label) if is_classifier(model) else numbers_text(label)


def document(explanation: Explanation) -> dict[str, Any]:
    """An explanation as plain values, for JSON; an attribution is called an account there."""
    fields = asdict(explanation)
    return fields | {"accounts": fields.pop("attributions"), "familiarity": familiarity(explanation.distance)}


def numbers_text(values: Any) -> str:
    """A number, or several, with four digits."""
    return ", ".join(nice_number(value, 4) for value in np.atleast_1d(values))
