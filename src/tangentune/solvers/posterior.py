"""Error bars of a solved problem: least squares is the posterior mean of a Gaussian process.

The prior is `f = b + g` with b flat and g ~ GP(0, (noise / damping) k); picture i is observed with variance
`noise / a_i`. Then the posterior mean is the solution and its covariance a Schur complement of the same system, in
units of noise / damping. The dual form holds the directions that no picture has shown: far from the data it is
`k(x, x)` plus the intercept's share. Outputs are independent: one covariance serves all, each with its own noise.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tangentune.errors import InputError
from tangentune.solvers.factorisation import eigh, inverse, solve
from tangentune.solvers.leave_out import diagonal_blocks
from tangentune.solvers.system import System, design

# Below this share of explained variance `1 / [W^-1]_ii - damping` loses digits; the direct form keeps them.
CANCELLATION = 1e-6
BLOCKS = "a picture's part of the inverse"


def variance(system: System, cross: Tensor, own: Tensor) -> Tensor:
    """Posterior variance (m,) of the function, not of a new observation, in units of noise / damping; m N^2.

    `k(x, x) - [k D^1/2, 1] W^-1 [D^1/2 k; 1]` from `cross` (m, N) and `own` (m,); that of output c is
    `noise_c / damping` times it. Rasmussen and Williams (2006), sections 2.2 and 2.7 (flat prior of the intercept).
    """
    _check(system, cross, own, (len(cross),))
    bordered = design(system, cross)
    return (own.double() - ((bordered @ system.inverse) * bordered).sum(1)).clamp_min(0)


def covariance(system: System, cross: Tensor, own: Tensor) -> Tensor:
    """Posterior covariance (m, m) of the function at new rows, in units of noise / damping; m N^2 + m^2 N.

    From `cross` (m, N) and `own` (m, m); its diagonal is `variance`.
    """
    _check(system, cross, own, (len(cross), len(cross)))
    bordered = design(system, cross)
    found = own.double() - bordered @ system.inverse @ bordered.T
    return (found + found.T) / 2


def noise_variance(system: System) -> Tensor:
    """Variance of the noise at weight 1 that makes each output most likely, (C,); cost N C.

    The common scale of prior and noise at the maximum of the restricted likelihood (Patterson and Thompson 1971), times
    the damping. Rows of weight 0 do not count.
    """
    count = int((system.weights > 0).sum()) - int(system.intercept)
    assert count > 0, "a system holds two pictures of positive weight"
    # The dual sums to 0, so that taking the intercept off changes nothing but the rounding.
    square = ((system.targets - system.bias) * system.dual).sum(0)
    return system.damping * square.clamp_min(0) / count


def loo_variance(system: System) -> Tensor:
    """Posterior variance (N,) at every row from the problem without its picture, in units of noise / damping.

    `(1 / [W^-1]_ii - damping) / a_i` where a picture owns one row, the diagonal of the same with blocks otherwise: what
    `variance` would say had it not been seen, honest to compare new pictures with. Cost N width^2, and N^2 more for
    every row of (nearly) no weight. Rasmussen and Williams (2006), section 5.4.2.
    """
    total, width = len(system.kernel), system.width
    observed = inverse(diagonal_blocks(system), BLOCKS).diagonal(dim1=1, dim2=2).reshape(-1)
    out = (observed - system.damping) / system.weights
    # An observation that tells nothing leaves 0 / 0; there P (I - D P / damping)^-1 is safe, P with the picture.
    explained = 1 - system.damping * system.inverse.diagonal()[:total]
    for i in torch.nonzero((explained.reshape(-1, width) < CANCELLATION).any(1))[:, 0].tolist():
        own = torch.arange(i * width, (i + 1) * width, device=system.weights.device)
        seen = covariance(system, system.kernel[own], system.kernel[own][:, own])
        leverage = torch.eye(width).to(seen) - system.weights[own, None] * seen / system.damping
        out[own] = solve(leverage.T, seen.T, BLOCKS).T.diagonal()
    return out.clamp_min(0)


def sample(mean: Tensor, covariance: Tensor, scales: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Draw `count` functions from the posterior, jointly over rows: (m, C, count), without the noise of an observation.

    `mean` (m, C), `covariance` (m, m), perhaps singular (equal pictures), and `scales` (C,) that multiply it for each
    output: `noise_variance(system) / system.damping`. Cost m^3 + m^2 C count.
    """
    if count < 1:
        raise InputError(f"count is {count}; draw at least one function")
    values, vectors = eigh(covariance, "the posterior covariance")
    root = vectors * values.clamp_min(0).sqrt()  # rounding makes zero eigenvalues negative
    normal = torch.randn(len(mean), mean.shape[1] * count, generator=generator, dtype=torch.float64)
    drawn = (root @ normal).reshape(len(mean), mean.shape[1], count)
    return mean.double()[:, :, None] + scales.double().sqrt()[:, None] * drawn


def _check(system: System, cross: Tensor, own: Tensor, shape: tuple[int, ...]) -> None:
    total, got = len(system.weights), f"{tuple(cross.shape)} and {tuple(own.shape)}"
    if cross.dim() != 2 or cross.shape[1] != total or tuple(own.shape) != shape:
        rows = f"the kernel with {total} rows of the problem is (m, {total}) and that of the new rows {shape}"
        raise InputError(f"{rows}; got {got}")
