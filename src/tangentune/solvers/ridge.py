"""Kernel ridge with an unpenalised intercept: one eigendecomposition serves every damping.

Minimises `1/2 sum_i a_i ||y_i - b - f(x_i)||^2 + lambda/2 ||f||^2` over f in the kernel's space and b. All
formulas hold for each output alone; weights `a` enter through `D = diag(a)` as `D^1/2 K D^1/2`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from tangentune.errors import InputError
from tangentune.solvers.factorisation import eigh

ENTRIES = 1 << 16  # numbers held at once along a path of dampings


@dataclass(frozen=True)
class RidgeFactor:
    """What is kept of a kernel (n, n): its eigenvalues under the weights, the intercept's direction projected out."""

    values: Tensor  # (n-1,), ascending
    vectors: Tensor  # (n, n-1)
    roots: Tensor  # (n,) of the weights; scaled to length one they are the intercept's direction
    kernel: Tensor

    @cached_property
    def mean_eigenvalue(self) -> float:
        """Mean eigenvalue of the centred, weighted kernel: the unit of relative damping."""
        return float(self.values.clamp_min(0).mean())


@dataclass(frozen=True)
class Solution:
    """A solved problem `f(x) = intercept + k(x, X) dual`."""

    dual: Tensor  # (n, C), column sums zero
    intercept: Tensor  # (C,)
    damping: float
    loo: Tensor  # (n, C) exact predictions of every sample by the solution fitted without it


def factor_ridge(kernel: Tensor, weights: Tensor | None = None) -> RidgeFactor:
    """Factor an (n, n) positive semi-definite kernel under positive sample weights; n^3 once, in float64."""
    n = len(kernel)
    if n < 2:
        raise InputError(f"least squares with an intercept needs at least 2 samples, got {n}")
    kernel, weights = checked_kernel(kernel, weights)
    roots = weights.sqrt()
    # In e = D^-1/2 c the solution meets (D^1/2 K D^1/2 + lambda I) e + d b = D^1/2 y and d^T e = 0, d = roots: e is
    # orthogonal to d and the equations along d only fix b. The Householder reflection H = I - 2 v v^T with v along
    # d / |d| + first axis sends d to that axis; without its row and column, H D^1/2 K D^1/2 H is the kernel on what is
    # orthogonal to d, and its eigenvectors, reflected back, are those of the projected kernel.
    axis = roots / roots.norm()
    axis[0] += 1.0
    axis = axis / axis.norm()
    weighted = roots[:, None] * kernel * roots
    left = weighted - 2 * torch.outer(axis, axis @ weighted)
    reflected = left - 2 * torch.outer(left @ axis, axis)
    values, vectors = eigh((reflected[1:, 1:] + reflected[1:, 1:].T) / 2, "the kernel")
    padded = torch.cat([torch.zeros_like(vectors[:1]), vectors])
    return RidgeFactor(values, padded - 2 * torch.outer(axis, axis @ padded), roots, kernel)


def checked_kernel(kernel: Tensor, weights: Tensor | None) -> tuple[Tensor, Tensor]:
    """A kernel (n, n) and sample weights (n,), ones if None, in float64, proven finite and positive."""
    if not bool(torch.isfinite(kernel).all()):
        raise InputError("the kernel holds NaN or infinite values; look for broken pictures or an overflowing network")
    weights = torch.ones_like(kernel[0], dtype=torch.float64) if weights is None else weights.double()
    if not bool((weights > 0).all()):
        raise InputError("sample weights must be positive; leave pictures of weight 0 out")
    return kernel.double(), weights


def solve(factor: RidgeFactor, targets: Tensor, damping: float) -> Solution:
    """Solve for (n, C) targets at one damping; cost n^2 C."""
    spectrum = _spectrum(factor, damping)
    weighted = factor.roots[:, None] * targets
    dual = factor.vectors @ ((factor.vectors.T @ weighted) / spectrum[:, None])
    residual = dual / inverse_diagonal(factor, damping)[:, None] / factor.roots[:, None]
    dual = factor.roots[:, None] * dual
    # The intercept is the weighted mean of what the kernel part leaves.
    weights = factor.roots.square()
    intercept = (weights @ (targets - factor.kernel @ dual)) / weights.sum()
    return Solution(dual, intercept, damping, targets - residual)


def inverse_diagonal(factor: RidgeFactor, damping: float) -> Tensor:
    """(n,) diagonal of the inverse of the bordered weighted system, intercept row left out."""
    return factor.vectors.square() @ (1 / _spectrum(factor, damping))


def loo_errors(factor: RidgeFactor, targets: Tensor, dampings: Tensor) -> Tensor:
    """Weighted mean squared leave-one-out error for each damping: (k,); cost k n^2 (C + 1) at most."""
    projected = factor.vectors.T @ (factor.roots[:, None] * targets)
    inverses = 1 / _spectra(factor, dampings)
    diagonals = factor.vectors.square() @ inverses.T
    errors = []
    at_once = max(1, ENTRIES // max(1, targets.numel()))  # one product for many dampings
    for some, diagonal in zip(inverses.split(at_once), diagonals.split(at_once, 1), strict=True):
        dual = factor.vectors @ (projected[:, None] * some.T[:, :, None]).flatten(1)
        residual = dual.view(*diagonal.shape, -1) / diagonal[:, :, None]  # scaled by the root of the weight
        errors.append(residual.square().sum((0, 2)))
    return torch.cat(errors) / factor.roots.square().sum()


def log_evidence(factor: RidgeFactor, targets: Tensor, dampings: Tensor) -> Tensor:
    """Restricted log marginal likelihood for each damping, the common scale at its optimum: (k,).

    Targets minus a flat intercept are N(0, t (K + lambda I)), one t for all outputs (papers: Gaussian process
    evidence; papers.md 7.2). Cost k n C.
    """
    squares = (factor.vectors.T @ (factor.roots[:, None] * targets)).square().sum(1)
    spectra = _spectra(factor, dampings)
    count = len(squares) * targets.shape[1]
    scales = (squares / spectra).sum(1) / count
    return -0.5 * (count * (1 + torch.log(2 * torch.pi * scales)) + targets.shape[1] * spectra.log().sum(1))


def _spectrum(factor: RidgeFactor, damping: float) -> Tensor:
    """(m,) eigenvalues plus damping, all positive."""
    return _spectra(factor, torch.tensor([damping], dtype=torch.float64))[0]


def _spectra(factor: RidgeFactor, dampings: Tensor) -> Tensor:
    """(k, m) eigenvalues plus each damping, all positive."""
    spectra = factor.values.clamp_min(0) + dampings.to(factor.values)[:, None]
    if not bool((spectra > 0).all()):
        raise InputError(
            f"damping {float(dampings.min()):g} leaves the least-squares problem singular; use a positive damping"
        )
    return spectra
