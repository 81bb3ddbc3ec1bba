"""Weights, subsets, labels and options of the estimators, and scikit-learn's habits."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV, cross_val_score
from small import FIXED, backbone, network, normalised, pictures
from torch import nn

from tangentune import Backbone, TangentClassifier, TangentRegressor
from tangentune.errors import InputError, LayerError

BACKBONE = backbone()
X, Y = pictures()
NEW, NEW_Y = pictures(13, seed=5)


def classifier(**options: Any) -> TangentClassifier:
    return TangentClassifier(BACKBONE, **(FIXED | options))


# -- weights -----------------------------------------------------------------------------------------------------------

UNEVEN = np.r_[0:40:4, 1:40:4, 2:20:4, [3, 7]]  # 10, 10, 5 and 2 pictures


@pytest.mark.parametrize("class_weight", ["balanced", {0: 1.0, 1: 2.0, 2: 0.5, 3: 4.0}, {3: 4.0}], ids=str)
def test_class_weights_are_sample_weights(class_weight: Any) -> None:
    x, y = X[UNEVEN], Y[UNEVEN]
    counts = np.bincount(y)
    table = len(y) / (4 * counts)
    if class_weight != "balanced":
        table = np.array([class_weight.get(c, 1.0) for c in range(4)])
    by_class = classifier(class_weight=class_weight).fit(x, y)
    by_sample = classifier().fit(x, y, sample_weight=table[y])
    assert_allclose(by_class.decision_function(NEW), by_sample.decision_function(NEW), rtol=0, atol=1e-12)
    if class_weight == "balanced":  # weights that a picture left out does not change are not those of a refit
        by_sample = classifier(class_weight="balanced").fit(x[1:], y[1:])
        assert_allclose(by_class.loo_predictions_[0], by_sample.decision_function(x[:1])[0], rtol=0, atol=1e-9)
    else:
        assert_allclose(by_class.loo_predictions_, by_sample.loo_predictions_, rtol=0, atol=1e-12)
    plain = classifier().fit(x, y)
    assert not np.allclose(plain.decision_function(NEW), by_class.decision_function(NEW))


def test_weight_zero_leaves_a_picture_out() -> None:
    weights = np.ones(40)
    weights[[3, 8, 30]] = 0
    clf = classifier().fit(X, Y, sample_weight=weights)
    without = classifier().fit(X[weights > 0], Y[weights > 0])
    assert_allclose(clf.decision_function(NEW), without.decision_function(NEW), rtol=0, atol=1e-12)
    assert_allclose(clf.loo_predictions_[weights > 0], without.loo_predictions_, rtol=0, atol=1e-12)
    assert_allclose(clf.loo_predictions_[weights == 0], without.decision_function(X[weights == 0]), rtol=0, atol=1e-12)
    assert clf.kernel_.shape == (40, 40)  # known, though without a say


def test_weight_two_is_a_picture_twice() -> None:
    weights = np.ones(40)
    weights[[2, 5]] = 2
    clf = classifier(normalize=True).fit(X, Y, sample_weight=weights)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # duplicates are told, which is right
        twice = classifier(normalize=True).fit(np.concatenate([X, X[[2, 5]]]), np.concatenate([Y, Y[[2, 5]]]))
    assert_allclose(clf.decision_function(NEW), twice.decision_function(NEW), rtol=0, atol=1e-10)


# -- which parameters move ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("subset, moved", [
    ("all", {"0", "1", "3", "5", "6", "10"}), ("none", set()), ("last:1", {"10"}), ("last:2", {"6", "10"}),
    ("norm", {"1", "6"}), ("bias", {"0", "1", "3", "5", "6", "10"}), ("0.*, 5.weight", {"0", "5"}),
])  # fmt: skip
def test_subsets(subset: str, moved: set[str]) -> None:
    clf = classifier(subset=subset).fit(X, Y)
    assert set(clf.block_scales_) == {"head"} | moved
    names = set(clf.model_.map.tangent.names)
    assert {name.split(".")[0] for name in names} == moved
    if subset == "bias":
        assert all(name.endswith("bias") for name in names)
    if not moved:
        phi = network()(normalised(X))
        assert_allclose(clf.kernel_, phi @ phi.T, atol=1e-12)


def test_a_subset_can_leave_out_what_cannot_move() -> None:
    """A layer without per-sample gradients is refused, and the advice in the refusal works."""
    net = Backbone(Recurrent().double(), input_size=(3, 8, 8))
    with pytest.raises(LayerError, match=r"lstm\..*subset"):
        TangentClassifier(net, **FIXED).fit(X, Y)
    clf = TangentClassifier(net, **FIXED, subset="last:1").fit(X, Y)
    assert set(clf.block_scales_) == {"head", "last"}
    assert len(np.unique(clf.predict(NEW))) > 1


class Recurrent(nn.Module):
    """Rows of a picture through an LSTM."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.lstm, self.last = nn.LSTM(24, 6, batch_first=True), nn.Linear(6, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.lstm(x.transpose(1, 2).flatten(2))[0][:, -1])


