"""From a ranking to pictures, single ones or those of the best classes: how many, for which target, of what weight.

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

from tangentune.errors import InputError
from tangentune.methods.source_selection.features import CHUNK, Features, lengths, stream
from tangentune.methods.source_selection.prototypes import Prototypes
from tangentune.methods.source_selection.rankings import Ranking, Scorer, descending, random_scores
from tangentune.methods.source_selection.settings import Budget, SelectionSettings
from tangentune.pictures.names import some

# No picture counts for more than this many average ones.
WEIGHT_CAP = 10.0


@final
@dataclass(frozen=True, eq=False)
class Picked:
    """Pictures a method takes, best first."""

    rows: Tensor  # (n,) int64 positions in the source
    scores: Tensor  # (n,) float64, of the picture or of its class; of a part of a class's mass its logarithm
    shares: Tensor  # (n, K) float64 for which targets
    cosines: Tensor  # (n, K) float64 with the targets
    weights: Tensor  # (n,) float64 importance, mean 1
    coverage: Tensor  # (K,) of the mass that goes to each target, the share that comes from these; NaN where none goes
    notes: tuple[str, ...]  # sentences about what could not be had


def pick_pictures(made: Prototypes, ranking: Ranking, settings: SelectionSettings, *, verbose: int = 0) -> Picked:
    """The best single pictures, by the scores that a ranking of prototypes has learnt, in one pass over the source."""
    features, budget, quota = made.source.features, settings.amount, settings.quota or 0
    scorer, nested = ranking.scorer or made.nearest, settings.candidates == "nested"
    of = torch.from_numpy(made.source_sums.members) if nested else None
    largest = float(ranking.scores.max())
    scores, best, given = score_rows(features, scorer, of=of, unit=largest, verbose=verbose)
    scores, factor = scores.double(), None
    if of is not None:  # what a class has, over what its pictures would have by themselves
        factor = ranking.scores - _grouped_logsumexp(scores, of, len(ranking.scores))
        scores = scores + factor[of]
    elif settings.method == "random":
        scores = random_scores(torch.arange(features.count), settings.seed)
    elif settings.method == "all":
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

    Returns (n,) float32 scores of the pictures, each by itself; (n,) int64 targets they serve best; (K,) float64
    logarithms of what all pictures give each target: transported mass, or for scores without masses the number of
    pictures nearest to it (-inf for none). With the class `of` (n,) of each row the last is (C, K), what each class
    gives, no logarithms but times `exp(-unit)`, `unit` being a logarithm near the largest.
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
    """How many of the best pictures the budget can take; a few more of log masses, here rounded to float32."""
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


@final
@dataclass(frozen=True, eq=False)
class Picks:
    """What was chosen, best first."""

    chosen: Tensor  # (k,) positions of candidates
    # (k,) how many pictures of each to take: all, but of the last one of a budget of pictures maybe fewer
    pictures: Tensor
    weights: Tensor  # (k,) importance of a picture of each, mean 1 over the pictures, see `importance_weights`
    targets: Tensor  # (k,) the target of which each has the largest share
    # (K,) of the mass that goes to each target, the share that comes from the chosen pictures; NaN for a target that
    # nothing goes to
    coverage: Tensor
    notes: tuple[str, ...]  # sentences about what was asked for and could not be had


def choose(
    scores: Tensor,
    shares: Tensor,
    budget: Budget,
    *,
    masses: Tensor | None = None,
    counts: Tensor | None = None,
    quota: int = 0,
    target_totals: Tensor | None = None,
) -> Picks:
    """Take the best candidates (classes, clusters or single pictures) up to a budget, each target's quota first.

    With a quota, every target first gets its best candidates (those that have their largest share there), then the
    best of the rest fill the budget. Equal scores go by position. A class is taken with all its pictures, except that
    the last one of a budget of pictures gives what is left of the budget. A budget beyond what is there takes all, and
    a note says so.

    Of n candidates: scores (n,), higher is better; shares (n, K), for which target each serves; row masses (n,), by
    default the counts; counts (n,) of pictures in each, by default 1. `target_totals` (K,) is the mass that goes to
    each target, whose sum is the whole that a budget of mass is a share of: by default that of the candidates, to be
    given where they are only the best of a longer list.
    """
    targets, number = shares.argmax(1), shares.shape[1]
    counts = torch.ones(len(scores), dtype=torch.int64) if counts is None else counts
    masses = counts.double() if masses is None else masses
    totals = _to_targets(masses, shares) if target_totals is None else target_totals
    order = descending(scores)
    place = order.argsort()
    first = first_of_each(targets[order], quota, number)
    order = torch.cat([order[first], order[~first]])
    reserved = int(first.sum())
    _check_quota(budget, quota * number, int(counts[order[:reserved]].sum()), quota)
    taken, notes = _taken(budget, counts[order], masses[order], float(totals.sum()), reserved)
    chosen = order[: len(taken)]
    again = place[chosen].argsort()  # best first, quota or not
    chosen, taken = chosen[again], taken[again]
    per_picture = masses[chosen] / counts[chosen]
    return Picks(
        chosen=chosen,
        pictures=taken,
        weights=importance_weights(per_picture, taken),
        targets=targets[chosen],
        coverage=_to_targets(per_picture * taken, shares[chosen]) / totals,
        notes=notes,
    )


def importance_weights(masses: Tensor, pictures: Tensor | None = None, *, cap: float = WEIGHT_CAP) -> Tensor:
    """Weights (n,) in proportion to row mass, with mean 1 and none above a cap: `min(c m, cap)`, c for the mean.

    A cap keeps one picture from being worth a whole batch: the effective number of pictures,
    `(sum w)^2 / sum w^2`, stays at least their number over the cap. Where too few masses are positive to reach the
    mean under the cap, those have the cap and the others share the rest evenly. `pictures` (n,) have each mass.
    """
    masses = masses.double()
    number = torch.ones_like(masses) if pictures is None else pictures.to(masses)
    if not bool((torch.isfinite(masses) & (masses >= 0)).all()) or not bool((masses > 0).any()):
        raise InputError(
            "masses must be finite, none negative and not all 0; if they underflow, use a larger cost scale"
        )
    total, order = number.sum(), torch.argsort(masses, descending=True, stable=True)
    sizes, held = number[order], (number * masses)[order]
    # With the j heaviest at the cap, scale j brings the rest to mean 1; the first under the cap is the right one.
    rest = held.flip(0).cumsum(0).flip(0)
    scales = (total - cap * (sizes.cumsum(0) - sizes)) / rest
    fits = ((scales * masses[order] <= cap) & (rest > 0)).nonzero()
    if len(fits):
        return (masses * scales[fits[0, 0]]).clamp_(max=cap)
    light = masses == 0
    left = (total - cap * number[~light].sum()).clamp(min=0) / number[light].sum().clamp(min=1)
    return torch.where(light, left, cap)


def _to_targets(masses: Tensor, shares: Tensor) -> Tensor:
    """Mass that goes to each target, (K,) in float64, without a copy of the shares in float64."""
    unit = masses.max().clamp(min=torch.finfo(masses.dtype).tiny)  # shares of float32 have a shorter range
    return ((masses / unit).to(shares.dtype) @ shares).double() * unit


def first_of_each(targets: Tensor, quota: int, number: int) -> Tensor:
    """Which candidates, best first, are among the first `quota` of their own of the `number` targets, (n,) bool."""
    held, grouped = torch.bincount(targets, minlength=number), torch.argsort(targets, stable=True)
    place = torch.arange(len(targets)) - (held.cumsum(0) - held)[targets[grouped]]
    return torch.empty(len(targets), dtype=torch.bool).index_copy_(0, grouped, place < quota)


def _check_quota(budget: Budget, asked: int, pictures: int, quota: int) -> None:
    if budget.kind != "mass" and asked > budget.amount:
        message = f"a quota of {quota} for every target asks for {asked}, more than the budget of {budget.amount:.0f}"
        message += f" {budget.kind}; lower the quota or raise the budget"
        raise InputError(message)
    if budget.kind == "pictures" and pictures > budget.amount:
        message = f"a quota of {quota} for every target takes classes of {pictures} pictures, more than the budget "
        message += f"of {budget.amount:.0f}; lower the quota or raise the budget"
        raise InputError(message)


def _taken(
    budget: Budget, counts: Tensor, masses: Tensor, total: float, reserved: int
) -> tuple[Tensor, tuple[str, ...]]:
    """Pictures to take of each candidate, in the order they come, cut at the last one taken; and notes."""
    if budget.kind == "mass":
        return _up_to_mass(budget.amount, counts, masses, total, reserved)
    limit, there = int(budget.amount), len(counts) if budget.kind == "classes" else int(counts.sum())
    if limit >= there:
        beyond = f"the budget is {limit} {budget.kind} and there are {there}, all of which are taken"
        return counts, (beyond,) if limit > there else ()
    if budget.kind == "classes":
        return counts[:limit], ()
    before = counts.cumsum(0) - counts
    return torch.minimum(counts, limit - before)[before < limit], ()


def _up_to_mass(
    share: float, counts: Tensor, masses: Tensor, total: float, reserved: int
) -> tuple[Tensor, tuple[str, ...]]:
    """As many as reach a share of the mass, and all of the quota."""
    reached = masses.cumsum(0)
    enough = (reached >= share * total * (1 - 1e-12)).nonzero()
    if share == 1 or not len(enough):
        held = float(reached[-1]) / total if total > 0 else 1.0
        note = f"the budget is {share:.4g} of the mass and the candidates hold {held:.4g} of it; all are taken"
        return counts, (note,) if held < share - 1e-9 else ()
    needed = int(enough[0, 0]) + 1
    if needed >= reserved:
        return counts[:needed], ()
    held = float(reached[reserved - 1]) / total
    return counts[:reserved], (f"the quotas alone take {held:.4g} of the mass, more than the budget of {share:.4g}",)
