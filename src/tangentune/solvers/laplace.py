"""Classification with the softmax likelihood: mode by Newton's method, posterior by Laplace's approximation.

Prior of every class's latent: `f_c ~ GP(0, scale k + INTERCEPT)`, independent; likelihood `prod_i softmax(f_i)[y_i]^a_i`.
In coordinates u with `f = L u`, `L L^T` the prior's kernel, minus the log posterior is convex with curvature at least
one, whatever the kernel's rank. At its mode `W = D - D R (R^T D R)^-1 R^T D`, D = diag(a p), R the stacked identities.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import final

import torch
from scipy.optimize import minimize_scalar
from torch import Tensor

from tangentune.errors import InputError
from tangentune.solvers.softmax_gaussian import softmax_gaussian

INTERCEPT = 100.0  # prior variance of a class's intercept in log odds: as good as flat
REACH = math.log(1e-2), math.log(1e5)  # of the scale, in units of the centred kernel's mean diagonal
GRADIENT, STEPS, PASSES, HALVINGS = 1e-9, 100, 500, 40


@final
@dataclass(frozen=True, eq=False)
class LaplaceSolution:
    """A solved classification: mode `f_c(x) = (scale k(x, X) + INTERCEPT) dual_c`.

    Attributes:
        dual: (n, C) weighted residuals `a (y - p)` at the mode.
        proba: (n, C) softmax of the mode at the training pictures.
        shrink: (C, n, n) `E_c = (K + D_c^-1)^-1`; `K - K E_c K` is the posterior of a class alone.
        joint: (n, n) lower Cholesky factor of `sum_c E_c`, which couples the classes.
        scale: what multiplies the kernel.
        evidence: approximate log marginal likelihood.
        loo: (n, C) probabilities of every picture without its own observation, approximate.
    """

    dual: Tensor
    proba: Tensor
    shrink: Tensor
    joint: Tensor
    scale: float
    evidence: float
    loo: Tensor


def fit_laplace(
    kernel: Tensor, classes: Tensor, count: int, weights: Tensor | None = None, *, scale: float | None = None
) -> LaplaceSolution:
    """Find the mode and its curvature; the kernel's scale by approximate log evidence unless given.

    Args:
        kernel: (n, n) Gram matrix.
        classes: (n,) class positions.
        count: C.
        weights: (n,) positive sample weights; None means ones.
        scale: what multiplies the kernel.

    Returns:
        The solution; cost one eigendecomposition, then for each of about 12 scales C n^3 for the evidence and
        n^2 C for every pass of conjugate gradients. Memory C n^2.

    Raises:
        InputError: fewer than two pictures or classes, a kernel that is not finite, a weight or scale that is not
            positive.

    Source: Rasmussen and Williams (2006), section 3.5; the determinant there leaves out the factor of `sum_c E_c`.

    Example:
        >>> x = torch.linspace(-1, 1, 12, dtype=torch.float64)
        >>> solution = fit_laplace(torch.outer(x, x), (x > 0).long(), 2)
        >>> bool(solution.proba[0, 0] > 0.9), bool(solution.proba[-1, 1] > 0.9)
        (True, True)
    """
    problem = _problem(kernel, classes, count, weights)
    if scale is not None:
        if not scale > 0:
            message = f"scale is {scale}; it must be positive"
            raise InputError(message)
        return _solution(problem, scale, _mode(problem, scale, None))
    unit = float(kernel.diagonal().mean() - kernel.mean()) or 1.0
    last: list[Tensor | None] = [None]

    def loss(log_scale: float) -> float:
        last[0] = _mode(problem, math.exp(log_scale) / unit, last[0])
        return -_curvature(problem, math.exp(log_scale) / unit, last[0]).evidence

    found = minimize_scalar(loss, bounds=REACH, method="bounded", options={"xatol": 0.05, "maxiter": 25})
    best = math.exp(found.x) / unit
    return _solution(problem, best, _mode(problem, best, last[0]))


def predict_laplace(solution: LaplaceSolution, cross: Tensor, own: Tensor) -> Tensor:
    """Class probabilities (m, C) of new pictures.

    Args:
        solution: from `fit_laplace`.
        cross: (m, n) kernel between new pictures and the problem's.
        own: (m,) kernel of each new picture with itself.

    Returns:
        Mean of the softmax over the latents' approximate posterior; cost m C n^2.
    """
    return softmax_gaussian(*latents(solution, cross, own))


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


@dataclass(frozen=True, eq=False)
class _Problem:
    """Root of the kernel (n, r), its squared column norms, labels one-hot (n, C), weights (n,)."""

    kernel: Tensor
    root: Tensor
    labels: Tensor
    weights: Tensor


def _problem(kernel: Tensor, classes: Tensor, count: int, weights: Tensor | None) -> _Problem:
    n = len(kernel)
    if n < 2 or count < 2 or len(classes) != n or not bool(((classes >= 0) & (classes < count)).all()):
        message = f"classification needs two or more pictures and classes; got {n}, {len(classes)} labels, {count}"
        raise InputError(message)
    if not bool(torch.isfinite(kernel).all()):
        message = "the kernel holds NaN or infinite values; look for broken pictures or an overflowing network"
        raise InputError(message)
    given = torch.ones_like(kernel[0], dtype=torch.float64) if weights is None else weights.double()
    if not bool((given > 0).all()):
        message = "sample weights must be positive; leave pictures of weight 0 out"
        raise InputError(message)
    kernel = kernel.double()
    values, vectors = torch.linalg.eigh(kernel)
    labels = torch.nn.functional.one_hot(classes.long(), count).double()
    return _Problem(kernel, vectors * values.clamp_min(0).sqrt(), labels, given)


def _root(problem: _Problem, scale: float) -> Tensor:
    """(n, n + 1) root of `scale K + INTERCEPT`."""
    ones = torch.ones_like(problem.root[:, :1])
    return torch.cat([math.sqrt(scale) * problem.root, math.sqrt(INTERCEPT) * ones], 1)


def _mode(problem: _Problem, scale: float, start: Tensor | None) -> Tensor:
    """Coordinates u (n + 1, C) of the mode: Newton steps by conjugate gradients, halved until the loss falls."""
    root, weights = _root(problem, scale), problem.weights[:, None]
    u = torch.zeros(root.shape[1], problem.labels.shape[1], dtype=root.dtype, device=root.device)
    u = u if start is None else start

    def loss(u: Tensor) -> float:
        logs = torch.log_softmax(root @ u, 1)
        return float(0.5 * u.square().sum() - (weights * problem.labels * logs).sum())

    value = loss(u)
    for _ in range(STEPS):
        proba = torch.softmax(root @ u, 1)
        gradient = u - root.T @ (weights * (problem.labels - proba))
        size = float(gradient.abs().max())
        if size < GRADIENT:
            break
        step = _newton_step(root, proba, weights, gradient)
        slope, length = float((gradient * step).sum()), 1.0
        for _ in range(HALVINGS):
            tried = loss(u - length * step)
            # Near the mode the fall drowns in rounding; the full step is right there.
            if tried <= value - 1e-4 * length * slope or slope < 1e-10 * max(1.0, abs(value)):
                break
            length /= 2
        u, value = u - length * step, tried
    return u


def _newton_step(root: Tensor, proba: Tensor, weights: Tensor, gradient: Tensor) -> Tensor:
    """Solve `(I + L^T W L) step = gradient`, diagonal preconditioner, to a tolerance that falls with the gradient."""

    def curve(v: Tensor) -> Tensor:
        moved = root @ v
        return v + root.T @ (weights * proba * (moved - (proba * moved).sum(1, keepdim=True)))

    diagonal = 1 + root.square().T @ (weights * proba * (1 - proba))
    goal = float(gradient.norm()) * min(0.1, math.sqrt(float(gradient.norm())), 1.0)
    goal = max(goal, 0.1 * GRADIENT)
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
    proba: Tensor
    shrink: Tensor
    joint: Tensor
    evidence: float


def _curvature(problem: _Problem, scale: float, u: Tensor) -> _Curvature:
    """Posterior curvature at the mode and the approximate log evidence; C n^3."""
    latent = _root(problem, scale) @ u
    logs = torch.log_softmax(latent, 1)
    proba = logs.exp()
    kernel = scale * problem.kernel + INTERCEPT
    shrink, halflogdet = [], 0.0
    for c in range(proba.shape[1]):
        roots = (problem.weights * proba[:, c]).sqrt()
        system = roots[:, None] * kernel * roots
        system.diagonal().add_(1)
        lower = torch.linalg.cholesky(system)
        halflogdet += float(lower.diagonal().log().sum())
        shrink.append(roots[:, None] * torch.cholesky_inverse(lower) * roots)
    stacked = torch.stack(shrink)
    joint = torch.linalg.cholesky(stacked.sum(0))
    halflogdet += float(joint.diagonal().log().sum() - 0.5 * problem.weights.log().sum())
    fit = float((problem.weights[:, None] * problem.labels * logs).sum() - 0.5 * u.square().sum())
    return _Curvature(proba, stacked, joint, fit - halflogdet)


def _solution(problem: _Problem, scale: float, u: Tensor) -> LaplaceSolution:
    found = _curvature(problem, scale, u)
    dual = problem.weights[:, None] * (problem.labels - found.proba)
    kernel = scale * problem.kernel + INTERCEPT
    # The picture's own site taken out of its marginal (Vehtari et al. 2016): precision less W_i, mean accordingly.
    marginal = _covariance(kernel, kernel.diagonal(), found.shrink, found.joint)
    proba, weights = found.proba, problem.weights[:, None, None]
    site = weights * (torch.diag_embed(proba) - proba[:, :, None] * proba[:, None, :])
    eye = torch.eye(proba.shape[1], dtype=proba.dtype, device=proba.device)
    cavity = torch.linalg.solve(eye - site @ marginal, marginal, left=False)
    mean = kernel @ dual - (cavity @ dual[:, :, None])[:, :, 0]
    loo = softmax_gaussian(mean, (cavity + cavity.mT) / 2)
    return LaplaceSolution(dual, proba, found.shrink, found.joint, scale, found.evidence, loo)
