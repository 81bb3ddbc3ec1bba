"""The temperature against a brute-force search, and what it must be indifferent to."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.special import log_softmax
from scipy.stats import invgamma
from torch import Tensor

from tangentune.solvers.calibration import (
    PRIOR,
    SOFTNESSES,
    fit_probabilities,
    fit_temperature,
    log_odds,
    probabilities,
)


def scores(n: int = 200, classes: int = 4, sharp: float = 2.0) -> tuple[Tensor, Tensor]:
    """Random scores and labels drawn from their softmax: the true temperature is 1."""
    generator = torch.Generator().manual_seed(0)
    values = sharp * torch.randn(n, classes, generator=generator, dtype=torch.float64)
    return values, torch.multinomial(values.softmax(1), 1, generator=generator)[:, 0]


def smoothed_nll(values: Tensor, labels: Tensor, temperature: float, weights: np.ndarray | None = None) -> float:
    """Mean negative log likelihood with one imaginary mistake spread over the classes, and the prior's."""
    n, count = values.shape
    target = np.full((n, count), 1 / (n + 1) / count)
    target[np.arange(n), labels.numpy()] += n / (n + 1)
    losses = -(target * log_softmax(values.numpy() / temperature, axis=1)).sum(1)
    centre, strength = PRIOR
    ratio = temperature / (centre * float(values.std()))
    return (
        float(np.average(losses, weights=weights))
        - invgamma.logpdf(ratio, strength, scale=strength) / n
        - np.log(ratio) / n
    )  # a density of the temperature's logarithm


def test_it_is_the_minimum() -> None:
    values, labels = scores()
    found = fit_temperature(values, labels)
    grid = found * np.exp(np.linspace(-1, 1, 2001))
    best = grid[np.argmin([smoothed_nll(values, labels, t) for t in grid])]
    assert found == pytest.approx(best, rel=2e-3)


def test_it_is_the_minimum_to_rounding() -> None:
    """A hair to either side the loss is larger, though its slope there is nearly nothing."""
    for seed in range(5):
        values, labels = scores(100, 3 + seed, 1.0 + seed)
        found = fit_temperature(values, labels)
        least = smoothed_nll(values, labels, found)
        assert least < min(smoothed_nll(values, labels, found * factor) for factor in (1 - 1e-6, 1 + 1e-6))


def test_a_true_temperature_is_found_again() -> None:
    values, labels = scores(20_000)
    assert fit_temperature(values, labels) == pytest.approx(1.0, rel=0.05)
    assert fit_temperature(values * 7, labels) == pytest.approx(7.0, rel=0.05)


@pytest.mark.parametrize("scale", [1e-6, 1e-2, 1e4])
def test_scale_and_shift_change_no_probability(scale: float) -> None:
    values, labels = scores()
    plain = probabilities(values, fit_temperature(values, labels))
    moved = scale * (values + 3.0)
    assert torch.allclose(probabilities(moved, fit_temperature(moved, labels)), plain, atol=1e-3)


def test_weights_count() -> None:
    values, labels = scores()
    weights = torch.where(values.argmax(1) == labels, 1.0, 2.5).double()  # the mistakes count more
    found = fit_temperature(values, labels, weights)
    grid = found * np.exp(np.linspace(-1, 1, 2001))
    best = grid[np.argmin([smoothed_nll(values, labels, t, weights.numpy()) for t in grid])]
    assert found == pytest.approx(best, rel=2e-3)
    assert found > 1.3 * fit_temperature(values, labels)
    assert found == pytest.approx(fit_temperature(values, labels, 50 * weights), rel=1e-6)


@pytest.mark.parametrize("classes", [2, 5, 10])
def test_few_pictures_do_not_make_every_answer_even(classes: int) -> None:
    """One picture a class: left out, its class is unknown, and its score the lowest of all."""
    values = (1 - torch.eye(classes).double()) / (classes - 1)
    sure = torch.eye(classes).double()
    wild, found = (fit_temperature(values, torch.arange(classes), prior=prior) for prior in (None, PRIOR))
    assert float(probabilities(sure, wild).max()) < 1.05 / classes
    assert float(probabilities(sure, found).max()) > 1.3 / classes


def test_many_pictures_outweigh_the_prior() -> None:
    values, labels = scores(5000)
    plain = probabilities(values, fit_temperature(values, labels, prior=None))
    assert torch.allclose(probabilities(values, fit_temperature(values, labels)), plain, rtol=0, atol=2e-3)


def test_perfect_scores_are_not_infinitely_sure() -> None:
    labels = torch.arange(60) % 3
    values = torch.nn.functional.one_hot(labels, 3).double()
    certain = probabilities(values, fit_temperature(values, labels))
    assert 0.95 < float(certain.max()) < 0.9999
    assert float(certain.min()) > 1e-5


def test_useless_scores_give_even_odds() -> None:
    generator = torch.Generator().manual_seed(3)
    values = torch.randn(4000, 4, generator=generator, dtype=torch.float64)
    labels = torch.randint(0, 4, (4000,), generator=generator)
    assert float((probabilities(values, fit_temperature(values, labels)) - 0.25).abs().mean()) < 0.02


def test_equal_scores_are_taken() -> None:
    temperature = fit_temperature(torch.ones(5, 3).double(), torch.tensor([0, 1, 2, 0, 1]))
    assert 0 < temperature < float("inf")
    assert torch.allclose(probabilities(torch.ones(2, 3), temperature), torch.full((2, 3), 1 / 3))


def test_probabilities_are_a_softmax() -> None:
    values, _ = scores(5)
    got = probabilities(values, 0.5)
    assert torch.allclose(got.sum(1), torch.ones(5).double())
    assert torch.allclose(got.log() - got.log()[:, :1], (values - values[:, :1]) / 0.5)


def test_log_odds_are_the_logarithm_of_a_soft_positive_part() -> None:
    values = torch.linspace(-40.0, 40.0, 1001).double()
    found = log_odds(values, 0.15)
    exact = torch.logaddexp(values / 0.15, torch.zeros(())).log()
    assert torch.allclose(found[values > -4], exact[values > -4], rtol=1e-12)
    assert torch.allclose(found[values < -5], values[values < -5] / 0.15, rtol=1e-12)
    assert (found.diff() > 0).all()
    assert torch.isfinite(log_odds(values.float(), 0.15)).all()
    assert log_odds(values, None) is values


def test_scores_that_are_probabilities_get_a_softness() -> None:
    """Where labels are drawn by the scores themselves a softmax of them cannot say so, a power of them can."""
    generator = torch.Generator().manual_seed(1)
    true = torch.distributions.Dirichlet(torch.full((4,), 0.4).double())
    torch.manual_seed(1)
    values = true.sample((3000,))
    labels = torch.multinomial(values, 1, generator=generator)[:, 0]
    temperature, softness = fit_probabilities(values, labels)
    assert softness in SOFTNESSES

    def miss(found: Tensor) -> float:
        return float((found - values).abs().mean())

    soft = probabilities(values, temperature, softness)
    assert miss(soft) < 0.8 * miss(probabilities(values, fit_temperature(values, labels)))
    assert (soft.argsort(1) == values.argsort(1)).all()


def test_scores_that_are_log_odds_get_none() -> None:
    values, labels = scores()
    assert fit_probabilities(values, labels) == (fit_temperature(values, labels), None)


def test_a_few_pictures_get_none() -> None:
    """One nat, which a softness must gain, is more than six pictures can tell."""
    labels = torch.arange(6) % 2
    values = torch.nn.functional.one_hot(labels, 2).double() * 0.6 + 0.2
    assert fit_probabilities(values, labels)[1] is None
