"""Mean of the softmax of Gaussian latents: class probabilities of a classifier that knows what it does not know."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

POINTS = 256  # and their mirror images; the tests hold the error
CHUNK = 2**16  # latents at a time: they stay in the cache


def softmax_gaussian(mean: Tensor, covariance: Tensor) -> Tensor:
    """E softmax(f) for f ~ N(mean, covariance), one row at a time, by fixed quasi-random points.

    Scrambled Sobol points with a fixed seed, each with its mirror image: the answer is deterministic and smooth in
    mean and covariance.

    Args:
        mean: (m, C) latents.
        covariance: (m, C, C), or (m, C) variances if the latents are independent.

    Returns:
        (m, C) probabilities; cost m C (512 + C^2).

    Source: Owen (1998), scrambled nets.

    Example:
        >>> softmax_gaussian(torch.zeros(1, 2), torch.ones(1, 2)).tolist()
        [[0.5, 0.5]]
    """
    mean, covariance = mean.double(), covariance.double()
    count = mean.shape[1]
    points = _normal_points(count).to(mean.device)
    if covariance.dim() == 3:
        # What all classes share does not change a softmax; taken off, it does not blur it either.
        centring = torch.eye(count, dtype=mean.dtype, device=mean.device) - 1 / count
        values, vectors = torch.linalg.eigh(centring @ covariance @ centring)
        spread = vectors * values.clamp_min(0).sqrt()[:, None, :]
    else:
        spread = covariance.clamp_min(0).sqrt()
    out = []
    step = max(1, CHUNK // (POINTS * count))
    for low in range(0, len(mean), step):
        rows = slice(low, low + step)
        # Classes lead, so that sums over them run along contiguous points.
        if covariance.dim() == 3:
            moves = torch.einsum("mck,kp->cmp", spread[rows], points)
        else:
            moves = spread[rows].T[:, :, None] * points[:, None, :]
        centre = mean[rows].T[:, :, None]
        out.append((_softmax(centre + moves) + _softmax(centre - moves)).mean(2).T / 2)
    return torch.cat(out)


def _softmax(latents: Tensor) -> Tensor:
    """Softmax along the first axis, in place."""
    latents.sub_(latents.amax(0)).exp_()
    return latents.div_(latents.sum(0))


@cache
def _normal_points(count: int) -> Tensor:
    """(count, POINTS) quasi-random standard normal points."""
    uniform = torch.quasirandom.SobolEngine(count, scramble=True, seed=0).draw(POINTS, dtype=torch.float64)
    return torch.special.ndtri(uniform.clamp(1e-12, 1 - 1e-12)).T.contiguous()
