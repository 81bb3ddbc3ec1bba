"""Strict forgetting: equal to an estimator fitted to the other pictures, probes, metric and outer steps included."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from edit_cases import (
    BACKBONE,
    MORE,
    MORE_Y,
    NEW,
    Options,
    X,
    Y,
    classifier,
    equals_refit,
)
from frozen import scores
from numpy.testing import assert_allclose
from small import FIXED

from tangentune import TangentClassifier

STRICT: list[Options] = [
    {"probe_space": "pca", "metric_power": 0.25},
    {"probe_space": "pca", "metric_power": 0.5, "normalize": True, "augment": "flip", "probes": 2},
    {"metric_power": 0.25, "class_weight": "balanced", "outer_steps": 1},
]


@pytest.mark.parametrize("options", STRICT, ids=str)
def test_strict_is_a_fit_to_the_rest(options: Options, tmp_path: Path) -> None:
    clf = classifier(**options)
    first = copy.deepcopy(clf)
    gone, rest = [2, 3, 21], np.setdiff1d(np.arange(40), [2, 3, 21])
    clf.forget(gone, strict=True)
    fresh = TangentClassifier(BACKBONE, **(FIXED | options)).fit(X[rest], Y[rest])
    same(clf, fresh)
    assert clf.edits_[-1]["strict"] is True
    clf.save_pretrained(tmp_path / "m")
    loaded = TangentClassifier.from_pretrained(tmp_path / "m", backbone=BACKBONE)
    assert np.array_equal(scores(loaded, NEW), scores(clf, NEW))
    same(loaded, fresh)
    clf.forget([0]).undo().undo()
    same(clf, first)


def same(model: TangentClassifier, fresh: TangentClassifier) -> None:
    """Equal in what they answer, stand on and are made of."""
    assert_allclose(scores(model, NEW), scores(fresh, NEW), rtol=0, atol=1e-8)
    assert_allclose(model.loo_predictions_, fresh.loo_predictions_, rtol=0, atol=1e-8)
    assert_allclose(model.kernel_, fresh.kernel_, rtol=1e-8, atol=1e-8)
    assert_allclose(model.probes_, fresh.probes_, rtol=0, atol=1e-8)
    assert_allclose(model.influence(NEW), fresh.influence(NEW), rtol=0, atol=1e-8)
    assert (model.task_vector_ is None) == (fresh.task_vector_ is None)
    if model.task_vector_ is not None and fresh.task_vector_ is not None:
        assert model.task_vector_.norm() == pytest.approx(fresh.task_vector_.norm(), rel=1e-8)


@pytest.mark.parametrize("seed", [np.random.RandomState(3), None, np.int64(4)], ids=["state", "none", "numpy"])
def test_strict_keeps_the_seed_of_the_fit(seed: Any, tmp_path: Path) -> None:
    clf = classifier(random_state=seed, metric_power=0.25)
    clf.save_pretrained(tmp_path / "m")
    loaded, probes = TangentClassifier.from_pretrained(tmp_path / "m", backbone=BACKBONE), clf.probes_
    for model in (clf, loaded):
        assert np.array_equal(model.forget([3], strict=True).probes_, probes)


def test_strict_with_weightless_pictures_and_after_other_edits() -> None:
    options = {"probe_space": "pca", "metric_power": 0.25}
    weights = np.where(np.arange(40) % 7 == 0, 0.0, 1.0 + np.arange(40) % 2)
    clf = classifier(weights=weights, **options)
    clf.add(MORE, MORE_Y).relabel([1], 3).forget([8, 14, 45], strict=True)
    rest = np.setdiff1d(np.arange(52), [8, 14, 45])
    y = np.concatenate([Y, MORE_Y])
    y[1] = 3
    x, w = np.concatenate([X, MORE])[rest], np.r_[weights, np.ones(12)][rest]
    fresh = TangentClassifier(BACKBONE, **(FIXED | options)).fit(x, y[rest], w)
    same(clf, fresh)
    assert clf.ids_ == [str(i) for i in rest]
    assert np.array_equal(clf.pictures_.pixels.numpy(), x)
    equals_refit(clf.forget(["0", "46"]), np.delete(x, [0, 43], 0), np.delete(y[rest], [0, 43]), np.delete(w, [0, 43]))


def test_strict_leaves_out_classes_without_weight() -> None:
    options: Options = {"probe_space": "pca", "metric_power": 0.25, "class_weight": {1: 0.0}}
    clf = classifier(**options).forget([2], strict=True)
    rest = np.arange(40) != 2
    same(clf, TangentClassifier(BACKBONE, **(FIXED | options)).fit(X[rest], Y[rest]))
