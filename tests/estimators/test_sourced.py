"""Estimators with a source behind them: every fit and edit is the joint problem, solved outright."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from frozen import rows_of, scores
from numpy.testing import assert_allclose
from numpy.typing import NDArray
from sklearn.base import clone
from small import FIXED
from sourced_cases import (
    BACKBONE,
    MORE,
    NAMES,
    NEW,
    VARIANTS,
    WEIGHTS,
    X,
    Y,
    classifier,
    equals_joint,
    joint,
    source,
)

from tangentune import TangentClassifier
from tangentune.methods.source_selection.manifest import SelectedPictures
from tangentune.solvers.source.choice import choose_source, source_effects

# -- the fit -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("weights", [None, WEIGHTS], ids=["even", "weights"])
@pytest.mark.parametrize("options", VARIANTS, ids=str)
def test_a_fit_with_a_source_is_the_joint_problem(options: dict[str, Any], weights: Any) -> None:
    model = classifier(weights=weights, **options)
    assert model.source_["strength"] > 0
    asked = equals_joint(model, X, Y, weights)
    held = replace(asked, balanced=False)  # the search holds the weights
    errors = (asked.weights @ held.errors() / asked.weights.sum()).item()
    assert model.source_["loo_error"] == pytest.approx(errors, rel=1e-8)
    assert model.source_["loo_error"] < model.source_["loo_error_without"]
    slopes = source_effects(asked.problem(), asked.setting)
    assert_allclose(model.source_effects_, asked.weights @ slopes / asked.weights.sum(), rtol=1e-6, atol=1e-10)
    assert model.source_ids_ == source().ids
    assert len(model.source_effects_) == 40
    assert model.source_["classes"][0]["stands_for"] == {"ant": 1.0}
    assert sum(row["weight"] for row in model.source_["classes"]) == pytest.approx(1)


def test_the_choice_is_that_of_explicit_kernels(plain: Any) -> None:
    asked = joint(plain, X, Y)
    choice = choose_source(asked.problem(), FIXED["damping"], fixed=True)
    assert choice.setting.strength == plain.source_["strength"]
    assert choice.setting.deviation == plain.source_["deviation"]
    assert plain.damping_ == choice.setting.damping == FIXED["damping"]
    assert_allclose(choice.setting.class_weights, asked.setting.class_weights, rtol=1e-8, atol=1e-12)
    assert [row["loo_error"] for row in choice.tried] == pytest.approx(
        [row["loo_error"] for row in plain.source_["tried"]], rel=1e-7
    )


def test_the_damping_is_chosen_with_the_source() -> None:
    options: dict[str, Any] = FIXED | {"damping": "loo"}
    model, alone = classifier(**options), TangentClassifier(BACKBONE, **options).fit(X, Y)
    ratio = model.damping_ / alone.damping_
    assert ratio in (1.0, 10.0, 100.0, 1000.0)
    assert model.relative_damping_ == pytest.approx(ratio * alone.relative_damping_)
    equals_joint(model, X, Y)


def test_weights_of_the_source_count(plain: Any) -> None:
    given = np.r_[np.zeros(3), np.tile([0.5, 2.0, 1.5], 12), 1.0]
    selected = SelectedPictures(source(), given, np.ones((40, 1)), ("x",))
    model = classifier(selected)
    assert model.source_ids_ == source().ids[3:]
    assert_allclose(model.fitted_.training.source.pictures.given, given[3:] / given[3:].mean())
    equals_joint(model, X, Y)
    assert np.abs(scores(model, NEW) - scores(plain, NEW)).max() > 1e-4


def test_a_harmful_source_changes_nothing() -> None:
    """Every class of the source has the name of another one of the target's."""
    model, alone = classifier(source("bee cat dog ant")), TangentClassifier(BACKBONE, **FIXED).fit(X, Y)
    assert model.source_["strength"] == 0
    assert model.source_["loo_error"] == model.source_["loo_error_without"]
    assert model.source_["classes"] == []
    for name in ("loo_predictions_", "dual_coef_", "intercept_", "kernel_", "damping_", "temperature_"):
        assert np.array_equal(getattr(model, name), getattr(alone, name)), name
    assert np.array_equal(scores(model, NEW), scores(alone, NEW))
    assert model.source_effects_.shape == (40,)
    assert np.isfinite(model.source_effects_).all()
    assert_allclose(scores(model.forget([4]), X[4:5])[0], alone.loo_predictions_[4], rtol=0, atol=1e-9)


def test_a_fit_without_source_says_so(plain: Any) -> None:
    again = copy.deepcopy(plain).fit(X, Y)
    assert again.source_ is None
    assert again.source_ids_ == []
    assert again.source_effects_.shape == (0,)
    blank: Any = clone(plain)
    assert not hasattr(blank, "source_")
    assert blank.get_params() == plain.get_params()
    assert "source" not in plain.get_params()


def test_one_source_picture_says_nothing() -> None:
    assert classifier(source().select([0])).source_["strength"] == 0


# -- edits -------------------------------------------------------------------------------------------------------------


def test_leaving_out_is_forgetting(plain: Any) -> None:
    """The prediction at a picture once it is forgotten is its leave-one-out prediction."""
    for i in (0, 6, 13, 19):
        gone = copy.deepcopy(plain).forget([i])
        assert_allclose(scores(gone, X[i : i + 1])[0], plain.loo_predictions_[i], rtol=0, atol=1e-8)


