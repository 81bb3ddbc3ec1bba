"""Why a fitted model answers as it does about one picture: which training pictures made the answer, and how much.

A classifier's answer is explained by its lead: the score of the class it names less that of the runner-up. A
regressor's is explained by each predicted number. A picture that is one of the training pictures is answered by the
model fitted without it: its own label would explain everything.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tangentune.estimators.explanations import ood_scores, open_share
from tangentune.estimators.solution import Solution
from tangentune.pictures.load import Pictures, pictures_digest
from tangentune.reports.answers import Account, Answer, Explanation, Pull, label_text, short_number
from tangentune.solvers import leave_out as exact
from tangentune.solvers.edits import remove, retarget
from tangentune.solvers.likelihoods import LEAST_SQUARES
from tangentune.solvers.posterior import variance
from tangentune.solvers.source.coupling import coupling_without
from tangentune.solvers.source.leave_out import Said
from tangentune.solvers.system import System
from tangentune.solvers.temperature import probabilities


@final
@dataclass(frozen=True, eq=False)
class _Asked:
    """One picture as the problem sees it that answers: kernel (1, N), scores (C,), variance and prior variance.

    `before` (C,) are the scores before any training picture is heard: the intercept, and what a source says. `places`
    are positions of the problem's pictures in `ids_`; `same` those of training pictures left out of it.
    """

    system: System
    kernel: Tensor
    scores: Tensor
    before: Tensor
    variance: Tensor
    own: Tensor
    places: NDArray[np.int64]
    same: list[int]


def explain(model: Any, pictures: Pictures, top: int = 8) -> list[Explanation]:
    """Explain a model's answer about each of a few pictures.

    Args:
        model: a fitted `TangentClassifier` or `TangentRegressor`.
        pictures: m of them, as its network takes them.
        top: how many training pictures to name in either direction.

    Returns:
        m explanations. Cost as `influence`; a training picture costs n^2 more.
    """
    classes = hasattr(model, "classes_")
    proba = model.predict_proba(pictures) if classes and model.likelihood != LEAST_SQUARES else None
    ours = _positions_by_pixels(model)
    digests = pictures_digest(pictures.pixels)
    state, out = model.solution_, []
    for seen in model.kernel_to_training(pictures):
        for row, own, said in zip(seen.kernel, seen.own, seen.source, strict=True):
            i = len(out)
            asked = _asked(state, row[None], own[None], said, ours.get(digests[i], []))
            if classes:
                answers = _ranked_classes(model, asked, None if proba is None else proba[i])
                accounts: tuple[Account, ...] = (_lead(model, asked, answers, top),)
            else:
                accounts = tuple(_number(model, asked, k, top) for k in range(len(asked.scores)))
                answers = tuple(account.answer for account in accounts)
            given = label_text(model, model.targets_[asked.same[0]]) if asked.same else None
            distance = float(ood_scores(state.system, open_share(asked.variance, asked.own))[0])
            out.append(Explanation(pictures.ids[i], i, given, answers, distance, accounts))
    return out


def _positions_by_pixels(model: Any) -> dict[str, list[int]]:
    found: dict[str, list[int]] = {}
    for i, digest in enumerate(pictures_digest(model.pictures_.pixels)):
        found.setdefault(digest, []).append(i)
    return found


def _asked(state: Solution, kernel: Tensor, own: Tensor, said: Tensor, same: list[int]) -> _Asked:
    system = state.system
    rest = np.setdiff1d(np.arange(system.pictures), same)
    if same and int((system.weights[torch.from_numpy(rest)] > 0).sum()) < 2:  # nobody else could answer
        rest, same = np.arange(system.pictures), []
    system, kernel = remove(system, torch.tensor(same, dtype=torch.int64)), kernel[:, torch.from_numpy(rest)]
    if same and state.targets.source is not None:
        system, said = _heard_without(state.targets.source, state.system.weights, system, same)
    before = system.bias + said
    scores = (kernel @ system.dual)[0] + before
    return _Asked(system, kernel, scores, before, variance(system, kernel, own), own, rest, same)


def _heard_without(said: Said, weights: Tensor, system: System, same: list[int]) -> tuple[System, Tensor]:
    """The problem without some pictures, their labels gone from what the source says too; what it says of them (C,)."""
    gone = torch.tensor(same, device=weights.device)
    labels = coupling_without(said.means, said.targets, weights, gone)
    rest = torch.ones_like(weights, dtype=torch.bool)
    rest[gone] = False
    return retarget(system, said.targets[rest] - said.response[rest] @ labels), said.response[same[0]] @ labels


def _ranked_classes(model: Any, asked: _Asked, proba: NDArray | None) -> tuple[Answer, ...]:
    if proba is None:
        values = probabilities(asked.scores[None], model.temperature_)[0].cpu().numpy()
    else:
        values = model.loo_proba_[asked.same[0]] if asked.same else proba
    order = np.argsort(-values, kind="stable")
    return tuple(Answer(str(model.classes_[c]), float(values[c])) for c in order)


def _lead(model: Any, asked: _Asked, answers: tuple[Answer, ...], top: int) -> Account:
    """The account of a classifier's answer."""
    names = [str(name) for name in model.classes_]
    best, runner_up = (names.index(answer.label) for answer in answers[:2])

    def lead(values: Tensor) -> NDArray[np.float64]:
        return (values[..., best] - values[..., runner_up]).cpu().numpy()

    influence = exact.influence(asked.system, asked.kernel)[0]

    def without(place: int) -> Answer | None:
        if model.likelihood != LEAST_SQUARES:
            return None
        proba = probabilities((asked.scores - influence[place])[None], model.temperature_)[0]
        return Answer(names[int(proba.argmax())], float(proba.max()))

    shares = lead(exact.contributions(asked.system, asked.kernel)[0])
    found = _largest(model, asked.places, lead(influence), shares, without, top)
    total, intercept = float(lead(asked.scores)), float(lead(asked.before))
    return Account("", answers[0], answers[1], total, intercept, **found)


