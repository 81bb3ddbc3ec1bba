"""Sample weights as something to differentiate by: the exact leave-one-out loss as their objective.

Source: Achille et al. 2022, "DIVA: Dataset Derivative of a Learning Task", in its leverage form, which is as smooth at
weight 0 as anywhere. One kernel for all outputs. With r the residuals of the fit and h = 1 - leverage, the residual
of picture i without it is `r_i / h_i`; `dr/da_j = -Q_:j r_j` and `dh_i/da_j = -Q_ij (dr_j/dy_i)`, where `damping Q` is
the posterior covariance of the fit at the training pictures.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tangentune.errors import InputError
from tangentune.solvers.leave_out import LIGHT, loo
from tangentune.solvers.low_rank import FeatureInverse
from tangentune.solvers.system import System, design, fitted

CHUNK = 1024  # rows of Q at once


def squared(predictions: Tensor, targets: Tensor) -> Tensor:
    """Squared error, outputs summed: (n,)."""
    return (targets - predictions).square().sum(1)


def weight_gradient(system: System, *, evaluate: Tensor | None = None) -> Tensor:
    """Derivative of the mean squared leave-one-out error by every weight, (n,): negative where more helps the others.

    `evaluate` (n,) weights, or a mask, of the pictures on which the error is counted; None is all, evenly. `n^2 C`
    multiply-adds, and n^2 more for each picture of weight 0.
    """
    if system.width != 1:
        raise InputError(f"the weight gradient is for one row a picture, not {system.width}")
    shares = _shares(evaluate, system.targets)
    slope = shares[:, None] * (-2 * (system.targets - loo(system)))
    inverse = system.inverse
    if isinstance(inverse, FeatureInverse):
        return _on_features(inverse, slope, system.targets - fitted(system))
    sensitivity, heights = _sensitivity(system, inverse)
    residuals = system.targets - fitted(system)
    left_out, pulled = residuals / heights[:, None], slope / heights[:, None]
    moved = (sensitivity @ pulled * residuals).sum(1)
    # d h_i / d a_j = -Q_ij [dr_j / dy_i], so h moves the left-out residual by +Q_ij [dr_j / dy_i] times itself / h.
    along = (pulled * left_out).sum(1)
    makers = torch.eye(len(heights), dtype=heights.dtype, device=heights.device) - sensitivity * system.weights
    return moved - (sensitivity * makers) @ along


def _on_features(inverse: FeatureInverse, slope: Tensor, residuals: Tensor) -> Tensor:
    """The same where `Q = X M^-1 X^T`: some rows of it at once, n^2 D."""
    weights = inverse.roots.square()
    left = 1 - weights * inverse.heights
    pulled, along = slope / left[:, None], (slope * residuals).sum(1) / left.square()
    moved = (inverse.posterior(pulled) * residuals).sum(1)
    out = moved - inverse.heights * along
    for index in torch.arange(len(weights), device=weights.device).split(CHUNK):
        out[index] += inverse.posterior_rows(index).square() @ (weights * along)
    return out


def _sensitivity(system: System, inverse: Tensor) -> tuple[Tensor, Tensor]:
    """Q, (n, n): how far predictions move by `a_j` times a residual; the posterior covariance over the damping.

    `D^-1/2 (I - damping [W^-1]) D^-1/2` where the weights allow it, by the kernel where they are near 0. With it h,
    (n,), the diagonal of `d r_i / d y_j = [i = j] - Q_ij a_j`, without cancellation where h is near 0.
    """
    n, roots = len(system.kernel), system.roots
    light = system.weights <= LIGHT * system.weights.max()
    safe = torch.where(light, 1.0, roots)
    assert isinstance(system.kernel, Tensor)
    out = torch.eye(n).to(system.kernel) - system.damping * inverse[:n, :n]
    out = out / safe[:, None] / safe
    if bool(light.any()):
        sides = design(system, system.kernel[light]) @ inverse
        out[light] = (system.kernel[light] - sides @ design(system, system.kernel).mT) / system.damping
        out[:, light] = out[light].mT
    heavy = system.damping * inverse.diagonal()[:n]
    return out, torch.where(light, 1 - out.diagonal() * system.weights, heavy)


def _shares(evaluate: Tensor | None, targets: Tensor) -> Tensor:
    """Weights of the pictures in the mean, (n,)."""
    if evaluate is None:
        return torch.full_like(targets[:, 0], 1 / len(targets))
    given = evaluate.to(targets)
    if given.shape != targets[:, 0].shape or not bool((given >= 0).all()) or not bool(given.sum() > 0):
        raise InputError(
            f"evaluate must be ({len(targets)},) shares, not negative and not all 0, not {tuple(given.shape)}"
        )
    return given / given.sum()
