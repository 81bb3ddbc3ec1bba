"""Laplace's approximation against scikit-learn, dense algebra, finite differences and real refits."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from classes import F64, Problem, three_classes
from reference import closeness
from sklearn.gaussian_process import GaussianProcessClassifier
from sklearn.gaussian_process.kernels import ConstantKernel, DotProduct
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from tangentune.errors import InputError
from tangentune.solvers.calibration import calibrated
from tangentune.solvers.laplace import LaplaceSolution, fit_laplace, latents, predict_laplace
from tangentune.solvers.softmax import INTERCEPT, softmax_gaussian


def fit(problem: Problem, scale: float | None, weights: Tensor | None = None) -> LaplaceSolution:
    return fit_laplace(problem.kernel, problem.classes, 3, weights, scale=scale)


def prior(problem: Problem, scale: float) -> Tensor:
    return scale * problem.kernel + INTERCEPT


@pytest.mark.parametrize("separation, weighted", [(1.0, False), (20.0, True)])
@pytest.mark.parametrize("width", [6, 60])
@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e5])
def test_the_gradient_vanishes_at_the_mode(scale: float, weighted: bool, width: int, separation: float) -> None:
    problem = three_classes(width=width, separation=separation)
    weights = problem.weights if weighted else torch.ones(30, dtype=F64)
    solution = fit(problem, scale, weights)
    values, vectors = torch.linalg.eigh(prior(problem, scale))
    root = vectors * values.clamp_min(0).sqrt()
    latent = prior(problem, scale) @ solution.dual
    labels = torch.nn.functional.one_hot(problem.classes, 3).double()
    gradient = root.T @ (solution.dual - weights[:, None] * (labels - torch.softmax(latent, 1)))
    assert float(gradient.abs().max()) < 1e-8 * max(1.0, float(root.norm()) / 1e3)  # what rounding leaves


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("scale", [0.01, 1.0, 100.0])
def test_the_mode_is_logistic_regression_of_sklearn(scale: float, weighted: bool) -> None:
    problem = three_classes()
    features = torch.cat([scale**0.5 * problem.x, torch.full((30, 1), INTERCEPT**0.5, dtype=F64)], 1)
    theirs = LogisticRegression(C=1.0, fit_intercept=False, tol=1e-10, max_iter=10_000, solver="newton-cg")
    theirs.fit(features.numpy(), problem.classes.numpy(), problem.weights.numpy() if weighted else None)
    solution = fit(problem, scale, problem.weights if weighted else None)
    assert closeness(features.T @ solution.dual, torch.from_numpy(theirs.coef_).T) < 1e-6


@pytest.mark.parametrize("weighted", [False, True])
def test_log_evidence_by_finite_differences(weighted: bool) -> None:
    problem = three_classes(8)
    weights = problem.weights if weighted else torch.ones(8, dtype=F64)
    solution = fit(problem, 0.5, weights)
    root = torch.linalg.cholesky(prior(problem, 0.5) + 1e-10 * torch.eye(8, dtype=F64))
    labels = torch.nn.functional.one_hot(problem.classes, 3).double()

    def energy(u: Tensor) -> Tensor:
        logs = torch.log_softmax(root @ u.reshape(8, 3), 1)
        return 0.5 * u.square().sum() - (weights[:, None] * labels * logs).sum()

    mode = torch.linalg.solve_triangular(root, prior(problem, 0.5) @ solution.dual, upper=False).reshape(-1)
    step, eye = 1e-4, torch.eye(24, dtype=F64)
    hessian = torch.stack([
        torch.stack([
            energy(mode + step * (a + b)) - energy(mode + step * (a - b))
            - energy(mode - step * (a - b)) + energy(mode - step * (a + b))
            for a in eye
        ]) / (4 * step**2)
        for b in eye
    ])  # fmt: skip
    expected = -float(energy(mode)) - 0.5 * float(torch.linalg.slogdet(hessian).logabsdet)
    assert solution.evidence == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("scale", [0.05, 3.0])
def test_latents_are_dense_algebra(scale: float, weighted: bool) -> None:
    problem = three_classes()
    weights = problem.weights if weighted else torch.ones(30, dtype=F64)
    solution = fit(problem, scale, weights)
    mean, covariance = latents(solution, problem.cross, problem.own)
    k = scale * problem.cross + INTERCEPT
    assert closeness(mean, k @ solution.dual) < 1e-12
    # All latents in one vector, class after class: cov = K** - k W (I + K W)^-1 k^T.
    proba = torch.softmax(prior(problem, scale) @ solution.dual, 1)
    blocks = torch.einsum("n,nc,cd->cdn", weights, proba, torch.eye(3, dtype=F64))
    blocks = blocks - torch.einsum("n,nc,nd->cdn", weights, proba, proba)
    site = torch.diag_embed(blocks).permute(0, 2, 1, 3).reshape(90, 90)
    whole = torch.block_diag(*[prior(problem, scale)] * 3)
    inner = site @ torch.linalg.inv(torch.eye(90, dtype=F64) + whole @ site)
    for j in range(5):
        at = torch.block_diag(*[k[j : j + 1]] * 3)
        own = float(scale * problem.own[j] + INTERCEPT) * torch.eye(3, dtype=F64)
        assert closeness(covariance[j], own - at @ inner @ at.T) < 1e-8


def test_gaussian_process_classifier_of_sklearn() -> None:
    problem, scale = three_classes(), 0.3
    classes = (problem.classes > 0).long()
    # The difference of two latents has twice their variance.
    kernel = ConstantKernel(2 * scale) * DotProduct(0.0, "fixed") + ConstantKernel(2 * INTERCEPT)
    settings: dict[str, Any] = {"optimizer": None, "max_iter_predict": 1000}
    theirs = GaussianProcessClassifier(kernel, **settings).fit(problem.x.numpy(), classes.numpy())
    solution = fit_laplace(problem.kernel, classes, 2, scale=scale)
    assert solution.evidence == pytest.approx(theirs.log_marginal_likelihood_value_, rel=1e-6)
    mean, covariance = latents(solution, problem.cross, problem.own)
    proba = softmax_gaussian(mean, covariance)[:, 1]
    expected = torch.from_numpy(theirs.predict_proba(problem.new.numpy()))[:, 1]
    assert float((proba - expected).abs().max()) < 1e-2  # both approximate one integral


def test_an_integer_weight_is_a_repeated_picture() -> None:
    problem = three_classes(12)
    counts = torch.randint(1, 4, (12,), generator=torch.Generator().manual_seed(1))
    x = problem.x.repeat_interleave(counts, 0)
    weighted = fit(problem, 0.4, counts.double())
    repeated = fit_laplace(x @ x.T, problem.classes.repeat_interleave(counts), 3, scale=0.4)
    found, expected = latents(weighted, problem.cross, problem.own), latents(repeated, problem.new @ x.T, problem.own)
    assert closeness(found[0], expected[0]) < 1e-8
    assert closeness(found[1], expected[1]) < 1e-8
    assert weighted.evidence == pytest.approx(repeated.evidence, rel=1e-9)


def test_leave_one_out_is_near_real_refits() -> None:
    problem = three_classes(18, width=18)
    solution = fit(problem, None)
    found, kernel = [], problem.kernel
    for i in range(18):
        rest = torch.arange(18) != i
        refit = fit_laplace(kernel[rest][:, rest], problem.classes[rest], 3, scale=solution.scale)
        mean, covariance = latents(refit, kernel[i : i + 1, rest], kernel.diagonal()[i : i + 1])
        found.append(calibrated(solution.calibration, mean, covariance)[0])
    expected = torch.stack(found)
    labels = torch.arange(18), problem.classes
    assert float((solution.loo - expected).abs().mean()) < 0.02
    losses = [float(-proba[labels].log().mean()) for proba in (solution.loo, expected)]
    assert losses[0] == pytest.approx(losses[1], abs=0.03)


def test_the_search_knows_no_unit_and_finds_little_loss() -> None:
    problem = three_classes(60, separation=0.6, seed=5)
    solution, scaled = fit(problem, None), fit_laplace(1e4 * problem.kernel, problem.classes, 3)
    assert 1e4 * scaled.scale == pytest.approx(solution.scale, rel=1e-3)
    assert torch.equal(fit(problem, solution.scale).loo, solution.loo)  # the same bits when asked for again
    labels = torch.arange(60), problem.classes
    least = float(-solution.loo[labels].log().mean())
    for factor in (0.01, 100.0):
        assert float(-fit(problem, factor * solution.scale).loo[labels].log().mean()) > least - 0.02
    proba = predict_laplace(solution, problem.cross, problem.own)
    assert torch.allclose(proba.sum(1), torch.ones(60, dtype=F64))
    assert float(-proba[torch.arange(60), problem.new_classes].log().mean()) == pytest.approx(least, abs=0.2)
    assert float((proba.argmax(1) == problem.new_classes).double().mean()) > 0.6


def test_a_class_without_pictures_is_unlikely() -> None:
    problem = three_classes()
    solution = fit_laplace(problem.kernel, problem.classes, 4)
    proba = predict_laplace(solution, problem.cross, problem.own)
    assert bool(torch.isfinite(proba).all())
    assert float(proba[:, 3].max()) < 0.2


@pytest.mark.parametrize(
    "change, words",
    [
        ({"classes": torch.tensor([0, 1, 3])}, "label in 0..C-1"),
        ({"kernel": torch.full((3, 3), float("inf"))}, "infinite"),
        ({"weights": torch.tensor([1.0, -1.0, 1.0])}, "must be positive"),
        ({"scale": 0.0}, "scale is 0.0"),
    ],
)
def test_bad_problems_are_refused(change: dict[str, Any], words: str) -> None:
    given = {"kernel": torch.eye(3), "classes": torch.tensor([0, 1, 2]), "count": 3} | change
    with pytest.raises(InputError, match=words):
        fit_laplace(**given)