# -- labels ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("names", [np.array(["ant", "bée", "猫", "dog house"]), np.array([-7, 0, 3, 12]),
                                   np.array([0.0, 1.0, 2.0, 3.0])])  # fmt: skip
def test_labels_come_back_as_given(names: np.ndarray) -> None:
    clf = classifier().fit(X, names[Y])
    assert set(clf.classes_) == set(names)
    assert list(clf.classes_) == sorted(names)
    predicted = clf.predict(X)
    assert predicted.dtype.kind == names.dtype.kind
    plain = classifier().fit(X, Y)
    order = np.argsort(names, kind="stable")
    assert (predicted == names[plain.predict(X)]).all()
    assert_allclose(clf.predict_proba(X), plain.predict_proba(X)[:, order], rtol=0, atol=1e-9)
    assert clf.score(X, names[Y]) == plain.score(X, Y)


def test_two_classes_give_one_score() -> None:
    clf = classifier().fit(X, Y % 2 == 1)
    assert clf.decision_function(NEW).shape == (13,)
    assert ((clf.decision_function(NEW) > 0) == clf.predict(NEW)).all()
    assert clf.predict_proba(NEW).shape == (13, 2)


def test_a_class_with_one_picture_is_told_and_fitted() -> None:
    y = np.where(np.arange(40) == 5, 9, Y)
    with pytest.warns(UserWarning, match="9"):
        clf = classifier().fit(X, y)
    assert clf.loo_predictions_.shape == (40, 5)
    assert clf.loo_predictions_[5].argmax() != 4  # without it the class is unknown


def test_one_class_only_is_refused() -> None:
    with pytest.raises(InputError, match="at least two classes"):
        classifier().fit(X, np.zeros(40))


# -- options -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options, words", [
    ({"metric_power": 0.3}, "metric_power is 0.3"), ({"metric_power": "best"}, "metric_power is 'best'"),
    ({"body_scale": -1.0}, "body_scale is -1.0"), ({"body_scale": float("nan")}, "body_scale is nan"),
    ({"damping": 0}, "damping is 0"), ({"damping": None}, "damping is None"),
    ({"damping": "1e-3"}, "damping is '1e-3'"),
    ({"normalize": "yes"}, "normalize is 'yes'"), ({"normalize": 1}, "normalize is 1"),
    ({"probes": 0}, "probes is 0"), ({"probes": 1.5}, "probes is 1.5"), ({"probes": True}, "probes is True"),
    ({"probe_space": "top"}, "probe_space is 'top'"), ({"augment": "crop"}, "augment is 'crop'"),
    ({"batch_size": 0}, "batch_size is 0"), ({"memory_budget": "lots"}, "memory size 'lots'"),
    ({"subset": "layer9.*"}, "subset 'layer9.*'"), ({"subset": 3}, "subset is 3"),
    ({"damping": "loo", "body_scale": "evidence"}, "mix 'loo' and 'evidence'"),
    ({"class_weight": "even"}, "class_weight"), ({"class_weight": {2: -1.0}}, "picture 2 has a negative weight"),
    ({"backbone": "mobilnet"}, "no backbone 'mobilnet'"), ({"backbone": 3}, "backbone is a int"),
], ids=str)  # fmt: skip
def test_bad_options_are_named(options: dict[str, Any], words: str) -> None:
    arguments: dict[str, Any] = {"backbone": BACKBONE} | FIXED | options
    with pytest.raises((InputError, ValueError)) as caught:
        TangentClassifier(**arguments).fit(X, Y)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("y, weights, words", [
    (Y[:39], None, "39"), (np.linspace(0, 1, 40), None, "continuous"), (None, None, "label"),
    (Y, np.ones(3), "sample_weight"), (Y, np.zeros(40), "weight"), (Y, np.full(40, np.nan), "NaN"),
    (Y, np.where(np.arange(40) == 3, -1.0, 1.0), "picture 3 has a negative weight"),
])  # fmt: skip
def test_bad_labels_and_weights_are_named(y: Any, weights: Any, words: str) -> None:
    with pytest.raises(ValueError) as caught:
        classifier().fit(X, y, sample_weight=weights)
    assert words in str(caught.value)


