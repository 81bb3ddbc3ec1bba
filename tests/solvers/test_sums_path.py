"""Evidence and generalised cross-validation from sums are those of the kernel."""

from __future__ import annotations

import pytest
import torch
from reference import closeness

from tangentune.errors import InputError
from tangentune.solvers import ridge
from tangentune.solvers.sums import TangentSums
from tangentune.solvers.sums_path import choose_damping, generalised_errors, log_evidence

DAMPINGS = torch.logspace(-2, 2, 9, dtype=torch.float64)


@pytest.mark.parametrize("n", [40, 200])
@pytest.mark.parametrize("even", [True, False])
def test_both_are_those_of_the_kernel(n: int, even: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    rows = 1 + torch.randn(n, 12, generator=generator, dtype=torch.float64)
    targets = torch.randn(n, 3, generator=generator, dtype=torch.float64)
    weights = torch.ones(n).double() if even else 0.2 + torch.rand(n, generator=generator, dtype=torch.float64)
    sums = TangentSums.of(rows, targets, "a map", weights)
    factor = ridge.factor_ridge(rows @ rows.T, weights)
    assert closeness(log_evidence(sums, n, DAMPINGS), ridge.log_evidence(factor, targets, DAMPINGS)) < 1e-8
    expected = []
    for damping in DAMPINGS.tolist():
        found = ridge.solve(factor, targets, damping)
        residual = targets - rows @ rows.T @ found.dual - found.intercept
        lever = 1 - damping * ridge.inverse_diagonal(factor, damping)
        squared = float(weights @ residual.square().sum(1) / weights.sum())
        expected.append(squared / (1 - float(lever.mean())) ** 2)
    assert (
        closeness(generalised_errors(sums.factor(), DAMPINGS).sum(1), torch.tensor(expected, dtype=torch.float64))
        < 1e-8
    )


def test_the_best_damping_is_chosen() -> None:
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(60, 12, generator=generator, dtype=torch.float64)
    targets = rows[:, :2] + torch.randn(60, 2, generator=generator, dtype=torch.float64)
    factor = TangentSums.of(rows, targets, "a map").factor()
    best = choose_damping(factor)
    near = torch.tensor([best / 1.2, best, best * 1.2], dtype=torch.float64)
    assert int(generalised_errors(factor, near).sum(1).argmin()) == 1
    few = TangentSums.of(rows[:8], targets[:8], "a map").factor()  # a fit that takes up every picture has no error
    alike = TangentSums.of(rows[:8], 0 * targets[:8], "a map").factor()  # nor one whose error is 0 to rounding
    assert all(torch.isinf(generalised_errors(sums, 1e-9 * near)).all() for sums in (few, alike))
    with pytest.raises(InputError, match="no damping can be chosen from these sums"):
        choose_damping(TangentSums.of(0 * rows, targets, "a map").factor())
