"""Scores of single pictures from their cosines with the target prototypes: transport, and the nearest target.

Transport needs no other pictures once it is solved for prototypes: the row mass of a source is `(K v)^(1 - g)`, and
v belongs to the targets (Liu et al. 2022, at its fixed point). So millions of pictures are scored one by one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import final

import torch
from torch import Tensor
from torch.nn.functional import normalize, one_hot

from tangentune.errors import InputError
from tangentune.methods.source_selection.settings import COST_SCALE, TAU_TARGET
from tangentune.methods.source_selection.sinkhorn import Array, TransportPlan, as_tensor, unbalanced_sinkhorn


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
            >>> scorer = replace(nearest_scorer(torch.eye(2)), centre=torch.tensor([0.5, 0.0]))
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

        Raises:
            InputError: another number of columns than prototypes.

        Example:
            >>> nearest_scorer(torch.eye(2)).scores(torch.tensor([[0.2, 0.5], [0.0, -0.25]])).tolist()
            [0.5, 0.0]
        """
        self._check(cosines)
        if self.log_weights is None:
            return cosines.amax(1)
        exponents = self._exponents(cosines)
        top = exponents.amax(1, keepdim=True)  # without it a row far from all targets would underflow
        return exponents.sub_(top).exp_().sum(1).log_().add_(top[:, 0]).mul_(self.power)

    def shares(self, cosines: Tensor) -> Tensor:
        """For which target each row would serve, (n, K), rows sum to 1: of its mass in the plan, or its nearest target.

        Args:
            cosines: (n, K) with the prototypes.

        Raises:
            InputError: another number of columns than prototypes.

        Example:
            >>> nearest_scorer(torch.eye(2)).shares(torch.tensor([[0.2, 0.5]])).tolist()
            [[0.0, 1.0]]
        """
        self._check(cosines)
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

    def _check(self, cosines: Tensor) -> None:
        if cosines.dim() != 2 or cosines.shape[1] != len(self.prototypes):
            message = f"cosines with {len(self.prototypes)} targets are (n, that many), not {tuple(cosines.shape)}"
            raise InputError(message)


def uot_scorer(
    source_prototypes: Array,
    target_prototypes: Array,
    *,
    cost_scale: float = COST_SCALE,
    eps: float = 1.0,
    tau_source: float = 1.0,
    tau_target: float = TAU_TARGET,
    source_mass: Array | None = None,
    target_mass: Array | None = None,
) -> tuple[Scorer, TransportPlan]:
    """Unbalanced transport between prototypes, at cost `(1 - cosine) / cost_scale`, and the scorer of its potentials.

    Args:
        source_prototypes: (n, d) class means, clusters or a sample of pictures; directions count, lengths do not.
        target_prototypes: (K, d) likewise.
        cost_scale: what a cosine's distance from 1 is divided by; 0.1 in the paper's code. Smaller ones tell near
            targets apart; at 0.1 the ranking is close to that of plain kernel sums.
        eps: weight of the entropy, as in `unbalanced_sinkhorn`; like the next, the paper's.
        tau_source: penalty of the source masses; at 0 the score is the soft nearest target.
        tau_target: penalty of the target masses; 100 in the paper's code. At infinity every target is served in full,
            also those that nothing resembles.
        source_mass: (n,) positive; None: ones.
        target_mass: (K,) positive; None: ones.

    Returns:
        The scorer and the plan between the prototypes, solved in float64. With unit source masses the scores of the
        source prototypes are the logarithms of the plan's row sums. Cost `n d K`, and that of the transport.

    Raises:
        InputError: prototypes that do not fit each other or are broken, settings out of range, or an exact source
            marginal, which would give every source the same mass.

    Source: Liu, Xu, Xu, Qian, Li, Ji, Chan, Jin 2022, "Improved Fine-tuning by Leveraging Pre-training Data".

    Example:
        >>> source = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]]).double()
        >>> scorer, plan = uot_scorer(source, source[:1])
        >>> bool((scorer.scores(source @ source[:1].T).exp() - plan.source_mass).abs().max() < 1e-12)
        True
    """
    source, target = unit_rows(source_prototypes, "source"), unit_rows(target_prototypes, "target")
    check_same_width(source.shape[1], target.shape[1])
    if math.isinf(tau_source):
        message = "tau_source is infinite, which gives every source the same mass and ranks none; use a finite one"
        raise InputError(message)
    if not (cost_scale > 0 and math.isfinite(cost_scale)):
        message = f"cost_scale is {cost_scale}; it must be positive and finite"
        raise InputError(message)
    cost = (1 - source.double() @ target.double().mT) / cost_scale
    plan = unbalanced_sinkhorn(
        cost,
        cost.new_ones(len(source)) if source_mass is None else source_mass,
        cost.new_ones(len(target)) if target_mass is None else target_mass,
        eps=eps,
        tau_source=tau_source,
        tau_target=tau_target,
    )
    log_weights = (plan.target_potential / eps).to(target)
    return Scorer(target, log_weights, cost_scale * eps, eps / (tau_source + eps)), plan


def nearest_scorer(target_prototypes: Array) -> Scorer:
    """Scores by the cosine with the nearest target.

    Args:
        target_prototypes: (K, d); directions count.

    Raises:
        InputError: broken prototypes.

    Example:
        >>> nearest_scorer(torch.eye(2)).scores(torch.tensor([[0.25, 0.5]])).tolist()
        [0.5]
    """
    return Scorer(unit_rows(target_prototypes, "target"))


def unit_rows(prototypes: Array, whose: str) -> Tensor:
    """Rows of length 1, float32 or float64; `whose` ("source", "target") is named in errors.

    Raises:
        InputError: not (number, width), empty, or a row that is not finite or all zeros.

    Example:
        >>> unit_rows(torch.tensor([[3.0, 0.0]]), "source").tolist()
        [[1.0, 0.0]]
    """
    rows = as_tensor(prototypes)
    rows = rows if rows.dtype == torch.float32 else rows.double()
    if rows.dim() != 2 or not rows.numel():
        message = f"{whose} prototypes must be (number, width) and not empty, not {tuple(rows.shape)}"
        raise InputError(message)
    lengths = rows.norm(dim=1)
    broken = ~(torch.isfinite(lengths) & (lengths > 0))
    if bool(broken.any()):
        message = (
            f"{whose} prototype {int(broken.nonzero()[0])} is not finite or all zeros ({int(broken.sum())} are); "
            "look for broken features"
        )
        raise InputError(message)
    return normalize(rows, dim=1)


def check_same_width(source: int, target: int) -> None:
    """Refuse features of two backbones.

    Raises:
        InputError: naming both widths.
    """
    if source != target:
        message = f"source features have {source} numbers and target features {target}; take both from one backbone"
        raise InputError(message)