def test_bad_regression_targets_are_named() -> None:
    bad = X.mean((2, 3))
    bad[7, 1] = np.nan
    with pytest.raises(InputError, match="7"):
        TangentRegressor(BACKBONE, **FIXED).fit(X, bad)
    with pytest.raises(InputError, match="class_weight"):
        TangentRegressor(BACKBONE, class_weight="balanced").fit(X, bad[:, 0])
    with pytest.raises(ValueError, match=r"ant|number"):
        TangentRegressor(BACKBONE, **FIXED).fit(X, np.array(["ant"] * 40))


# -- scikit-learn's habits ---------------------------------------------------------------------------------------------


def test_parameters_and_copies() -> None:
    clf = classifier(probes=3)
    assert clf.get_params(deep=False)["probes"] == 3
    assert clf.get_params(deep=False)["backbone"] is BACKBONE
    twin: Any = clone(clf)
    assert twin.get_params(deep=False).keys() == clf.get_params(deep=False).keys()
    assert twin.probes == 3
    fitted = clf.fit(X, Y)
    assert fitted is clf
    other = copy.deepcopy(fitted)
    assert np.array_equal(other.decision_function(NEW), fitted.decision_function(NEW))
    assert "probes=3" in repr(clf)


def test_fitting_again_forgets() -> None:
    clf = classifier().fit(X, Y)
    again = clf.fit(X[:20], Y[:20] // 2)
    fresh = classifier().fit(X[:20], Y[:20] // 2)
    assert np.array_equal(again.decision_function(NEW), fresh.decision_function(NEW))
    assert again.kernel_.shape == (20, 20)


def test_it_works_inside_scikit_learn() -> None:
    scores = cross_val_score(classifier(), X, Y, cv=2)
    assert scores.shape == (2,)
    assert scores.min() > 0.3
    search = GridSearchCV(classifier(), {"damping": [0.05, 1e6]}, cv=2).fit(X, Y)
    assert search.best_params_ == {"damping": 0.05}


def test_nothing_given_is_changed() -> None:
    x, y, before = X.copy(), Y.copy(), {k: v.clone() for k, v in BACKBONE.module.state_dict().items()}
    state = torch.random.get_rng_state()
    classifier().fit(x, y).predict(x)
    assert np.array_equal(x, X)
    assert np.array_equal(y, Y)
    assert all(torch.equal(value, before[key]) for key, value in BACKBONE.module.state_dict().items())
    assert torch.equal(torch.random.get_rng_state(), state)


def test_arrays_of_every_layout_are_the_same_pictures() -> None:
    clf = classifier().fit(X, Y)
    expected = clf.decision_function(NEW)
    for given in (NEW.transpose(0, 2, 3, 1), torch.from_numpy(NEW), (NEW / 255.0)):
        assert_allclose(clf.decision_function(given), expected, rtol=0, atol=1e-6)


def test_one_picture_a_class_takes_usual_values() -> None:
    """Leave-one-out without a class's only picture says nothing about that class, so it must not choose."""
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(5, 4)), np.arange(5)
    clf = TangentClassifier(Backbone(nn.Sequential(nn.Linear(4, 8), nn.Tanh()).double())).fit(x, y)
    assert (clf.metric_power_, clf.normalize_, clf.body_scale_, clf.damping_) == (0.25, True, 0.5, 1.0)
    assert clf.score(x, y) == 1.0
    fixed = TangentClassifier(Backbone(nn.Sequential(nn.Linear(4, 8), nn.Tanh()).double()), damping=0.3).fit(x, y)
    assert (fixed.damping_, fixed.body_scale_) == (0.3, 0.5)


@pytest.mark.parametrize(("weights", "words"), [
    ({0: 1.0, "zebra": 2.0}, "class_weight names 'zebra', no class of these pictures; the classes are 0, 1"),
    ("heavy", "class_weight is 'heavy'; it must be 'balanced' or a weight for each class"),
    ([1.0, 2.0], r"class_weight is \[1.0, 2.0\]; it must be 'balanced'"),
])  # fmt: skip
def test_class_weights_that_fit_no_class_are_refused_in_a_sentence(weights: Any, words: str) -> None:
    with pytest.raises(InputError, match=words):
        TangentClassifier(BACKBONE, class_weight=weights, **FIXED).fit(X, Y)
