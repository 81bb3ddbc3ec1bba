"""Classification with the softmax likelihood: mode by Newton's method, posterior by Laplace's approximation.

Prior of each class's latent: `f_c ~ GP(0, scale k + INTERCEPT)`, independent; likelihood `prod softmax(f_i)[y_i]^a_i`.
In coordinates u with `f = L u`, `L L^T` the prior's covariance, minus the log posterior is convex with curvature at
least one, whatever the kernel's rank. At its mode `W = D - D R (R^T D R)^-1 R^T D`, D = diag(a p), R the identities
of all classes stacked (Rasmussen and Williams 2006, section 3.5).

Scale and calibration are chosen by the log-loss of approximate leave-one-out predictions, which agree with real refits
closely. Log evidence, the textbook's choice, is no guide on tangent kernels: Laplace's approximation is poor for large
variances (Kuss and Rasmussen 2005), and averaging over its whole covariance leaves far too little confidence. The
share of the covariance to believe is therefore fitted, as the temperature is.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import final

import torch
from scipy.optimize import minimize_scalar
from torch import Tensor

from tangentune.errors import InputError
from tangentune.solvers.calibration import Calibration, calibrated, fit_calibration
from tangentune.solvers.factorisation import cholesky, eigh, solve
from tangentune.solvers.softmax import INTERCEPT, LabelledKernel, labelled_kernel

REACH = math.log(1.0), math.log(1e4)  # of the scale, in units of the centred kernel's mean diagonal
SEARCHING, FINAL = 1e-5, 1e-13  # largest entry of the gradient, in units of the root's longest column
PORTION = 256  # pictures whose covariances are made at a time
STEPS, PASSES, HALVINGS = 100, 500, 40


@final
@dataclass(frozen=True, eq=False)
class LaplaceSolution:
    """A solved classification: mode `f_c(x) = (scale k(x, X) + INTERCEPT) dual_c`."""

    dual: Tensor  # (n, C) weighted residuals `a (y - p)`
    shrink: Tensor  # (C, n, n) `E_c = (prior + D_c^-1)^-1`, what the data take off the prior of a class alone
    joint: Tensor  # (n, n) lower Cholesky factor of `sum_c E_c`, which couples the classes
    scale: float
    calibration: Calibration
    evidence: float  # Laplace's log marginal likelihood
    loo: Tensor  # (n, C) probabilities without the own observation, approximate


def fit_laplace(
    kernel: Tensor, classes: Tensor, count: int, weights: Tensor | None = None, *, scale: float | None = None
) -> LaplaceSolution:
    """Find the mode and its curvature; scale and calibration by approximate leave-one-out log-loss, unless it is given.

    Cost one eigendecomposition, then for each of about 12 scales C n^3 and n^2 C for every pass of conjugate gradients;
    memory C n^2. Rasmussen and Williams (2006), section 3.5; Vehtari et al. (2016) for leave-one-out.
    """
    problem = labelled_kernel(kernel, classes, count, weights)
    if scale is not None and not scale > 0:
        raise InputError(f"scale is {scale}; it must be positive")
    values, vectors = eigh(problem.kernel, "the kernel")
    root = vectors * values.clamp_min(0).sqrt()
    best = _search(problem, root) if scale is None else scale
    u = _mode(problem, _root(root, best), None, FINAL)  # from afar: the same bits when the scale is given again
    at = _curvature(problem, best, _root(root, best) @ u)
    held_out = _left_out(problem, at)
    calibration = fit_calibration(held_out[0], problem.classes, problem.weights, held_out[1])
    loo = calibrated(calibration, *held_out)
    return LaplaceSolution(at.dual, at.shrink, at.joint, best, calibration, at.evidence, loo)


def predict_laplace(solution: LaplaceSolution, cross: Tensor, own: Tensor) -> Tensor:
    """Class probabilities (m, C) from kernels (m, n) with the problem's pictures and (m,) of each with itself; m C n^2.

    Mean of the softmax over the latents' posterior, calibrated.
    """
    return calibrated(solution.calibration, *latents(solution, cross, own))


def latents(solution: LaplaceSolution, cross: Tensor, own: Tensor) -> tuple[Tensor, Tensor]:
    """Posterior mean (m, C) and covariance (m, C, C) of the latents of new pictures; cost m C n^2."""
    k = solution.scale * cross.double() + INTERCEPT
    prior = solution.scale * own.double() + INTERCEPT
    return k @ solution.dual, _covariance(k, prior, solution.shrink, solution.joint)


def _covariance(k: Tensor, prior: Tensor, shrink: Tensor, joint: Tensor) -> Tensor:
    """`delta_cd (k(x,x) - k E_c k) + k E_c (sum E)^-1 E_d k`, (m, C, C)."""
    moved = torch.stack([own @ k.T for own in shrink])  # (C, n, m)
    coupled = torch.linalg.solve_triangular(joint, moved, upper=False)
    out = torch.einsum("cnm,dnm->mcd", coupled, coupled)
    out.diagonal(dim1=1, dim2=2).add_(prior[:, None] - torch.einsum("cnm,mn->mc", moved, k))
    return out


def _search(problem: LabelledKernel, root: Tensor) -> float:
    """The scale of least held-out loss, each mode started from the nearest one known."""
    tried: dict[float, tuple[float, Tensor]] = {}

    def loss(log_scale: float) -> float:
        at = math.exp(log_scale) / problem.unit
        start = min(tried.items(), key=lambda item: abs(math.log(item[0] / at)))[1][1] if tried else None
        u = _mode(problem, _root(root, at), start, SEARCHING)
        mean, _ = _left_out(problem, _curvature(problem, at, _root(root, at) @ u))
        tried[at] = fit_calibration(mean, problem.classes, problem.weights).loss, u
        return tried[at][0]

    minimize_scalar(loss, bounds=REACH, method="bounded", options={"xatol": 0.4, "maxiter": 12})
    return min(tried, key=lambda at: tried[at][0])


def _root(root: Tensor, scale: float) -> Tensor:
    """(n, n + 1) root of `scale K + INTERCEPT`."""
    return torch.cat([math.sqrt(scale) * root, math.sqrt(INTERCEPT) * torch.ones_like(root[:, :1])], 1)


def _mode(problem: LabelledKernel, root: Tensor, start: Tensor | None, precision: float) -> Tensor:
    """Coordinates u (n + 1, C) of the mode: Newton steps by conjugate gradients, halved until the loss falls."""
    weights, goal = problem.weights[:, None], precision * float(root.norm(dim=0).max())
    u = root.new_zeros(root.shape[1], problem.labels.shape[1]) if start is None else start

    def loss(u: Tensor) -> float:
        logs = torch.log_softmax(root @ u, 1)
        return float(0.5 * u.square().sum() - (weights * problem.labels * logs).sum())

    value = loss(u)
    for _ in range(STEPS):
        proba = torch.softmax(root @ u, 1)
        gradient = u - root.T @ (weights * (problem.labels - proba))
        if float(gradient.abs().max()) < goal:
            break
        step = _newton_step(root, proba, weights, gradient, 0.1 * goal)
        slope, length, tried = float((gradient * step).sum()), 1.0, value
        for _ in range(HALVINGS):
            tried = loss(u - length * step)
            # Near the mode the fall drowns in rounding; the full step is right there.
            if tried <= value - 1e-4 * length * slope or slope < 1e-10 * max(1.0, abs(value)):
                break
            length /= 2
        u, value = u - length * step, tried
    return u


def _newton_step(root: Tensor, proba: Tensor, weights: Tensor, gradient: Tensor, floor: float) -> Tensor:
    """Solve `(I + L^T W L) step = gradient`, diagonal preconditioner, to a tolerance that falls with the gradient."""

    def curve(v: Tensor) -> Tensor:
        moved = root @ v
        return v + root.T @ (weights * proba * (moved - (proba * moved).sum(1, keepdim=True)))

    diagonal = 1 + root.square().T @ (weights * proba * (1 - proba))
    size = float(gradient.norm())
    goal = max(size * min(0.1, math.sqrt(size)), floor)
    step, rest = torch.zeros_like(gradient), gradient.clone()
    scaled = rest / diagonal
    direction, product = scaled, float((rest * scaled).sum())
    for _ in range(PASSES):
        curved = curve(direction)
        length = product / float((direction * curved).sum())
        step, rest = step + length * direction, rest - length * curved
        if float(rest.norm()) <= goal:
            break
        scaled = rest / diagonal
        product, before = float((rest * scaled).sum()), product
        direction = scaled + (product / before) * direction
    return step


@dataclass(frozen=True, eq=False)
class _Curvature:
    """At a mode with latents f: (n, C) `log p`, `a (y - p)` and `prior dual = f`; E_c, their sum's factor."""

    logs: Tensor
    dual: Tensor
    latent: Tensor
    prior: Tensor
    shrink: Tensor
    joint: Tensor
    evidence: float


