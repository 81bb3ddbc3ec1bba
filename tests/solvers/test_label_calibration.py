"""A sigmoid and a threshold a label: the most likely ones, whatever the labels are."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from torch import Tensor

from tangentune.solvers.label_calibration import LEAST, STEEPNESS, best_thresholds, fit_label_calibration

F64 = torch.float64


def label(n: int, share: float, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Scores, targets and weights of one label."""
    generator = torch.Generator().manual_seed(seed)
    targets = (torch.rand(n, generator=generator) < share).double()
    scores = 0.2 * targets + 0.1 * torch.randn(n, generator=generator, dtype=F64)
    return scores, targets, torch.rand(n, generator=generator, dtype=F64) + 0.5


@pytest.mark.parametrize(("n", "share"), [(12, 0.3), (200, 0.05), (500, 0.5), (30, 0.0), (30, 1.0)])
def test_sigmoids_are_the_most_likely_ones(n: int, share: float) -> None:
    scores, targets, given = label(n, share)
    found = fit_label_calibration(scores[:, None], targets[:, None], given)
    weights = (given * n / given.sum()).numpy()
    x = ((scores - scores.mean()) / scores.std(correction=0)).numpy()
    positive = float(weights @ targets.numpy())
    wanted = np.where(targets > 0, (positive + 1) / (positive + 2), 1 / (n - positive + 2))

    def loss(point: np.ndarray) -> float:
        logits = np.exp(point[0]) * x + point[1]
        prior = (point[0] - np.log(STEEPNESS[0])) ** 2 / (2 * STEEPNESS[1] ** 2)
        return float(weights @ (np.logaddexp(0, logits) - wanted * logits) + prior)

    slope, offset = found.slopes * scores.std(correction=0), found.offsets + found.slopes * scores.mean()
    ours = loss(np.array([np.log(float(slope)), float(offset)]))
    best = min(minimize(loss, [start, 0.0], method="BFGS").fun for start in (-1.0, 0.7, 2.0))
    assert ours <= best + 1e-9


def test_scores_of_another_unit_have_the_same_probabilities() -> None:
    scores, targets, _ = label(60, 0.3)
    one = fit_label_calibration(scores[:, None], targets[:, None])
    other = fit_label_calibration(100 * scores[:, None] - 7, targets[:, None])
    moved = other.probabilities(100 * scores[:, None] - 7)
    torch.testing.assert_close(one.probabilities(scores[:, None]), moved, rtol=0, atol=1e-8)
    torch.testing.assert_close(one.thresholds, other.thresholds, rtol=0, atol=1e-8)


def test_thresholds_have_the_largest_expected_f1() -> None:
    """By brute force over all ways to give a label from some probability on."""
    proba = torch.rand(80, 1, dtype=F64, generator=torch.Generator().manual_seed(1)) ** 2
    weights = torch.rand(80, dtype=F64, generator=torch.Generator().manual_seed(2))

    def expected(threshold: float) -> float:
        given = proba[:, 0] >= threshold
        met = float((weights * proba[:, 0])[given].sum())
        return 2 * met / float(weights[given].sum() + (weights * proba[:, 0]).sum())

    best = max(expected(float(p)) for p in proba[:, 0])
    assert expected(float(best_thresholds(proba, weights))) == pytest.approx(best, abs=1e-12)
    assert float(best_thresholds(proba, weights)) == pytest.approx(best / 2, abs=1e-12)


def test_what_says_nothing_is_given_to_nobody() -> None:
    """Three pictures in a hundred, scored at random or all the same: the largest F1 would be to give it to all."""
    targets = torch.zeros(100, 2, dtype=F64)
    targets[:3] = 1
    scores = torch.zeros(100, 2, dtype=F64)
    scores[:, 1] = torch.randn(100, dtype=F64, generator=torch.Generator().manual_seed(0))
    found = fit_label_calibration(scores, targets)
    assert (found.thresholds >= LEAST).all()
    assert int(found.decide(found.probabilities(scores)).sum()) <= 1
