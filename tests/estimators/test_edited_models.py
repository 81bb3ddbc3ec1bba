"""Edited models saved, loaded, copied, on vectors and on a GPU."""

from __future__ import annotations

import copy
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from edit_cases import (
    BACKBONE,
    EDITS,
    MORE,
    NEW,
    Options,
    X,
    Y,
    alike,
    classifier,
    equals_refit,
    plain,
    restored,
    vectors,
)
from frozen import scores
from numpy.testing import assert_allclose
from PIL import Image
from reference import kernel_of
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from small import FIXED
from torch import nn

from tangentune import Backbone, TangentClassifier
from tangentune.errors import InputError
from tangentune.pictures.checks import pictures_digest


@pytest.fixture(scope="module")
def fitted() -> TangentClassifier:
    return plain()


@pytest.mark.parametrize("edit", ["forget_class", "add", "strict"])
def test_a_loaded_model_is_edited_alike(fitted: TangentClassifier, edit: str, tmp_path: Path) -> None:
    clf = copy.deepcopy(fitted)
    clf.save_pretrained(tmp_path / "m")
    loaded = TangentClassifier.from_pretrained(tmp_path / "m", backbone=BACKBONE)
    with pytest.raises(InputError, match="no edit to undo"):
        loaded.undo()
    EDITS[edit](clf)
    EDITS[edit](loaded)
    alike(loaded, clf, 1e-9)
    clf.save_pretrained(tmp_path / "m")
    again = TangentClassifier.from_pretrained(tmp_path / "m", backbone=BACKBONE)
    assert np.array_equal(scores(again, NEW), scores(clf, NEW))
    assert again.edits_ == clf.edits_
    assert np.array_equal(again.pictures_.pixels, clf.pictures_.pixels)
    alike(again.relabel(["4"], 1), clf.relabel(["4"], 1), 1e-9)


def test_a_model_without_pictures_refuses_edits(fitted: TangentClassifier, tmp_path: Path) -> None:
    fitted.save_pretrained(tmp_path / "m", pictures=False)
    bare = TangentClassifier.from_pretrained(tmp_path / "m", backbone=BACKBONE)
    edits = [edit for name, edit in EDITS.items()]
    for edit in edits:
        with pytest.raises(InputError, match="saved without its pictures") as caught:
            edit(bare)
        assert "\n" not in str(caught.value)
    assert np.array_equal(scores(bare, NEW), scores(fitted, NEW))
    assert bare.edits_ == []


def test_copies_go_on_alone(fitted: TangentClassifier) -> None:
    clf = copy.deepcopy(fitted).forget([3, 4]).forget([8], strict=True)
    expected = scores(clf, NEW)
    for copied in (copy.deepcopy(clf), pickle.loads(pickle.dumps(clf))):
        assert np.array_equal(scores(copied, NEW), expected)
        copied.undo().undo()
        restored(copied, fitted)
    assert np.array_equal(scores(clf, NEW), expected)
    blank: Any = clone(clf)
    assert not hasattr(blank, "edits_")
    assert blank.fit(X, Y).edits_ == []
    with pytest.raises(NotFittedError):
        blank.__class__(BACKBONE).forget([1])
    refitted = clf.fit(X, Y)
    assert refitted.edits_ == []
    assert refitted.fitted_.undo == ()
    restored(refitted, fitted)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_vectors_are_edited_one_by_one(dtype: Any, tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = Backbone(nn.Sequential(nn.Linear(5, 12), nn.Tanh(), nn.Linear(12, 6)).double())
    x, y = vectors(40, 0)
    more = vectors(1, 3)[0]
    clf: Any = TangentClassifier(net, **FIXED).fit(x.astype(dtype), y).add(more, [1]).forget(0)
    assert clf.n_features_in_ == 5
    whole = np.concatenate([x[1:].astype(dtype), more.astype(dtype)])
    fresh = TangentClassifier(net, **FIXED).fit(whole, np.append(y[1:], 1))
    assert_allclose(clf.decision_function(more), fresh.decision_function(more), rtol=0, atol=1e-9)
    clf.save_pretrained(tmp_path / "m")
    loaded = TangentClassifier.from_pretrained(tmp_path / "m", backbone=net).forget(5)
    assert_allclose(loaded.decision_function(x), clf.forget(5).decision_function(x), rtol=0, atol=1e-9)
    for bad in (more[:, :4], more[0], np.full((1, 5), np.nan)):
        with pytest.raises(ValueError):
            clf.add(bad, [1])
    assert clf.n_features_in_ == 5
    assert clf.decision_function(x).shape == (40, 4)


def test_files_are_named_by_their_paths(tmp_path: Path) -> None:
    """A CSV file of pictures, and more from a class folder."""
    for i, picture in enumerate([*X[:16], *MORE[:2]]):
        place = tmp_path / ("more/ant" if i >= 16 else "first")
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture.transpose(1, 2, 0)).save(place / f"{i}.png")
    rows = [f"first/{i}.png,{'ant' if Y[i] % 2 else 'bee'}" for i in range(16)]
    (tmp_path / "first.csv").write_text("\n".join(["path,label", *rows]))
    clf = TangentClassifier(BACKBONE, **FIXED).fit(tmp_path / "first.csv").forget([Path("first/3.png"), 0])
    (tmp_path / "more" / "bee").mkdir()
    Image.fromarray(X[0].transpose(1, 2, 0)).save(tmp_path / "more" / "bee" / "0.png")
    clf.add(tmp_path / "more").relabel("ant/17.png", "bee")
    x = np.concatenate([X[[i for i in range(16) if i not in (0, 3)]], MORE[:2], X[:1]])
    y = np.array(["bee", "ant"])[np.r_[Y[[i for i in range(16) if i not in (0, 3)]] % 2, 1, 0, 0]]
    equals_refit(clf, x, y)
    assert clf.ids_[-3:] == ["ant/16.png", "ant/17.png", "bee/0.png"]


