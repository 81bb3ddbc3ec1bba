"""Rankings of source prototypes for a set of targets: transport, the nearest class, chance, and all as they come."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import final

import numpy as np
import torch
from torch import Tensor

from tangentune.errors import InputError
from tangentune.methods.source_selection.scorer import Scorer, check_same_width, nearest_scorer, unit_rows, uot_scorer
from tangentune.methods.source_selection.settings import SelectionSettings
from tangentune.methods.source_selection.sinkhorn import Array, TransportPlan, as_tensor


@final
@dataclass(frozen=True, eq=False)
class Ranking:
    """Sources from best to worst for a set of targets.

    Attributes:
        method: "uot", "nearest", "random" or "all".
        order: (n,) source numbers, best first: by score, and by number where scores are equal.
        scores: (n,) of each source, higher is better; of "all" zeros.
        shares: (n, K) for which target each source would serve, rows sum to 1.
        scorer: scores single pictures alike; None for "random" and "all".
        plan: the transport plan of "uot", else None.
    """

    method: str
    order: Tensor
    scores: Tensor
    shares: Tensor
    scorer: Scorer | None
    plan: TransportPlan | None

    @property
    def has_mass(self) -> bool:
        """Whether scores are logarithms of masses."""
        return self.plan is not None


def rank(
    settings: SelectionSettings,
    source: Array,
    target: Array,
    *,
    source_mass: Array | None = None,
    target_mass: Array | None = None,
    centre: Tensor | None = None,
) -> Ranking:
    """Rank source prototypes (classes, clusters) for a set of targets.

    "uot": row mass of unbalanced transport. "nearest": cosine with the nearest target. "random": seeded. "all": as
    given.

    Args:
        settings: which method, and with what.
        source: (n, d) prototypes; directions count, lengths do not.
        target: (K, d) likewise.
        source_mass: (n,) of "uot", such as class counts; None: ones.
        target_mass: (K,) of "uot"; None: ones.
        centre: (d,) what was taken off the prototypes, for the scorer to take off the pictures that it scores.

    Returns:
        The ranking, in float64, the same at every call. Cost `n d K`.

    Raises:
        InputError: as `uot_scorer`.

    Example:
        >>> source = torch.tensor([[-1.0, 0.0], [1.0, 0.1], [0.0, 1.0]])
        >>> rank(SelectionSettings(budget=1, method="nearest"), source, source[1:]).order.tolist()
        [1, 2, 0]
    """
    source, target = (unit_rows(as_tensor(x).double(), whose) for x, whose in ((source, "source"), (target, "target")))
    check_same_width(source.shape[1], target.shape[1])
    cosines, nearest = source @ target.mT, nearest_scorer(target)
    scorer, plan = None, None
    if settings.method == "uot":
        scorer, plan = uot_scorer(
            source,
            target,
            cost_scale=settings.cost_scale,
            eps=settings.eps,
            tau_source=settings.tau_source,
            tau_target=settings.tau_target,
            source_mass=source_mass,
            target_mass=target_mass,
        )
        scores = scorer.scores(cosines)
        if source_mass is not None:  # a row sum is `a^g (K v)^(1 - g)`; its logarithm cannot underflow
            scores = scores + (1 - scorer.power) * as_tensor(source_mass).to(scores).log()
    elif settings.method == "nearest":
        scorer = nearest
        scores = scorer.scores(cosines)
    elif settings.method == "random":
        scores = random_scores(torch.arange(len(source)), settings.seed)
    else:
        scores = cosines.new_zeros(len(source))
    shares = (scorer or nearest).shares(cosines)
    if scorer is not None:
        scorer = replace(scorer, centre=centre)
    return Ranking(settings.method, descending(scores), scores, shares, scorer, plan)


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


def random_scores(indices: Tensor, seed: int = 0) -> Tensor:
    """A number in [0, 1) for every index that depends on the index and the seed alone, so not on how many there are.

    Args:
        indices: (n,) whole numbers, none negative.
        seed: another seed gives numbers that have nothing to do with the first one's.

    Returns:
        (n,) float64, the 53 upper bits of a hash.

    Source: Steele, Lea, Flood 2014, "Fast splittable pseudorandom number generators" (SplitMix64's finaliser).

    Example:
        >>> bool(random_scores(torch.tensor([7]))[0] == random_scores(torch.arange(10))[7])
        True
    """
    start = _mixed(np.array([seed % 2**64], dtype=np.uint64))
    bits = _mixed(indices.numpy().astype(np.uint64) + start) >> np.uint64(11)
    return torch.from_numpy(bits.astype(np.float64) * 2.0**-53)


def _mixed(words: np.ndarray) -> np.ndarray:
    """SplitMix64's output for each state, modulo 2^64."""
    words = words + np.uint64(0x9E3779B97F4A7C15)
    words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return words ^ (words >> np.uint64(31))
