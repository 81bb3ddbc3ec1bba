"""Labels that look like mistakes, kept at hand: the problem at a damping that trusts no single label.

That problem has an inverse of its own, which every edit changes as it changes the model's. Its damping is chosen when
the workbench opens, `distrusting` of the pictures of that time, and stays, as the model's own damping does: so the
suspects after an edit are those of a fit to the changed set at these two dampings.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import final

import numpy as np
from numpy.typing import NDArray

from tangentune.errors import InputError
from tangentune.estimators.fitted import FittedModel, solved
from tangentune.solvers.system import System
from tangentune.workbench.figures import positions_of


@final
@dataclass(frozen=True)
class SuspectRow:
    """A picture whose label may be wrong."""

    number: int
    id: str
    label: str
    suggestion: str  # the class that the other pictures predict instead
    probability: float  # of the given label, by the model fitted without the picture
    score: float  # squared distance of the label from what the others predict: 0 agrees, 2 is sure of another class


@final
@dataclass(frozen=True, eq=False)
class Doubts:
    """Every picture's doubt, in the order of the model's pictures."""

    score: NDArray[np.float64]  # (n,)
    suggestion: NDArray[np.int64]  # (n,) columns


def doubts(fitted: FittedModel, wary: System) -> Doubts:
    """How far each label lies from what the others predict, and what they predict; n C."""
    solution = solved(fitted)
    others = replace(solution, system=wary).loo
    given = solution.targets.targets.to(others)
    score = (given - others).square().sum(1).cpu().numpy()
    suggestion = others.masked_fill(given > 0, -float("inf")).argmax(1).cpu().numpy()
    return Doubts(score, suggestion)


def worst(
    fitted: FittedModel,
    found: Doubts,
    k: int,
    *,
    without: Collection[int] = (),
    label: str | None = None,
    suggestion: str | None = None,
    text: str = "",
) -> list[SuspectRow]:
    """The k worst, without the pictures of some numbers; of one label, suggestion, or ids that hold a text only."""
    if k < 1:
        raise InputError(f"k is {k}; ask for at least one suspect")
    names, given = [str(name) for name in fitted.outcome.classes.tolist()], positions_of(fitted)
    kept = np.ones(len(given), bool)
    for wanted, columns in ((label, given), (suggestion, found.suggestion)):
        if wanted is not None:
            if wanted not in names:
                raise InputError(f"there is no class {wanted!r}; the classes are: {', '.join(names)}")
            kept &= columns == names.index(wanted)
    numbers, ids = fitted.numbers, fitted.ids
    if without:
        kept &= ~np.isin(numbers, list(without))
    if text:
        kept &= np.array([text.casefold() in name.casefold() for name in ids], bool)
    order = np.argsort(-found.score, kind="stable")
    order = order[kept[order]][:k]
    sure = fitted.outcome.proba[order, given[order]].tolist()
    rows = zip(order.tolist(), sure, strict=True)
    return [
        SuspectRow(
            int(numbers[i]), ids[i], names[given[i]], names[found.suggestion[i]], probability, float(found.score[i])
        )
        for i, probability in rows
    ]
