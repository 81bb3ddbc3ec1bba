"""Landmarks: the pictures whose kernel rows span the rest best."""

from __future__ import annotations

import torch
from torch import Tensor

from tangentune.solvers.factorisation import eigh

RANK = 1e-12  # share of the largest eigenvalue of a kernel below which a direction is rounding


def choose_landmarks(features: Tensor, count: int, seed: int = 0) -> Tensor:
    """(count,) rows of features (n, d), ascending, by randomly pivoted Cholesky on their kernel.

    Each is drawn in proportion to what the former ones leave of its squared length, so that dense regions get few and
    odd pictures are found, without the outliers that the largest remainder alone would take. Where nothing is left, the
    others are drawn evenly. Cost n count (d + count).

    Source: Chen, Epperly, Tropp, Webber (2024), "Randomly pivoted Cholesky", algorithm 2.1.
    """
    n, generator = len(features), torch.Generator().manual_seed(seed)
    left = features.square().sum(1)
    whole, factor = float(left.sum()), features.new_zeros(n, count)
    chosen: list[int] = []
    for step in range(count):
        weights = left.cpu().clone()
        weights[chosen] = 0
        if not float(weights.sum()) > 1e-12 * whole:
            weights = torch.ones(n)
            weights[chosen] = 0
        pivot = int(torch.multinomial(weights, 1, generator=generator))
        chosen.append(pivot)
        column = features @ features[pivot] - factor[:, :step] @ factor[pivot, :step]
        if float(column[pivot]) > 1e-12 * whole / n:
            factor[:, step] = column / column[pivot].sqrt()
            left = (left - factor[:, step].square()).clamp_min(0)
    return torch.tensor(sorted(chosen))


def inverse_root(kernel: Tensor) -> Tensor:
    """(m, rank) `R` with `R R^T = K^-1` on what the landmarks span, of their kernel K (m, m).

    `k(x, u) R` are rows whose products are `k(x, u) K^-1 k(u, x')`, the Nystroem kernel: equal to k where x or x' is a
    landmark, nowhere above it. Cost m^3.
    """
    values, vectors = eigh(kernel, "the landmarks' kernel")
    kept = values > RANK * values[-1].clamp_min(0)
    return vectors[:, kept] / values[kept].sqrt()
