"""Error bars against dense Gaussian conditioning, real refits, explicit features and scikit-learn."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from reference import closeness, kernel_of
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import ConstantKernel, DotProduct, WhiteKernel
from torch import Tensor

from tangentune.errors import InputError
from tangentune.solvers.posterior import covariance, loo_variance, noise_variance, sample, variance
from tangentune.solvers.ridge import factor_ridge, log_evidence
from tangentune.solvers.system import System, build

F64 = torch.float64
N, WIDTH = 20, 2
FEATURES = [30, 5]  # more and fewer than the pictures


def problem(features: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Features of the problem and of 7 new rows, targets, weights."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(N, features, generator=generator, dtype=F64) + 0.3
    new = torch.randn(7, features, generator=generator, dtype=F64)
    targets = torch.randn(N, 3, generator=generator, dtype=F64) + x[:, :1]
    return x, new, targets, torch.rand(N, generator=generator, dtype=F64) * 3 + 0.2


def conditioned(system: System, cross: Tensor, own: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and covariance in units of noise / damping by dense conditioning, generalised least squares for b."""
    seen = system.weights > 0
    noisy = system.kernel[seen][:, seen] + system.damping * torch.diag(1 / system.weights[seen])
    weights = torch.linalg.solve(noisy, cross[:, seen].T).T
    mean, spread = weights @ system.targets[seen], own - weights @ cross[:, seen].T
    if not system.intercept:
        return mean, spread
    ones = torch.ones(int(seen.sum()), 1, dtype=F64)
    solved = torch.linalg.solve(noisy, ones)
    left = 1 - weights @ ones  # how much of b is left in a prediction
    bias = solved.T @ system.targets[seen] / (solved.T @ ones)
    return mean + left * bias, spread + left @ left.T / (solved.T @ ones)


@pytest.mark.parametrize("intercept", [True, False])
@pytest.mark.parametrize("weighting", ["none", "weights", "zeros"])
@pytest.mark.parametrize("features", FEATURES)
@pytest.mark.parametrize("damping", [0.01, 1.0, 300.0])
def test_the_posterior_is_gaussian_conditioning(features: int, weighting: str, damping: float, intercept: bool) -> None:
    x, new, targets, weights = problem(features)
    if weighting == "zeros":
        weights[[2, 9]] = 0
    system = build(x @ x.T, targets, damping, None if weighting == "none" else weights, intercept=intercept)
    cross, own = new @ x.T, new @ new.T
    mean, expected = conditioned(system, cross, own)
    assert closeness(system.bias + cross @ system.dual, mean) < 1e-9
    prior = float(own.diagonal().max())  # what is subtracted from sets the digits that are left
    assert float((covariance(system, cross, own) - expected).abs().max()) < 1e-10 * prior
    assert float((variance(system, cross, own.diagonal()) - expected.diagonal()).abs().max()) < 1e-10 * prior


@pytest.mark.parametrize("features", FEATURES)
def test_the_primal_covariance_is_the_same(features: int) -> None:
    x, new, targets, weights = problem(features)
    system = build(x @ x.T, targets, 0.7, weights)
    padded = torch.cat([x, torch.ones(N, 1, dtype=F64)], 1)
    penalty = 0.7 * torch.eye(features + 1, dtype=F64)
    penalty[-1, -1] = 0
    hessian = padded.T @ (weights[:, None] * padded) + penalty
    at = torch.cat([new, torch.ones(7, 1, dtype=F64)], 1)
    expected = 0.7 * at @ torch.linalg.solve(hessian, at.T)
    assert closeness(covariance(system, new @ x.T, new @ new.T), expected) < 1e-9


@pytest.mark.parametrize("intercept", [True, False])
def test_far_away_the_prior_comes_back(intercept: bool) -> None:
    x, _, targets, _ = problem(30)
    system = build(x @ x.T, targets, 0.5, intercept=intercept)
    unseen = variance(system, torch.zeros(1, N, dtype=F64), torch.full((1,), 9.0, dtype=F64))
    solved = torch.linalg.inv(kernel_of(system) + 0.5 * torch.eye(N, dtype=F64))
    assert float(unseen) == pytest.approx(9 + (float(1 / solved.sum()) if intercept else 0), rel=1e-10)
    # In five dimensions the span is known, a sixth is not: its whole length counts.
    x, new, targets, _ = problem(5)
    system = build(x @ x.T, targets, 1e-3, intercept=intercept)
    inside = variance(system, new @ x.T, new.square().sum(1))
    outside = variance(system, new @ x.T, new.square().sum(1) + 4)
    assert float(inside.max()) < 0.01
    assert closeness(outside - inside, torch.full((7,), 4.0, dtype=F64)) < 1e-10


@pytest.mark.parametrize("intercept", [True, False])
@pytest.mark.parametrize("weighting", ["none", "weights", "zeros"])
@pytest.mark.parametrize("damping", [0.01, 1.0, 1e5, 1e8])
@pytest.mark.parametrize("width", [1, WIDTH])
def test_leave_one_out_variance_is_real_refits(intercept: bool, weighting: str, damping: float, width: int) -> None:
    x, _, targets, weights = problem(30)
    targets = targets[:, :1]
    weights = weights.reshape(-1, width)[:, :1].expand(-1, width).reshape(-1).clone()
    if weighting == "zeros":
        weights[: 2 * width] = 0
        weights[-width:] = 1e-9  # as good as none
    kernel = x @ x.T
    given = None if weighting == "none" else weights
    found = loo_variance(build(kernel, targets, damping, given, intercept=intercept, width=width))
    assert found.shape == (N,)
    for start in range(0, N, width):
        own = torch.arange(start, start + width)
        rest = torch.tensor([i for i in range(N) if i not in own])
        left = build(kernel[rest][:, rest], targets[rest], damping, None if given is None else given[rest],
                     intercept=intercept, width=width)  # fmt: skip
        expected = variance(left, kernel[own][:, rest], kernel.diagonal()[own])
        assert closeness(found[own], expected) < 1e-8


