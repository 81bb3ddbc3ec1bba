"""Weights, targets and labels at the edges of what numbers carry: right, or one sentence."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from small import FIXED, backbone, pictures

from tangentune import TangentClassifier, TangentRegressor
from tangentune.errors import InputError

BACKBONE = backbone()
X, Y = pictures(20)


@pytest.mark.parametrize("weights", [[1e-300, 1e300], [1.0, 1e300], [1e-300, 1.0], [1.0, 1e20]])
def test_weights_further_apart_than_numbers_carry_are_refused(weights: list[float]) -> None:
    given = np.resize(weights, len(X))
    with pytest.raises(InputError, match="weights go from .* further than double precision carries"):
        TangentClassifier(BACKBONE, **FIXED).fit(X, Y, sample_weight=given)
    clf = TangentClassifier(BACKBONE, **FIXED).fit(X, Y)
    before = clf.loo_predictions_
    with pytest.raises(InputError, match="weights go from"):
        clf.reweight(given)
    heavy: Any = dict(enumerate(np.resize(weights, 4).tolist()))
    with pytest.raises(InputError, match="weights go from"):
        TangentClassifier(BACKBONE, **FIXED, class_weight=heavy).fit(X, Y)
    assert clf.loo_predictions_ is before


@pytest.mark.parametrize("weights", [[1e-6, 1e6], [1e-60, 1.0], [1.0, 1e14]])
def test_weights_that_numbers_carry_give_finite_answers(weights: list[float]) -> None:
    clf = TangentClassifier(BACKBONE, **FIXED).fit(X, Y, sample_weight=np.resize(weights, len(X)))
    assert np.isfinite(clf.loo_predictions_).all()
    assert np.isfinite(clf.predict_proba(X)).all()
    assert np.isfinite(clf.weight_gradient()).all()


@pytest.mark.parametrize("scale", [1e160, 1e300, 1e-160, 1e-300])
def test_targets_whose_squares_no_number_holds_are_refused(scale: float) -> None:
    y = scale * (1 + X.mean((1, 2, 3)) / 256)
    with pytest.raises(InputError, match="largest target, .* of picture .* another unit"):
        TangentRegressor(BACKBONE, **FIXED).fit(X, y)


@pytest.mark.parametrize("scale", [1e90, 1e-90, 1e30])
def test_targets_in_any_other_unit_give_the_same_model(scale: float) -> None:
    y = 1 + X.mean((1, 2, 3)) / 256
    one, other = (TangentRegressor(BACKBONE, **FIXED).fit(X, y * factor) for factor in (1.0, scale))
    np.testing.assert_allclose(other.loo_predictions_ / scale, one.loo_predictions_, rtol=1e-9)
    assert other.loo_score_ == pytest.approx(one.loo_score_, rel=1e-9)


def test_a_target_relabelled_out_of_range_is_refused() -> None:
    reg = TangentRegressor(BACKBONE, **FIXED).fit(X, X.mean((1, 2, 3)))
    with pytest.raises(InputError, match="largest target, 1e\\+160 of picture 3"):
        reg.relabel(3, 1e160)
    assert np.isfinite(reg.relabel(3, 1e-200).loo_predictions_).all()  # beside others of usual size


def test_one_picture_is_not_given_two_labels() -> None:
    clf = TangentClassifier(BACKBONE, **FIXED).fit(X, Y)
    for ids, labels in ((["0", "0"], [1, 2]), ([0, "0"], [1, 2]), (["0", "5", "0"], [1, 2, 3])):
        with pytest.raises(InputError, match="the picture '0' is given two labels, 1 and"):
            clf.relabel(ids, labels)
    assert clf.targets_.tolist() == Y.tolist()
    assert clf.relabel(["0", "0", "1"], [1, 1, 2]).targets_.tolist() == [1, 2, *Y[2:]]
    reg = TangentRegressor(BACKBONE, **FIXED).fit(X, np.stack([Y, -Y], 1))
    with pytest.raises(InputError, match="given two labels"):
        reg.relabel(["0", "0"], [[1.0, 2.0], [1.0, 3.0]])


def test_one_hot_labels_are_named_and_not_the_class_weights() -> None:
    for labels, words in ((np.eye(4)[Y], r"y.argmax\(1\)"), (np.eye(4)[Y] + np.eye(4)[0], "4 labels each|mark")):
        with pytest.raises(InputError, match=words) as caught:
            TangentClassifier(BACKBONE, **FIXED).fit(X, labels)
        assert "class_weight" not in str(caught.value)


def test_a_class_weight_that_is_no_number_is_named() -> None:
    with pytest.raises(InputError, match="picture 1 has the weight nan; weights must be 0 or more"):
        TangentClassifier(BACKBONE, **FIXED, class_weight={0: 1.0, 1: float("nan"), 2: 1.0, 3: 1.0}).fit(X, Y)


def test_a_plan_prints_for_people_and_refuses_what_a_fit_would() -> None:
    plan = TangentClassifier(BACKBONE, **FIXED).plan(X, Y)
    assert str(plan).startswith(f"Fitting {plan['parameters']:,} parameters of custom to 20 pictures will take about ")
    assert plan["layers"]
    assert "layers" not in str(plan)
    with pytest.raises(InputError, match="at least two classes"):
        TangentClassifier(BACKBONE, **FIXED).plan(X, np.zeros(20, int))
