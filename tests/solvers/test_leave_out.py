"""Leaving out, influence, shares and unique information against refits without the pictures."""

from __future__ import annotations

import pytest
import torch
from reference import closeness, refit_loo
from refits import VARIANTS, Refits, new_rows, random
from torch import Tensor

from tangentune.errors import InputError
from tangentune.solvers.edits import remove
from tangentune.solvers.leave_out import (
    contributions,
    influence,
    leave_out,
    light,
    loo,
    pair_influence,
    unique_information,
)
from tangentune.solvers.system import build


def refit_without(problem: Refits, groups: Tensor) -> Tensor:
    """Predictions at every row by a fit without its picture's group."""
    out, of_row = torch.empty_like(problem.targets), groups.repeat_interleave(problem.width)
    for group in groups.unique():
        out[of_row == group] = problem.predict(problem.rows[of_row == group], of_row != group)
    return out


@pytest.mark.parametrize("width, intercept, zeros", VARIANTS)
def test_loo_is_a_refit_without_every_picture(width: int, intercept: bool, zeros: bool) -> None:
    problem = random(25, width=width, intercept=intercept, zeros=zeros)
    assert closeness(loo(problem.system()), refit_without(problem, torch.arange(25))) < 1e-9


@pytest.mark.parametrize("width, intercept, zeros", VARIANTS)
@pytest.mark.parametrize("folds", [3, 10, 40])
def test_leaving_groups_out_is_a_refit_without_each(folds: int, width: int, intercept: bool, zeros: bool) -> None:
    problem = random(40, width=width, intercept=intercept, zeros=zeros)
    groups = torch.arange(40)[torch.randperm(40, generator=torch.Generator().manual_seed(1))] % folds - 1
    assert closeness(leave_out(problem.system(), groups), refit_without(problem, groups)) < 1e-9


def test_uneven_groups_are_left_out_and_singles_are_loo() -> None:
    problem = random(20)
    system = problem.system()
    groups = torch.tensor([0] * 6 + [5] * 1 + [2] * 13)
    assert closeness(leave_out(system, groups), refit_without(problem, groups)) < 1e-9
    assert closeness(leave_out(system, torch.arange(20)), loo(system)) < 1e-12


def test_a_picture_without_weight_is_predicted_plainly() -> None:
    problem = random(20, zeros=True)
    assert closeness(loo(problem.system())[:2], problem.predict(problem.rows[:2])) < 1e-11


def test_two_pictures_predict_each_other_by_the_mean() -> None:
    targets = torch.tensor([[1.0], [3.0]]).double()
    assert closeness(loo(build(torch.eye(2), targets, 0.1)), targets.flip(0)) < 1e-12


def test_agrees_with_the_other_solvers() -> None:
    problem = random(20)
    kernel = problem.rows @ problem.rows.T
    expected = refit_loo(kernel, problem.targets, problem.damping, problem.weights)
    assert closeness(loo(problem.system()), expected) < 1e-10


@pytest.mark.parametrize("width, intercept, zeros", VARIANTS)
def test_influence_is_the_change_by_a_refit(width: int, intercept: bool, zeros: bool) -> None:
    problem = random(20, width=width, intercept=intercept, zeros=zeros)
    x = new_rows(5)
    found = influence(problem.system(), x @ problem.rows.T)
    whole = problem.predict(x)
    expected = torch.stack([whole - problem.predict(x, problem.without(i)) for i in range(20)], 1)
    assert closeness(found, expected) < 1e-9


@pytest.mark.parametrize("width, intercept, zeros", VARIANTS)
def test_contributions_sum_to_the_prediction(width: int, intercept: bool, zeros: bool) -> None:
    problem = random(20, width=width, intercept=intercept, zeros=zeros)
    system, x = problem.system(), new_rows(5)
    found = contributions(system, x @ problem.rows.T)
    assert found.shape == (5, 20, problem.targets.shape[1])
    assert closeness(found.sum(1) + system.bias, problem.predict(x)) < 1e-11
    own = x @ problem.rows[3 * width : 4 * width].T @ system.dual[3 * width : 4 * width]
    assert closeness(found[:, 3], own) < 1e-12


@pytest.mark.parametrize("width, intercept, zeros", VARIANTS)
def test_unique_information_is_the_distance_to_the_refit(width: int, intercept: bool, zeros: bool) -> None:
    problem = random(20, width=width, intercept=intercept, zeros=zeros)
    system, x = problem.system(), new_rows(5)
    whole, predicted = problem.coefficients(), problem.predict(x)
    weight = torch.stack([(whole - problem.coefficients(problem.without(i)))[:-1].square().sum() for i in range(20)])
    assert closeness(unique_information(system), weight) < 1e-9
    moved = [(predicted - problem.predict(x, problem.without(i))).square().sum() / 5 for i in range(20)]
    assert closeness(unique_information(system, x @ problem.rows.T), torch.stack(moved)) < 1e-9


def test_questions_that_make_no_sense_are_refused() -> None:
    system = random(10, zeros=True).system()
    with pytest.raises(InputError, match=r"groups must be 10 integers, one a picture, not \(9,\)"):
        leave_out(system, torch.arange(9))
    with pytest.raises(InputError, match="groups must be 10 integers"):
        leave_out(system, torch.rand(10))
    groups = (torch.arange(10) < 2).long()
    with pytest.raises(InputError, match="group 0 holds every picture that has weight"):
        leave_out(random(10, zeros=False).edited(weights=1.0 - groups).system(), groups)
    with pytest.raises(InputError, match=r"must be \(m, 10\), not \(2, 3\)"):
        contributions(system, torch.ones(2, 3))
    with pytest.raises(InputError, match="at least one new row"):
        unique_information(system, torch.ones(0, 10))


@pytest.mark.parametrize("intercept", [True, False])
@pytest.mark.parametrize("zeros", [True, False])
def test_pairs_are_left_out_by_one_row_of_the_inverse(intercept: bool, zeros: bool) -> None:
    """What each other picture does to the answer about one that is left out, by fits without both."""
    problem = random(25, intercept=intercept, zeros=zeros)
    system = problem.system()
    assert [light(system, i) for i in (0, 5, 7)] == [zeros, zeros, False]
    moved, shares = pair_influence(system, 7)
    alone = problem.predict(problem.rows[7:8], problem.without(7))
    for other in range(25):
        both = problem.predict(problem.rows[7:8], problem.without(*{7, other}))
        assert closeness(alone - moved[other : other + 1], both) < 1e-9
    rest = torch.arange(25) != 7
    left = contributions(remove(system, torch.tensor([7])), system.kernel[7][None, rest])[0]
    assert closeness(shares[rest], left) < 1e-9
    assert moved[7].tolist() == shares[7].tolist() == [0.0] * 4
