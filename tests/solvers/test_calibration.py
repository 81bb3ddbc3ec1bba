"""Calibration of held-out scores: the optimum is one, offsets mend imbalance, spread adds doubt."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from tangentune.errors import InputError
from tangentune.solvers.calibration import Calibration, calibrated, fit_calibration, fit_temperature, probabilities
from tangentune.solvers.softmax import softmax_gaussian

F64 = torch.float64


def world(n: int, offsets: Tensor, temperature: float, seed: int = 0, doubt: Tensor | None = None) -> tuple:
    """Scores, and classes drawn from softmax(scores / temperature + offsets), the logits with noise if asked."""
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randn(n, len(offsets), generator=generator, dtype=F64)
    logits = scores / temperature + offsets
    if doubt is not None:
        logits = logits + doubt.sqrt()[:, None] * torch.randn(n, len(offsets), generator=generator, dtype=F64)
    classes = torch.multinomial(torch.softmax(logits, 1), 1, generator=generator)[:, 0]
    return scores, classes


def objective(found: Calibration, scores: Tensor, classes: Tensor, weights: Tensor, covariance: Tensor | None) -> float:
    n, count = scores.shape
    target = torch.nn.functional.one_hot(classes, count).double() * n / (n + 1) + 1 / (n + 1) / count
    logs = calibrated(found, scores, covariance).log()
    return float(-(weights / weights.sum() * (target * logs).sum(1)).sum() + found.offsets.square().sum() / (2 * n))


@pytest.mark.parametrize("spread", [False, True])
@pytest.mark.parametrize("weighted", [False, True])
def test_the_minimum_is_one(weighted: bool, spread: bool) -> None:
    doubt = torch.linspace(0, 30, 200, dtype=F64)
    scores, classes = world(200, torch.tensor([1.0, -0.5, -2.0], dtype=F64), 0.1, doubt=doubt)
    generator = torch.Generator().manual_seed(1)
    weights = torch.rand(200, generator=generator, dtype=F64) + 0.1 if weighted else torch.ones(200, dtype=F64)
    covariance = doubt[:, None].expand(-1, 3) if spread else None
    found = fit_calibration(scores, classes, weights if weighted else None, covariance)
    assert (found.spread > 0) == spread
    assert found.loss == pytest.approx(objective(found, scores, classes, weights, covariance), rel=1e-9)
    for size in (0.1, 0.5):
        for _ in range(10):
            step = size * torch.randn(5, generator=generator, dtype=F64)
            if spread:  # offsets and logits grow together in this search
                growth, offsets = float(step[0].exp()), found.offsets * step[0].exp()
            else:
                growth, offsets = float(step[0].exp()), found.offsets + step[1:4]
            other = Calibration(found.temperature / growth, offsets, found.spread * float(step[4].exp()), 0.0)
            assert objective(other, scores, classes, weights, covariance) > found.loss - 1e-4


def test_what_drew_the_labels_is_found() -> None:
    truth = torch.tensor([1.5, 0.0, -1.5], dtype=F64)
    scores, classes = world(4000, truth, 0.3)
    found = fit_calibration(scores, classes)
    assert found.temperature == pytest.approx(0.3, rel=0.05)
    assert float((found.offsets - found.offsets.mean() - truth).abs().max()) < 0.15
    assert found.spread == 0


def test_doubt_is_found_where_there_is_some() -> None:
    doubt = torch.linspace(0, 16, 1500, dtype=F64)
    scores, classes = world(1500, torch.zeros(3, dtype=F64), 0.2, doubt=doubt)
    found = fit_calibration(scores, classes, covariance=0.01 * doubt[:, None].expand(-1, 3))
    # In log odds the doubt is `0.01 doubt spread / temperature^2`: what drew the labels is hardly better.
    variance, ones = 0.01 * doubt[:, None].expand(-1, 3), torch.ones(1500, dtype=F64)
    truth = Calibration(0.2, torch.zeros(3, dtype=F64), 0.2**2 / 0.01, 0.0)
    assert found.loss < objective(truth, scores, classes, ones, variance) + 1e-5
    assert 0.5 < 0.01 * found.spread / found.temperature**2 < 2
    assert found.loss < fit_calibration(scores, classes).loss - 0.01


def test_variances_are_a_diagonal_covariance() -> None:
    doubt = torch.linspace(0, 16, 200, dtype=F64)
    scores, classes = world(200, torch.zeros(3, dtype=F64), 0.2, doubt=doubt)
    variance = 0.01 * doubt[:, None].expand(-1, 3)
    found = fit_calibration(scores, classes, covariance=variance)
    expected, proba = calibrated(found, scores, variance), calibrated(found, scores, torch.diag_embed(variance))
    assert found.spread > 0
    assert float((proba - expected).square().mean().sqrt()) < 3e-3  # other quasi-random points
    whole = fit_calibration(scores, classes, covariance=torch.diag_embed(variance))
    assert whole.loss == pytest.approx(found.loss, abs=1e-3)


def test_without_offsets_it_is_the_temperature() -> None:
    scores, classes = world(300, torch.zeros(4, dtype=F64), 0.3)
    symmetric, labels = (
        torch.cat([scores.roll(k, 1) for k in range(4)]),
        torch.cat([(classes + k) % 4 for k in range(4)]),
    )
    found = fit_calibration(symmetric, labels)  # every class alike: no offset can help
    assert float(found.offsets.abs().max()) < 1e-4
    assert found.temperature == pytest.approx(fit_temperature(symmetric, labels), rel=1e-3)
    assert torch.allclose(calibrated(found, scores), probabilities(scores, found.temperature), atol=1e-4)


def test_few_pictures_leave_offsets_small_and_perfect_scores_finite() -> None:
    scores = torch.eye(3, dtype=F64).repeat(2, 1)
    found = fit_calibration(scores, torch.arange(3).repeat(2))
    assert float(found.offsets.abs().max()) < 1e-3
    proba = calibrated(found, scores)
    assert 0.8 < float(proba.max()) < 1 - 1e-6
    alone = fit_calibration(torch.zeros(5, 2), torch.tensor([0, 0, 0, 0, 0]))
    assert math.isfinite(alone.temperature)
    assert float(alone.offsets[0]) < 2


def test_units_do_not_matter() -> None:
    scores, classes = world(100, torch.tensor([1.0, 0.0, -1.0], dtype=F64), 0.2, doubt=torch.full((100,), 3.0))
    variance = torch.linspace(1, 5, 100, dtype=F64)[:, None].expand(-1, 3)
    plain = fit_calibration(scores, classes, covariance=variance)
    scaled = fit_calibration(100 * scores + 5, classes, covariance=1e-3 * variance)
    expected = calibrated(plain, scores, variance)
    assert float((calibrated(scaled, 100 * scores + 5, 1e-3 * variance) - expected).abs().max()) < 1e-2


def test_probabilities_are_means_of_softmaxes() -> None:
    scores, _ = world(10, torch.zeros(3, dtype=F64), 1.0)
    variance = torch.rand(10, 3, generator=torch.Generator().manual_seed(0), dtype=F64)
    offsets = torch.tensor([0.3, 0.0, -0.1], dtype=F64)
    found = calibrated(Calibration(0.5, offsets, 2.0, 0.0), scores, variance)
    assert torch.allclose(found, softmax_gaussian(scores / 0.5 + offsets, 8 * variance))


def test_bad_labels_are_refused() -> None:
    with pytest.raises(InputError, match="label in 0..C-1"):
        fit_calibration(torch.zeros(3, 2), torch.tensor([0, 1, 2]))
