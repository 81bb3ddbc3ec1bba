"""Explanations of a fitted model: why it answers so, what each picture is worth, which labels look wrong."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from importlib import import_module
from typing import Any, NamedTuple, final

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from tangentune.errors import InputError
from tangentune.estimators.fitted import FittedModel, KernelToTraining, solved
from tangentune.estimators.solution import Solution
from tangentune.estimators.tasks import Multilabel
from tangentune.pictures.label_sets import label_matrix
from tangentune.pictures.pictures import Pictures
from tangentune.solvers import balancing
from tangentune.solvers.leave_out import distrusting


class Suspect(NamedTuple):
    """A picture whose label may be wrong."""

    id: str
    position: int  # in `ids_` and every fitted attribute
    label: Any  # given
    suggestion: Any  # what the other pictures predict instead
    probability: float | None  # of the given label, by the model fitted without the picture; None for numbers
    score: float  # squared distance of the label from what the others predict: 0 agrees, 2 is another class for certain
    # Of several labels a picture the one in doubt, that it has or lacks; `label` and `suggestion` are then all of its
    # names with and without it, the probability is that of having or lacking it, and a score of 1 is certain.
    doubted: str | None = None


@final
class Suspects(list[Suspect]):
    """Suspects, worst first: a list, which a notebook shows with their pictures.

    Example:
        >>> Suspects([Suspect("a.png", 0, "cat", "dog", 0.01, 1.9)], {})
        1 suspect, worst first: a.png is labelled cat, but rather dog (1 % sure of the label)
    """

    def __init__(self, found: Iterable[Suspect], images: Mapping[int, Any]) -> None:
        super().__init__(found)
        self.images = images  # by position: a Pillow picture, as the network sees it; none of vectors

    def __repr__(self) -> str:
        if not self:
            return "no suspects"
        one = self[0]
        sure = "" if one.probability is None else f" ({100 * one.probability:.0f} % sure of the label)"
        worst = f"{one.id} is labelled {one.label}, but rather {one.suggestion}{sure}"
        return f"{len(self)} suspect{'s' if len(self) > 1 else ''}, worst first: {worst}"

    def _repr_html_(self) -> str:
        """For notebooks."""
        return str(import_module("tangentune.reports.notebook").suspects_html(self))  # by name: it stands on this room

    def to_frame(self) -> Any:
        """As a data frame of pandas, a row each."""
        rows = [one._asdict() for one in self]
        if not any(one.doubted for one in self):  # one label a picture, which is the one in doubt
            rows = [{name: value for name, value in row.items() if name != "doubted"} for row in rows]
        return import_module("tangentune.reports.notebook").frame(rows)


def leave_out(fitted: FittedModel, groups: ArrayLike | int) -> NDArray[np.float64]:
    """(n, C) predictions without a picture's whole group, or fold."""
    labels = fitted.active.labels
    if isinstance(groups, int | np.integer):
        if not 2 <= groups <= len(labels):
            raise InputError(f"{groups} folds of {len(labels)} pictures cannot be; use 2 to {len(labels)}")
        groups = fitted.task.folds(labels, int(groups))
    names = np.asarray(groups)
    if names.shape != (len(labels),):
        raise InputError(f"groups are {names.shape}, but the model stands on {len(labels)} pictures; give one for each")
    index = np.unique(names, return_inverse=True)[1]
    if index.max() == 0:
        raise InputError("all pictures are in one group; leaving it out would leave none, so name at least two groups")
    return solved(fitted).leave_out(torch.from_numpy(index)).cpu().numpy()


def informativeness(solution: Solution, found: Iterable[KernelToTraining] | None) -> NDArray[np.float64]:
    """(n,) smooth unique information, on new pictures or in the norm of the prior."""
    system, loo = solution.system, solution.loo
    errors = (solution.targets.targets.to(loo) - loo).square().mean(1)
    noise = max(float(system.weights @ errors / system.weights.sum()), torch.finfo(torch.float64).tiny)
    cross = None if found is None else torch.cat([new.kernel for new in found])
    value = balancing.unique_information(system, solution.targets.balance, cross)
    return (value * (system.damping if cross is None else 1) / (2 * noise)).cpu().numpy()


