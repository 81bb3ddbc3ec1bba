"""The low-rank matrix of Lanczos steps is below the matrix it comes from, and becomes it."""

from __future__ import annotations

import pytest
import torch
from reference import closeness
from torch import Tensor

from tangentune.solvers.lanczos import lanczos_pairs


def matrix(rank: int) -> Tensor:
    """Semi-definite (30, 30), eigenvalues over six decades."""
    generator = torch.Generator().manual_seed(0)
    basis = torch.linalg.qr(torch.randn(30, 30, generator=generator, dtype=torch.float64)).Q[:, :rank]
    return basis @ torch.diag(torch.logspace(3, -3, rank, dtype=torch.float64)) @ basis.T


@pytest.mark.parametrize("rank", [5, 20])
@pytest.mark.parametrize("steps", [1, 3, 6, 12, 30, 99])
def test_the_low_rank_matrix_is_below(rank: int, steps: int) -> None:
    a = matrix(rank)
    start = a @ torch.ones(30, dtype=torch.float64)
    values, vectors = lanczos_pairs(lambda v: a @ v, start, steps)
    assert closeness(vectors @ vectors.T, torch.eye(len(values), dtype=torch.float64)) < 1e-9
    found = vectors.T @ torch.diag(values) @ vectors
    gap = torch.linalg.eigvalsh(a - found)
    assert float(gap.min()) > -1e-9 * 1e3, "never above"
    assert bool((values.diff() <= 0).all())
    if steps >= 30 and rank == 5:
        assert closeness(found, a) < 1e-9
    if steps == 3:
        assert float(gap.max()) > 1e-3, "not yet all"


def test_ritz_pairs_alone_would_be_above() -> None:
    a = matrix(20)
    basis = torch.linalg.qr(torch.randn(30, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)).Q
    compressed = basis @ (basis.T @ a @ basis) @ basis.T
    assert float(torch.linalg.eigvalsh(a - compressed).min()) < -1, "why the Nystrom form is used"
