"""Dirichlet-based classification against C dense Gaussian processes, real refits and scikit-learn."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from classes import F64, Problem, three_classes
from reference import closeness
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import ConstantKernel, DotProduct
from torch import Tensor

from tangentune.errors import InputError
from tangentune.solvers.calibration import calibrated
from tangentune.solvers.dirichlet import fit_dirichlet, latents, predict_dirichlet
from tangentune.solvers.softmax import INTERCEPT, softmax_gaussian


def observations(classes: Tensor, count: int, pseudocount: float) -> tuple[Tensor, Tensor]:
    """Targets and noise, straight from the definition."""
    targets, noise = torch.empty(len(classes), count, dtype=F64), torch.empty(len(classes), count, dtype=F64)
    for i, label in enumerate(classes.tolist()):
        for c in range(count):
            alpha = pseudocount + (1.0 if c == label else 0.0)
            noise[i, c] = math.log(1 / alpha + 1)
            targets[i, c] = math.log(alpha) - noise[i, c] / 2
    return targets, noise


def dense_latents(
    problem: Problem, count: int, scale: float, pseudocount: float, weights: Tensor | None
) -> tuple[Tensor, Tensor]:
    targets, noise = observations(problem.classes, count, pseudocount)
    mean, variance = [], []
    for c in range(count):
        a = noise[:, c] if weights is None else noise[:, c] / weights
        system = scale * problem.kernel + INTERCEPT + torch.diag(a)
        k = scale * problem.cross + INTERCEPT
        mean.append(k @ torch.linalg.solve(system, targets[:, c]))
        variance.append(scale * problem.own + INTERCEPT - (k * torch.linalg.solve(system, k.T).T).sum(1))
    return torch.stack(mean, 1), torch.stack(variance, 1)


@pytest.mark.parametrize("count", [3, 5])  # two classes without a picture
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("scale, pseudocount", [(0.1, 0.1), (3.0, 1e-3), (300.0, 1e-8)])
def test_it_is_a_dense_process_for_every_class(scale: float, pseudocount: float, weighted: bool, count: int) -> None:
    problem = three_classes()
    weights = problem.weights if weighted else None
    solution = fit_dirichlet(problem.kernel, problem.classes, count, weights, scale=scale, pseudocount=pseudocount)
    mean, variance = latents(solution, problem.cross, problem.own)
    dense = dense_latents(problem, count, scale, pseudocount, weights)
    assert closeness(mean, dense[0]) < 1e-9
    assert closeness(variance, dense[1]) < 1e-9
    proba = predict_dirichlet(solution, problem.cross, problem.own)
    assert float((proba - calibrated(solution.calibration, softmax_gaussian(*dense).log())).abs().max()) < 1e-9
    assert torch.allclose(proba.sum(1), torch.ones(len(proba), dtype=F64))


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("scale, pseudocount", [(0.1, 0.1), (3.0, 1e-3), (30.0, 1e-7)])
def test_leave_one_out_is_real_refits(scale: float, pseudocount: float, weighted: bool) -> None:
    problem = three_classes(18)
    weights = problem.weights if weighted else torch.ones(18, dtype=F64)
    kernel, classes = problem.kernel, problem.classes
    solution = fit_dirichlet(kernel, classes, 3, weights, scale=scale, pseudocount=pseudocount)
    for i in range(18):
        rest = torch.arange(18) != i
        refit = fit_dirichlet(
            kernel[rest][:, rest], classes[rest], 3, weights[rest], scale=scale, pseudocount=pseudocount
        )
        proba = softmax_gaussian(*latents(refit, kernel[i : i + 1, rest], kernel.diagonal()[i : i + 1]))
        expected = calibrated(solution.calibration, proba.log())
        assert float((solution.loo[i] - expected[0]).abs().max()) < 1e-8


def test_gaussian_process_of_sklearn() -> None:
    problem, scale, pseudocount = three_classes(), 0.7, 0.02
    solution = fit_dirichlet(problem.kernel, problem.classes, 3, scale=scale, pseudocount=pseudocount)
    mean, variance = latents(solution, problem.cross, problem.own)
    targets, noise = observations(problem.classes, 3, pseudocount)
    kernel = ConstantKernel(scale) * DotProduct(0.0, "fixed") + ConstantKernel(INTERCEPT)
    for c in range(3):
        settings: dict[str, Any] = {"alpha": noise[:, c].numpy(), "optimizer": None}
        theirs = GaussianProcessRegressor(kernel, **settings).fit(problem.x.numpy(), targets[:, c].numpy())
        expected, deviation = theirs.predict(problem.new.numpy(), return_std=True)
        assert closeness(mean[:, c], torch.from_numpy(expected)) < 1e-8
        assert closeness(variance[:, c].sqrt(), torch.from_numpy(deviation)) < 1e-7


def log_loss(proba: Tensor, classes: Tensor) -> float:
    return float(-proba[torch.arange(len(classes)), classes].log().mean())


def test_the_search_finds_the_least_leave_one_out_loss() -> None:
    problem = three_classes(60, separation=0.6, seed=5)
    solution = fit_dirichlet(problem.kernel, problem.classes, 3)
    least = log_loss(solution.loo, problem.classes)
    for scale in (0.2, 1.0, 5.0):
        for e in (0.1, 1.0, 10.0):
            settings: dict[str, Any] = {"scale": scale * solution.scale, "pseudocount": e * solution.pseudocount}
            other = fit_dirichlet(problem.kernel, problem.classes, 3, **settings)
            assert log_loss(other.loo, problem.classes) > least - 0.01
    # Held-out pictures agree with what leave-one-out promised, and beat the class frequencies by far.
    proba = predict_dirichlet(solution, problem.cross, problem.own)
    assert log_loss(proba, problem.new_classes) == pytest.approx(least, abs=0.2)
    assert log_loss(proba, problem.new_classes) < 0.8 * math.log(3)
    assert float((proba.argmax(1) == problem.new_classes).double().mean()) > 0.6


def test_the_search_keeps_what_is_given_and_knows_no_unit() -> None:
    problem = three_classes(12)
    kernel, classes = problem.kernel, problem.classes
    assert fit_dirichlet(kernel, classes, 3, scale=2.0).scale == pytest.approx(2.0)
    assert fit_dirichlet(kernel, classes, 3, pseudocount=0.05).pseudocount == pytest.approx(0.05)
    plain, scaled = fit_dirichlet(kernel, classes, 3), fit_dirichlet(1e4 * kernel, classes, 3)
    again = fit_dirichlet(kernel, classes, 3, scale=plain.scale, pseudocount=plain.pseudocount)
    assert torch.equal(again.loo, plain.loo)  # the same bits
    assert closeness(scaled.loo, plain.loo) < 1e-6
    assert 1e4 * scaled.scale == pytest.approx(plain.scale, rel=1e-6)


def test_separable_classes_stay_finite() -> None:
    problem = three_classes(12, separation=8.0)
    solution = fit_dirichlet(problem.kernel, problem.classes, 3)
    assert bool(torch.isfinite(solution.loo).all())
    assert bool((solution.loo.argmax(1) == problem.classes).all())
    assert float(solution.loo.max()) < 1 - 1e-7


def test_far_away_it_is_unsure() -> None:
    problem = three_classes()
    solution = fit_dirichlet(problem.kernel, problem.classes, 3)
    far = predict_dirichlet(solution, torch.zeros(1, 30), 100 * problem.own[:1])
    near = predict_dirichlet(solution, problem.cross, problem.own)
    assert float(far.max()) < float(near.max(1).values.median()) - 0.1


@pytest.mark.parametrize(
    "change, words",
    [
        ({"classes": torch.tensor([0, 1, 3])}, "label in 0..C-1"),
        ({"classes": torch.tensor([0, 1])}, "3 pictures, 2 labels"),
        ({"count": 1}, "two classes"),
        ({"kernel": torch.full((3, 3), float("nan"))}, "NaN"),
        ({"weights": torch.tensor([1.0, 0.0, 1.0])}, "must be positive"),
        ({"scale": 0.0}, "must be positive"),
        ({"pseudocount": -1.0}, "must be positive"),
    ],
)
def test_bad_problems_are_refused(change: dict[str, Any], words: str) -> None:
    given = {"kernel": torch.eye(3), "classes": torch.tensor([0, 1, 2]), "count": 3} | change
    with pytest.raises(InputError, match=words):
        fit_dirichlet(**given)
