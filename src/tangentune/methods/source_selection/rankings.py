"""Rankings of source classes for a set of targets, and the scores of single pictures that they have learnt.

Transport needs no other pictures once it is solved for prototypes: the row mass of a source is `(K v)^(1 - g)`, and
v belongs to the targets (Liu et al. 2022, at its fixed point). So millions of pictures are scored one by one.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import final

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize, one_hot

from tangentune.errors import InputError
from tangentune.methods.source_selection.settings import SelectionSettings
from tangentune.methods.source_selection.sinkhorn import TransportPlan, unbalanced_sinkhorn


@final
@dataclass(frozen=True, eq=False)
class Scorer:
    """What turns cosines with the targets into one score a picture."""

    prototypes: Tensor  # (K, d) unit rows, the targets
    # (K,) `log v` of transport; None: the score is the cosine with the nearest target
    log_weights: Tensor | None = None
    temperature: float = 1.0  # that of transport's kernel `exp(-(1 - cosine) / temperature)`
    power: float = 1.0  # exponent of the weighted kernel sum, `1 - ts / (ts + eps)`
    # (d,) what is taken off unit features before they are compared, as it was off the prototypes, or None
    centre: Tensor | None = None

    @property
    def has_mass(self) -> bool:
        """Whether scores are logarithms of masses."""
        return self.log_weights is not None

    def cosines(self, rows: Tensor, norms: Tensor) -> Tensor:
        """Cosines (m, K) of features (m, d) of lengths `norms` with the prototypes, in their precision.

        The centre c is taken off the unit features u first: the cosine is `(u - c)'p / |u - c|`, where
        `|u - c|^2 = 1 + |c|^2 - 2 u'c`. Cost: one product of matrices; what follows it has K columns instead of d.
        """
        found = torch.mm(rows, self.prototypes.mT).mul_(norms.reciprocal()[:, None])
        if self.centre is None:
            return found
        along = torch.mv(rows, self.centre).div_(norms)
        left = (1 + self.centre.square().sum() - 2 * along).clamp_min_(torch.finfo(found.dtype).tiny)
        return found.sub_(torch.mv(self.prototypes, self.centre)).mul_(left.rsqrt_()[:, None])

    def scores(self, cosines: Tensor) -> Tensor:
        """One score (n,) for each row of cosines (n, K), higher is better.

        The largest cosine; or of transport `power * log sum_j exp(log_weights_j - (1 - cosine_j) / temperature)`, the
        logarithm of the row mass of a source of mass 1.
        """
        if self.log_weights is None:
            return cosines.amax(1)
        exponents = self._exponents(cosines)
        top = exponents.amax(1, keepdim=True)  # without it a row far from all targets would underflow
        return exponents.sub_(top).exp_().sum(1).log_().add_(top[:, 0]).mul_(self.power)

    def shares(self, cosines: Tensor) -> Tensor:
        """For which target each row would serve, (n, K), rows sum to 1: of its mass in the plan, or its nearest one."""
        if self.log_weights is None:
            return one_hot(cosines.argmax(1), len(self.prototypes)).to(cosines.dtype)
        return torch.softmax(self._exponents(cosines), 1)

    def served(self, cosines: Tensor) -> tuple[Tensor, Tensor]:
        """Scores (n,) and what each row gives each target, (n, K): log of transported mass, or the cosines.

        The plan's entry of a row with score s is `T_ij = exp(s_i) share_ij`, so that its logarithm, without further
        exponentials, is `log v_j - (1 - cos_ij) / temperature + s_i (1 - 1 / power)`.
        """
        scores = self.scores(cosines)
        if self.log_weights is None:
            return scores, cosines
        served = self._exponents(cosines)
        if self.power != 1:
            served += (scores * (1 - 1 / self.power))[:, None]
        return scores, served

    def in_float32(self) -> Scorer:
        """The same scorer in the precision in which many pictures are scored."""
        weights, centre = (None if values is None else values.float() for values in (self.log_weights, self.centre))
        return replace(self, prototypes=self.prototypes.float(), log_weights=weights, centre=centre)

    def _exponents(self, cosines: Tensor) -> Tensor:
        assert self.log_weights is not None
        return torch.add(self.log_weights - 1 / self.temperature, cosines, alpha=1 / self.temperature)


@final
@dataclass(frozen=True, eq=False)
class Ranking:
    """How good sources are for a set of targets."""

    method: str  # "uot", "nearest", "random" or "all"
    order: Tensor  # (n,) source numbers, best first: by score, and by number where scores are equal
    scores: Tensor  # (n,) of each source, higher is better; of "all" zeros
    shares: Tensor  # (n, K) for which target each source would serve, rows sum to 1
    scorer: Scorer | None  # scores single pictures alike; None for "random" and "all"
    plan: TransportPlan | None  # the transport plan of "uot", else None

    @property
    def has_mass(self) -> bool:
        """Whether scores are logarithms of masses."""
        return self.plan is not None


def rank(
    settings: SelectionSettings,
    source: Tensor,
    target: Tensor,
    *,
    source_mass: Tensor | None = None,
    target_mass: Tensor | None = None,
    centre: Tensor | None = None,
) -> Ranking:
    """Rank source prototypes (n, d) for targets (K, d), both float64, of which the directions count.

    "uot": row mass of unbalanced transport at the cost `(1 - cosine) / cost_scale`, between `source_mass` (n,) and
    `target_mass` (K,), None for ones. "nearest": cosine with the nearest target. "random": seeded. "all": as given.
    `centre` (d,) was taken off the prototypes and is for the scorer to take off the pictures that it scores.

    The paper's code has a cost scale of 0.1, where the ranking is close to that of plain kernel sums, and 100 for the
    penalty of the target masses; at infinity every target is served in full, also those that nothing resembles. With no
    penalty of the source masses the score is the soft nearest target.

    Source: Liu, Xu, Xu, Qian, Li, Ji, Chan, Jin 2022, "Improved Fine-tuning by Leveraging Pre-training Data".
    """
    source, target = (normalize(rows, dim=1) for rows in (source, target))
    cosines, (sources, targets) = source @ target.mT, (normalize(rows, dim=1) for rows in (source, target))
    scorer, plan, nearest = None, None, Scorer(targets, centre=centre)
    if settings.method == "uot":
        plan = unbalanced_sinkhorn(
            (1 - sources @ targets.mT) / settings.cost_scale,
            cosines.new_ones(len(source)) if source_mass is None else source_mass,
            cosines.new_ones(len(target)) if target_mass is None else target_mass,
            eps=settings.eps,
            tau_source=settings.tau_source,
            tau_target=settings.tau_target,
        )
        power = settings.eps / (settings.tau_source + settings.eps)
        log_v = plan.target_potential / settings.eps
        scorer = Scorer(targets, log_v, settings.cost_scale * settings.eps, power, centre)
        scores = scorer.scores(cosines)
        if source_mass is not None:  # a row sum is `a^g (K v)^(1 - g)`; its logarithm cannot underflow
            scores = scores + (1 - power) * source_mass.log()
    elif settings.method == "nearest":
        scorer = nearest
        scores = scorer.scores(cosines)
    elif settings.method == "random":
        scores = random_scores(torch.arange(len(source)), settings.seed)
    else:
        scores = cosines.new_zeros(len(source))
    return Ranking(settings.method, descending(scores), scores, (scorer or nearest).shares(cosines), scorer, plan)


def descending(scores: Tensor) -> Tensor:
    """Positions from the highest score to the lowest, the earlier first where scores are equal; NaN is refused."""
    if bool(scores.isnan().any()):
        raise InputError(f"{int(scores.isnan().sum())} scores are NaN; look for broken features")
    return torch.argsort(scores, descending=True, stable=True)


def random_scores(indices: Tensor, seed: int = 0) -> Tensor:
    """A number in [0, 1), float64, for every index (n,); it depends on that and the seed alone, not on the others.

    Source: Steele, Lea, Flood 2014, "Fast splittable pseudorandom number generators" (SplitMix64's finaliser), of whose
    hash these are the 53 upper bits.
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
