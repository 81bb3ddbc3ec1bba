"""Scores of single pictures from their cosines with the target prototypes: transport and the rankings it is held to.

Transport needs no other pictures once it is solved for prototypes: the row mass of a source is `(K v)^(1 - g)`, and
v belongs to the targets (Liu et al. 2022, at its fixed point). So millions of pictures are scored one by one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import final

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from tangentune.errors import InputError
from tangentune.methods.source_selection.directions import check_same_width, check_scale, cosine_cost, unit_rows
from tangentune.methods.source_selection.sinkhorn import Array, TransportPlan, unbalanced_sinkhorn

# exp(-(1 - cosine) / COST_SCALE), and the penalty of the target masses: measured, docs/decisions/0014. The published
# code has .1 and 100, and features that are not centred.
COST_SCALE = 0.05
TAU_TARGET = 1.0
WITH_MASS = ("uot", "kernel_sum")  # methods whose scores are logarithms of masses


@final
@dataclass(frozen=True, eq=False)
class Scorer:
    """What turns cosines with the targets into one score a picture.

    Attributes:
        method: "uot", "kernel_sum", "nearest" or "mean_cosine".
        prototypes: (K, d) unit rows, the targets.
        log_weights: (K,) `log v` for "uot", zeros otherwise.
        temperature: that of the kernel `exp(-(1 - cosine) / temperature)`; used by "uot" and "kernel_sum".
        power: exponent of the weighted kernel sum: `1 - ts / (ts + eps)` for "uot", 1 otherwise.
        centre: (d,) what is taken off unit features before they are compared, as it was off the prototypes; None:
            nothing.
    """

    method: str
    prototypes: Tensor
    log_weights: Tensor
    temperature: float
    power: float
    centre: Tensor | None = None

    def cosines(self, rows: Tensor, norms: Tensor, out: Tensor | None = None) -> Tensor:
        """Cosines (m, K) of features with the prototypes, the centre taken off the unit features first.

        Args:
            rows: (m, d) of the prototypes' precision.
            norms: (m,) their lengths, not 0.
            out: (m, K) to write to.

        Returns:
            (m, K). Cost: one product of matrices; what follows it has K columns instead of d.

        Example:
            >>> scorer = replace(nearest_scorer(torch.eye(2)), centre=torch.tensor([0.5, 0.0]))
            >>> scorer.cosines(torch.tensor([[2.0, 0.0]]), torch.tensor([2.0])).tolist()
            [[1.0, 0.0]]
        """
        found = torch.mm(rows, self.prototypes.mT, out=out).mul_(norms.reciprocal()[:, None])
        if self.centre is None:
            return found
        along = torch.mv(rows, self.centre).div_(norms)
        left = (1 + self.centre.square().sum() - 2 * along).clamp_min_(torch.finfo(found.dtype).tiny)
        return found.sub_(torch.mv(self.prototypes, self.centre)).mul_(left.rsqrt_()[:, None])

    def scores(self, cosines: Tensor) -> Tensor:
        """One score a row, (n,), higher is better; for "uot" the logarithm of the row mass of a source of mass 1.

        Args:
            cosines: (n, K) with the prototypes, of their precision. Overwritten, which spares a copy of each chunk.

        Returns:
            (n,) `power * log sum_j exp(log_weights_j - (1 - cosine_j) / temperature)` for "uot" and "kernel_sum",
            the largest cosine for "nearest", their mean for "mean_cosine". Cost: one exponential an entry, or none.

        Raises:
            InputError: another number of columns than prototypes.

        Example:
            >>> targets = torch.eye(2)
            >>> nearest_scorer(targets).scores(torch.tensor([[0.2, 0.5], [0.0, -0.25]])).tolist()
            [0.5, 0.0]
        """
        self._check(cosines)
        if self.method == "nearest":
            return cosines.amax(1)
        if self.method == "mean_cosine":
            return cosines.mean(1)
        exponents = self._exponents(cosines, out=cosines)
        top = exponents.amax(1, keepdim=True)  # without it a row far from all targets would underflow
        return exponents.sub_(top).exp_().sum(1).log_().add_(top[:, 0]).mul_(self.power)

    def shares(self, cosines: Tensor) -> Tensor:
        """For which target each row would serve, (n, K), rows sum to 1: of its mass in the plan, or its nearest target.

        Args:
            cosines: (n, K) with the prototypes; left as they are.

        Returns:
            The plan's rows over their sums for "uot", the kernel's for "kernel_sum"; 1 at the largest cosine (the
            first of equal ones) for the other two, which know no mass.

        Raises:
            InputError: another number of columns than prototypes.

        Example:
            >>> nearest_scorer(torch.eye(2)).shares(torch.tensor([[0.2, 0.5]])).tolist()
            [[0.0, 1.0]]
        """
        self._check(cosines)
        if self.method in ("nearest", "mean_cosine"):
            return one_hot(cosines.argmax(1), len(self.prototypes)).to(cosines.dtype)
        return torch.softmax(self._exponents(cosines), 1)

    def _exponents(self, cosines: Tensor, out: Tensor | None = None) -> Tensor:
        return torch.add(self.log_weights - 1 / self.temperature, cosines, alpha=1 / self.temperature, out=out)

    def _check(self, cosines: Tensor) -> None:
        if cosines.dim() != 2 or cosines.shape[1] != len(self.prototypes):
            message = f"cosines with {len(self.prototypes)} targets are (n, that many), not {tuple(cosines.shape)}"
            raise InputError(message)


def in_float32(scorer: Scorer) -> Scorer:
    """The same scorer in the precision in which many pictures are scored.

    Example:
        >>> in_float32(nearest_scorer(torch.eye(2).double())).prototypes.dtype
        torch.float32
    """
    centre = None if scorer.centre is None else scorer.centre.float()
    prototypes, log_weights = scorer.prototypes.float(), scorer.log_weights.float()
    return replace(scorer, prototypes=prototypes, log_weights=log_weights, centre=centre)


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
            targets apart; at 0.1 the ranking is close to the plain kernel sum's.
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
    check_same_width(source, target)
    if math.isinf(tau_source):
        message = "tau_source is infinite, which gives every source the same mass and ranks none; use a finite one"
        raise InputError(message)
    cost = cosine_cost(source, target, cost_scale)
    plan = unbalanced_sinkhorn(
        cost,
        cost.new_ones(len(source)) if source_mass is None else source_mass,
        cost.new_ones(len(target)) if target_mass is None else target_mass,
        eps=eps,
        tau_source=tau_source,
        tau_target=tau_target,
    )
    log_weights = (plan.target_potential / eps).to(target)
    return Scorer("uot", target, log_weights, cost_scale * eps, eps / (tau_source + eps)), plan


def kernel_sum_scorer(target_prototypes: Array, *, temperature: float = COST_SCALE) -> Scorer:
    """Scores by `log sum_j exp(-(1 - cosine_j) / temperature)`: transport's row mass with all target weights equal.

    Args:
        target_prototypes: (K, d); directions count.
        temperature: positive width of the kernel.

    Raises:
        InputError: broken prototypes, or a temperature that is not positive.

    Example:
        >>> scorer = kernel_sum_scorer(torch.eye(2).double(), temperature=1.0)
        >>> round(float(scorer.scores(torch.ones(1, 2).double()).exp()), 12)
        2.0
    """
    check_scale("temperature", temperature)
    return _plain("kernel_sum", target_prototypes, temperature)


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
    return _plain("nearest", target_prototypes, 1.0)


def mean_cosine_scorer(target_prototypes: Array) -> Scorer:
    """Scores by the mean cosine with all targets, which is the cosine with their mean up to its length.

    Args:
        target_prototypes: (K, d); directions count.

    Raises:
        InputError: broken prototypes.

    Example:
        >>> mean_cosine_scorer(torch.eye(2)).scores(torch.tensor([[0.5, 0.25]])).tolist()
        [0.375]
    """
    return _plain("mean_cosine", target_prototypes, 1.0)


def _plain(method: str, target_prototypes: Array, temperature: float) -> Scorer:
    target = unit_rows(target_prototypes, "target")
    return Scorer(method, target, target.new_zeros(len(target)), temperature, 1.0)
