"""The ridge solver against bordered systems solved outright, real refits, scikit-learn, and a dense normal law."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from reference import bordered, closeness, dense_solve, refit_loo
from scipy.linalg import null_space
from scipy.stats import multivariate_normal
from sklearn.kernel_ridge import KernelRidge
from sklearn.linear_model import Ridge, RidgeCV
from torch import Tensor

from tangentune.errors import InputError
from tangentune.solvers.ridge import factor_ridge, inverse_diagonal, log_evidence, loo_errors, solve

DAMPINGS = torch.logspace(-4, 3, 15, dtype=torch.float64)


def problem(n: int = 24, width: int = 40, outputs: int = 3, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Features, targets, weights."""
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(n, width, generator=generator, dtype=torch.float64) + 0.5
    targets = torch.randn(n, outputs, generator=generator, dtype=torch.float64) + features[:, :1]
    return features, targets, torch.rand(n, generator=generator, dtype=torch.float64) * 3 + 0.2


# Few features make a singular kernel; weights None is the plain problem.
SHAPES = [(24, 40), (24, 5), (2, 3)]


def case(shape: tuple[int, int], weighted: bool) -> tuple[Tensor, Tensor, Tensor | None]:
    features, targets, weights = problem(*shape)
    return features @ features.T, targets, weights if weighted else None


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("damping", [1e-3, 1.0, 1e3])
def test_solution_is_that_of_the_bordered_system(shape: tuple[int, int], weighted: bool, damping: float) -> None:
    kernel, targets, weights = case(shape, weighted)
    factor = factor_ridge(kernel, weights)
    solution = solve(factor, targets, damping)
    dual, intercept = dense_solve(kernel, targets, damping, weights)
    assert closeness(solution.dual, dual) < 1e-9
    assert closeness(solution.intercept, intercept) < 1e-9
    assert float(solution.dual.sum(0).abs().max()) < 1e-9 * float(dual.abs().max())
    # The weighted system's inverse is the bordered one's, rows and columns scaled by the roots of the weights.
    inverse = torch.linalg.inv(bordered(kernel, damping, weights)).diagonal()[:-1]
    scaled = inverse if weights is None else inverse / weights
    assert closeness(inverse_diagonal(factor, damping), scaled) < 1e-9


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("damping", [0.1, 1.0, 1e3])
def test_leave_one_out_is_real_refits(shape: tuple[int, int], weighted: bool, damping: float) -> None:
    kernel, targets, weights = case(shape, weighted)
    solution = solve(factor_ridge(kernel, weights), targets, damping)
    assert closeness(solution.loo, refit_loo(kernel, targets, damping, weights)) < 1e-10


@pytest.mark.parametrize("weighted", [False, True])
def test_loo_errors_are_weighted_means_of_the_same(weighted: bool) -> None:
    kernel, targets, weights = case((24, 40), weighted)
    factor = factor_ridge(kernel, weights)
    errors = loo_errors(factor, targets, DAMPINGS)
    a = torch.ones(24, dtype=torch.float64) if weights is None else weights
    for damping, error in zip(DAMPINGS.tolist(), errors, strict=True):
        squares = (targets - refit_loo(kernel, targets, damping, weights)).square().sum(1)
        assert abs(float(error / ((a * squares).sum() / a.sum())) - 1) < 1e-9


def test_an_integer_weight_is_a_repeated_sample() -> None:
    features, targets, _ = problem()
    counts = torch.randint(1, 4, (24,), generator=torch.Generator().manual_seed(1))
    repeated, again = features.repeat_interleave(counts, 0), targets.repeat_interleave(counts, 0)
    solution = solve(factor_ridge(features @ features.T, counts.double()), targets, 0.7)
    longer = solve(factor_ridge(repeated @ repeated.T), again, 0.7)
    assert closeness(solution.intercept, longer.intercept) < 1e-10
    assert closeness(features.T @ solution.dual, repeated.T @ longer.dual) < 1e-10


def test_the_solution_minimises_the_stated_loss() -> None:
    features, targets, weights = problem(12, 5, 2)
    solution = solve(factor_ridge(features @ features.T, weights), targets, 0.3)
    w = (features.T @ solution.dual).requires_grad_()
    b = solution.intercept.clone().requires_grad_()
    misfit = (targets - b - features @ w).square().sum(1)
    loss = 0.5 * (weights * misfit).sum() + 0.5 * 0.3 * w.square().sum()
    for gradient in torch.autograd.grad(loss, [w, b]):
        assert float(gradient.abs().max()) < 1e-10


