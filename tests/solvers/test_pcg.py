"""Conjugate gradients against direct solves, and that they never stop short silently."""

from __future__ import annotations

import pytest
import torch
from reference import closeness
from torch import Tensor

from tangentune.errors import InputError
from tangentune.solvers.pcg import pcg


def system(size: int = 30, condition: float = 1e4) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    q = torch.linalg.qr(torch.randn(size, size, generator=generator, dtype=torch.float64))[0]
    values = torch.logspace(0, torch.tensor(condition).log10().item(), size, dtype=torch.float64)
    return (q * values) @ q.T, torch.randn(size, generator=generator, dtype=torch.float64)


def test_solution_is_that_of_a_direct_solve() -> None:
    a, b = system()
    seen: list[tuple[int, float]] = []
    result = pcg(lambda v: a @ v, b, tolerance=1e-12, max_iterations=200, callback=lambda k, r, _: seen.append((k, r)))
    assert result.converged
    assert closeness(result.x, torch.linalg.solve(a, b)) < 1e-8
    assert float((b - a @ result.x).norm() / b.norm()) == pytest.approx(result.relative_residuals[-1], rel=1e-12)
    assert result.iterations == len(result.relative_residuals) - 1 == len(seen)
    assert seen[3] == (4, result.relative_residuals[4])


def test_iterates_minimise_over_the_krylov_space() -> None:
    # The definition: after k steps x is the minimiser of the quadratic over span(b, A b, ..., A^{k-1} b).
    a, b = system(12, 50.0)
    iterates: list[Tensor] = []
    pcg(lambda v: a @ v, b, tolerance=1e-9, max_iterations=40, callback=lambda k, r, x: iterates.append(x))
    basis = b[:, None]
    for x in iterates[:5]:
        q = torch.linalg.qr(basis)[0]
        assert closeness(x, q @ torch.linalg.solve(q.T @ a @ q, q.T @ b)) < 1e-9
        basis = torch.cat([basis, (a @ basis[:, -1:])], 1)


def test_the_exact_inverse_needs_one_step_and_a_good_one_needs_few() -> None:
    a, b = system(40, 1e6)
    exact = pcg(lambda v: a @ v, b, precondition=lambda r: torch.linalg.solve(a, r), tolerance=1e-8, max_iterations=5)
    assert exact.iterations == 1
    nearly = a + torch.diag(torch.linspace(0, 1, 40, dtype=torch.float64))
    good = pcg(lambda v: a @ v, b, precondition=lambda r: torch.linalg.solve(nearly, r), max_iterations=60)
    plain = pcg(lambda v: a @ v, b, max_iterations=1000)
    assert good.converged
    assert plain.converged
    assert 3 * good.iterations < plain.iterations


def test_zero_needs_no_step() -> None:
    a, _ = system(10, 10.0)
    nothing = pcg(lambda v: a @ v, torch.zeros(10), max_iterations=3)
    assert nothing.converged
    assert not nothing.x.any()


def test_the_cap_warns_and_is_flagged() -> None:
    a, b = system()
    with pytest.warns(RuntimeWarning, match=r"its cap of 3 steps with relative residual .*, above the tolerance"):
        result = pcg(lambda v: a @ v, b, max_iterations=3)
    assert not result.converged
    assert result.iterations == 3
    assert result.relative_residuals[-1] == pytest.approx(float((b - a @ result.x).norm() / b.norm()))


def test_rounding_that_hides_a_residual_is_found() -> None:
    # In float32 the recursion goes to 1e-12 though the true residual stays near 1e-4.
    a, b = (t.float() for t in system(30, 1e5))
    with pytest.warns(RuntimeWarning, match="the limit of rounding"):
        result = pcg(lambda v: a @ v, b, tolerance=1e-12, max_iterations=5000)
    assert not result.converged
    assert result.relative_residuals[-1] > 1e-9


def test_what_is_not_positive_definite_is_refused() -> None:
    b = torch.tensor([1.0, 1.0])
    with pytest.raises(InputError, match="the matrix is not positive definite"):
        pcg(lambda v: v * torch.tensor([1.0, -2.0]), b, max_iterations=3)
    with pytest.raises(InputError, match="the pre-conditioner is not positive definite"):
        pcg(lambda v: v, b, precondition=lambda r: -r, max_iterations=3)
    with pytest.raises(InputError, match="not finite|not positive definite"):
        pcg(lambda v: v * float("nan"), b, max_iterations=3)
