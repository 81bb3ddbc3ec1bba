"""From a ranking to pictures: single ones by a pass over all features, or those of the best classes.

Scored alone, a picture unlike the others of its class can outbid whole classes of the right kind (measured in
docs/decisions/0014). "nested" leaves the plan between the classes as it is: picture i of class c gets
`M_c m_i / sum_{j in c} m_j`, M_c being the row mass of the class and m_i what the picture's own would be. Summed over
a class that is the plan's row again.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import final

import numpy as np
import torch
from torch import Tensor

from tangentune.methods.source_selection.budget import Picks, choose, first_of_each
from tangentune.methods.source_selection.features import CHUNK, Features, lengths, stream
from tangentune.methods.source_selection.prototypes import Prototypes
from tangentune.methods.source_selection.rankings import Ranking, Scorer, descending, random_scores
from tangentune.methods.source_selection.settings import Budget, SelectionSettings
from tangentune.pictures.names import some


@final
@dataclass(frozen=True, eq=False)
class Picked:
    """Pictures a method takes, best first.

    Attributes:
        rows: (n,) int64 positions in the source.
        scores: (n,) float64, of the picture or of its class; of a part of a class's mass its logarithm.
        shares: (n, K) float64 for which targets.
        cosines: (n, K) float64 with the targets.
        weights: (n,) float64 importance, mean 1.
        coverage: (K,) of the mass that goes to each target, the share that comes from these; NaN where none goes.
        notes: sentences about what could not be had.
    """

    rows: Tensor
    scores: Tensor
    shares: Tensor
    cosines: Tensor
    weights: Tensor
    coverage: Tensor
    notes: tuple[str, ...]


def pick_pictures(made: Prototypes, ranking: Ranking, settings: SelectionSettings, *, verbose: int = 0) -> Picked:
    """The best single pictures, by the scores that a ranking of prototypes has learnt, in one pass over the features.

    "nested" divides the masses of classes between their pictures, "pictures" takes each picture's own.
    """
    features, budget, quota = made.source.features, settings.amount, settings.quota or 0
    scorer, nested = ranking.scorer or made.nearest, settings.candidates == "nested"
    of = torch.from_numpy(made.source_sums.members) if nested else None
    largest = float(ranking.scores.max())
    scores, best, given = score_rows(features, scorer, of=of, unit=largest, verbose=verbose)
    scores, factor = scores.double(), None
    if of is not None:  # what a class has, over what its pictures would have by themselves
        factor = ranking.scores - _grouped_logsumexp(scores, of, len(ranking.scores))
        scores = scores + factor[of]
    elif ranking.method == "random":
        scores = random_scores(torch.arange(features.count), settings.seed)
    elif ranking.method == "all":
        scores = torch.zeros_like(scores)
    top = descending(scores)
    reserved = first_of_each(best[top], quota, len(scorer.prototypes))
    rows = torch.cat([top[: _needed(scores[top], budget, ranking.has_mass)], top[reserved]]).unique()
    cosines = row_cosines(features, scorer, rows)
    if ranking.scorer is None:
        exact = scores[rows]
    else:  # once more, in float64
        exact = scorer.scores(cosines) + (0 if of is None or factor is None else factor[of[rows]])
    shares = scorer.shares(cosines)
    unit = float(exact.max()) if ranking.has_mass else 0.0  # of the masses, in which none underflows
    if factor is None:
        totals = (given - unit).exp()
    else:  # of a class so far away that its part of the table underflows, the factor is not finite: it gives nothing
        totals = ((factor + largest - unit).exp().nan_to_num(posinf=0.0)[:, None] * given).sum(0)
    masses = (exact - unit).exp() if ranking.has_mass else None
    picks = choose(exact, shares, budget, masses=masses, quota=quota, target_totals=totals)
    at, held = picks.chosen, torch.bincount(best, minlength=len(scorer.prototypes))
    notes = _notes(picks, held, quota, made.target_sums.names)
    return Picked(rows[at], exact[at], shares[at], cosines[at], picks.weights, picks.coverage, notes)


def pick_classes(made: Prototypes, ranking: Ranking, settings: SelectionSettings) -> Picked:
    """Pictures of the best classes; of the last one, where the budget cuts it, the best; the quota counts classes."""
    features, quota = made.source.features, settings.quota or 0
    masses = (ranking.scores - ranking.scores.max()).exp() if ranking.has_mass else None
    counts, members = made.source_sums.counts, made.source_sums.members
    picks = choose(ranking.scores, ranking.shares, settings.amount, masses=masses, counts=counts, quota=quota)
    rows = []
    for one, number in zip(picks.chosen.tolist(), picks.pictures.tolist(), strict=True):
        inside = torch.from_numpy(np.flatnonzero(members == one))
        if number < len(inside):
            scores = random_scores(inside, settings.seed)
            if ranking.scorer is not None:
                scores = ranking.scorer.scores(row_cosines(features, made.nearest, inside))
            inside = inside[descending(scores)[:number].sort().values]
        rows.append(inside)
    of, weights = (values.repeat_interleave(picks.pictures) for values in (picks.chosen, picks.weights))
    cosines = made.sources[of] @ made.nearest.prototypes.mT
    held = torch.bincount(ranking.shares.argmax(1), minlength=ranking.shares.shape[1])
    notes = _notes(picks, held, quota, made.target_sums.names)
    return Picked(torch.cat(rows), ranking.scores[of], ranking.shares[of], cosines, weights, picks.coverage, notes)


def score_rows(
    features: Features,
    scorer: Scorer,
    *,
    of: Tensor | None = None,
    unit: float = 0.0,
    chunk: int = CHUNK,
    verbose: int = 0,
) -> tuple[Tensor, Tensor, Tensor]:
    """Score every row once, in float32.

    Cost `2 n d K` flops, `n K` exponentials or two, and reading the features once. Memory: a chunk of features, a few
    of cosines, and 12 bytes a row.

    Args:
        features: (n, d).
        scorer: with K targets of the same width.
        of: (n,) int64 class of each row, where what each class gives is to be told apart.
        unit: a logarithm near the largest, with `of`.
        chunk: rows at a time.
        verbose: 1 shows a progress bar.

    Returns:
        (n,) float32 scores of the pictures, each by itself; (n,) int64 targets they serve best; (K,) float64 logarithms
        of what all pictures give each target: transported mass, or for scores without masses the number of pictures
        nearest to it (-inf for none). With `of` the last is (C, K), what each class gives, no logarithms but times
        `exp(-unit)`.
    """
    scorer, number = scorer.in_float32(), len(scorer.prototypes)
    scores, best = torch.empty(features.count), torch.empty(features.count, dtype=torch.int64)
    log_given = torch.full((number,), -torch.inf, dtype=torch.float64)
    table = torch.zeros(0 if of is None else int(of.max()) + 1, number, dtype=torch.float64)
    for first, rows, norms in stream(features, "scores", chunk=chunk, verbose=verbose):
        part = slice(first, first + len(rows))
        scores[part], served = scorer.served(scorer.cosines(rows, norms))
        best[part] = served.argmax(1)
        if of is not None:
            table += torch.zeros(table.shape).index_add_(0, of[part], served.sub_(unit).exp_())
            continue
        if scorer.has_mass:  # as logarithms: no small cost scale under- or overflows
            highest = served.amax(0)
            given = highest.double() + served.sub_(highest).exp_().sum(0).double().log()
        else:
            given = torch.bincount(best[part], minlength=number).double().log()
        log_given = torch.logaddexp(log_given, given)
    return scores, best, log_given if of is None else table


def row_cosines(features: Features, scorer: Scorer, rows: Tensor) -> Tensor:
    """Cosines of some rows with a scorer's targets, (m, K) float64, which does not depend on how the rows are split."""
    cosines = torch.empty(len(rows), len(scorer.prototypes), dtype=torch.float64)
    for part in torch.argsort(rows, stable=True).split(CHUNK):  # neighbours are read at once
        found = features.rows(rows[part]).double()
        cosines[part] = scorer.cosines(found, lengths(found, rows[part]))
    return cosines


