"""Scores against scikit-learn where it has them, against hand sums where it has not."""

from __future__ import annotations

import doctest

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest
from sklearn import metrics as peer

from tangentune.errors import InputError
from tangentune.solvers import metrics


def table(n: int, classes: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(n, classes)) * 2
    proba = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    return rng.integers(0, classes, n), proba


@settings(max_examples=25, deadline=None)
@given(n=st.integers(1, 60), classes=st.integers(2, 7), seed=st.integers(0, 1000))
def test_agrees_with_scikit_learn(n: int, classes: int, seed: int) -> None:
    labels, proba = table(n, classes, seed)
    guess = proba.argmax(1)
    every = list(range(classes))
    assert metrics.accuracy(labels, guess) == pytest.approx(peer.accuracy_score(labels, guess))
    assert metrics.nll(labels, proba) == pytest.approx(peer.log_loss(labels, proba, labels=every), abs=1e-12)
    one_hot = np.eye(classes)[labels]
    assert metrics.brier(labels, proba) == pytest.approx(((proba - one_hot) ** 2).sum(1).mean())
    ours = metrics.confusion_matrix(labels, guess, classes)
    assert (ours == peer.confusion_matrix(labels, guess, labels=every)).all()


def test_ece_equals_a_loop_over_bins() -> None:
    labels, proba = table(500, 4, 3)
    confidence, right = proba.max(1), proba.argmax(1) == labels
    total = 0.0
    for low in np.arange(10) / 10:
        inside = (confidence > low) & (confidence <= low + 0.1)
        if inside.any():
            total += inside.sum() * abs(confidence[inside].mean() - right[inside].mean())
    assert metrics.ece(labels, proba, bins=10) == pytest.approx(total / 500, abs=1e-12)


def test_reliability_counts_every_case_once_even_at_the_edges() -> None:
    proba = np.array([[1.0, 0.0], [0.5, 0.5], [0.0, 1.0], [0.75, 0.25]])
    curve = metrics.reliability([0, 0, 0, 1], proba, bins=4)
    assert curve.counts.tolist() == [0, 1, 1, 2]
    assert curve.accuracy[1:].tolist() == [1.0, 0.0, 0.5]
    assert np.isnan(curve.accuracy[0])
    assert np.isnan(curve.confidence[0])


def test_overconfident_beats_nobody() -> None:
    """Sharpening calibrated probabilities must raise NLL and ECE while accuracy stays."""
    rng = np.random.default_rng(0)
    proba = rng.dirichlet([1.0, 1.0, 1.0], 4000)
    labels = np.array([rng.choice(3, p=row) for row in proba])
    sharp = proba**4 / (proba**4).sum(1, keepdims=True)
    assert metrics.accuracy(labels, proba.argmax(1)) == metrics.accuracy(labels, sharp.argmax(1))
    assert metrics.ece(labels, sharp) > metrics.ece(labels, proba) + 0.1
    assert metrics.nll(labels, sharp) > metrics.nll(labels, proba) + 0.1
    assert metrics.brier(labels, sharp) > metrics.brier(labels, proba)


def test_zero_probability_is_finite_and_the_table_is_left_alone() -> None:
    proba = np.array([[1.0, 0.0], [0.0, 1.0]], np.float32)
    before = proba.copy()
    assert metrics.nll([1, 1], proba) == pytest.approx(-np.log(np.finfo(np.float32).eps) / 2)
    assert metrics.brier([1, 1], proba) == 1.0
    assert (proba == before).all()


def test_regression_scores() -> None:
    rng = np.random.default_rng(1)
    targets = rng.normal(size=(30, 2))
    guess = targets + 0.3 * rng.normal(size=(30, 2))
    assert metrics.r2(targets, guess) == pytest.approx(peer.r2_score(targets, guess))
    assert metrics.rmse(targets, guess) == pytest.approx(np.sqrt(((targets - guess) ** 2).mean()))
    assert metrics.r2([2.0, 2.0], [2.0, 2.0]) == 1.0
    assert metrics.r2([2.0, 2.0], [2.0, 3.0]) == 0.0


def test_interval_holds_the_share_and_shrinks() -> None:
    for share in (0.0, 0.3, 1.0):
        low, high = metrics.accuracy_interval(share, 50)
        assert 0.0 <= low < high <= 1.0
        assert low - 1e-12 <= share <= high + 1e-12
        theirs = binomtest(round(share * 50), 50).proportion_ci(0.95, "wilson")
        assert (low, high) == pytest.approx(tuple(theirs), abs=1e-8)  # seven digits of the normal quantile
    wide, narrow = metrics.accuracy_interval(0.8, 20), metrics.accuracy_interval(0.8, 2000)
    assert narrow[1] - narrow[0] < (wide[1] - wide[0]) / 5


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: metrics.accuracy([], []), "nothing to score"),
        (lambda: metrics.accuracy([1], [1, 2]), "differ in number"),
        (lambda: metrics.nll([2], [[0.5, 0.5]]), "2 classes"),
        (lambda: metrics.nll([-1], [[0.5, 0.5]]), "2 classes"),
        (lambda: metrics.nll(["a"], [[0.5, 0.5]]), "class position"),
        (lambda: metrics.nll([0], [0.5]), "(cases, classes)"),
        (lambda: metrics.confusion_matrix([0], [3], 2), "predictions run"),
        (lambda: metrics.reliability([0], [[1.0, 0.0]], bins=0), "at least one bin"),
        (lambda: metrics.r2([[1.0, 2.0]], [[1.0]]), "shape"),
    ],
)
def test_bad_input_is_one_sentence(call, words: str) -> None:
    with pytest.raises(InputError) as caught:
        call()
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_examples_in_docstrings_run() -> None:
    result = doctest.testmod(metrics)
    assert result.attempted >= 8
    assert result.failed == 0
