"""How much source pictures count: chosen by the exact leave-one-out error of the target pictures alone.

Source classes count by the square of the mass that the target classes ask of them; one strength, one deviation of the
source task and the damping are searched together; classes that the dataset derivative calls harmful are dropped; and
if the pictures do not gain more than a standard error by it, nothing of the source counts.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor

from tangentune.solvers.factorisation import inverse
from tangentune.solvers.leave_out import loo
from tangentune.solvers.reweighting import squared
from tangentune.solvers.source.coupling import ClassMeans, coupling, transport
from tangentune.solvers.source.leave_out import SourcePrediction, target_loo
from tangentune.solvers.source.prior import prior, spectrum
from tangentune.solvers.system import build

STRENGTHS = (0.01, 0.1, 1.0)
DEVIATIONS = (0.0, 1.0)
DAMPINGS = (1.0, 10.0, 100.0, 1000.0)  # times the damping without source
ROUNDS = 3  # of dropping harmful classes
DOUBT = 2.0  # standard errors by which a class must harm
LEAST_GAIN = 1e-6  # of the error; below it all is rounding


@final
@dataclass(frozen=True, eq=False)
class SourceProblem:
    """Target and source pictures as kernels: `kernel` (n, n), `cross` (n, m), `own` (m, m)."""

    kernel: Tensor
    cross: Tensor
    own: Tensor
    targets: Tensor  # (n, C) one-hot, of the target pictures
    weights: Tensor  # (n,) of them
    positions: Tensor  # (m,) class 0 to S - 1 of each source picture
    given: Tensor  # (m,) their relative weights, positive
    named: Tensor  # (S, C) true where a source class has the name of a target class

    def means(self) -> ClassMeans:
        """What the coupling of the classes is made from."""
        members = torch.nn.functional.one_hot(self.positions, len(self.named)).to(self.own) * self.given[:, None]
        members = members / members.sum(0)
        norms = (members * (self.own @ members)).sum(0).clamp_min(0).sqrt()
        return ClassMeans(self.kernel, self.cross @ members, norms, self.named, self.targets, self.weights)


@final
@dataclass(frozen=True, eq=False)
class SourceSetting:
    """One way to count the source."""

    strength: float  # times all source weights; 0: none of it
    deviation: float  # prior variance of the source task's own part, relative to the shared one
    damping: float  # absolute, for both
    class_weights: Tensor  # (S,) <= 1


@final
@dataclass(frozen=True, eq=False)
class SourceChoice:
    """The best setting; errors are mean squared leave-one-out errors of the target pictures."""

    setting: SourceSetting  # of strength 0 if the source does not help
    error_without: float
    error: float
    standard_error: float  # of the difference to no source at the best damping tried
    tried: list[dict[str, Any]]


def choose_source(problem: SourceProblem, damping: float, fixed: bool = False) -> SourceChoice:
    """Strength, deviation, damping and class weights by leave-one-out of the target pictures.

    `damping` is the best without source, absolute, and stays if `fixed`. Cost: `10 m^3` for each set of class weights,
    and `n^3 + n^2 m` for each of 24 settings of it.
    """
    means, weights = problem.means(), problem.weights
    mass = transport(means).sum(1)
    dampings = [damping * factor for factor in ((1.0,) if fixed else DAMPINGS)]
    systems = (build(problem.kernel, problem.targets, tried, problem.weights) for tried in dampings)
    without = [squared(loo(system), problem.targets) for system in systems]
    alone, rival = without[0], min(without, key=lambda errors: _mean(errors, weights))
    counts = torch.where(problem.named.any(1), 1.0, (mass / mass.max()).square())
    best, errors, tried = _search(problem, means, counts, dampings)
    for _ in range(ROUNDS):
        kept = torch.where(_harmful(problem, best), 0.0, best.class_weights)
        if torch.equal(kept, best.class_weights) or not bool(kept.any()):
            break
        other, others, more = _search(problem, means, kept / kept.max(), dampings)
        tried += more
        if not _mean(others, weights) < _mean(errors, weights):
            break
        best, errors = other, others
    # More damping may gain by itself; that is no merit of the source.
    gain, doubt = _mean(rival - errors, weights), _standard_error(rival - errors, weights)
    if gain <= max(doubt, LEAST_GAIN * _mean(rival, weights)):
        best, errors = SourceSetting(0.0, 0.0, damping, torch.zeros_like(mass)), alone
    return SourceChoice(best, _mean(alone, weights), _mean(errors, weights), doubt, tried)


def source_effects(problem: SourceProblem, setting: SourceSetting) -> Tensor:
    """Derivative of every target picture's squared leave-one-out error by every source picture's weight, (n, m).

    Its mean over the target pictures is the dataset derivative of the source (Achille et al. 2022, "DIVA: Dataset
    Derivative of a Learning Task"), judged by the target alone: negative where more of a source picture would help.
    Finite, and true, at weight 0; where no source picture has weight, that of the step in which all gain it as `given`.
    The coupling of the classes is held. 0 for target pictures of weight 0; cost 2 m^3 + n m^2 + n^2 m.
    """
    a = setting.strength * setting.class_weights[problem.positions] * problem.given
    labels, damping = coupling(problem.means())[problem.positions], setting.damping
    # Let N = Q A^-1, A = diag(a), s_j the j-th column of k(x, S) N and z_j = N_j^T y_S. From dQ / da_j = damping N_j
    # N_j^T the kernel of the target pictures loses damping s_j s_j^T, their targets lose damping s_j z_j. With
    # e = W^-1 D^1/2 y, h the diagonal of W^-1, d the roots of their weights and v_j = W^-1 D^1/2 s_j,
    #     de / da_j = damping v_j ((D^1/2 s_j)^T e - z_j),    dh / da_j = damping v_j^2,
    # and the leave-one-out residual is r = e / (h d). N is written without dividing by weights of the source.
    maker = (1 + setting.deviation) * a[:, None] * problem.own
    maker = inverse(maker + damping * torch.eye(len(a)).to(a), "the problem of the source pictures")
    border, centre = maker.sum(0), a if bool((a > 0).any()) else problem.given
    maker = maker - torch.outer(maker @ centre, border) / (border @ centre)
    seen, left = problem.cross @ maker, problem.cross @ (maker * a)
    offset = left @ labels
    system = build(problem.kernel - left @ problem.cross.T, problem.targets - offset, damping, problem.weights)
    n, roots = len(offset), system.roots[:, None]
    e, h = system.unknowns[:n], (system.inverse.diagonal()[:n])[:, None]
    weighty = roots > 0
    d = torch.where(weighty, roots, 1.0)
    residuals = torch.where(weighty, e / (h * d), 0.0)
    assert isinstance(system.inverse, Tensor)
    v = system.inverse[:n, :n] @ (roots * seen)
    slope = (roots * seen).T @ e - maker.T @ labels
    change = v * (residuals @ slope.T) / d
    return 2 * damping / h * (change - residuals.square().sum(1, keepdim=True) * v.square()) * weighty


def _harmful(problem: SourceProblem, setting: SourceSetting) -> Tensor:
    """(S,) true for source classes whose weight raises the error, by more than DOUBT standard errors."""
    slopes = torch.zeros(len(problem.targets), len(setting.class_weights)).to(problem.own)
    slopes.index_add_(1, problem.positions, source_effects(problem, setting) * problem.given)
    a = problem.weights
    return torch.tensor([_mean(s, a) > DOUBT * _standard_error(s, a) for s in slopes.T], device=slopes.device)


def _search(
    problem: SourceProblem, means: ClassMeans, class_weights: Tensor, dampings: list[float]
) -> tuple[SourceSetting, Tensor, list[dict[str, Any]]]:
    """The best setting of some class weights, its errors (n,), and all that was tried."""
    errors_of, best, tried = _errors(problem, means, class_weights), None, []
    for strength, deviation, damping in itertools.product(STRENGTHS, DEVIATIONS, dampings):
        setting = SourceSetting(strength, deviation, damping, class_weights)
        errors = errors_of(setting)
        error = _mean(errors, problem.weights)
        classes = int((class_weights > 0).sum())
        facts = {"strength": strength, "deviation": deviation, "damping": damping, "classes": classes}
        tried.append({**facts, "loo_error": error})
        if best is None or error < best[0]:
            best = error, setting, errors
    assert best is not None
    return best[1], best[2], tried


def _errors(problem: SourceProblem, means: ClassMeans, class_weights: Tensor) -> Callable[[SourceSetting], Tensor]:
    """Squared leave-one-out errors (n,) of the target pictures by setting; what settings share is calculated once."""
    relative, labels = problem.given * class_weights[problem.positions], coupling(means)
    basis = spectrum(problem.own, relative, problem.positions, len(class_weights))
    crossed = problem.cross @ basis.through

    def errors(setting: SourceSetting) -> Tensor:
        met = prior(basis, setting.damping / setting.strength, setting.deviation, crossed)
        source = SourcePrediction(means, met.response, labels)
        system = build(problem.kernel - met.gain, problem.targets - source.offset, setting.damping, problem.weights)
        return squared(target_loo(system, source), problem.targets)

    return errors


def _mean(values: Tensor, weights: Tensor) -> float:
    return float(weights @ values / weights.sum())


def _standard_error(values: Tensor, weights: Tensor) -> float:
    shares = weights / weights.sum()
    return float((shares.square() @ (values - shares @ values).square()).sqrt())
