"""Rankings of source prototypes for a set of targets, transport and its rivals alike, and how much they agree."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import final

import numpy as np
import torch
from torch import Tensor

from tangentune.errors import InputError
from tangentune.methods.source_selection.directions import check_same_width, unit_rows
from tangentune.methods.source_selection.emd import round_robin
from tangentune.methods.source_selection.scorer import (
    COST_SCALE,
    TAU_TARGET,
    Scorer,
    kernel_sum_scorer,
    mean_cosine_scorer,
    nearest_scorer,
    uot_scorer,
)
from tangentune.methods.source_selection.sinkhorn import Array, TransportPlan, as_tensor

METHODS = ("uot", "random", "all", "nearest", "mean_cosine", "kernel_sum", "emd")


@final
@dataclass(frozen=True, eq=False)
class Ranking:
    """Sources from best to worst for a set of targets.

    Attributes:
        method: one of `METHODS`.
        order: (n,) source numbers, best first: by score, and by number where scores are equal.
        scores: (n,) of each source, higher is better; of "emd" minus its turn, of "all" zeros.
        shares: (n, K) for which target each source would serve, rows sum to 1.
        masses: (n,) what each source counts: its row mass for "uot", its kernel sum for "kernel_sum", else 1.
        scorer: scores single pictures alike; None for "random", "all" and "emd", which know no score of a picture
            alone (see `random_scores` and `round_robin`).
        plan: the transport plan of "uot", else None.
    """

    method: str
    order: Tensor
    scores: Tensor
    shares: Tensor
    masses: Tensor
    scorer: Scorer | None
    plan: TransportPlan | None


def rank(
    method: str,
    source: Array,
    target: Array,
    *,
    cost_scale: float = COST_SCALE,
    eps: float = 1.0,
    tau_source: float = 1.0,
    tau_target: float = TAU_TARGET,
    source_mass: Array | None = None,
    target_mass: Array | None = None,
    centre: Array | None = None,
    seed: int = 0,
) -> Ranking:
    """Rank source prototypes (classes, clusters) for a set of targets by one of `METHODS`.

    "uot": row mass of unbalanced transport. "kernel_sum": `sum_j exp(-(1 - cosine_j) / cost_scale)`. "nearest":
    cosine with the nearest target. "mean_cosine": mean over targets. "emd": targets take their nearest in turns.
    "random": seeded. "all": as given.

    Args:
        method: which.
        source: (n, d) prototypes; directions count, lengths do not.
        target: (K, d) likewise.
        cost_scale: of "uot" and "kernel_sum", see `uot_scorer`.
        eps: of "uot", as the next two.
        tau_source: of "uot".
        tau_target: of "uot".
        source_mass: (n,) of "uot", such as class counts; None: ones.
        target_mass: (K,) of "uot"; None: ones.
        centre: (d,) what was taken off the prototypes, for the scorer to take off the pictures that it scores.
        seed: of "random".

    Returns:
        The ranking, in float64, the same at every call. Cost `n d K`.

    Raises:
        InputError: an unknown method, or as `uot_scorer`.

    Example:
        >>> source = torch.tensor([[-1.0, 0.0], [1.0, 0.1], [0.0, 1.0]])
        >>> rank("nearest", source, source[1:]).order.tolist()
        [1, 2, 0]
    """
    if method not in METHODS:
        message = f"there is no ranking {method!r}; use one of {', '.join(METHODS)}"
        raise InputError(message)
    source, target = (unit_rows(as_tensor(x).double(), whose) for x, whose in ((source, "source"), (target, "target")))
    check_same_width(source, target)
    cosines, plan, scorer = source @ target.mT, None, None
    masses = cosines.new_ones(len(source))
    if method == "uot":
        scorer, plan = uot_scorer(
            source,
            target,
            cost_scale=cost_scale,
            eps=eps,
            tau_source=tau_source,
            tau_target=tau_target,
            source_mass=source_mass,
            target_mass=target_mass,
        )
        scores, masses = _log_row_masses(scorer, cosines, source_mass), plan.source_mass
    elif method == "kernel_sum":
        scorer = kernel_sum_scorer(target, temperature=cost_scale)
        scores = scorer.scores(cosines.clone())
        masses = scores.exp()
    elif method in ("nearest", "mean_cosine"):
        scorer = nearest_scorer(target) if method == "nearest" else mean_cosine_scorer(target)
        scores = scorer.scores(cosines.clone())
    elif method == "random":
        scores = random_scores(torch.arange(len(source)), seed).to(cosines)
    elif method == "all":
        scores = torch.zeros_like(masses)
    else:
        scores = _turns(cosines)
    shares = (scorer or nearest_scorer(target)).shares(cosines)
    if scorer is not None and centre is not None:
        scorer = replace(scorer, centre=as_tensor(centre).double())
    return Ranking(method, descending(scores), scores, shares, masses, scorer, plan)


def descending(scores: Tensor) -> Tensor:
    """Positions from the highest score to the lowest, the earlier first where scores are equal.

    Raises:
        InputError: a score is NaN.

    Example:
        >>> descending(torch.tensor([1.0, 3.0, 1.0])).tolist()
        [1, 0, 2]
    """
    if bool(scores.isnan().any()):
        message = f"{int(scores.isnan().sum())} scores are NaN; look for broken features"
        raise InputError(message)
    return torch.argsort(scores, descending=True, stable=True)


def random_scores(indices: Array, seed: int = 0) -> Tensor:
    """A number in [0, 1) for every index that depends on the index and the seed alone, so not on how many there are.

    Args:
        indices: (n,) whole numbers, none negative.
        seed: another seed gives numbers that have nothing to do with the first one's.

    Returns:
        (n,) float64, the 53 upper bits of a hash.

    Raises:
        InputError: indices that are no whole numbers.

    Source: Steele, Lea, Flood 2014, "Fast splittable pseudorandom number generators" (SplitMix64's finaliser).

    Example:
        >>> bool(random_scores(torch.tensor([7]))[0] == random_scores(torch.arange(10))[7])
        True
    """
    index = as_tensor(indices)
    if index.is_floating_point() or index.dim() != 1:
        message = f"indices are (n,) whole numbers, not {tuple(index.shape)} of {index.dtype}"
        raise InputError(message)
    start = _mixed(np.array([seed % 2**64], dtype=np.uint64))
    bits = _mixed(index.cpu().numpy().astype(np.uint64) + start) >> np.uint64(11)
    return torch.from_numpy(bits.astype(np.float64) * 2.0**-53)


def overlap(rankings: Mapping[str, Ranking], k: int) -> dict[str, dict[str, float]]:
    """Share of sources that two rankings' top k have in common, for every two.

    Args:
        rankings: by name, of the same sources.
        k: how many of the best to compare; all, where there are fewer.

    Returns:
        `table[one][other]` from 0 to 1; 1 on the diagonal.

    Raises:
        InputError: k below 1, or rankings of different numbers of sources.

    Example:
        >>> source = torch.eye(4)
        >>> made = {method: rank(method, source, source[2:]) for method in ("all", "nearest")}
        >>> overlap(made, 2)["all"]
        {'all': 1.0, 'nearest': 0.0}
    """
    sizes = {len(ranking.order) for ranking in rankings.values()}
    if k < 1 or len(sizes) > 1:
        message = f"overlap compares the top k >= 1 of the same sources, not the top {k} of {sorted(sizes)} sources"
        raise InputError(message)
    tops = {name: set(ranking.order[:k].tolist()) for name, ranking in rankings.items()}
    return {one: {other: len(mine & its) / len(mine) for other, its in tops.items()} for one, mine in tops.items()}


def _log_row_masses(scorer: Scorer, cosines: Tensor, source_mass: Array | None) -> Tensor:
    """Logarithm of the plan's row sums, which may underflow where this does not: `a^g (K v)^(1 - g)`."""
    scores = scorer.scores(cosines.clone())
    if source_mass is None:
        return scores
    return scores + (1 - scorer.power) * as_tensor(source_mass).to(scores).log()


def _turns(cosines: Tensor) -> Tensor:
    """Minus the place at which greedy targets take each source."""
    per_target = torch.argsort(cosines.mT, dim=1, descending=True, stable=True)
    order = round_robin(per_target, len(cosines))
    turns = torch.arange(len(order), dtype=cosines.dtype, device=cosines.device)
    return -torch.empty_like(turns).index_copy_(0, order.to(turns.device), turns)


def _mixed(words: np.ndarray) -> np.ndarray:
    """SplitMix64's output for each state, modulo 2^64."""
    words = words + np.uint64(0x9E3779B97F4A7C15)
    words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return words ^ (words >> np.uint64(31))