def _number(model: Any, asked: _Asked, k: int, top: int) -> Account:
    """The account of one number of a regressor's answer."""
    value, noise = float(asked.scores[k]), float(model.noise_[k])
    spread = float(asked.variance) * noise / asked.system.damping
    pulls = exact.influence(asked.system, asked.kernel)[0, :, k].cpu().numpy()
    shares = exact.contributions(asked.system, asked.kernel)[0, :, k].cpu().numpy()

    def without(place: int) -> Answer:
        return Answer(short_number(value - pulls[place]), None)

    name = f"target {k + 1}" if len(asked.scores) > 1 else ""
    found = _largest(model, asked.places, pulls, shares, without, top)
    bars = {"error": spread**0.5, "scatter": (spread + noise) ** 0.5}
    return Account(name, Answer(short_number(value), None), None, value, float(asked.before[k]), **found | bars)


def _largest(
    model: Any, places: NDArray, influence: NDArray, shares: NDArray, without: Callable[[int], Answer | None], top: int
) -> dict[str, Any]:
    """The pictures with the largest effect, as fields of an account."""

    def pulls(order: NDArray) -> tuple[Pull, ...]:
        out = []
        for i in order.tolist():
            position = int(places[i])
            names = (str(model.ids_[position]), label_text(model, model.targets_[position]))
            out.append(Pull(position, *names, float(influence[i]), float(shares[i]), without(i)))
        return tuple(out)

    order = np.argsort(-influence, kind="stable")
    up, down = order[influence[order] > 0], order[influence[order] < 0][::-1]
    largest = np.argsort(-np.abs(shares), kind="stable")[:top]
    counts = (len(up), len(down))
    return {"raised": pulls(up[:top]), "lowered": pulls(down[:top]), "largest": pulls(largest), "counts": counts}
