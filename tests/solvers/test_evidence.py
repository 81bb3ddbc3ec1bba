"""Evidence of block scales against dense normal laws, finite differences, scikit-learn and data with known scales."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from reference import closeness
from scipy.linalg import null_space
from scipy.stats import multivariate_normal
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import ConstantKernel, DotProduct, WhiteKernel
from torch import Tensor

from tangentune.errors import InputError
from tangentune.solvers import ridge
from tangentune.solvers.evidence import block_log_evidence, maximise_block_evidence
from tangentune.solvers.posterior import noise_variance
from tangentune.solvers.system import build

F64 = torch.float64
N = 24
SCALES = torch.tensor([0.7, 2.0, 0.1], dtype=F64)
DAMPING = torch.tensor(0.4, dtype=F64)


def problem(n: int = N, outputs: int = 2, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Block kernels of 3 blocks, targets that the first explains, weights."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(3, n, 30, generator=generator, dtype=F64)
    w = torch.randn(30, outputs, generator=generator, dtype=F64)
    noise = torch.randn(n, outputs, generator=generator, dtype=F64)
    return x @ x.mT, x[0] @ w + 0.5 * noise + 3, torch.rand(n, generator=generator, dtype=F64) * 3 + 0.2


@pytest.mark.parametrize("weighted", [False, True])
def test_it_is_the_evidence_of_ridge(weighted: bool) -> None:
    kernels, targets, weights = problem()
    given = weights if weighted else None
    factor = ridge.factor_ridge(torch.einsum("b,bij->ij", SCALES, kernels), given)
    expected = ridge.log_evidence(factor, targets, DAMPING[None])[0]
    got = block_log_evidence(kernels, targets, SCALES, DAMPING, given)
    assert float(got) == pytest.approx(float(expected), rel=1e-11)


@pytest.mark.parametrize("weighted", [False, True])
def test_it_is_the_normal_law_of_error_contrasts(weighted: bool) -> None:
    kernels, targets, weights = problem()
    roots = weights.sqrt() if weighted else torch.ones(N, dtype=F64)
    contrasts = null_space(roots[None].numpy())
    kernel = roots[:, None] * torch.einsum("b,bij->ij", SCALES, kernels) * roots + DAMPING * torch.eye(N, dtype=F64)
    covariance = contrasts.T @ kernel.numpy() @ contrasts
    z = contrasts.T @ (roots[:, None] * targets).numpy()
    best = float((z * np.linalg.solve(covariance, z)).sum() / z.size)
    expected = float(multivariate_normal(cov=best * covariance).logpdf(z.T).sum())
    got = block_log_evidence(kernels, targets, SCALES, DAMPING, weights if weighted else None)
    assert float(got) == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("weighted", [False, True])
def test_gradients_are_finite_differences(weighted: bool) -> None:
    kernels, targets, weights = problem()
    given = weights if weighted else None
    logs = torch.cat([SCALES, DAMPING[None]]).log().requires_grad_()

    def value(logs: Tensor) -> Tensor:
        return block_log_evidence(kernels, targets, logs[:-1].exp(), logs[-1].exp(), given)

    (gradient,) = torch.autograd.grad(value(logs), logs)
    logs = logs.detach()
    for i in range(4):
        step = 1e-4 * torch.eye(4, dtype=F64)[i]
        near = (value(logs + step) - value(logs - step)) / 2e-4
        far = (value(logs + 2 * step) - value(logs - 2 * step)) / 4e-4
        assert float((4 * near - far) / 3) == pytest.approx(float(gradient[i]), rel=1e-6, abs=1e-6)
    assert float(gradient.sum()) == pytest.approx(0, abs=1e-9)  # a common factor tells nothing


@pytest.mark.parametrize("spread", [None, 1.0])
@pytest.mark.parametrize("weighted", [False, True])
def test_the_maximum_is_one(weighted: bool, spread: float | None) -> None:
    kernels, targets, weights = problem(60)
    given, start = weights if weighted else None, torch.tensor([1.0, 0.5, 2.0], dtype=F64)
    found = maximise_block_evidence(kernels, targets, given, start=start, spread=spread)

    def value(logs: Tensor) -> float:
        scales = logs[:-1].exp()
        prior = 0.0 if spread is None else 0.5 * float(((scales / start).log() / spread).square().sum())
        return float(block_log_evidence(kernels, targets, scales, logs[-1].exp(), given)) - prior

    best = torch.cat([found.scales, torch.tensor([found.damping], dtype=F64)]).log()
    generator = torch.Generator().manual_seed(0)
    for size in (0.02, 0.3, 2.0):
        for _ in range(8):
            step = size * torch.randn(4, generator=generator, dtype=F64)
            assert value(best + step - (0 if spread else step[:-1].mean())) < value(best) + 1e-6
    assert found.value == pytest.approx(
        float(block_log_evidence(kernels, targets, found.scales, torch.tensor(found.damping), given)), rel=1e-10
    )
    assert float(found.scales.log().mean()) == pytest.approx(float(start.log().mean()), abs=1e-9)


def test_scales_and_noise_of_the_world_are_found() -> None:
    generator = torch.Generator().manual_seed(5)
    n, outputs, truth = 240, 20, torch.tensor([4.0, 0.5, 1.0], dtype=F64)
    x = torch.randn(3, n, 60, generator=generator, dtype=F64)
    w = torch.randn(3, 60, outputs, generator=generator, dtype=F64) * truth.sqrt()[:, None, None]
    targets = (x @ w).sum(0) + 3 * torch.randn(n, outputs, generator=generator, dtype=F64) + 7
    found = maximise_block_evidence(x @ x.mT, targets, spread=None, start=torch.ones(3, dtype=F64))
    prior = found.noise.mean() / found.damping  # what one unit of scale is worth
    assert closeness(found.scales * prior, truth) < 0.15
    assert float(found.noise.mean()) == pytest.approx(9.0, rel=0.1)


def test_noise_is_that_of_the_posterior() -> None:
    kernels, targets, weights = problem(40)
    found = maximise_block_evidence(kernels, targets, weights)
    system = build(torch.einsum("b,bij->ij", found.scales, kernels), targets, found.damping, weights)
    assert closeness(found.noise, noise_variance(system)) < 1e-8


def test_units_do_not_matter() -> None:
    kernels, targets, _ = problem(60)
    plain = maximise_block_evidence(kernels, targets)
    units = torch.tensor([10.0, 0.1, 1000.0], dtype=F64)
    scaled = maximise_block_evidence(kernels / units[:, None, None], 5 * targets - 2)
    assert closeness(scaled.scales / units, plain.scales) < 1e-3
    assert scaled.damping == pytest.approx(plain.damping, rel=1e-3)
    assert closeness(scaled.noise, 25 * plain.noise) < 1e-3


def test_a_narrow_prior_holds_the_scales() -> None:
    kernels, targets, _ = problem(60)
    start = torch.tensor([1.0, 0.5, 2.0], dtype=F64)
    free, held = (maximise_block_evidence(kernels, targets, start=start, spread=spread) for spread in (None, 1e-3))
    assert closeness(held.scales, start) < 0.02
    assert float(free.scales[0] / free.scales[1]) > 20  # the targets come from the first block
    assert free.value > held.value


def test_targets_without_noise_stop_at_the_floor() -> None:
    kernels, targets, _ = problem(40)
    exact = kernels[0] @ torch.linalg.pinv(kernels[0] + kernels[1]) @ targets
    found = maximise_block_evidence(kernels[:2], exact, spread=None)
    factor = ridge.factor_ridge(torch.einsum("b,bij->ij", found.scales, kernels[:2]))
    assert found.damping == pytest.approx(1e-6 * factor.mean_eigenvalue, rel=1e-6)
    assert math.isfinite(found.value)


def test_gaussian_process_of_sklearn_finds_the_same() -> None:
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(80, 3, generator=generator, dtype=F64)
    y = x @ torch.tensor([2.0, -1.0, 0.5], dtype=F64) + 0.7 * torch.randn(80, generator=generator, dtype=F64)
    kernel = ConstantKernel(1.0) * DotProduct(0.0, "fixed") + WhiteKernel(1.0) + ConstantKernel(1e4, "fixed")
    theirs: Any = GaussianProcessRegressor(kernel, alpha=0.0).fit(x.numpy(), y.numpy())
    scale, noise = np.exp(theirs.kernel_.theta)
    found = maximise_block_evidence((x @ x.T)[None], y[:, None])
    assert float(found.noise) == pytest.approx(noise, rel=1e-2)
    assert float(found.noise / found.damping * found.scales) == pytest.approx(scale, rel=2e-2)


@pytest.mark.parametrize(
    "change, words",
    [
        ({"start": torch.tensor([1.0, 0.0, 1.0])}, "positive scale for each of the 3"),
        ({"start": torch.ones(2)}, "positive scale for each of the 3"),
        ({"spread": 0.0}, "spread is 0.0"),
    ],
)
def test_bad_settings_are_refused(change: dict[str, Any], words: str) -> None:
    kernels, targets, _ = problem()
    with pytest.raises(InputError, match=words):
        maximise_block_evidence(kernels, targets, **change)


def test_bad_problems_are_refused() -> None:
    kernels, targets, _ = problem()
    with pytest.raises(InputError, match=r"\(B, n, n\)"):
        maximise_block_evidence(kernels[0], targets)
    constant = torch.stack([kernels[0], torch.full_like(kernels[0], 3.0)])
    with pytest.raises(InputError, match="block 1 has a constant kernel"):
        maximise_block_evidence(constant, targets)