def _grouped_logsumexp(values: Tensor, of: Tensor, groups: int) -> Tensor:
    """`log sum exp` of the values of each group, (groups,); every group has a member."""
    top = torch.full((groups,), -torch.inf, dtype=values.dtype).scatter_reduce_(0, of, values, "amax")
    sums = torch.zeros(groups, dtype=values.dtype).index_add_(0, of, (values - top[of]).exp())
    return top + sums.log()


def _needed(scores: Tensor, budget: Budget, has_mass: bool) -> int:
    """How many of the best pictures the budget can take; without masses each has the mass 1.

    A few more where scores are log masses, as those are rounded to float32 and `choose` counts exactly.
    """
    if budget.kind != "mass":
        return int(budget.amount)
    if not has_mass:
        return math.ceil(budget.amount * len(scores))
    held = (scores - scores.logsumexp(0)).exp().cumsum(0)
    return int((held < budget.amount + 1e-5).sum()) + 1


def _notes(picks: Picks, held: Tensor, quota: int, names: tuple[str, ...]) -> tuple[str, ...]:
    """The picks' sentences, after one about the targets that have too few candidates, by name."""
    short = [names[k] for k in (held < quota).nonzero().flatten().tolist()]
    if not short:
        return picks.notes
    many = "1 target class has" if len(short) == 1 else f"{len(short)} target classes have"
    sentence = f"{many} fewer candidates than the quota of {quota}; all of them are taken: {some(short)}"
    return (sentence, *picks.notes)