@pytest.mark.parametrize("shape", [(24, 40), (24, 5)])
def test_kernel_ridge_of_sklearn_along_the_path(shape: tuple[int, int]) -> None:
    features, targets, _ = problem(*shape)
    centred, mean = features - features.mean(0), targets.mean(0)
    factor = factor_ridge(features @ features.T)
    for damping in DAMPINGS.tolist():
        theirs = KernelRidge(alpha=damping, kernel="precomputed")
        theirs.fit((centred @ centred.T).numpy(), (targets - mean).numpy())
        solution = solve(factor, targets, damping)
        assert closeness(solution.dual, torch.from_numpy(theirs.dual_coef_)) < 1e-8
        fitted = torch.from_numpy(theirs.predict((centred @ centred.T).numpy())) + mean
        assert closeness(features @ features.T @ solution.dual + solution.intercept, fitted) < 1e-8


@pytest.mark.parametrize("shape, mode", [((24, 40), "eigen"), ((24, 5), "svd"), ((24, 5), "eigen")])
def test_ridge_cv_of_sklearn_along_the_path(shape: tuple[int, int], mode: str) -> None:
    features, targets, _ = problem(*shape)
    theirs = RidgeCV(alphas=DAMPINGS.numpy(), store_cv_results=True, gcv_mode=mode)
    theirs.fit(features.numpy(), targets.numpy())
    squares = torch.from_numpy(theirs.cv_results_)  # (n, outputs, alphas)
    factor = factor_ridge(features @ features.T)
    assert closeness(loo_errors(factor, targets, DAMPINGS), squares.sum(1).mean(0)) < 1e-8
    for i, damping in enumerate(DAMPINGS.tolist()):
        residuals = targets - solve(factor, targets, damping).loo
        assert closeness(residuals.square(), squares[:, :, i]) < 1e-8


def test_weighted_ridge_of_sklearn() -> None:
    features, targets, weights = problem(24, 5)
    theirs = Ridge(alpha=0.4, solver="cholesky").fit(features.numpy(), targets.numpy(), sample_weight=weights.numpy())
    solution = solve(factor_ridge(features @ features.T, weights), targets, 0.4)
    assert closeness(features.T @ solution.dual, torch.from_numpy(np.atleast_2d(theirs.coef_)).T) < 1e-8
    assert closeness(solution.intercept, torch.from_numpy(np.atleast_1d(theirs.intercept_))) < 1e-8


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("damping", [0.05, 1.0, 50.0])
def test_evidence_is_a_restricted_normal_likelihood(weighted: bool, damping: float) -> None:
    kernel, targets, weights = case((24, 40), weighted)
    roots = torch.ones(24, dtype=torch.float64) if weights is None else weights.sqrt()
    contrasts = null_space(roots[None].numpy())  # error contrasts: free of the intercept
    covariance = (roots[:, None] * kernel * roots + damping * torch.eye(24, dtype=torch.float64)).numpy()
    covariance = contrasts.T @ covariance @ contrasts
    z = contrasts.T @ (roots[:, None] * targets).numpy()

    def density(scale: float) -> float:
        return float(multivariate_normal(cov=scale * covariance).logpdf(z.T).sum())

    best = float((z * np.linalg.solve(covariance, z)).sum() / z.size)
    got = float(log_evidence(factor_ridge(kernel, weights), targets, torch.tensor([damping]))[0])
    assert got == pytest.approx(density(best), rel=1e-9)
    assert got > density(best * 1.05)
    assert got > density(best * 0.95)


@pytest.mark.parametrize("factor_of", [1e-6, 1e5])
def test_kernel_and_damping_scale_together(factor_of: float) -> None:
    kernel, targets, weights = case((24, 40), True)
    plain, scaled = factor_ridge(kernel, weights), factor_ridge(kernel * factor_of, weights)
    assert scaled.mean_eigenvalue == pytest.approx(plain.mean_eigenvalue * factor_of, rel=1e-10)
    assert closeness(solve(scaled, targets, 0.3 * factor_of).loo, solve(plain, targets, 0.3).loo) < 1e-9
    assert closeness(loo_errors(scaled, targets, DAMPINGS * factor_of), loo_errors(plain, targets, DAMPINGS)) < 1e-8
    assert closeness(log_evidence(scaled, targets, DAMPINGS * factor_of), log_evidence(plain, targets, DAMPINGS)) < 1e-8


