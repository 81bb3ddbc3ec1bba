"""Pictures by the mass of their class divided between them: what a class's mean says, and each picture within it.

Scored alone, a picture unlike the others of its class can outbid whole classes of the right kind (measured in
docs/decisions/0014). Here the plan between the classes stays as it is; picture i of class c gets
`M_c m_i / sum_{j in c} m_j`, M_c being the row mass of the class and m_i what the picture's own would be. Summed over
a class that is the plan's row again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tangentune.errors import InputError
from tangentune.methods.source_selection.budget import Budget, choose
from tangentune.methods.source_selection.feature_source import CHUNK, Features
from tangentune.methods.source_selection.picking import Picked, picked_of, row_cosines
from tangentune.methods.source_selection.rankings import Ranking, descending
from tangentune.methods.source_selection.scorer import Scorer, in_float32
from tangentune.methods.source_selection.stream import stream
from tangentune.methods.source_selection.target_mass import TargetMass, log_masses


@final
@dataclass(frozen=True, eq=False)
class _Pass:
    """What one pass over the pictures leaves: 12 bytes a picture, and a table.

    Attributes:
        scores: (n,) float32 logarithms of the pictures' own masses.
        best: (n,) int64 targets they serve best.
        given: (C, K) float64 what each class gives each target, times `exp(-unit)`.
        unit: a logarithm near the largest.
    """

    scores: Tensor
    best: Tensor
    given: Tensor
    unit: float


def pick_nested(
    features: Features,
    members: NDArray[np.int64],
    ranking: Ranking,
    budget: Budget,
    names: Sequence[str],
    *,
    quota: int = 0,
    verbose: int = 0,
) -> Picked:
    """The pictures with the largest parts of their classes' masses.

    Args:
        features: of the source.
        members: (n,) class of each picture, positions in the ranking.
        ranking: of source classes, by a method with masses ("uot" or "kernel_sum").
        budget: in pictures or mass.
        names: of the K targets, for notes.
        quota: least number of pictures for every target.
        verbose: 1 shows a progress bar.

    Returns:
        Picked; a score is the logarithm of a picture's part.

    Cost: one pass over the features.

    Raises:
        InputError: a method without masses, or a quota that is more than the budget.
    """
    scorer = ranking.scorer
    if scorer is None or not TargetMass.is_mass(scorer):
        message = f"the method {ranking.method!r} gives classes no masses that could be divided between their pictures"
        raise InputError(message)
    of = torch.from_numpy(members)
    seen = _scored(features, of, ranking, scorer, verbose)
    # What a class has, over what its pictures would have by themselves.
    factor = ranking.scores - _grouped_logsumexp(seen.scores.double(), of, len(ranking.scores))
    scores = seen.scores.double() + factor[of]
    top, unit = descending(scores), float(scores.max())
    rows = top[: _needed(scores[top], ranking.scores, budget)]
    if quota:
        reserved = [top[seen.best[top] == k][:quota] for k in range(len(names))]
        rows = torch.cat([rows, *reserved])
    rows = rows.unique()
    cosines = row_cosines(features, scorer, rows)
    exact = scorer.scores(cosines.clone()) + factor[of[rows]]
    shares = scorer.shares(cosines)
    # Of a class so far away that its part of the table underflows, the factor is no finite number: it gives nothing.
    totals = ((factor + seen.unit - unit).exp().nan_to_num(posinf=0.0)[:, None] * seen.given).sum(0)
    choice = choose(exact, shares, budget, masses=(exact - unit).exp(), quota=quota, target_totals=totals)
    held = torch.bincount(seen.best, minlength=len(names))
    return picked_of(rows, exact, shares, cosines, choice, held, quota, names)


def _scored(features: Features, of: Tensor, ranking: Ranking, scorer: Scorer, verbose: int) -> _Pass:
    """In float32, as `scan`: what is chosen is scored once more in float64."""
    unit, scorer = float(ranking.scores.max()), in_float32(scorer)
    table = len(ranking.scores), len(scorer.prototypes)
    scores, best = torch.empty(features.count), torch.empty(features.count, dtype=torch.int64)
    given, room = torch.zeros(table, dtype=torch.float64), torch.empty(2, min(CHUNK, features.count), table[1])
    for first, rows, norms in stream(features, "scores", verbose=verbose):
        part, count = slice(first, first + len(rows)), len(rows)
        own, served = log_masses(scorer, scorer.cosines(rows, norms, room[0, :count]), room[1, :count])
        scores[part], best[part] = own, served.argmax(1)
        given += torch.zeros(table).index_add_(0, of[part], served.sub_(unit).exp_())
    return _Pass(scores, best, given, unit)


def _grouped_logsumexp(values: Tensor, of: Tensor, groups: int) -> Tensor:
    """`log sum exp` of the values of each group, (groups,); every group has a member.

    Example:
        >>> _grouped_logsumexp(torch.zeros(3).double(), torch.tensor([0, 1, 1]), 2).exp().tolist()
        [1.0, 2.0]
    """
    top = torch.full((groups,), -torch.inf, dtype=values.dtype).scatter_reduce_(0, of, values, "amax")
    sums = torch.zeros(groups, dtype=values.dtype).index_add_(0, of, (values - top[of]).exp())
    return top + sums.log()


def _needed(scores: Tensor, classes: Tensor, budget: Budget) -> int:
    """How many of the best pictures the budget can take; a few more where it is of mass, as scores are rounded."""
    if budget.kind != "mass":
        return int(budget.amount)
    whole = classes.logsumexp(0)
    held = (scores - whole).exp().cumsum(0)
    return int((held < budget.amount + 1e-6).sum()) + 1
