"""Edits of fitted models: each equals a fit of the same feature map to what is left, solved outright."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from edit_cases import (
    BACKBONE,
    MORE,
    MORE_Y,
    NEW,
    NUMBERS,
    Options,
    X,
    Y,
    classifier,
    equals_refit,
    regressor,
    vectors,
)
from frozen import frozen, rows_of, scores
from numpy.testing import assert_allclose
from small import FIXED
from torch import nn

from tangentune import Backbone, TangentClassifier

VARIANTS: list[Options] = [
    {},
    {"metric_power": 0.25, "normalize": True, "probe_space": "pca", "probes": 2},
    {"class_weight": "balanced", "augment": "flip"},
]


@pytest.mark.parametrize("options", VARIANTS, ids=str)
def test_forgetting_is_a_refit(options: Options) -> None:
    """1, 10, 30 and 75 % of the pictures."""
    clf = classifier(**options)
    for count in (1, 4, 12, 30):
        gone = np.random.default_rng(count).permutation(40)[:count]
        assert clf.forget(gone) is clf
        rest = np.setdiff1d(np.arange(40), gone)
        equals_refit(clf, X[rest], Y[rest])
        assert clf.ids_ == [str(i) for i in rest]
        clf.undo()


@pytest.mark.parametrize("options", VARIANTS[1:], ids=str)
def test_adding_is_a_refit(options: Options) -> None:
    clf = classifier(weights=np.r_[np.ones(38), 0, 3], **options)
    clf.add(MORE[:1], MORE_Y[:1]).add(MORE[1:], MORE_Y[1:], sample_weight=np.arange(11.0))
    weights = np.r_[np.ones(38), 0, 3, 1, np.arange(11.0)]
    equals_refit(clf, np.concatenate([X, MORE]), np.concatenate([Y, MORE_Y]), weights)
    assert clf.ids_ == [str(i) for i in range(52)]


def test_adding_more_than_there_were_and_without_kept_rows() -> None:
    clf = classifier(metric_power=0.25)
    clf.forget(range(30))
    clf.fitted_ = replace(clf.fitted_, room=0, training=replace(clf.fitted_.training, rows=None))
    clf.add(MORE, MORE_Y)
    equals_refit(clf, np.concatenate([X[30:], MORE]), np.concatenate([Y[30:], MORE_Y]))
    assert clf.fitted_.training.rows is None


def test_kept_rows_stay_within_their_room() -> None:
    clf = classifier()
    assert clf.fitted_.training.rows is not None
    clf.fitted_ = replace(clf.fitted_, room=clf.fitted_.training.rows.nbytes + 1)
    clf.add(MORE, MORE_Y)
    assert clf.fitted_.training.rows is None
    equals_refit(clf, np.concatenate([X, MORE]), np.concatenate([Y, MORE_Y]))


@pytest.mark.parametrize("options", VARIANTS[1:], ids=str)
def test_new_labels_are_a_refit(options: Options) -> None:
    names = np.array(["ant", "bee", "cat", "dog"])
    clf = classifier(names[Y], **options)
    y = names[Y].astype("<U9")
    clf.relabel([7, 3], ["ant", "butterfly"], new_class=True)  # in the order of the ids; it is new and longer
    y[7], y[3] = "ant", "butterfly"
    equals_refit(clf, X, y)
    clf.relabel("3", "cat").relabel((i for i in range(20)), "dog")
    y[3], y[:20] = "cat", "dog"
    equals_refit(clf, X, y)


@pytest.mark.parametrize("options", VARIANTS[1:], ids=str)
def test_new_weights_are_a_refit(options: Options) -> None:
    clf = classifier(**options)
    for seed, changed in enumerate((2, 40)):
        weights = np.ones(40)
        weights[:changed] = np.random.default_rng(seed).integers(0, 3, changed)
        equals_refit(clf.reweight(weights), X, Y, weights)
    equals_refit(clf.reweight([1] * 40), X, Y)


@pytest.mark.parametrize("class_weight", ["balanced", {2: 5.0}, {2: 5.0, 0: 2.0}], ids=str)
def test_classes_go_and_come(class_weight: Any) -> None:
    clf = classifier(class_weight=class_weight)
    clf.forget_class(2)
    rest = Y != 2
    assert clf.classes_.tolist() == [0, 1, 3]
    assert clf.decision_function(NEW).shape == (7, 3)
    equals_refit(clf, X[rest], Y[rest])
    y = np.where(MORE_Y == 1, 9, 2)
    clf.add(MORE, y, new_class=True)
    assert clf.classes_.tolist() == [0, 1, 2, 3, 9]
    equals_refit(clf, np.concatenate([X[rest], MORE]), np.concatenate([Y[rest], y]))
    clf.forget_class(np.int64(9)).forget_class(2).forget_class(3)
    assert clf.decision_function(NEW).shape == (7,)
    equals_refit(clf, X[Y < 2], Y[Y < 2])


@pytest.mark.parametrize("flat", [False, True])
def test_regressors_are_edited(flat: bool) -> None:
    y = NUMBERS[:, 0] if flat else NUMBERS
    reg, new = regressor(y), [3.5] * 12 if flat else np.full((12, 2), 3.5)
    reg.forget([0, 39]).add(MORE, new)
    y = np.concatenate([y[1:39], new])
    x = np.concatenate([X[1:39], MORE])
    equals_refit(reg, x, y)
    reg.relabel([5, 40], 7.0 if flat else [7.0, -1.0])
    y[[4, 38]] = 7.0 if flat else [7.0, -1.0]
    equals_refit(reg, x, y)
    reg.relabel([6, 5], [1.0, 2.0] if flat else [[1.0, 0.0], [2.0, 0.5]])
    y[[5, 4]] = [1.0, 2.0] if flat else [[1.0, 0.0], [2.0, 0.5]]
    equals_refit(reg, x, y)
    assert reg.predict(NEW).shape == ((7,) if flat else (7, 2))


def test_what_was_never_fitted_is_forgotten() -> None:
    """An estimator with isotropic probes: its map owes nothing to pictures, so a plain fit to the rest is the same."""
    clf = classifier().forget([3, 17])
    rest = np.setdiff1d(np.arange(40), [3, 17])
    fresh = TangentClassifier(BACKBONE, **FIXED).fit(X[rest], Y[rest])
    assert_allclose(clf.decision_function(NEW), fresh.decision_function(NEW), rtol=0, atol=1e-9)
    assert_allclose(clf.loo_proba_, fresh.loo_proba_, rtol=0, atol=1e-6)
    assert clf.temperature_ == pytest.approx(fresh.temperature_, rel=1e-3)


def test_the_first_predictions_after_an_edit_sum_no_weights() -> None:
    """A few come from the kernel, equal to those from the weights; for many the weights are summed."""
    clf = classifier().relabel([3], 0)
    first = scores(clf, NEW)
    assert (clf.fitted_.primal, clf.fitted_.asked) == (None, len(NEW))
    clf.relabel([4], 1)
    assert clf.fitted_.asked == 0
    few = scores(clf, NEW)
    assert np.abs(few - first).max() > 1e-3
    for _ in range(10):
        assert_allclose(scores(clf, NEW), few, rtol=0, atol=1e-12)
    assert clf.fitted_.primal is not None
    clf.forget([1])
    scores(clf, X)
    assert clf.fitted_.primal is None
    scores(clf, X)
    assert clf.fitted_.primal is not None


def test_hundreds_of_edits_do_not_drift() -> None:
    """500 random edits, checked against a solution from scratch; every figure of the log stays small."""
    torch.manual_seed(0)
    net = Backbone(nn.Sequential(nn.Linear(5, 12), nn.Tanh(), nn.Linear(12, 6)).double())
    rng = np.random.default_rng(0)
    x, y = vectors(60, 0)
    weights = np.ones(60)
    fixed: dict[str, Any] = {
        "metric_power": 0.25,
        "body_scale": 0.5,
        "normalize": True,
        "damping": 1e-3,
        "outer_steps": 0,
    }
    clf = TangentClassifier(net, **fixed).fit(x, y)
    fresh_x, fresh_y = vectors(500, 1)
    taken = 0
    for step in range(500):
        kind = rng.integers(5) if 40 < len(y) < 80 else int(len(y) <= 40)
        i = int(rng.integers(len(y)))
        if kind == 0:
            clf.forget(clf.ids_[i])
            x, y, weights = np.delete(x, i, 0), np.delete(y, i), np.delete(weights, i)
        elif kind == 1:
            clf.add(fresh_x[taken : taken + 1], fresh_y[taken : taken + 1])
            x, y = np.concatenate([x, fresh_x[taken : taken + 1]]), np.append(y, fresh_y[taken])
            weights, taken = np.append(weights, 1.0), taken + 1
        elif kind == 2:
            y = y.copy()
            y[i] = rng.integers(4)
            clf.relabel(clf.ids_[i], y[i])
        elif kind == 3:
            weights = weights.copy()
            weights[i] = rng.integers(4)
            clf.reweight(weights)
        else:
            clf.forget(clf.ids_[i]).undo()
        if step in (249, 499):
            fresh = TangentClassifier(net, **fixed).fit(*vectors(60, 0))
            fresh.add(x, y, weights).forget(range(60))  # solved anew: most of it changed
            assert_allclose(clf.dual_coef_, fresh.dual_coef_, rtol=0, atol=1e-7 * np.abs(fresh.dual_coef_).max())
            assert_allclose(clf.loo_predictions_, fresh.loo_predictions_, rtol=0, atol=1e-7)
            assert_allclose(clf.decision_function(fresh_x[:9]), fresh.decision_function(fresh_x[:9]), rtol=0, atol=1e-7)
    names = [entry["edit"] for entry in clf.edits_]
    assert {name: names.count(name) > 40 for name in names} == dict.fromkeys(
        ("add", "forget", "relabel", "reweight", "undo"), True
    )
    for entry in clf.edits_:
        assert 0 <= entry["residual_after"] <= 1e-9
        assert 0 <= entry["verification"] <= 1e-7
    assert clf.edits_[-1]["n"] == len(y)
    stored = sum(step.active.positions.nbytes + step.active.labels.nbytes for step in clf.fitted_.undo)
    assert stored < 500 * 80 * 8 * 2
    assert all(step.training is None and step.feature_map is None for step in clf.fitted_.undo)


def test_rounding_is_refreshed_away(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a kernel that is nearly singular the log shows an error that never grows from edit to edit."""
    clf = classifier(damping=1e-7, subset="none")
    first, new = clf.solution_.error, rows_of(clf, NEW)
    condition = np.abs(scores(clf, NEW) - frozen(clf, X, Y).predict(new).numpy()).max()
    for i in range(15):
        clf.forget([i]).add(X[i : i + 1], Y[i : i + 1])
    errors = [entry["residual_after"] for entry in clf.edits_]
    assert max(errors) <= max(1e-10, 100 * first)
    order = np.r_[np.arange(15, 40), np.arange(15)]
    refit = frozen(clf, X[order], Y[order])
    assert_allclose(scores(clf, NEW), refit.predict(new), rtol=0, atol=10 * condition)