def suspects(fitted: FittedModel, k: int | None) -> Suspects:
    """Pictures whose labels lie far from what the others predict, worst first."""
    solution, labels = solved(fitted), fitted.active.labels
    count = len(labels) if k is None else k
    if count < 1:
        raise InputError(f"k is {k}; ask for at least one suspect")
    others = replace(solution, system=distrusting(solution.system)).loo
    given = solution.targets.targets.to(others)
    if isinstance(fitted.task, Multilabel):
        found = _doubted_labels(fitted, (given - others).square().cpu().numpy(), k)
    else:
        score = (given - others).square().sum(1).cpu().numpy()
        worst = np.argsort(-score, kind="stable")[:count].tolist()
        suggestions, sure = fitted.task.second_opinions(others, given, fitted.outcome, labels)
        found = [
            Suspect(fitted.ids[i], i, _plain(labels[i]), _plain(suggestions[i]), _plain(sure[i]), float(score[i]))
            for i in worst
        ]
    places = {one.position: int(fitted.active.positions[one.position]) for one in found}
    return Suspects(found, _Images(fitted.training.pictures, places if fitted.training.has_pictures else {}))


def _plain(value: Any) -> Any:
    """Python's own text, number or list, for people."""
    return value.tolist() if hasattr(value, "tolist") else value


@final
class _Images(Mapping[int, Any]):
    """Pictures by position, made when they are looked at; none of vectors."""

    def __init__(self, pictures: Pictures, places: dict[int, int]) -> None:
        self._pictures, self._places = pictures, places if pictures.pixels.ndim == 4 else {}

    def __getitem__(self, position: int) -> Any:
        return self._pictures.thumbnail(self._places[position])

    def __iter__(self) -> Iterator[int]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)


def _doubted_labels(fitted: FittedModel, scores: NDArray[np.float64], k: int | None) -> list[Suspect]:
    """The k entries (i, l) of scores (n, L) that are largest, as suspects: what the picture has, or lacks."""
    matrix, names, proba = label_matrix(fitted.active.labels).astype(bool), fitted.outcome.classes, fitted.outcome.proba
    found = []
    for place in np.argsort(-scores, axis=None, kind="stable")[:k].tolist():
        i, column = divmod(place, len(names))
        given, other = matrix[i], matrix[i].copy()
        other[column] = not given[column]
        sure = float(proba[i, column] if given[column] else 1 - proba[i, column])
        label, suggestion = (tuple(names[row].tolist()) for row in (given, other))
        score, doubted = float(scores[i, column]), str(names[column])
        found.append(Suspect(fitted.ids[i], i, label, suggestion, sure, score, doubted))
    return found


def open_share(variance: Tensor, own: Tensor) -> Tensor:
    """Posterior variance as a share of the prior one `k(x, x)`, (m,); a picture whose rows are all zero has 1."""
    return torch.where(own > 0, variance / own.clamp_min(1e-300), 1.0)


def open_shares(solution: Solution) -> Tensor:
    """Open shares (n,) of the training pictures, each left out."""
    left_out = balancing.left_out_variance(solution.system, solution.targets.balance)
    return open_share(left_out, solution.system.kernel.diagonal())


def known_shares(solution: Solution) -> NDArray[np.float64]:
    """Of those that have weight: ascending."""
    return np.sort(open_shares(solution)[solution.system.weights > 0].cpu().numpy())


def ood_scores(known: NDArray, shares: Tensor) -> NDArray[np.float64]:
    """Open shares of new pictures as `ood_score` gives them: ranks among `known_shares`, (m,)."""
    values = shares.cpu().numpy()
    rank = np.searchsorted(known, values, side="right") / len(known)
    return rank + np.maximum(values / known[-1] - 1, 0)
