"""From a ranking to pictures: single ones by a pass over all features, or those of the best classes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tangentune.methods.source_selection.budget import Budget, Choice, choose
from tangentune.methods.source_selection.emd import round_robin
from tangentune.methods.source_selection.feature_source import CHUNK, Features, lengths
from tangentune.methods.source_selection.rankings import Ranking, descending, random_scores
from tangentune.methods.source_selection.scan import Scanned, scan, top_rows
from tangentune.methods.source_selection.scorer import Scorer
from tangentune.methods.source_selection.target_mass import TargetMass
from tangentune.pictures.names import some

_FIRST_GUESS, _GROWTH = 4096, 4  # pictures kept for a budget of mass, and by how much more if they do not hold it
_SPARE = 16  # candidates kept for each picture of a quota: those that give a target most may serve another one better


@final
@dataclass(frozen=True, eq=False)
class Picked:
    """Pictures a method takes, best first.

    Attributes:
        rows: (n,) positions in the source.
        scores: (n,) float64, of the picture or of its class.
        shares: (n, K) float64 for which targets.
        nearness: (n,) cosine with the target it serves best.
        weights: (n,) importance, mean 1.
        targets: (n,) the target it serves best.
        coverage: (K,) of the mass that goes to each target, the share that comes from these; NaN where none goes.
        notes: sentences about what could not be had.
    """

    rows: NDArray[np.int64]
    scores: NDArray[np.float64]
    shares: NDArray[np.float64]
    nearness: NDArray[np.float64]
    weights: NDArray[np.float64]
    targets: NDArray[np.int64]
    coverage: NDArray[np.float64]
    notes: tuple[str, ...]


def pick_pictures(
    features: Features,
    ranking: Ranking,
    nearest: Scorer,
    budget: Budget,
    names: Sequence[str],
    *,
    quota: int = 0,
    seed: int = 0,
    cache: Path | None = None,
    verbose: int = 0,
) -> Picked:
    """The best single pictures, by the scores that a ranking of prototypes has learnt.

    Args:
        features: of the source.
        ranking: of source prototypes for the targets.
        nearest: score of the nearest target, for methods that score no single picture.
        budget: in pictures or mass; of methods without masses a picture's mass is 1.
        names: of the K targets, for notes.
        quota: least number of pictures for every target.
        seed: of "random".
        cache: folder for the state that a stopped pass goes on from.
        verbose: 1 shows a progress bar.

    Cost: one pass over the features, more for a budget of mass that takes more than 4,096 pictures.

    Raises:
        InputError: the quota is more than the budget.
    """
    found, kept = _scanned(features, ranking, nearest, budget, quota, cache, verbose)
    n, scorer = features.count, ranking.scorer or nearest
    if ranking.scorer is not None:
        cosines = row_cosines(features, nearest, kept)
        scores = scorer.scores(cosines.clone())
    else:
        kept, scores = _without_scores(ranking.method, found, n, budget, quota, seed)
        cosines = row_cosines(features, nearest, kept)
    shares = scorer.shares(cosines)
    totals, masses = found.log_target_mass, None
    if TargetMass.is_mass(scorer):  # in a unit in which nothing underflows
        masses, totals = (scores - scores.max()).exp(), totals - scores.max()
    choice = choose(scores, shares, budget, masses=masses, quota=quota, target_totals=totals.exp())
    held = torch.bincount(shares.argmax(1), minlength=len(names))
    return picked_of(kept, scores, shares, cosines, choice, held, quota, names)


def pick_classes(
    features: Features,
    members: NDArray[np.int64],
    counts: Tensor,
    prototypes: Tensor,
    ranking: Ranking,
    nearest: Scorer,
    budget: Budget,
    names: Sequence[str],
    *,
    quota: int = 0,
    seed: int = 0,
) -> Picked:
    """All pictures of the best classes; of the last one, where the budget cuts it, the best ones.

    Args:
        features: of the source.
        members: (n,) class of each picture, positions in `prototypes`.
        counts: (C,) pictures of each class.
        prototypes: (C, d) float64 unit rows.
        ranking: of these.
        nearest: score of the nearest target.
        budget: any.
        names: of the K targets, for notes.
        quota: least number of classes for every target.
        seed: of the choice within a class for methods that score no single picture.

    Raises:
        InputError: the quota is more than the budget.
    """
    by_mass = ranking.scorer is not None and TargetMass.is_mass(ranking.scorer)
    masses = (ranking.scores - ranking.scores.max()).exp() if by_mass else None
    choice = choose(ranking.scores, ranking.shares, budget, masses=masses, counts=counts, quota=quota)
    rows = []
    for one, number in zip(choice.chosen.tolist(), choice.pictures.tolist(), strict=True):
        inside = torch.from_numpy(np.flatnonzero(members == one))
        if number < len(inside):
            scores = random_scores(inside, seed)
            if ranking.scorer is not None:
                scores = ranking.scorer.scores(row_cosines(features, nearest, inside))
            inside = inside[descending(scores)[:number].sort().values]
        rows.append(inside)
    of = choice.chosen.repeat_interleave(choice.pictures)
    weights = choice.weights.repeat_interleave(choice.pictures)
    cosines = prototypes[of] @ nearest.prototypes.mT
    held = torch.bincount(ranking.shares.argmax(1), minlength=len(names))
    notes = _notes(choice, held, quota, names)
    return _picked(torch.cat(rows), ranking.scores[of], ranking.shares[of], cosines, weights, choice, notes)


def row_cosines(features: Features, scorer: Scorer, rows: Tensor) -> Tensor:
    """Cosines of some rows with a scorer's targets, (m, K) float64, which does not depend on how the rows are split.

    Example:
        >>> from tangentune.methods.source_selection.features import open_features
        >>> from tangentune.methods.source_selection.scorer import nearest_scorer
        >>> row_cosines(open_features([[0.0, 2.0]]), nearest_scorer(torch.eye(2).double()), torch.tensor([0])).tolist()
        [[0.0, 1.0]]
    """
    cosines = torch.empty(len(rows), len(scorer.prototypes), dtype=torch.float64)
    for part in torch.argsort(rows, stable=True).split(CHUNK):  # neighbours are read at once
        found = features.rows(rows[part]).double()
        cosines[part] = scorer.cosines(found, lengths(found, rows[part]))
    return cosines


def _scanned(
    features: Features,
    ranking: Ranking,
    nearest: Scorer,
    budget: Budget,
    quota: int,
    cache: Path | None,
    verbose: int,
) -> tuple[Scanned, Tensor]:
    """One pass, or as many as a budget of mass needs; and the rows kept, ascending."""
    scorer, count = ranking.scorer or nearest, features.count
    by_mass = budget.kind == "mass" and TargetMass.is_mass(scorer)
    wanted = min(count, _FIRST_GUESS if by_mass else _pictures(budget, count))
    turns = wanted if ranking.method == "emd" else 0
    spare = min(count, max(turns, _SPARE * quota))
    while True:
        k = wanted if ranking.scorer is not None else 1
        state = None if cache is None else cache / f"scan-{k}.safetensors"
        found = scan(features, scorer, k=k, quota_per_target=spare, checkpoint=state, verbose=verbose)
        if not by_mass or wanted == count or _holds(found, budget.amount):
            break
        wanted = min(count, _GROWTH * wanted)
    kept = found.indices if found.per_target is None else torch.cat([found.indices, found.per_target.flatten()])
    return found, kept.unique()


def _holds(found: Scanned, share: float) -> bool:
    """Whether the rows kept hold that share of the whole mass."""
    whole = torch.logsumexp(found.log_target_mass, 0)
    return bool(torch.logsumexp(found.scores.double(), 0) >= whole + math.log(share) + 1e-6)  # scores are float32


def _pictures(budget: Budget, count: int) -> int:
    """Pictures that a budget can take where each has the mass 1."""
    return min(count, math.ceil(budget.amount * count) if budget.kind == "mass" else int(budget.amount))


def _without_scores(
    method: str, found: Scanned, count: int, budget: Budget, quota: int, seed: int
) -> tuple[Tensor, Tensor]:
    """Candidates of a method that scores no picture by itself: rows and scores."""
    wanted = _pictures(budget, count)
    if method == "all":
        return torch.arange(count), torch.zeros(count, dtype=torch.float64)
    if method == "random":
        targets = len(found.log_target_mass)
        reserve = max(_GROWTH * wanted, _SPARE * targets * quota) if quota else wanted
        rows, scores = top_rows(count, lambda rows: random_scores(rows, seed), min(count, reserve))
        return rows, scores.double()
    assert found.per_target is not None
    rows = round_robin(found.per_target, found.per_target.numel())
    return rows, -torch.arange(len(rows), dtype=torch.float64)


def picked_of(
    rows: Tensor,
    scores: Tensor,
    shares: Tensor,
    cosines: Tensor,
    choice: Choice,
    held: Tensor,
    quota: int,
    names: Sequence[str],
) -> Picked:
    """What a choice between single pictures takes.

    Args:
        rows: (m,) candidates.
        scores: (m,) of these.
        shares: (m, K) of these.
        cosines: (m, K) of these with the targets.
        choice: between these.
        held: (K,) candidates by the target that they serve best.
        quota: as asked for.
        names: of the targets.
    """
    at = choice.chosen
    return _picked(
        rows[at], scores[at], shares[at], cosines[at], choice.weights, choice, _notes(choice, held, quota, names)
    )


def _picked(
    rows: Tensor,
    scores: Tensor,
    shares: Tensor,
    cosines: Tensor,
    weights: Tensor,
    choice: Choice,
    notes: tuple[str, ...],
) -> Picked:
    best = shares.argmax(1)
    nearness = cosines[torch.arange(len(best)), best]
    return Picked(
        rows.numpy(),
        scores.numpy(),
        shares.numpy(),
        nearness.numpy(),
        weights.numpy(),
        best.numpy(),
        choice.coverage.numpy(),
        notes,
    )


def _notes(choice: Choice, held: Tensor, quota: int, names: Sequence[str]) -> tuple[str, ...]:
    """The choice's sentences, with names instead of numbers of targets."""
    short = [str(names[k]) for k in (held < quota).nonzero().flatten().tolist()]
    if not short:
        return choice.notes
    many = "1 target class has" if len(short) == 1 else f"{len(short)} target classes have"
    sentence = f"{many} fewer candidates than the quota of {quota}; all of them are taken: {some(short)}"
    return (sentence, *choice.notes[1:])
