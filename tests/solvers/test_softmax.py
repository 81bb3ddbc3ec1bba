"""The mean softmax of Gaussian latents against Monte Carlo, exact integrals and symmetries."""

from __future__ import annotations

import pytest
import torch
from scipy.integrate import quad
from scipy.special import expit
from scipy.stats import norm
from torch import Tensor

from tangentune.solvers.softmax import softmax_gaussian

F64 = torch.float64


def latents(count: int, width: float, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    mean = 2 * torch.randn(8, count, generator=generator, dtype=F64)
    root = width * torch.randn(8, count, count, generator=generator, dtype=F64) / count**0.5
    return mean, root @ root.mT


@pytest.mark.parametrize("width, error", [(0.3, 1e-3), (1.5, 3e-3), (5.0, 6e-3)])
@pytest.mark.parametrize("count", [2, 3, 10])
def test_it_is_the_mean_over_many_draws(count: int, width: float, error: float) -> None:
    mean, covariance = latents(count, width)
    generator = torch.Generator().manual_seed(1)
    root = torch.linalg.cholesky(covariance + 1e-12 * torch.eye(count, dtype=F64))
    normal = torch.randn(30_000, count, generator=generator, dtype=F64)
    expected = torch.stack([torch.softmax(m + normal @ r.T, 1).mean(0) for m, r in zip(mean, root, strict=True)])
    assert float((softmax_gaussian(mean, covariance) - expected).square().mean().sqrt()) < error
    variance = covariance.diagonal(dim1=1, dim2=2)
    alone = torch.stack([
        torch.softmax(m + normal * v.sqrt(), 1).mean(0) for m, v in zip(mean, variance, strict=True)
    ])  # fmt: skip
    assert float((softmax_gaussian(mean, variance) - alone).square().mean().sqrt()) < error


@pytest.mark.parametrize("mean, deviation", [(0.0, 3.0), (1.0, 0.5), (-2.0, 4.0), (5.0, 2.0)])
def test_two_classes_are_one_integral(mean: float, deviation: float) -> None:
    expected = quad(lambda z: expit(mean + deviation * z) * norm.pdf(z), -12, 12, epsabs=1e-11)[0]
    covariance = torch.tensor([[[deviation**2, 0.0], [0.0, 0.0]]], dtype=F64)
    found = softmax_gaussian(torch.tensor([[mean, 0.0]], dtype=F64), covariance)
    assert float(found[0, 0]) == pytest.approx(expected, abs=2e-3)


def test_what_all_classes_share_does_not_matter() -> None:
    mean, covariance = latents(5, 1.0)
    moved = softmax_gaussian(mean + 7, covariance + 400)
    assert float((moved - softmax_gaussian(mean, covariance)).abs().max()) < 1e-9


def test_no_variance_is_a_softmax_and_rows_sum_to_one() -> None:
    mean, covariance = latents(4, 3.0)
    assert torch.allclose(softmax_gaussian(mean, 0 * covariance), torch.softmax(mean, 1), atol=1e-12)
    found = softmax_gaussian(mean.repeat(100, 1), covariance.repeat(100, 1, 1))
    assert torch.allclose(found.sum(1), torch.ones(800, dtype=F64), atol=1e-12)
    assert torch.equal(found, softmax_gaussian(mean.repeat(100, 1), covariance.repeat(100, 1, 1)))
    assert torch.allclose(found[:8], found[-8:], atol=1e-12)  # a picture does not depend on its neighbours
    state = torch.random.get_rng_state()
    softmax_gaussian(torch.zeros(1, 17), torch.ones(1, 17))
    assert torch.equal(state, torch.random.get_rng_state())
