"""Scales of blocks, damping and noise by maximum likelihood of the second kind, with gradients.

Targets less a flat intercept are `N(0, t (sum_b s_b K_b + damping diag(1/a)))`, t common to all outputs and at its
optimum: the restricted likelihood of `ridge.log_evidence`, here as a function of every block's scale.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import final

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize
from torch import Tensor

from tangentune.errors import InputError
from tangentune.solvers.factorisation import cholesky
from tangentune.solvers.ridge import factor_ridge, log_evidence

# Tried first; the least is a floor: one-hot targets often ask for no noise.
RELATIVE_DAMPINGS = torch.logspace(-6, 2, 33, dtype=torch.float64)
REACH = math.log(1e8)  # how far scales may go from their start
SPREAD = 0.25  # on real pictures wider ones, and none, overfit small sets


@final
@dataclass(frozen=True, eq=False)
class Evidence:
    """What was found."""

    scales: Tensor  # (B,) of the blocks, their geometric mean that of the start
    damping: float
    noise: Tensor  # (C,) variance at weight 1, each output at its own optimum
    value: float  # log evidence, without the prior of the scales


def block_log_evidence(
    kernels: Tensor, targets: Tensor, scales: Tensor, damping: Tensor, weights: Tensor | None = None
) -> Tensor:
    """Restricted log marginal likelihood, the common scale t at its best; differentiable in scales (B,) and damping.

    For block kernels (B, n, n) and targets (n, C). Cost B n^2 + n^3 / 3, the gradient about four times as much.
    Patterson and Thompson (1971); Rasmussen and Williams (2006), sections 2.7 and 5.4.
    """
    squares, logdet = _parts(kernels, targets, scales, damping, weights)
    count = (len(targets) - 1) * targets.shape[1]
    t = squares.sum() / count
    return -0.5 * (count * (1 + torch.log(2 * math.pi * t)) + targets.shape[1] * logdet)


def maximise_block_evidence(
    kernels: Tensor,
    targets: Tensor,
    weights: Tensor | None = None,
    *,
    start: Tensor | None = None,
    spread: float | None = SPREAD,
) -> Evidence:
    """Scales of all blocks (B, n, n) and damping at once, by L-BFGS in logarithms; about 30 evaluations with gradient.

    `start` (B,) scales; None makes the centred kernels equal in trace. `spread` is the width, in natural logarithms, of
    a log-normal prior of each scale around its start; None is no prior (many blocks then overfit small sets).
    """
    kernels = kernels.double()
    targets, weights = targets.to(kernels), None if weights is None else weights.to(kernels)
    roots = torch.ones_like(targets[:, 0]) if weights is None else weights.sqrt()
    traces = _traces(kernels, targets, roots)
    first = _checked_start(traces, start, spread)
    centre = torch.cat([first.log(), _first_damping(torch.einsum("b,bij->ij", first, kernels), targets, weights)])

    def place(point: Tensor) -> tuple[Tensor, Tensor]:
        scales = point[:-1].exp()
        return scales, point[-1].exp() * (scales @ traces)  # relative damping, so that a floor can be held

    def loss(logs: NDArray) -> tuple[float, NDArray]:
        leaf = torch.from_numpy(logs).requires_grad_()
        point = leaf.to(kernels)
        value = -block_log_evidence(kernels, targets, *place(point), weights)
        if spread is not None:
            value = value + 0.5 * ((point - centre)[:-1] / spread).square().sum()
        (gradient,) = torch.autograd.grad(value, leaf)
        return float(value.detach()), gradient.numpy()

    bounds = [(c - REACH, c + REACH) for c in centre.tolist()]
    bounds[-1] = math.log(RELATIVE_DAMPINGS[0]), REACH
    options = {"ftol": 1e-11, "gtol": 1e-7, "maxiter": 300}
    found = minimize(loss, centre.cpu().numpy(), jac=True, method="L-BFGS-B", bounds=bounds, options=options)
    logs = torch.from_numpy(np.array(found.x)).to(kernels)
    # The likelihood does not see a common factor of scales and damping: the mean of the logarithms stays put.
    logs[:-1] -= (logs - centre)[:-1].mean()
    scales, damping = place(logs)
    noise = damping * _parts(kernels, targets, scales, damping, weights)[0] / (len(targets) - 1)
    value = float(block_log_evidence(kernels, targets, scales, damping, weights))
    return Evidence(scales, float(damping), noise, value)


def _parts(
    kernels: Tensor, targets: Tensor, scales: Tensor, damping: Tensor, weights: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Restricted squares (C,) `y^T P y` and the log determinant of the weighted system among error contrasts."""
    roots = torch.ones_like(targets[:, 0]) if weights is None else weights.to(targets).sqrt()
    weighted = roots[:, None] * torch.einsum("b,bij->ij", scales, kernels) * roots
    lower = cholesky(weighted + damping * torch.eye(len(roots)).to(roots), "the covariance of the targets")
    mean = (roots.square() @ targets) / roots.square().sum()  # any shift does; this one keeps digits
    rows = torch.cat([roots[:, None], roots[:, None] * (targets - mean)], 1)
    solved = torch.linalg.solve_triangular(lower, rows, upper=False)
    border, rest = solved[:, :1], solved[:, 1:]
    length = border.square().sum()
    squares = rest.square().sum(0) - (border.T @ rest)[0].square() / length
    return squares, 2 * lower.diagonal().log().sum() + length.log() - roots.square().sum().log()


def _traces(kernels: Tensor, targets: Tensor, roots: Tensor) -> Tensor:
    """(B,) mean eigenvalue of every block's weighted and centred kernel."""
    if kernels.dim() != 3 or kernels.shape[1:] != (len(targets), len(targets)) or targets.dim() != 2:
        raise InputError(
            f"block kernels are (B, n, n) and targets (n, C); got {tuple(kernels.shape)}, {tuple(targets.shape)}"
        )
    weights = roots.square()
    mean = torch.einsum("i,bij,j->b", weights, kernels, weights) / weights.sum()
    traces = (kernels.diagonal(dim1=1, dim2=2) @ weights - mean) / (len(targets) - 1)
    if not bool((traces > 0).all()):
        raise InputError(f"block {int((traces <= 0).nonzero()[0])} has a constant kernel; leave it out")
    return traces


def _checked_start(traces: Tensor, start: Tensor | None, spread: float | None) -> Tensor:
    first = 1 / traces if start is None else start.to(traces)
    if len(first) != len(traces) or not bool((first > 0).all()):
        raise InputError(f"start is {first.tolist()}; give a positive scale for each of the {len(traces)} blocks")
    if spread is not None and not spread > 0:
        raise InputError(f"spread is {spread}; it must be a number above 0, or None for no prior")
    return first


def _first_damping(kernel: Tensor, targets: Tensor, weights: Tensor | None) -> Tensor:
    """(1,) logarithm of the most likely relative damping of a grid: the search starts on the right side of the hill."""
    factor = factor_ridge(kernel, weights)
    values = log_evidence(factor, targets, RELATIVE_DAMPINGS * factor.mean_eigenvalue)
    return RELATIVE_DAMPINGS.to(values)[values.argmax()].log()[None]
