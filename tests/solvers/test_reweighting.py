"""The leave-one-out loss as a function of the sample weights: refits, finite differences, closed form, and real use."""

from __future__ import annotations

import pytest
import torch
from reference import closeness
from refits import Refits, random
from torch import Tensor

from tangentune.errors import InputError
from tangentune.solvers.leave_out import loo
from tangentune.solvers.reweighting import squared, weight_gradient

N = 20


def loo_loss(
    kernel: Tensor,
    targets: Tensor,
    weights: Tensor,
    damping: float,
    *,
    evaluate: Tensor | None = None,
    intercept: bool = True,
) -> Tensor:
    """Mean leave-one-out loss of the weighted problem, differentiable in the weights: the slow way, by autograd."""
    # (damping I + K D) r = damping (y - b): symmetric it would need roots of a, whose slope is infinite at 0.
    maker = damping * torch.linalg.inv(kernel * weights + damping * torch.eye(len(kernel), dtype=torch.float64))
    if intercept:
        column, row = maker.sum(1), weights @ maker
        maker = maker - torch.outer(column, row) / row.sum()
    predictions = targets - (maker @ targets) / maker.diagonal()[:, None]
    shares = torch.ones(len(targets)).double() if evaluate is None else evaluate.double()
    return squared(predictions, targets) @ (shares / shares.sum())


EVALUATE = [None, torch.arange(N) % 3 == 0, torch.linspace(0, 2, N).double()]

counted = pytest.mark.parametrize("evaluate", EVALUATE, ids=["all", "mask", "weights"])
shapes = pytest.mark.parametrize("intercept, zeros", [(True, False), (True, True), (False, False), (False, True)])


def refitted(problem: Refits, evaluate: Tensor | None) -> Tensor:
    """The loss by a refit without every picture."""
    found = torch.cat([problem.predict(problem.rows[i : i + 1], problem.without(i)) for i in range(N)])
    shares = torch.ones(N).double() if evaluate is None else evaluate.double()
    return (squared(found, problem.targets) * shares).sum() / shares.sum()


@counted
@shapes
def test_loss_is_that_of_refits(intercept: bool, zeros: bool, evaluate: Tensor | None) -> None:
    problem = random(N, intercept=intercept, zeros=zeros)
    kernel = problem.rows @ problem.rows.T
    found = loo_loss(kernel, problem.targets, problem.weights, problem.damping, evaluate=evaluate, intercept=intercept)
    assert closeness(found, refitted(problem, evaluate)) < 1e-10


@counted
@shapes
def test_gradient_in_closed_form_is_autograds(intercept: bool, zeros: bool, evaluate: Tensor | None) -> None:
    problem = random(N, intercept=intercept, zeros=zeros)
    kernel, weights = problem.rows @ problem.rows.T, problem.weights.clone().requires_grad_()
    value = loo_loss(kernel, problem.targets, weights, problem.damping, evaluate=evaluate, intercept=intercept)
    (expected,) = torch.autograd.grad(value, weights)
    assert closeness(weight_gradient(problem.system(), evaluate=evaluate), expected) < 1e-10


@shapes
def test_gradient_is_that_of_refits_by_finite_differences(intercept: bool, zeros: bool) -> None:
    problem = random(N, intercept=intercept)
    weights = problem.weights.clone()
    weights[:2] = 0.05 if not zeros else 0.0
    problem = problem.edited(weights=weights)
    found = weight_gradient(problem.system())
    step = 1e-4
    for i in (0, 7, 19):
        values = []
        for k in range(5) if zeros and i == 0 else (-1, 1):  # a weight of 0 has only one side
            moved = weights.clone()
            moved[i] += k * step
            values.append(refitted(problem.edited(weights=moved), None))
        if len(values) == 2:
            slope = (values[1] - values[0]) / (2 * step)
        else:
            slope = sum(c * v for c, v in zip((-25 / 12, 4.0, -3.0, 4 / 3, -1 / 4), values, strict=True)) / step
        assert float((found[i] - slope).abs() / found.abs().max()) < 1e-6


def test_loss_agrees_with_the_kept_system() -> None:
    problem = random(N, zeros=True)
    value = loo_loss(problem.rows @ problem.rows.T, problem.targets, problem.weights, problem.damping)
    assert closeness(value, squared(loo(problem.system()), problem.targets).mean()) < 1e-10


def test_questions_that_make_no_sense_are_refused() -> None:
    problem = random(10)
    with pytest.raises(InputError, match=r"evaluate must be \(10,\) shares"):
        weight_gradient(problem.system(), evaluate=torch.zeros(10))
    with pytest.raises(InputError, match="one row a picture, not 3"):
        weight_gradient(random(5, width=3).system())