def _curvature(problem: LabelledKernel, scale: float, latent: Tensor) -> _Curvature:
    """Posterior curvature at the mode and the approximate log evidence; C n^3."""
    logs = torch.log_softmax(latent, 1)
    dual = problem.weights[:, None] * (problem.labels - logs.exp())
    prior = problem.latent(scale)
    shrink = torch.empty(logs.shape[1], *prior.shape, dtype=prior.dtype, device=prior.device)
    logdet = -problem.weights.log().sum()
    for c in range(logs.shape[1]):
        roots = (problem.weights * logs[:, c].exp()).sqrt()
        system = roots[:, None] * prior * roots
        system.diagonal().add_(1)
        lower = cholesky(system, "the curvature of a class")
        logdet += 2 * lower.diagonal().log().sum()
        shrink[c] = roots[:, None] * torch.cholesky_inverse(lower) * roots
    joint = cholesky(shrink.sum(0), "the curvature of all classes")
    # The book's algorithm 3.3 leaves this factor of |I + prior W| out.
    logdet += 2 * joint.diagonal().log().sum()
    fit = problem.weights @ (problem.labels * logs).sum(1) - 0.5 * (latent * dual).sum()
    return _Curvature(logs, dual, latent, prior, shrink, joint, float(fit - 0.5 * logdet))


def _left_out(problem: LabelledKernel, at: _Curvature) -> tuple[Tensor, Tensor]:
    """Mean (n, C) and covariance (n, C, C) of each picture's latents, its own site taken out of its marginal."""
    portions = torch.arange(len(at.latent), device=at.latent.device).split(PORTION)  # each needs C times its own memory
    prior = at.prior.diagonal()
    marginal = torch.cat([_covariance(at.prior[own], prior[own], at.shrink, at.joint) for own in portions])
    proba = at.logs.exp()
    site = torch.diag_embed(proba) - proba[:, :, None] * proba[:, None, :]
    eye = torch.eye(proba.shape[1], dtype=proba.dtype, device=proba.device)
    without = eye - problem.weights[:, None, None] * site @ marginal
    cavity = solve(without, marginal, "what is left of a picture's latents", left=False)
    return at.latent - (cavity @ at.dual[:, :, None])[:, :, 0], (cavity + cavity.mT) / 2
