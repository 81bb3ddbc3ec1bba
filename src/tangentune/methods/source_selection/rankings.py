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
    """What turns cosines with the targets into one score a picture.

    Attributes:
        prototypes: (K, d) unit rows, the targets.
        log_weights: (K,) `log v` of transport; None: the score is the cosine with the nearest target.
        temperature: that of transport's kernel `exp(-(1 - cosine) / temperature)`.
        power: exponent of the weighted kernel sum, `1 - ts / (ts + eps)`.
        centre: (d,) what is taken off unit features before they are compared, as it was off the prototypes; None:
            nothing.
    """

    prototypes: Tensor
    log_weights: Tensor | None = None
    temperature: float = 1.0
    power: float = 1.0
    centre: Tensor | None = None

    @property
    def has_mass(self) -> bool:
        """Whether scores are logarithms of masses."""
        return self.log_weights is not None

    def cosines(self, rows: Tensor, norms: Tensor) -> Tensor:
        """Cosines (m, K) of features with the prototypes, the centre taken off the unit features first.

        Args:
            rows: (m, d) of the prototypes' precision.
            norms: (m,) their lengths, not 0.

        Returns:
            (m, K). Cost: one product of matrices; what follows it has K columns instead of d. With unit rows u and
            centre c the cosine is `(u - c)'p / |u - c|`, where `|u - c|^2 = 1 + |c|^2 - 2 u'c`.

        Example:
            >>> scorer = Scorer(torch.eye(2), centre=torch.tensor([0.5, 0.0]))
            >>> scorer.cosines(torch.tensor([[2.0, 0.0]]), torch.tensor([2.0])).tolist()
            [[1.0, 0.0]]
        """
        found = torch.mm(rows, self.prototypes.mT).mul_(norms.reciprocal()[:, None])
        if self.centre is None:
            return found
        along = torch.mv(rows, self.centre).div_(norms)
        left = (1 + self.centre.square().sum() - 2 * along).clamp_min_(torch.finfo(found.dtype).tiny)
        return found.sub_(torch.mv(self.prototypes, self.centre)).mul_(left.rsqrt_()[:, None])

    def scores(self, cosines: Tensor) -> Tensor:
        """One score a row, (n,), higher is better; of transport the logarithm of the row mass of a source of mass 1.

        Args:
            cosines: (n, K) with the prototypes, of their precision.

        Returns:
            (n,) `power * log sum_j exp(log_weights_j - (1 - cosine_j) / temperature)`, or the largest cosine.

        Example:
            >>> Scorer(torch.eye(2)).scores(torch.tensor([[0.2, 0.5], [0.0, -0.25]])).tolist()
            [0.5, 0.0]
        """
        if self.log_weights is None:
            return cosines.amax(1)
        exponents = self._exponents(cosines)
        top = exponents.amax(1, keepdim=True)  # without it a row far from all targets would underflow
        return exponents.sub_(top).exp_().sum(1).log_().add_(top[:, 0]).mul_(self.power)

    def shares(self, cosines: Tensor) -> Tensor:
        """For which target each row would serve, (n, K), rows sum to 1: of its mass in the plan, or its nearest target.

        Args:
            cosines: (n, K) with the prototypes.

        Example:
            >>> Scorer(torch.eye(2)).shares(torch.tensor([[0.2, 0.5]])).tolist()
            [[0.0, 1.0]]
        """
        if self.log_weights is None:
            return one_hot(cosines.argmax(1), len(self.prototypes)).to(cosines.dtype)
        return torch.softmax(self._exponents(cosines), 1)

    def served(self, cosines: Tensor) -> tuple[Tensor, Tensor]:
        """Scores and what each row gives each target, without exponentials beyond those of the scores.

        The plan's entry of a row with score s is `T_ij = exp(s_i) share_ij`, so that its logarithm is
        `log v_j - (1 - cos_ij) / temperature + s_i (1 - 1 / power)`.

        Args:
            cosines: (n, K).

        Returns:
            (n,) scores; (n, K) log of transported mass, or the cosines.

        Example:
            >>> scorer, cosines = Scorer(torch.eye(2), torch.zeros(2), 0.5, 0.5), torch.tensor([[0.25, 0.5]])
            >>> scores, served = scorer.served(cosines)
            >>> torch.allclose(served.exp(), scores.exp()[:, None] * scorer.shares(cosines))
            True
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
    source: Tensor,
    target: Tensor,
    *,
    source_mass: Tensor | None = None,
    target_mass: Tensor | None = None,
    centre: Tensor | None = None,
) -> Ranking:
    """Rank source prototypes (classes, clusters) for a set of targets.

    "uot": row mass of unbalanced transport at the cost `(1 - cosine) / cost_scale`. "nearest": cosine with the nearest
    target. "random": seeded. "all": as given.

    Args:
        settings: which method, and with what. The paper's code has a cost scale of 0.1, where the ranking is close to
            that of plain kernel sums, and 100 for the penalty of the target masses; at infinity every target is served
            in full, also those that nothing resembles. With no penalty of the source masses the score is the soft
            nearest target.
        source: (n, d) float64 prototypes; directions count, lengths do not.
        target: (K, d) likewise.
        source_mass: (n,) of "uot", such as class counts; None: ones.
        target_mass: (K,) of "uot"; None: ones.
        centre: (d,) what was taken off the prototypes, for the scorer to take off the pictures that it scores.

    Returns:
        The ranking, the same at every call. With unit source masses the scores of "uot" are the logarithms of the
        plan's row sums. Cost `n d K`, and that of the transport.

    Source: Liu, Xu, Xu, Qian, Li, Ji, Chan, Jin 2022, "Improved Fine-tuning by Leveraging Pre-training Data".

    Example:
        >>> source = torch.eye(3).double()[[2, 0, 1]]
        >>> rank(SelectionSettings(budget=1, method="nearest"), source, source[1:]).order.tolist()
        [1, 2, 0]
        >>> made = rank(SelectionSettings(budget=1), source, source[1:])
        >>> bool((made.scores.exp() - made.plan.source_mass).abs().max() < 1e-12)
        True
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
