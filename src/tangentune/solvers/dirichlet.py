"""Classification as regression with the right noise: the Dirichlet-based Gaussian process.

A label is one draw from unknown class probabilities with prior Dirichlet(e, ..., e): the posterior is Dirichlet with
e + 1 at the label and e elsewhere. Its logarithm is matched by Gaussians: latent f_c is observed at
`log alpha - s2 / 2` with noise `s2 = log(1 + 1 / alpha)`, so that each class is one least-squares problem of its own
noise, and the posterior is exact and in closed form.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import final

import numpy as np
import torch
from scipy.optimize import minimize
from torch import Tensor

from tangentune.errors import InputError
from tangentune.solvers.calibration import Calibration, calibrated, fit_calibration
from tangentune.solvers.factorisation import cholesky
from tangentune.solvers.softmax import INTERCEPT, LabelledKernel, labelled_kernel, softmax_gaussian

SCALES = 1.0, 10.0, 100.0  # tried first, in units of the centred kernel's mean diagonal
PSEUDOCOUNTS = 1e-2, 1e-4, 1e-6
REACH = (math.log(1e-8), math.log(0.5)), (math.log(1e-3), math.log(1e6))  # of the pseudocount and the scale


@final
@dataclass(frozen=True, eq=False)
class DirichletSolution:
    """A solved classification: latents `f_c(x) = (scale k(x, X) + INTERCEPT) dual_c`.

    With `S_c` the noise of class c, `A_c = D^1/2 (scale K + INTERCEPT) D^1/2 + S_c` and all classes share
    `A_c^-1 = inverse + U_c U_c^T`, U_c the columns of `updates` (n, n) that belong to the pictures of class c.
    """

    dual: Tensor
    inverse: Tensor
    updates: Tensor
    roots: Tensor  # (n,) of the weights
    classes: Tensor
    scale: float
    pseudocount: float
    calibration: Calibration  # for the logarithms of the probabilities
    loo: Tensor  # (n, C) calibrated probabilities without the own picture, exact at this scale and calibration


def fit_dirichlet(
    kernel: Tensor,
    classes: Tensor,
    count: int,
    weights: Tensor | None = None,
    *,
    scale: float | None = None,
    pseudocount: float | None = None,
) -> DirichletSolution:
    """Solve the C regressions; scale and pseudocount by exact leave-one-out log-loss unless given.

    The noise is divided by the weights. Cost n^3 + n^2 C for each of about 50 trials, one if both are given: two noises
    differ only at the class's own pictures, so that one inverse serves all classes. Milios et al. (2018).
    """
    problem = labelled_kernel(kernel, classes, count, weights)
    if any(given is not None and not given > 0 for given in (scale, pseudocount)):
        raise InputError(f"scale and pseudocount must be positive, got {scale} and {pseudocount}")
    if scale is not None and pseudocount is not None:
        return _solve(problem, scale, pseudocount)
    return _search(problem, scale, pseudocount)


def predict_dirichlet(solution: DirichletSolution, cross: Tensor, own: Tensor) -> Tensor:
    """Class probabilities (m, C) from kernels (m, n) with the problem's pictures and (m,) of each with itself; m n^2.

    Mean of the softmax over the latents' posterior, calibrated.
    """
    return calibrated(solution.calibration, _logs(softmax_gaussian(*latents(solution, cross, own))))


def latents(solution: DirichletSolution, cross: Tensor, own: Tensor) -> tuple[Tensor, Tensor]:
    """Posterior mean and variance (m, C) of the latents of new pictures; cost m n^2."""
    k = solution.scale * cross.double() + INTERCEPT
    mean = k @ solution.dual
    scaled = k * solution.roots
    common = solution.scale * own.double() + INTERCEPT - ((scaled @ solution.inverse) * scaled).sum(1)
    member = torch.nn.functional.one_hot(solution.classes, mean.shape[1]).double()
    return mean, (common[:, None] - (scaled @ solution.updates).square() @ member).clamp_min(0)


def _solve(problem: LabelledKernel, scale: float, pseudocount: float) -> DirichletSolution:
    """All classes at one scale and pseudocount."""
    roots, member = problem.weights.sqrt(), problem.labels
    alpha = member + pseudocount
    noise = torch.log1p(1 / alpha)
    targets = alpha.log() - noise / 2
    other, gain = math.log1p(1 / pseudocount), math.log1p(1 / pseudocount) - math.log1p(1 / (1 + pseudocount))
    system = roots[:, None] * problem.latent(scale) * roots
    system.diagonal().add_(other)
    inverse = torch.cholesky_inverse(cholesky(system, "the problem of a class"))
    updates = torch.empty_like(inverse)
    for c in range(member.shape[1]):  # less noise at the class's own pictures, by Woodbury's identity
        own = torch.nonzero(problem.classes == c)[:, 0]
        small = torch.eye(len(own), dtype=system.dtype, device=system.device) / gain - inverse[own][:, own]
        lower = cholesky(small, "a class's own part of its problem")
        updates[:, own] = torch.linalg.solve_triangular(lower, inverse[own], upper=False).T
    scaled = roots[:, None] * targets
    solved = inverse @ scaled + updates @ (member * (updates.T @ scaled))
    diagonal = inverse.diagonal()[:, None] + updates.square() @ member
    mean = targets - solved / diagonal / roots[:, None]
    variance = (1 / diagonal - noise).clamp_min(0) / problem.weights[:, None]
    loo = _logs(softmax_gaussian(mean, variance))
    calibration = fit_calibration(loo, problem.classes, problem.weights)
    loo = calibrated(calibration, loo)
    dual = roots[:, None] * solved
    return DirichletSolution(dual, inverse, updates, roots, problem.classes, scale, pseudocount, calibration, loo)


def _logs(proba: Tensor) -> Tensor:
    return proba.clamp_min(1e-300).log()


def _search(problem: LabelledKernel, scale: float | None, pseudocount: float | None) -> DirichletSolution:
    """Least leave-one-out log-loss: a coarse grid, then a simplex search in logarithms."""
    unit = problem.unit

    def place(point: tuple[float, ...]) -> tuple[float, float]:
        free = iter(point)
        e = pseudocount if pseudocount is not None else math.exp(np.clip(next(free), *REACH[0]))
        s = scale if scale is not None else math.exp(np.clip(next(free), *REACH[1])) / unit
        return s, e

    def loss(point: tuple[float, ...]) -> float:
        return _solve(problem, *place(point)).calibration.loss

    grid: list[tuple[float, ...]] = [()]
    for given, tried in ((pseudocount, PSEUDOCOUNTS), (scale, SCALES)):
        if given is None:
            grid = [(*point, math.log(value)) for point in grid for value in tried]
    start = min(grid, key=loss)
    simplex = [start] + [tuple(v + (0.7 if i == j else 0) for i, v in enumerate(start)) for j in range(len(start))]
    options = {"initial_simplex": simplex, "xatol": 0.05, "fatol": 1e-4, "maxfev": 40}
    found = minimize(lambda point: loss(tuple(point.tolist())), start, method="Nelder-Mead", options=options)
    return _solve(problem, *place(tuple(found.x.tolist())))
