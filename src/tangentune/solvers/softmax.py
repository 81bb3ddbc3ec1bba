"""What the classification solvers share: the checked problem, the kernel's unit of scale, softmaxes of Gaussians."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import final

import torch
from torch import Tensor

from tangentune.errors import InputError
from tangentune.solvers.factorisation import eigh
from tangentune.solvers.ridge import checked_kernel

INTERCEPT = 100.0  # prior variance of a class's intercept in log odds: as good as flat
POINTS = 256  # of the quasi-random set, and their mirror images; the tests hold the error
CHUNK = 2**16  # latents at a time: they stay in the cache


@final
@dataclass(frozen=True, eq=False)
class LabelledKernel:
    """A kernel (n, n) and labels, one-hot (n, C), weights (n,), all float64; class positions (n,)."""

    kernel: Tensor
    labels: Tensor
    weights: Tensor
    classes: Tensor

    @property
    def unit(self) -> float:
        """Mean diagonal of the centred kernel: the prior variance of one latent against another at scale 1."""
        return float(self.kernel.diagonal().mean() - self.kernel.mean()) or 1.0

    def latent(self, scale: float) -> Tensor:
        """Prior covariance (n, n) of a class's latents."""
        return scale * self.kernel + INTERCEPT


def labelled_kernel(kernel: Tensor, classes: Tensor, count: int, weights: Tensor | None) -> LabelledKernel:
    """Check a classification problem of `count` classes."""
    check_classes(len(kernel), classes, count)
    kernel, weights = checked_kernel(kernel, weights)
    classes = classes.long()
    return LabelledKernel(kernel, torch.nn.functional.one_hot(classes, count).double(), weights, classes)


def check_classes(n: int, classes: Tensor, count: int) -> None:
    """Refuse all but n >= 2 pictures with a label each that is one of `count` >= 2 classes."""
    if n < 2 or count < 2 or len(classes) != n or not bool(((classes >= 0) & (classes < count)).all()):
        raise InputError(
            f"classification needs at least two pictures, a label in 0..C-1 for each and at least two classes; got "
            f"{n} pictures, {len(classes)} labels and {count} classes"
        )


def softmax_gaussian(mean: Tensor, covariance: Tensor) -> Tensor:
    """E softmax(f) for f ~ N(mean, covariance), (m, C), one row at a time; cost m C (512 + C^2).

    `covariance` (m, C, C), or (m, C) variances of independent latents. Scrambled Sobol points (Owen 1998) with a fixed
    seed, each with its mirror image: the answer is deterministic and smooth in both.
    """
    mean, covariance = mean.double(), covariance.double()
    count = mean.shape[1]
    points = _normal_points(count).to(mean.device)
    if covariance.dim() == 3:
        # What all classes share does not change a softmax; taken off, it does not blur it either.
        centring = torch.eye(count, dtype=mean.dtype, device=mean.device) - 1 / count
        values, vectors = eigh(centring @ covariance @ centring, "the covariance of the scores")
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
