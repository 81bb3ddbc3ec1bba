"""The leave-one-out loss as a function of the sample weights: refits, finite differences, closed form, and real use."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from reference import closeness
from refits import Refits, random
from torch import Tensor

from tangentune.errors import InputError
from tangentune.solvers.edits import reweight
from tangentune.solvers.leave_out import loo
from tangentune.solvers.reweighting import (
    Loss,
    bounded,
    expected_error,
    improve_weights,
    squared,
    weight_gradient,
)
from tangentune.solvers.system import build, design

N = 20


def cross_entropy(temperature: float) -> Loss:
    """Cross-entropy of `softmax(predictions / temperature)` with one-hot targets, in nats."""
    return lambda predictions, targets: -(torch.log_softmax(predictions / temperature, 1) * targets).sum(1)


def loo_loss(
    kernel: Tensor,
    targets: Tensor,
    weights: Tensor,
    damping: float,
    *,
    loss: Loss = squared,
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
    return loss(predictions, targets) @ (shares / shares.sum())


LOSSES = [squared, cross_entropy(0.5)]
EVALUATE = [None, torch.arange(N) % 3 == 0, torch.linspace(0, 2, N).double()]

losses = pytest.mark.parametrize("loss", LOSSES, ids=["squared", "cross_entropy"])
counted = pytest.mark.parametrize("evaluate", EVALUATE, ids=["all", "mask", "weights"])
shapes = pytest.mark.parametrize("intercept, zeros", [(True, False), (True, True), (False, False), (False, True)])


def refitted(problem: Refits, loss: Loss, evaluate: Tensor | None) -> Tensor:
    """The loss by a refit without every picture."""
    found = torch.cat([problem.predict(problem.rows[i : i + 1], problem.without(i)) for i in range(N)])
    shares = torch.ones(N).double() if evaluate is None else evaluate.double()
    return (loss(found, problem.targets) * shares).sum() / shares.sum()


@losses
@counted
@shapes
def test_loss_is_that_of_refits(intercept: bool, zeros: bool, evaluate: Tensor | None, loss: Loss) -> None:
    problem = random(N, intercept=intercept, zeros=zeros)
    kernel = problem.rows @ problem.rows.T
    found = loo_loss(
        kernel, problem.targets, problem.weights, problem.damping, loss=loss, evaluate=evaluate, intercept=intercept
    )
    assert closeness(found, refitted(problem, loss, evaluate)) < 1e-10


@losses
@counted
@shapes
def test_gradient_in_closed_form_is_autograds(
    intercept: bool, zeros: bool, evaluate: Tensor | None, loss: Loss
) -> None:
    problem = random(N, intercept=intercept, zeros=zeros)
    kernel, weights = problem.rows @ problem.rows.T, problem.weights.clone().requires_grad_()
    value = loo_loss(
        kernel, problem.targets, weights, problem.damping, loss=loss, evaluate=evaluate, intercept=intercept
    )
    (expected,) = torch.autograd.grad(value, weights)
    assert closeness(weight_gradient(problem.system(), loss=loss, evaluate=evaluate), expected) < 1e-10


@losses
@shapes
def test_gradient_is_that_of_refits_by_finite_differences(intercept: bool, zeros: bool, loss: Loss) -> None:
    problem = random(N, intercept=intercept)
    weights = problem.weights.clone()
    weights[:2] = 0.05 if not zeros else 0.0
    problem = problem.edited(weights=weights)
    found = weight_gradient(problem.system(), loss=loss)
    step = 1e-4
    for i in (0, 7, 19):
        values = []
        for k in range(5) if zeros and i == 0 else (-1, 1):  # a weight of 0 has only one side
            moved = weights.clone()
            moved[i] += k * step
            values.append(refitted(problem.edited(weights=moved), loss, None))
        if len(values) == 2:
            slope = (values[1] - values[0]) / (2 * step)
        else:
            slope = sum(c * v for c, v in zip((-25 / 12, 4.0, -3.0, 4 / 3, -1 / 4), values, strict=True)) / step
        assert float((found[i] - slope).abs() / found.abs().max()) < 1e-6


def test_loss_agrees_with_the_kept_system() -> None:
    problem = random(N, zeros=True)
    value = loo_loss(problem.rows @ problem.rows.T, problem.targets, problem.weights, problem.damping)
    assert closeness(value, squared(loo(problem.system()), problem.targets).mean()) < 1e-10


def noisy_clusters(count: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Three overlapping classes in 12 features: rows, right labels, and labels of which a fifth are wrong."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 3
    rows = torch.randn(count, 12, generator=generator, dtype=torch.float64)
    rows[torch.arange(count), labels] += 2.5
    wrong = torch.randperm(count, generator=generator)[: count // 5]
    given = labels.clone()
    given[wrong] = (given[wrong] + 1) % 3
    return rows, labels, given


@pytest.mark.parametrize("loss", [None, expected_error(0.2)], ids=["bounded", "expected_error"])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_wrong_labels_lose_weight_and_predictions_gain(seed: int, loss: Loss | None) -> None:
    rows, labels, given = noisy_clusters(150, seed)
    test, test_labels, _ = noisy_clusters(600, seed + 100)
    targets = torch.eye(3).double()[given]
    even = build(rows @ rows.T, targets, 30.0)
    weights, losses = improve_weights(even.kernel, targets, 30.0, loss=loss)
    learned = reweight(even, weights)
    right = given == labels
    assert float(weights[~right].mean()) < 0.3 < 0.8 < float(weights[right].mean())
    assert bool((losses.diff() < 0).all())
    before, after = (design(s, test @ rows.T) @ s.unknowns for s in (even, learned))
    truth = torch.eye(3).double()[test_labels]
    assert squared(after, truth).mean() < 0.9 * squared(before, truth).mean()


def test_learned_weights_stay_below_where_they_began_and_losses_are_those_of_refits() -> None:
    problem = random(N, zeros=True)
    kernel = problem.rows @ problem.rows.T
    given: dict[str, Any] = {"loss": bounded(2.0), "evaluate": EVALUATE[1]}
    weights, losses = improve_weights(kernel, problem.targets, 0.3, weights=problem.weights, steps=3, **given)
    assert bool((weights >= 0).all())
    assert bool((weights <= problem.weights).all())
    first, last = (refitted(problem.edited(weights=a), **given) for a in (problem.weights, weights))
    assert losses.shape == (4,)
    assert closeness(losses[[0, -1]], torch.stack([first, last])) < 1e-9
    assert last < first


def test_questions_that_make_no_sense_are_refused() -> None:
    problem = random(10)
    with pytest.raises(InputError, match=r"evaluate must be \(10,\) shares"):
        weight_gradient(problem.system(), evaluate=torch.zeros(10))
    with pytest.raises(InputError, match="one row a picture, not 3"):
        weight_gradient(random(5, width=3).system())