@pytest.mark.parametrize("weighted", [False, True])
def test_noise_variance_is_at_the_top_of_the_restricted_likelihood(weighted: bool) -> None:
    x, _, targets, weights = problem(30)
    given = weights if weighted else None
    factor = factor_ridge(x @ x.T, given)
    found = noise_variance(build(x @ x.T, targets + 100, 2.0, given))
    for c in range(3):
        projected = factor.vectors.T @ (factor.roots * targets[:, c])
        assert float(found[c] / 2.0) == pytest.approx(float((projected**2 / (factor.values + 2)).mean()), rel=1e-9)
    # The evidence of one output, its scale at the best, says the same: its value is -n/2 (1 + log 2 pi t) - logdet/2.
    one = log_evidence(factor, targets[:, :1], torch.tensor([2.0]))
    scale = found[0] / 2.0
    logdet = (factor.values + 2).log().sum()
    assert float(one) == pytest.approx(float(-0.5 * (19 * (1 + torch.log(2 * torch.pi * scale)) + logdet)), rel=1e-9)


def test_rows_of_no_weight_do_not_count() -> None:
    x, new, targets, weights = problem(30)
    weights[[0, 3]] = 0
    kept = weights > 0
    whole = build(x @ x.T, targets, 0.4, weights)
    short = build(x[kept] @ x[kept].T, targets[kept], 0.4, weights[kept])
    assert closeness(noise_variance(whole), noise_variance(short)) < 1e-9
    own = new.square().sum(1)
    assert closeness(variance(whole, new @ x.T, own), variance(short, new @ x[kept].T, own)) < 1e-9


def test_gaussian_process_of_sklearn() -> None:
    x, new, targets, weights = problem(5)
    wide, noise, scale = 1e6, 0.3, 0.8  # a wide prior of the intercept stands for the flat one
    kernel = ConstantKernel(scale) * DotProduct(0.0, "fixed") + ConstantKernel(wide)
    settings: dict[str, Any] = {"alpha": (noise / weights).numpy(), "optimizer": None}
    theirs = GaussianProcessRegressor(kernel, **settings)
    theirs.fit(x.numpy(), targets[:, 0].numpy())
    mean, spread = theirs.predict(new.numpy(), return_cov=True)
    system = build(x @ x.T, targets[:, :1], noise / scale, weights)
    assert closeness((system.bias + new @ x.T @ system.dual)[:, 0], torch.from_numpy(mean)) < 1e-5
    assert closeness(scale * covariance(system, new @ x.T, new @ new.T), torch.from_numpy(spread)) < 1e-5


def test_noise_found_by_sklearn() -> None:
    x, _, targets, _ = problem(30, seed=3)
    noise = 2.0
    found = noise_variance(build(x @ x.T, targets[:, :1], noise, intercept=False))
    kernel = ConstantKernel(1.0, (1e-5, 1e5)) * (DotProduct(0.0, "fixed") + WhiteKernel(noise, "fixed"))
    theirs: Any = GaussianProcessRegressor(kernel, alpha=0.0).fit(x.numpy(), targets[:, 0].numpy())
    assert float(found) / noise == pytest.approx(float(np.exp(theirs.kernel_.theta[0])), rel=1e-4)


def test_draws_have_the_posterior_moments() -> None:
    x, new, targets, _ = problem(30)
    system = build(x @ x.T, targets, 3.0)
    new = torch.cat([new, new[:2]])  # equal pictures: a singular covariance
    mean, spread = system.bias + new @ x.T @ system.dual, covariance(system, new @ x.T, new @ new.T)
    scales = noise_variance(system) / system.damping
    drawn = sample(mean, spread, scales, 20_000, torch.Generator().manual_seed(1))
    assert drawn.shape == (9, 3, 20_000)
    assert float((drawn[:2] - drawn[7:]).abs().max()) < 1e-6  # the same function at the same picture
    for c in range(3):
        error = (scales[c] * spread.diagonal() / 20_000).sqrt()
        assert float(((drawn[:, c].mean(1) - mean[:, c]) / error).abs().max()) < 4.5
        assert closeness(torch.cov(drawn[:, c]), scales[c] * spread) < 0.05
    between = torch.corrcoef(drawn[0])  # outputs are independent
    assert float((between - torch.eye(3, dtype=F64)).abs().max()) < 0.03
    again = sample(mean, spread, scales, 20_000, torch.Generator().manual_seed(1))
    assert torch.equal(drawn, again)


def test_bad_calls_are_refused() -> None:
    x, new, targets, _ = problem(5)
    system = build(x @ x.T, targets, 1.0)
    with pytest.raises(InputError, match="kernel with 20 rows"):
        variance(system, new @ x[:3].T, new.square().sum(1))
    with pytest.raises(InputError, match="that of the new rows"):
        covariance(system, new @ x.T, new.square().sum(1))
    with pytest.raises(InputError, match="at least one function"):
        sample(targets, kernel_of(system), torch.ones(3), 0, torch.Generator())