def test_leaving_out_the_only_picture_of_a_class() -> None:
    """Without it its class is known by name alone, if the source has that name."""
    kept, weights = (Y != "ant") | (np.arange(20) == 0), np.r_[0, np.ones(15)]
    for names in ("ant fly gnu elk", "fox fly gnu elk"):
        with pytest.warns(UserWarning, match="Class 'ant' has only one picture"):
            model = classifier(source(names), x=X[kept], y=Y[kept])
        assert model.source_["strength"] > 0
        equals_joint(model, X[kept], Y[kept])
        gone = copy.deepcopy(model).reweight(weights)
        assert_allclose(scores(gone, X[:1])[0], model.loo_predictions_[0], rtol=0, atol=1e-8)
        lost = scores(copy.deepcopy(model).forget([0]), X[:1])[0]  # its column goes with it
        assert np.allclose(lost, model.loo_predictions_[0, 1:], rtol=0, atol=1e-8) == (names[:3] == "fox")
        assert (model.loo_predictions_[0, 0] > 0.1) == (names[:3] == "ant")


Edited = tuple[NDArray, NDArray, NDArray]

EDITS: dict[str, tuple[Callable[[Any], Any], Callable[[NDArray, NDArray], Edited]]] = {
    "forget": (
        lambda m: m.forget([5, 6, 11]),
        lambda x, y: (np.delete(x, [5, 6, 11], 0), np.delete(y, [5, 6, 11]), np.ones(17)),
    ),
    "forget most": (
        lambda m: m.forget(range(6, 20)), lambda x, y: (x[:6], y[:6], np.ones(6)),
    ),
    "forget_class": (
        lambda m: m.forget_class("ant"), lambda x, y: (x[y != "ant"], y[y != "ant"], np.ones(15)),
    ),
    "add": (
        lambda m: m.add(MORE[:2], ["fly", "dog"], sample_weight=[2.0, 1.0], new_class=True),
        lambda x, y: (np.concatenate([x, MORE[:2]]), np.append(y, ["fly", "dog"]), np.r_[np.ones(20), 2, 1]),
    ),
    "add many": (
        lambda m: m.add(np.concatenate([MORE, X + 1]), np.append(NAMES[[0, 1, 2, 3, 0, 1]], Y)),
        lambda x, y: (
            np.concatenate([x, MORE, X + 1]), np.concatenate([y, NAMES[[0, 1, 2, 3, 0, 1]], Y]), np.ones(46),
        ),
    ),
    "relabel": (
        lambda m: m.relabel([4, 7], ["elk", "ant"], new_class=True),
        lambda x, y: (x, np.where(np.arange(20) == 4, "elk", np.where(np.arange(20) == 7, "ant", y)), np.ones(20)),
    ),
    "reweight": (
        lambda m: m.reweight(np.r_[np.ones(17), 0, 2, 0.5]), lambda x, y: (x, y, np.r_[np.ones(17), 0, 2, 0.5]),
    ),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:.*new pictures repeat")
@pytest.mark.parametrize("edit", EDITS)
def test_edits_are_joint_fits(plain: Any, edit: str) -> None:
    model = copy.deepcopy(plain)
    change, expected = EDITS[edit]
    change(model)
    equals_joint(model, *expected(X, Y))
    model.undo()
    equals_joint(model, X, Y)
    for name in ("dual_coef_", "intercept_", "loo_predictions_", "kernel_"):
        assert_allclose(getattr(model, name), getattr(plain, name), rtol=0, atol=1e-9, err_msg=name)
    assert model.source_ == plain.source_


def test_edits_follow_one_another() -> None:
    model = classifier(weights=WEIGHTS, class_weight="balanced")
    model.forget([2]).add(MORE[:3], ["bee", "ant", "fly"], new_class=True).relabel([20], "cat").forget([21, 0])
    y = np.append(np.delete(Y, [0, 2]), ["cat", "fly"])
    x = np.concatenate([np.delete(X, [0, 2], 0), MORE[[0, 2]]])
    weights = np.r_[np.delete(WEIGHTS, [0, 2]), 1, 1]
    equals_joint(model, x, y, weights)
    assert all(entry["residual_after"] < 1e-10 for entry in model.edits_)


def test_strictly_forgotten_pictures_leave_the_map_as_well() -> None:
    options = {"metric_power": 0.25, "probe_space": "pca", "normalize": True}
    model = classifier(weights=WEIGHTS, **options)
    before, setting = scores(model, NEW), model.fitted_.training.source.setting
    model.forget([3, 4], strict=True)
    rest = np.delete(np.arange(20), [3, 4])
    assert model.fitted_.training.source.setting is setting
    equals_joint(model, X[rest], Y[rest], WEIGHTS[rest])
    own = model.fitted_.training.source.own
    rows = rows_of(model, source().pixels.numpy())
    assert_allclose(own, rows @ rows.T, rtol=0, atol=1e-8)
    model.undo()
    assert_allclose(scores(model, NEW), before, rtol=0, atol=1e-9)
    equals_joint(model, X, Y, WEIGHTS)
