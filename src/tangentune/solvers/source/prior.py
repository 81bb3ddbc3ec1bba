"""What source pictures say before any target picture is seen: multi-task kernel ridge, source rows eliminated exactly.

    minimise  1/2 sum_t a_t |y_t - b - f(x_t)|^2 + 1/2 sum_s a_s |y_s - b' - f(x_s) - g(x_s)|^2
              + damping/2 |f|^2 + damping / (2 deviation) |g|^2

The source task is the target's function f plus a deviation g of its own (Evgeniou and Pontil 2004), with an intercept
of its own. Solved for g, b' and the source residuals, what is left is a problem in target pictures alone, with the
kernel `k(x, x') - k(x, S) Q k(S, x')` and the targets less the prior mean `k(x, S) Q y_S`: whatever is exact for that,
leave-one-out, influence, removal, is exact for the whole.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from tangentune.solvers.factorisation import eigh


@final
@dataclass(frozen=True, eq=False)
class Spectrum:
    """The source kernel under its weights, `D^1/2 K D^1/2`, by eigenvalues: every strength and deviation is cheap."""

    values: Tensor  # (m,)
    through: Tensor  # (m, m) `D^1/2` times the eigenvectors: takes a cross kernel into the basis
    roots: Tensor  # (m,) of the weights, in the basis
    classes: Tensor  # (m, S) sums over source classes, in the basis


def spectrum(own: Tensor, weights: Tensor, positions: Tensor, count: int) -> Spectrum:
    """Decompose the kernel (m, m) of the source pictures under weights (m,), of classes `positions`; about 10 m^3."""
    roots = weights.to(own).sqrt()
    values, vectors = eigh(roots[:, None] * own * roots, "the kernel of the source pictures")
    through = roots[:, None] * vectors
    indicator = torch.nn.functional.one_hot(positions.to(own.device), count).to(own)
    return Spectrum(values.clamp_min(0), through, vectors.T @ roots, through.T @ indicator)


@final
@dataclass(frozen=True, eq=False)
class Prior:
    """Source pictures at one strength, as other pictures meet them; the source pictures themselves unless said.

    `gain` (m, m) is Q; for n other pictures (n, n) `k(x, S) Q k(S, x')`, what the source takes off their kernel.
    `response` (m, S) is Q times the sums over source classes; for others (n, S) `k(x, S)` times it, so that their prior
    mean is it times the targets of source classes.
    """

    gain: Tensor
    response: Tensor


def prior(basis: Spectrum, ridge: float, deviation: float, crossed: Tensor | None = None) -> Prior:
    """Q of a strength, or what other pictures meet of it; m^3, for others n^2 m + n m S.

    `ridge` is the damping over the strength, that multiplies all source weights; `deviation` the prior variance of g
    relative to f, 0 tying the tasks together; `crossed` (n, m) the kernel of others with the source times
    `basis.through`.
    """
    # Up to a factor source targets have the covariance (1 + deviation) K + ridge D^-1. Its inverse A is diagonal in the
    # basis; solving for the intercept b' too makes Q = A - A 1 1^T A / (1^T A 1) of it, which maps constants to 0.
    rows = basis.through if crossed is None else crossed
    inverse = 1 / ((1 + deviation) * basis.values + ridge)
    left = rows * inverse
    border, scale = left @ basis.roots, (inverse * basis.roots.square()).sum()
    gain = left @ rows.T - torch.outer(border, border) / scale
    response = left @ basis.classes - torch.outer(border, (inverse * basis.roots) @ basis.classes) / scale
    return Prior(gain, response)