def test_weights_and_damping_scale_together() -> None:
    kernel, targets, weights = case((24, 40), True)
    assert weights is not None
    plain = solve(factor_ridge(kernel, weights), targets, 0.3)
    scaled = solve(factor_ridge(kernel, weights * 8), targets, 2.4)
    assert closeness(scaled.dual, plain.dual) < 1e-10
    assert closeness(scaled.loo, plain.loo) < 1e-10


def test_targets_scale_and_shift() -> None:
    kernel, targets, weights = case((24, 40), True)
    factor = factor_ridge(kernel, weights)
    plain, moved = solve(factor, targets, 0.3), solve(factor, 5 * targets + 7, 0.3)
    assert closeness(moved.dual, 5 * plain.dual) < 1e-10
    assert closeness(moved.intercept, 5 * plain.intercept + 7) < 1e-10
    assert closeness(moved.loo, 5 * plain.loo + 7) < 1e-10
    shifted = log_evidence(factor, 5 * targets + 7, DAMPINGS) + targets[:, :].numel() * math.log(5) * 23 / 24
    assert closeness(shifted, log_evidence(factor, targets, DAMPINGS)) < 1e-9


def test_a_constant_in_the_kernel_is_the_intercepts_business() -> None:
    kernel, targets, weights = case((24, 40), True)
    plain, shifted = (solve(factor_ridge(k, weights), targets, 0.3) for k in (kernel, kernel + 100.0))
    assert closeness(shifted.dual, plain.dual) < 1e-8
    assert closeness(shifted.loo, plain.loo) < 1e-8


def test_order_of_samples_does_not_matter() -> None:
    kernel, targets, weights = case((24, 40), True)
    assert weights is not None
    order = torch.randperm(24, generator=torch.Generator().manual_seed(2))
    plain = solve(factor_ridge(kernel, weights), targets, 0.3)
    mixed = solve(factor_ridge(kernel[order][:, order], weights[order]), targets[order], 0.3)
    assert closeness(mixed.loo, plain.loo[order]) < 1e-10


def test_heavy_damping_leaves_the_weighted_mean() -> None:
    kernel, targets, weights = case((24, 40), True)
    assert weights is not None
    solution = solve(factor_ridge(kernel, weights), targets, 1e12)
    assert closeness(solution.intercept, (weights @ targets) / weights.sum()) < 1e-8


def test_float32_kernels_are_factored_in_float64() -> None:
    kernel, targets, _ = case((24, 40), False)
    factor = factor_ridge(kernel.float())
    assert factor.values.dtype == factor.kernel.dtype == torch.float64
    assert closeness(solve(factor, targets, 1.0).loo, refit_loo(kernel.float().double(), targets, 1.0)) < 1e-10


def test_factor_is_orthonormal_and_clear_of_the_intercept() -> None:
    kernel, _, weights = case((24, 5), True)
    factor = factor_ridge(kernel, weights)
    eye = torch.eye(23, dtype=torch.float64)
    assert float((factor.vectors.T @ factor.vectors - eye).abs().max()) < 1e-12
    assert float((factor.roots / factor.roots.norm() @ factor.vectors).abs().max()) < 1e-12


@pytest.mark.parametrize(
    "kernel, weights, words",
    [
        (torch.ones(1, 1), None, "at least 2"),
        (torch.tensor([[1.0, float("nan")], [0.0, 1.0]]), None, "NaN"),
        (torch.tensor([[1.0, float("inf")], [0.0, 1.0]]), None, "infinite"),
        (torch.eye(3), torch.tensor([1.0, 0.0, 1.0]), "weight"),
        (torch.eye(3), torch.tensor([1.0, -1.0, 1.0]), "weight"),
        (torch.eye(3), torch.tensor([1.0, float("nan"), 1.0]), "weight"),
    ],
)
def test_bad_problems_are_refused(kernel: Tensor, weights: Tensor | None, words: str) -> None:
    with pytest.raises(InputError, match=words) as caught:
        factor_ridge(kernel, weights)
    assert "\n" not in str(caught.value)


def test_a_singular_problem_is_refused() -> None:
    kernel, targets, _ = case((24, 5), False)
    factor = factor_ridge(kernel - torch.eye(24, dtype=torch.float64) * 1e-6)
    for call in (lambda: solve(factor, targets, 0.0), lambda: loo_errors(factor, targets, torch.zeros(1)),
                 lambda: solve(factor, targets, -1.0)):  # fmt: skip
        with pytest.raises(InputError, match="positive damping"):
            call()
