"""A low-rank lower bound of a positive semi-definite matrix from Lanczos steps: variances stay above the truth.

Ritz pairs `Q T Q^T` of a half-finished run may overshoot the matrix. The Nystrom form `A Q T^-1 Q^T A` over the same
Krylov basis never does, and costs no further product: `A Q` is known from the three-term recursion.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from tangentune.solvers.factorisation import eigh, svd


def lanczos_pairs(matvec: Callable[[Tensor], Tensor], start: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Eigenpairs (r,) descending and (r, p) orthonormal of a matrix of at most `rank` that is below A semi-definitely.

    `matvec` is v -> A v, A (p, p) positive semi-definite; what A maps to 0 from `start` is never found. Cost: `rank`
    products and `rank` + 1 vectors, each orthogonalised twice (Lanczos 1950; Nystrom: Halko, Martinsson, Tropp 2011).
    """
    rank = min(rank, len(start))
    basis = start.new_zeros(rank + 1, len(start))
    basis[0] = start / start.norm()
    inner = torch.zeros(rank + 1, rank, dtype=torch.float64, device=start.device)
    steps, size = 0, 0.0
    for j in range(rank):
        product = matvec(basis[j])
        size = max(size, float(product.norm()))
        for _ in range(2):
            coefficients = basis[: j + 1] @ product
            product = product - basis[: j + 1].T @ coefficients
            inner[: j + 1, j] += coefficients.double()
        left = float(product.norm())
        steps = j + 1
        if left <= 10 * torch.finfo(start.dtype).eps * size:
            break
        inner[j + 1, j] = left
        basis[j + 1] = product / left
    half = inner[: steps + 1, :steps]
    core = (half[:steps] + half[:steps].T) / 2
    values, vectors = eigh(core, "the Lanczos matrix")
    kept = values > torch.finfo(start.dtype).eps * steps * values.max().clamp_min(0)
    left, singular, _ = svd(half @ vectors[:, kept] / values[kept].sqrt(), "the Lanczos matrix")
    return singular.square(), left.T.to(basis) @ basis[: steps + 1]
