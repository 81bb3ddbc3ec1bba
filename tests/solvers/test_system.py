"""A least-squares problem kept with its inverse, against fits in feature space."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from reference import bordered, closeness, dense_solve, inverse_of, kernel_of
from refits import VARIANTS, new_rows, random

from tangentune.errors import InputError
from tangentune.solvers.edits import remove
from tangentune.solvers.ridge import factor_ridge, solve
from tangentune.solvers.system import build, design, fitted, refresh, residual


@pytest.mark.parametrize("width, intercept, zeros", VARIANTS)
def test_predictions_are_those_of_the_fit_in_feature_space(width: int, intercept: bool, zeros: bool) -> None:
    problem = random(20, width=width, intercept=intercept, zeros=zeros)
    system, x = problem.system(), new_rows(7)
    assert closeness(fitted(system), problem.predict(problem.rows)) < 1e-11
    assert closeness(design(system, x @ problem.rows.T) @ system.unknowns, problem.predict(x)) < 1e-11
    assert closeness(system.bias, problem.coefficients()[-1]) < 1e-11 or not intercept
    assert system.pictures == 20
    assert residual(system)[0] < 1e-12


@pytest.mark.parametrize("intercept", [True, False])
def test_inverse_is_symmetric_and_the_inverse_of_the_weighted_matrix(intercept: bool) -> None:
    problem = random(20, intercept=intercept, zeros=True)
    system, roots = problem.system(), problem.weights.sqrt()
    matrix = roots[:, None] * kernel_of(system) * roots + problem.damping * torch.eye(20).double()
    if intercept:
        matrix = torch.cat([torch.cat([matrix, roots[:, None]], 1), torch.cat([roots, roots.new_zeros(1)])[None]])
    assert closeness(system.inverse @ matrix, torch.eye(len(matrix), dtype=torch.float64)) < 1e-12
    assert closeness(inverse_of(system), inverse_of(system).T) < 1e-14
    assert float(system.dual[:2].abs().max()) == 0


def test_agrees_with_the_dense_bordered_system_and_with_ridge() -> None:
    problem = random(20)
    system, kernel = problem.system(), problem.rows @ problem.rows.T
    dual, bias = dense_solve(kernel, problem.targets, problem.damping, problem.weights)
    assert closeness(system.dual, dual) < 1e-11
    assert closeness(system.bias, bias) < 1e-11
    ridge = solve(factor_ridge(kernel, problem.weights), problem.targets, problem.damping)
    assert closeness(system.dual, ridge.dual) < 1e-11
    plain = build(kernel, problem.targets, problem.damping)
    assert closeness(inverse_of(plain), torch.linalg.inv(bordered(kernel, problem.damping))) < 1e-11


def test_residual_sees_a_wrong_inverse_and_a_wrong_solution_and_refresh_repairs_both() -> None:
    system = random(20, zeros=True).system()
    inverse = inverse_of(system).clone()
    inverse[3, 5] += 1e-6 * inverse.abs().max()
    dual = system.dual.clone()
    dual[7, 1] += 1e-6 * dual.abs().max()
    for broken in (
        replace(system, inverse=inverse),
        replace(system, dual=dual),
        replace(system, bias=system.bias + 1e-6),
    ):
        assert residual(broken)[0] > 1e-8
        assert residual(refresh(broken))[0] < 1e-12
        assert closeness(refresh(broken).dual, system.dual) < 1e-12


def test_residual_of_targets_that_are_all_zero_is_a_number() -> None:
    problem = random(10)
    assert residual(problem.edited(targets=torch.zeros(10, 1).double()).system())[0] < 1e-12


def test_single_precision_and_integers_are_taken() -> None:
    problem = random(10)
    kernel = (problem.rows @ problem.rows.T).float()
    system = build(kernel, torch.arange(10)[:, None], 0.5, torch.ones(10, dtype=torch.int64))
    assert inverse_of(system).dtype == system.dual.dtype == torch.float64
    assert residual(system)[0] < 1e-12


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"kernel": torch.eye(5)[:4]}, r"square and a multiple of it, not \(4, 5\)"),
        ({"width": 2}, r"pictures with 2 rows each"),
        ({"targets": torch.ones(4, 1)}, r"targets must be \(5, C\) and weights \(5,\), not \(4, 1\)"),
        ({"targets": torch.full((5, 1), torch.nan)}, "the targets must be finite"),
        ({"kernel": torch.full((5, 5), torch.inf)}, "the kernel must be finite"),
        ({"weights": torch.tensor([1.0, 1, 1, 1, -1])}, "weights must not be negative"),
        ({"weights": torch.tensor([1.0, 0, 0, 0, 0])}, "at least 2 pictures with positive weight, 1 would be left"),
        ({"damping": 0.0}, r"damping is 0\.0; it must be positive"),
        ({"kernel": -torch.eye(5), "damping": 0.1}, "leaves the least-squares problem singular"),
    ],
)
def test_problems_that_cannot_be_solved_are_refused(fields: dict[str, Any], message: str) -> None:
    given = {"kernel": torch.eye(5), "targets": torch.ones(5, 1), "damping": 1.0} | fields
    with pytest.raises(InputError, match=message):
        build(**given)


def test_a_kernel_for_other_rows_is_refused() -> None:
    system = random(10).system()
    with pytest.raises(InputError, match=r"the 10 rows of the system must be \(m, 10\), not \(3, 9\)"):
        design(system, torch.ones(3, 9))
    assert len(remove(system, torch.tensor([0])).kernel) == 9
