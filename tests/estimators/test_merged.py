"""Owners' sums, merged, give the model that all pictures at one place would give; it predicts and nothing else."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from forging import reseal
from numpy.testing import assert_allclose, assert_array_equal
from small import backbone, pictures

from tangentune import TangentClassifier, TangentFeatures, TangentRegressor, TangentSums, write_report
from tangentune.errors import InputError, StoreError
from tangentune.solvers.home_scores import Judge

BACKBONE = backbone()
X, POSITIONS = pictures(60)
Y = np.array(["ant", "bee", "cat", "dog"])[POSITIONS]
NEW, NEW_POSITIONS = pictures(13, seed=5)
NEW_Y = np.array(["ant", "bee", "cat", "dog"])[NEW_POSITIONS]
SITES = [np.flatnonzero(Y != "bee")[:20], np.flatnonzero(Y == "bee"), np.flatnonzero(Y != "bee")[20:]]  # one lacks bees


@pytest.fixture(scope="module", params=["landmarks", "sketch"])
def features(request: pytest.FixtureRequest) -> TangentFeatures:
    if request.param == "sketch":
        return TangentFeatures(BACKBONE, landmarks=None, width=80).fit()
    public, labels = pictures(20, classes=3, seed=9)  # pictures of nobody's, of other classes
    return TangentFeatures(BACKBONE, landmarks=15).fit(public, labels)


@pytest.fixture(scope="module")
def merged(features: TangentFeatures) -> Any:
    return features.solve(features.sums(X, Y))


def test_three_owners_in_any_order_are_the_pooled_fit(features: TangentFeatures, merged: TangentClassifier) -> None:
    sites = [features.sums(X[site], Y[site]) for site in SITES]
    assert sites[1].classes == ("bee",)
    scores, proba = merged.decision_function(NEW), merged.predict_proba(NEW)
    for one, two, three in itertools.permutations(sites):
        found: Any = features.solve(one + two + three)
        assert_allclose(found.decision_function(NEW), scores, rtol=0, atol=1e-8)
        assert_allclose(found.predict_proba(NEW), proba, rtol=0, atol=1e-8)
        assert found.damping_ == pytest.approx(merged.damping_, rel=1e-12)
    assert merged.score(NEW, NEW_Y) > 0.4  # chance: 0.25


def test_it_is_the_solution_in_the_maps_rows(features: TangentFeatures, merged: TangentClassifier) -> None:
    """Folded into weights of the network, the coefficients give what they give in rows of the map."""
    total = features.sums(X, Y)
    expected = total.fit(merged.damping_).predict(torch.from_numpy(features.transform(NEW)))
    assert_allclose(merged.decision_function(NEW), expected.numpy(), rtol=0, atol=1e-8)
    assert_array_equal(merged.classes_, ["ant", "bee", "cat", "dog"])
    fixed = features.solve(total, damping=3.0)
    assert (fixed.damping_, fixed.get_params()["damping"]) == (3.0, 3.0)


def test_an_owner_withdraws(features: TangentFeatures) -> None:
    """Without having the pictures: the model is that of the others, and their classes are all that is left."""
    sites = [features.sums(X[site], Y[site]) for site in SITES]
    left = sites[0] + sites[1] + sites[2] - sites[1]
    assert left.classes == ("ant", "cat", "dog")
    model: Any = features.solve(left)
    alone: Any = features.solve(sites[0] + sites[2])
    assert_allclose(model.decision_function(NEW), alone.decision_function(NEW), rtol=0, atol=1e-8)
    assert_array_equal(model.classes_, alone.classes_)


def test_a_saved_one_needs_no_map_and_no_picture(merged: TangentClassifier, tmp_path: Path) -> None:
    merged.save_pretrained(tmp_path / "model")
    again = TangentClassifier.from_pretrained(tmp_path / "model", backbone=BACKBONE)
    assert_array_equal(again.predict_proba(NEW), merged.predict_proba(NEW))
    assert_array_equal(again.predict(NEW), merged.predict(NEW))
    assert again.fit_report_["sums"]["counts"] == [15, 15, 15, 15]
    again.save_pretrained(tmp_path / "copy")
    card = (tmp_path / "copy" / "README.md").read_text()
    assert "sums over 60 pictures" in card
    assert "| bee | 15 |" in card
    assert not (tmp_path / "copy" / "pictures.safetensors").exists()
    config = json.loads((tmp_path / "copy" / "config.json").read_text())
    del config["fitted"]["fit_report_"]["sums"]
    reseal(tmp_path / "copy", config)
    with pytest.raises(StoreError, match="not those of a fit, nor of sums"):
        TangentClassifier.from_pretrained(tmp_path / "copy", backbone=BACKBONE)


@pytest.mark.parametrize("ask", [
    lambda model: model.forget("1"), lambda model: model.relabel("1", "bee"), lambda model: model.suspects(),
    lambda model: model.influence(NEW), lambda model: model.leave_out(3), lambda model: model.ood_score(NEW),
    lambda model: model.informativeness(), lambda model: model.weight_gradient(), lambda model: model.kernel_,
    lambda model: model.reweight(np.ones(60)), lambda model: model.forget_class("bee"), lambda model: model.undo(),
    lambda model: model.add(NEW, NEW_Y), lambda model: write_report(model, "/tmp/never.html"),
])  # fmt: skip
def test_questions_about_its_pictures_are_one_sentence(merged: Any, ask: Callable[[Any], object]) -> None:
    with pytest.raises(InputError) as caught:
        ask(merged)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) > 30


@pytest.mark.parametrize("columns", [1, 2])
def test_numbers(features: TangentFeatures, columns: int, tmp_path: Path) -> None:
    y = np.stack([X.mean((1, 2, 3)), X[:, 0].mean((1, 2))], 1)[:, :columns]
    y = y[:, 0] if columns == 1 else y
    model = features.solve(features.sums(X[:25], y[:25]) + features.sums(X[25:], y[25:]))
    assert isinstance(model, TangentRegressor)
    whole = features.solve(features.sums(X, y))
    assert_allclose(model.predict(NEW), whole.predict(NEW), rtol=0, atol=1e-8)
    assert model.predict(NEW).shape == (13, 2)[:columns]
    model.save_pretrained(tmp_path / "model")
    again = TangentRegressor.from_pretrained(tmp_path / "model", backbone=BACKBONE)
    assert_array_equal(again.predict(NEW), model.predict(NEW))
    with pytest.raises(InputError, match="sums of pictures that it does not have"):
        again.predict(NEW, return_std=True)


def test_sums_that_make_no_model_are_refused(features: TangentFeatures) -> None:
    bees = features.sums(X[SITES[1]], Y[SITES[1]])
    with pytest.raises(InputError, match="one class only, 'bee'"):
        features.solve(bees)
    other = TangentSums.of(torch.randn(5, 3), torch.eye(5), "another")
    with pytest.raises(InputError, match="sums are of another feature map"):
        features.solve(other)
    with pytest.raises(InputError, match="the damping is -1"):
        features.solve(features.sums(X, Y), damping=-1)


def test_leave_one_out_without_any_picture(features: TangentFeatures, tmp_path: Path) -> None:
    """Each owner's part is calculated at home; the damping, the temperature and the scores are those of all."""
    total = features.sums(X, Y)
    judge = Judge.of(total)
    one, two, three = (features.score_at_home(X[site], Y[site], judge) for site in SITES)
    scores = one + two + three
    model: Any = features.solve(total, scores=scores)
    rows, targets = torch.from_numpy(features.transform(X)), torch.from_numpy(Y[:, None] == model.classes_).double()
    loo = total.factor().leave_one_out(rows, targets, model.damping_)
    told = model.fit_report_["sums"]["left_out"]
    assert told["pictures"] == 60
    assert told["error"] == pytest.approx(float((loo - targets).square().sum(1).mean()), abs=1e-9)
    assert told["accuracy"] == float((loo.argmax(1) == targets.argmax(1)).double().mean())
    assert model.temperature_ == scores.temperature
    model.save_pretrained(tmp_path / "model")
    again = TangentClassifier.from_pretrained(tmp_path / "model", backbone=BACKBONE)
    assert again.fit_report_["sums"]["left_out"] == told
    assert "Their owners left out 60 of them" in (tmp_path / "model" / "README.md").read_text()
    with pytest.raises(InputError, match="these scores were made with other sums"):
        features.solve(total + total, scores=scores)
