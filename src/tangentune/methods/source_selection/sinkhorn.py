"""Unbalanced entropic optimal transport between two weighted sets, by Sinkhorn's iterations on log-scalings.

Every half-step is the logarithm of sums of exponentials. The softmax that belongs to them, whose rows sum to one and
so cannot underflow as a whole, is kept while the log-scaling that it was made for has moved by less than `REACH`;
till then half-steps are products with that matrix. The iterates are those of plain log-sum-exp.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from typing import final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tangentune._torch import usual_torch
from tangentune.errors import InputError

Array = Tensor | NDArray[np.generic]

# How far a log-scaling may move before its softmax is made anew. What the softmax has lost to underflow, below e^-87
# in float32, then weighs less than e^(2 REACH - 87) of a sum: far below its rounding.
REACH = 20.0


@final
@dataclass(frozen=True, eq=False)
class TransportPlan:
    """How much goes from every source to every target, and the potentials that say why.

    Attributes:
        plan: (n, m) mass from source i to target j, `exp((source_potential_i + target_potential_j - cost_ij) / eps)`.
        source_mass: (n,) its row sums: what each source gives.
        target_mass: (m,) its column sums: what each target gets.
        source_potential: (n,) `eps log u`, in the units of the cost.
        target_potential: (m,) `eps log v`.
        iterations: rounds, each of one half-step for v and one for u.
        error: bound on how far `log u` and `log v` still are from the solution, in the largest entry; where both
            marginals are exact it is an estimate, and up to the constant that the potentials share.
    """

    plan: Tensor
    source_mass: Tensor
    target_mass: Tensor
    source_potential: Tensor
    target_potential: Tensor
    iterations: int
    error: float


@usual_torch
def unbalanced_sinkhorn(
    cost: Array,
    a: Array,
    b: Array,
    *,
    eps: float,
    tau_source: float,
    tau_target: float,
    tolerance: float = 1e-12,
    max_iterations: int = 10_000,
) -> TransportPlan:
    """Transport plan with soft marginals: `min <T, cost> + eps H(T) + ts KL(T 1 | a) + tt KL(T' 1 | b)`, T >= 0.

    Here `H(T) = sum T (log T - 1)` and `KL(x | y) = sum x log(x / y) - x + y`. With `K = exp(-cost / eps)` the
    solution is `T = diag(u) K diag(v)`, and a round is `v = (b / K' u)^h`, then `u = (a / K v)^g`, where
    `g = ts / (ts + eps)` and `h = tt / (tt + eps)`. So the row masses are `a^g (K v)^(1 - g)`, at every round.

    A round moves two log-scalings nearer by the factor `g h` in their largest entry, so that after a change by d the
    solution is within `g h / (1 - g h) d`: that is `error`, and below the tolerance the rounds end. They also end
    where the change is down to the rounding of the potentials, which a tolerance cannot undercut. With both
    penalties infinite the factor is 1 and bounds nothing (only Hilbert's metric contracts, at a rate too near to 1
    to be of use); there the last observed ratio of two changes stands in for it.

    Args:
        cost: (n, m) finite. Tensors of float32 stay so, on their device; all else is done in float64.
        a: (n,) positive source masses.
        b: (m,) positive target masses.
        eps: positive weight of the entropy, in the units of the cost.
        tau_source: penalty of the source marginal: 0 leaves it free, infinity makes it exact.
        tau_target: penalty of the target marginal.
        tolerance: wanted bound on the error of `log u` and `log v`.
        max_iterations: most rounds.

    Returns:
        The plan. Cost `2 n m` multiplications a round, and few times `n m` exponentials in all; about
        `log(tolerance) / log(g h)` rounds, 0.495 for eps, ts, tt = 1, 1, 100. A RuntimeWarning says when the rounds
        ended before the tolerance.

    Raises:
        InputError: shapes that do not fit, masses that are not positive, a cost that is not finite, eps or a penalty
            out of range, or two exact marginals of different total mass.

    Source: Chizat, Peyre, Schmitzer, Vialard 2018, "Scaling algorithms for unbalanced optimal transport problems".

    Example:
        >>> cost = torch.tensor([[0.0, 9.0], [9.0, 0.0], [9.0, 9.0]]).double()
        >>> made = unbalanced_sinkhorn(cost, torch.ones(3), torch.ones(2), eps=1, tau_source=1, tau_target=100)
        >>> made.source_mass.round(decimals=2).tolist()       # the third source resembles no target
        [0.99, 0.99, 0.02]
    """
    cost, a, b = _checked(cost, a, b, eps, tau_source, tau_target)
    if not (tolerance > 0 and max_iterations >= 1):
        raise InputError(f"tolerance and max_iterations must be positive, not {tolerance} and {max_iterations}")
    powers = _power(tau_source, eps), _power(tau_target, eps)
    log_u, log_v, iterations, error = _rounds(cost / -eps, a.log(), b.log(), powers, tolerance, max_iterations)
    plan = (cost / -eps).add_(log_u[:, None]).add_(log_v).exp_()
    return TransportPlan(plan, plan.sum(1), plan.sum(0), eps * log_u, eps * log_v, iterations, error)


@final
class _LogSums:
    """`log(M w)` for log-scalings `log w` of `log M` (p, q), by the softmax of `log M + log w` for a `log w` nearby."""

    def __init__(self, log_matrix: Tensor) -> None:
        self.log_matrix = log_matrix
        self.remake(log_matrix.new_zeros(log_matrix.shape[1]))

    def remake(self, log_w: Tensor) -> None:
        """Take the softmax anew; its rows sum to one, and `level` is the logarithm of what they summed to."""
        shifted = self.log_matrix + log_w
        top = shifted.amax(1, keepdim=True)
        total = shifted.sub_(top).exp_().sum(1, keepdim=True)
        self.around, self.softmax, self.level = log_w, shifted.div_(total), total.log_().add_(top).squeeze(1)

    def __call__(self, log_w: Tensor) -> Tensor:
        moved = log_w - self.around
        if float(moved.abs().amax()) > REACH:
            self.remake(log_w)
            return self.level
        return torch.mv(self.softmax, moved.exp_()).log_().add_(self.level)


@final
class _HalfSteps:
    """Both half-steps' `log(K v)` and `log(K' u)`, from one matrix `log K` (n, m) as long as that is safe."""

    def __init__(self, log_kernel: Tensor) -> None:
        self.over_targets, self._columns = _LogSums(log_kernel), None
        # Entries of the softmax below the smallest number are lost: n of them are below the rounding of such a sum.
        numbers = torch.finfo(log_kernel.dtype)
        self._safe = len(log_kernel) * numbers.tiny / numbers.eps

    def over_sources(self, log_u: Tensor) -> Tensor:
        """`log(K' u)`, (m,): by the softmax of the rows, or by that of the columns where one has nearly underflowed."""
        rows = self.over_targets
        weights = log_u + rows.level
        top = weights.amax()
        sums = torch.mv(rows.softmax.mT, weights.sub_(top).exp_())
        if float(sums.amin()) > self._safe:
            return sums.log_().add_(top).sub_(rows.around)
        if self._columns is None:
            self._columns = _LogSums(rows.log_matrix.mT.contiguous())
        return self._columns(log_u)


def _rounds(
    log_kernel: Tensor, log_a: Tensor, log_b: Tensor, powers: tuple[float, float], tolerance: float, max_iterations: int
) -> tuple[Tensor, Tensor, int, float]:
    """The logarithms of u and v, the rounds taken and the bound on their error."""
    half_steps, (g, h), balanced = _HalfSteps(log_kernel), powers, powers == (1.0, 1.0)
    log_u, log_v = torch.zeros_like(log_a), torch.zeros_like(log_b)
    change, error, smallest = math.inf, math.inf, 4 * torch.finfo(log_kernel.dtype).eps
    for iteration in range(1, max_iterations + 1):
        previous, before = log_v, change
        log_v = h * (log_b - half_steps.over_sources(log_u))
        log_u = g * (log_a - half_steps.over_targets(log_v))
        rounding = smallest * (1 + float(log_v.abs().amax()))
        if iteration > 1:
            moved = log_v - previous  # where only differences of potentials matter, up to a constant
            change = float((moved.amax() - moved.amin()) / 2 if balanced else moved.abs().amax())
        rate = min(change / before, 1.0) if balanced and before < math.inf else g * h
        error = _bound(rate, max(change, rounding))
        if error <= tolerance or change <= rounding:
            return log_u, log_v, iteration, error
    message = f"unbalanced Sinkhorn stopped after {max_iterations} rounds with potentials known to {error:.1e} only, "
    message += f"not to {tolerance:.1e}; raise max_iterations, or lower the penalties relative to eps"
    warnings.warn(message, RuntimeWarning, stacklevel=3)
    return log_u, log_v, max_iterations, error


def _bound(rate: float, change: float) -> float:
    """`rate + rate^2 + ...` times the change."""
    if rate == 0:
        return 0.0  # one round was exact, however far it went
    return rate / (1 - rate) * change if rate < 1 else math.inf


def _power(tau: float, eps: float) -> float:
    """Exponent of a marginal's half-step, `tau / (tau + eps)`."""
    return 1.0 if math.isinf(tau) else tau / (tau + eps)


def _checked(
    cost: Array, a: Array, b: Array, eps: float, tau_source: float, tau_target: float
) -> tuple[Tensor, Tensor, Tensor]:
    """The arrays in one precision on one device, once they state a problem."""
    # Without gradients; arrays, read-only ones too, as copies.
    cost, a, b = (x.detach() if isinstance(x, Tensor) else torch.from_numpy(np.array(x)) for x in (cost, a, b))
    cost = cost if cost.dtype == torch.float32 else cost.double()
    a, b = a.to(cost), b.to(cost)
    if cost.dim() != 2 or not cost.numel() or a.shape != cost.shape[:1] or b.shape != cost.shape[1:]:
        message = "a cost between n sources and m targets is (n, m) with masses (n,) and (m,), none empty, "
        message += f"not {tuple(cost.shape)} with {tuple(a.shape)} and {tuple(b.shape)}"
        raise InputError(message)
    if not bool(torch.isfinite(cost).all()):
        raise InputError("the cost must be finite; look for broken features or rows of zeros")
    for name, masses in (("source masses a", a), ("target masses b", b)):
        if not bool((torch.isfinite(masses) & (masses > 0)).all()):
            raise InputError(f"the {name} must be positive and finite; leave out what has no mass")
    if not (eps > 0 and math.isfinite(eps)):
        raise InputError(f"eps is {eps}; the weight of the entropy must be positive and finite")
    for name, tau in (("tau_source", tau_source), ("tau_target", tau_target)):
        if not tau >= 0:
            raise InputError(f"{name} is {tau}; a marginal's penalty is 0 or more, infinity for an exact marginal")
    source, target = float(a.double().sum()), float(b.double().sum())
    apart = abs(source - target) > math.sqrt(torch.finfo(a.dtype).eps) * (source + target)
    if apart and _power(tau_source, eps) == _power(tau_target, eps) == 1:
        message = f"two exact marginals need the same total mass, and here a sums to {source:g} and b to {target:g}; "
        message += "scale one of them, or give one a finite tau"
        raise InputError(message)
    return cost, a, b