@pytest.mark.parametrize("likelihood", ["dirichlet", "laplace"])
def test_other_likelihoods_follow_edits(likelihood: str, tmp_path: Path) -> None:
    near = 1e-4 if likelihood == "laplace" else 1e-6  # its calibration is searched coarsely: rounding moves it
    options: Options = FIXED | {"likelihood": likelihood}
    clf = TangentClassifier(BACKBONE, **options).fit(X[:18], Y[:18]).forget([0, 1])
    fresh = TangentClassifier(BACKBONE, **options).fit(X[2:18], Y[2:18])
    outcome = replace(fresh.fitted_.outcome, parameters=clf.likelihood_)  # stay as the first fit chose them
    fresh.fitted_ = replace(fresh.fitted_, outcome=outcome)
    fresh.reweight(np.ones(16))
    assert_allclose(clf.predict_proba(NEW), fresh.predict_proba(NEW), rtol=0, atol=near)
    assert_allclose(clf.loo_proba_, fresh.loo_proba_, rtol=0, atol=near)
    for kept in (True, False):
        clf.save_pretrained(tmp_path / "m", pictures=kept)
        loaded = TangentClassifier.from_pretrained(tmp_path / "m", backbone=BACKBONE)
        assert np.array_equal(loaded.decision_function(NEW), clf.decision_function(NEW))
        if kept:
            assert_allclose(loaded.predict_proba(NEW), clf.predict_proba(NEW), rtol=0, atol=1e-9)
    with pytest.raises(InputError, match="saved without its pictures"):
        loaded.predict(NEW)


def test_the_log_names_pictures_by_their_pixels_alone() -> None:
    digests = pictures_digest(torch.from_numpy(X))
    clf = classifier().forget([9, 2]).relabel([4, 1], [0, 0]).reweight(np.r_[2, np.ones(37)]).add(MORE[:2], [0, 1])
    clf.forget(["40"])
    new = pictures_digest(torch.from_numpy(MORE))
    assert [entry["pictures"] for entry in clf.edits_] == [
        [digests[2], digests[9]], [digests[1], digests[4]], [digests[0]], new[:2], new[:1],
    ]  # fmt: skip
    assert [entry["n"] for entry in clf.edits_] == [38, 38, 38, 40, 39]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("edit", EDITS)
def test_a_gpu_edits_the_same(edit: str) -> None:
    models = [classifier(metric_power=0.25, device=device) for device in ("cpu", "cuda")]
    for model in models:
        EDITS[edit](model)
        model.forget([20])
    assert kernel_of(models[1].fitted_.training).device.type == "cuda"
    alike(models[1], models[0], 1e-6)
    for model in models:
        model.undo().undo()
    alike(models[1], models[0], 1e-6)
