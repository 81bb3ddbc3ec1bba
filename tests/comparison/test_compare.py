"""The comparison: same pictures for every method, results that survive a stop, honest means and differences."""

from __future__ import annotations

import gc
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from tangentune import Backbone, Pictures, TangentClassifier
from tangentune.comparison import Comparison, compare
from tangentune.comparison.measure import class_labels, draw, split_test
from tangentune.comparison.methods import METHODS, FittedMethod, Method, MethodSettings
from tangentune.comparison.page import comparison_figure, document, write_files
from tangentune.comparison.store import FILE
from tangentune.comparison.summary import Cell, pack_right
from tangentune.errors import InputError, StoreError
from tangentune.methods.fine_tuning import FineTuneSettings, sweep
from tangentune.methods.gradient_features import GradientFeatureSettings, fit_gradient_features
from tangentune.methods.lqf import LQFSettings, fit_lqf
from tangentune.solvers import metrics

LABELS = np.array(["ant"] * 20 + ["bee"] * 9 + ["cow"] * 31)


@pytest.fixture(scope="module", autouse=True)
def few_objects_to_search() -> None:
    """Garbage is collected before every cell; what the tests before left takes half a second each time."""
    gc.freeze()


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    torch.manual_seed(0)
    return Backbone(nn.Sequential(nn.Linear(5, 24), nn.Tanh(), nn.Linear(24, 12)), name="tiny")


def vectors(labels: np.ndarray = LABELS, seed: int = 0) -> Pictures:
    """Three classes of points about three centres, far from separate."""
    generator = torch.Generator().manual_seed(seed)
    _, positions = np.unique(labels, return_inverse=True)
    x = torch.randn(len(labels), 5, generator=generator) + 1.2 * nn.functional.one_hot(torch.tensor(positions), 5)
    return Pictures(x, labels, [str(i) for i in range(len(labels))])


def method(fit: Callable[[Pictures, MethodSettings], Any]) -> Method:
    """A method that gives every picture the probabilities that `fit` returns, (C,) or (n, C)."""

    def fitted(_: Backbone, train: Pictures, settings: MethodSettings) -> FittedMethod:
        proba = np.asarray(fit(train, settings))
        assert train.labels is not None
        return FittedMethod(np.unique(train.labels), lambda new: np.broadcast_to(proba, (len(new), 3)), {"k": 1})

    return Method("a made-up one", "tangentune.errors", fitted)


@pytest.fixture
def made_up(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int, int]]:
    """Methods "first" and "last" that always say ant and cow; the list notes each fit: name, pictures, seed."""
    fits: list[tuple[str, int, int]] = []

    def noted(name: str, proba: list[float]) -> Method:
        def fit(train: Pictures, settings: MethodSettings) -> list[float]:
            fits.append((name, len(train), settings.seed))
            return proba

        return method(fit)

    monkeypatch.setitem(METHODS, "first", noted("first", [0.8, 0.1, 0.1]))
    monkeypatch.setitem(METHODS, "last", noted("last", [0.25, 0.25, 0.5]))
    return fits


@pytest.mark.parametrize("name", ["probe", "tangent"])
def test_a_cell_is_what_a_direct_fit_gives(name: str, backbone: Backbone) -> None:
    found = compare(vectors(), backbone=backbone, methods=[name], shots=[4], seeds=[2])
    pool, test = split_test(LABELS, 0.3)
    train, held_out = (vectors().select(rows) for rows in (pool[draw(LABELS[pool], 4, 2)], test))
    subset = "none" if name == "probe" else "all"
    model = TangentClassifier(backbone, subset=subset, random_state=2).fit(train)
    proba = model.predict_proba(held_out)
    positions = np.searchsorted(model.classes_, LABELS[test])
    (cell,) = found.cells
    assert (cell.failed, cell.n) == (None, 12)
    assert cell.scores["accuracy"] == pytest.approx(metrics.accuracy(positions, proba.argmax(1)))
    assert cell.scores["accuracy"] > 0.4  # chance is a third
    assert cell.scores["nll"] == pytest.approx(metrics.nll(positions, proba), rel=1e-5)
    assert cell.scores["ece"] == pytest.approx(metrics.ece(positions, proba), rel=1e-5)
    assert cell.chosen["damping"] == model.damping_
    assert cell.right == pack_right(proba.argmax(1) == positions)
    assert cell.seconds is not None
    assert cell.seconds > 0
    assert cell.peak_bytes is not None
    assert cell.before_bytes is not None
    assert cell.peak_bytes >= cell.before_bytes > 10 * 2**20


def test_fine_tuning_is_the_sweep_with_mirrored_predictions() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    backbone = Backbone(net, input_size=(3, 8, 8), mean=(0.5,) * 3, std=(0.25,) * 3)
    pixels = torch.randint(0, 256, (16, 3, 8, 8), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    pictures = Pictures(pixels, np.array(["cat", "dog"] * 8), [str(i) for i in range(16)])
    settings = MethodSettings(seed=3)
    fitted = METHODS["finetune"].fit(backbone, pictures, settings)
    variants = ({"head_start": "probe"}, {"layer_decay": 0.9})
    direct = sweep(backbone, pictures, FineTuneSettings(flip=True), variants=variants, seed=3)
    expected = direct.predict_proba(pictures, flip=True)
    torch.testing.assert_close(torch.as_tensor(fitted.predict_proba(pictures)), expected)
    assert fitted.chosen["learning_rate"] == direct.tuned.settings.learning_rate
    assert fitted.classes.tolist() == ["cat", "dog"]


def test_gaf_and_lqf_are_their_defaults(backbone: Backbone) -> None:
    train = vectors().select(slice(0, 60, 4))
    gaf = METHODS["gaf"].fit(backbone, train, MethodSettings(seed=1))
    lqf = METHODS["lqf"].fit(backbone, train, MethodSettings(seed=1))
    direct_gaf = fit_gradient_features(backbone, train, GradientFeatureSettings(seed=1))
    direct_lqf = fit_lqf(backbone, train, LQFSettings.moved(seed=1))
    for fitted, direct in ((gaf, direct_gaf), (lqf, direct_lqf)):
        torch.testing.assert_close(torch.as_tensor(fitted.predict_proba(train)), direct.predict_proba(train))
        assert fitted.classes.tolist() == ["ant", "bee", "cow"]
    assert gaf.chosen["last_loss"] == direct_gaf.losses[-1]
    assert lqf.chosen["damping"] == direct_lqf.damping


def test_stopped_comparison_goes_on(
    backbone: Backbone, made_up: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options: dict[str, Any] = {"backbone": backbone, "methods": ["first", "last"], "shots": [2, "all"]}
    whole = compare(vectors(), seeds=2, **options)
    assert len(made_up) == 8
    made_up.clear()

    def stop(*_: object) -> list[float]:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setitem(METHODS, "last", method(stop))
        with pytest.raises(KeyboardInterrupt):
            compare(vectors(), seeds=2, out=tmp_path, **options)
    assert [(cell["method"], cell["shots"]) for cell in json.loads((tmp_path / FILE).read_text())["cells"]] == [
        ("first", 2)
    ]
    resumed = compare(vectors(), seeds=2, out=tmp_path, **options)
    assert len(made_up) == 8  # one before the stop, seven after it
    assert len(set(made_up)) == 8
    assert [scored(cell) for cell in resumed.cells] == [scored(cell) for cell in whole.cells]

    again = compare(vectors(), seeds=2, out=tmp_path, **options)
    assert len(made_up) == 8
    assert again.rows == resumed.rows
    more = compare(vectors(), backbone=backbone, methods=["probe"], shots=[2], seeds=1, out=tmp_path)
    assert len(more.cells) == 9  # what is there joins in
    assert json.loads((tmp_path / FILE).read_text()) == more.document()
    assert [path.name for path in tmp_path.iterdir()] == [FILE]


def scored(cell: Cell) -> tuple[Any, ...]:
    return cell.key, cell.n, cell.scores, cell.right


def test_rows_of_other_settings_are_never_mixed(backbone: Backbone, made_up: list[Any], tmp_path: Path) -> None:
    del made_up
    options: dict[str, Any] = {"backbone": backbone, "methods": ["first"], "shots": [2], "seeds": 1, "out": tmp_path}
    compare(vectors(), **options)
    other = Backbone(nn.Sequential(nn.Linear(5, 3)), name="tiny")
    relabelled = replace(vectors(), labels=np.roll(LABELS, 1))
    changes: list[tuple[Pictures, dict[str, Any], str]] = [
        (vectors(), {"test_share": 0.4}, "test_share"),
        (vectors(), {"backbone": other}, "the network's weights"),
        (vectors(), {"backbone": Backbone(backbone.module, features="0", name="tiny")}, "features"),
        (vectors(), {"backbone": backbone.with_contract(replace(backbone.contract, crop=0.5))}, "crop"),
        (vectors(), {"batch_size": 8}, "batch_size"),
        (vectors(seed=1), {}, "the training pictures or their labels"),
        (relabelled, {}, "the training pictures or their labels"),
    ]
    for pictures, changed, words in changes:
        with pytest.raises(StoreError, match=f"measured with other settings.*{words}"):
            compare(pictures, **{**options, **changed})
    for text, words in (
        ("{", "cannot be read"),
        ('{"cells": []}', "not the file of a comparison"),
        ((tmp_path / FILE).read_text().replace('"n": ', '"m": '), "damaged"),
        ((tmp_path / FILE).read_text().replace('"format_version": 1', '"format_version": 2'), "newer"),
    ):
        (tmp_path / FILE).write_text(text)
        with pytest.raises(StoreError, match=words):
            compare(vectors(), **options)
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="is a file"):
        compare(vectors(), **{**options, "out": tmp_path / "file"})


def test_failures_are_recorded_and_tried_again(
    backbone: Backbone, made_up: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    del made_up

    def diverge(_: Pictures, settings: MethodSettings) -> list[float]:
        if settings.seed == 1:
            message = "it diverged\nbadly"
            raise RuntimeError(message)
        return [0.2, 0.2, 0.6]

    def unknown(*_: object) -> list[float]:
        return [np.nan, 0.5, 0.5]

    options: dict[str, Any] = {"backbone": backbone, "methods": ["first", "last"], "shots": [2], "seeds": 2}
    with monkeypatch.context() as patch:
        patch.setitem(METHODS, "last", method(diverge))
        patch.setitem(METHODS, "first", method(unknown))
        found = compare(vectors(), out=tmp_path, **options)
        first, last = found.rows
        assert last.seeds == (0,)
        assert last.failures == ("RuntimeError: it diverged",)
        assert last.difference is None  # there is nobody to compare it with
        assert first.means == {}
        assert first.failures == ("its probabilities are not all finite numbers",)
        text = document(found)
        assert "last, 2 a class: 1 of 2 seeds failed: RuntimeError: it diverged." in text
        assert "first, 2 a class: 2 of 2 seeds failed" in text
        assert len(comparison_figure(found.rows, found.settings).axes[0].get_lines()) == 1
    healed = compare(vectors(), out=tmp_path, **options)
    assert [cell.failed for cell in healed.cells] == [None] * 4

    def bug(*_: object) -> list[float]:
        raise KeyError("ours")

    monkeypatch.setitem(METHODS, "last", method(bug))
    with pytest.raises(KeyError):  # our own mistakes keep their traceback
        compare(vectors(), **options)


def test_separate_test_pictures_and_what_a_reader_is_told(
    backbone: Backbone, made_up: list[Any], tmp_path: Path
) -> None:
    del made_up
    test = vectors(np.array(["ant", "cow"] * 20), seed=4)
    found = compare(vectors(), backbone=backbone, methods=["first", "last"], shots=[2, 25, "all"], seeds=2, test=test)
    assert found.settings["test_share"] is None
    first = found.rows[0]
    assert first.means["accuracy"].mean == 0.5
    assert first.means["nll"].mean == pytest.approx(-(np.log(0.8) + np.log(0.1)) / 2, rel=1e-6)
    assert [row.n for row in found.rows[::2]] == [6, 54, 60]  # 20 + 9 + 25
    text = document(found)
    assert "the same 40 test pictures throughout (given apart)" in text
    assert "an accuracy of 50 % a standard error of 7.9 points" in text
    assert "give all they have: ant has 20, bee has 9." in text
    assert "| 25 | first | **50.0 ± 0.0 %** \\* |" in text
    figure = comparison_figure(found.rows, found.settings)
    left, right = figure.axes
    assert [label.get_text() for label in left.get_xticklabels()] == ["2", "25", "all"]
    assert left.get_lines()[0].get_xdata() == pytest.approx([2, 25, 35])  # "all" stands right of the rest
    assert {note.get_text() for note in right.texts} == {"2", "25", "all"}
    write_files(found, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["comparison.md", "comparison.png"]
    assert (tmp_path / "comparison.png").read_bytes().startswith(b"\x89PNG")


def test_unfit_test_pictures(backbone: Backbone, made_up: list[Any]) -> None:
    del made_up
    options: dict[str, Any] = {"backbone": backbone, "methods": ["first"], "shots": [2], "seeds": 1}
    with pytest.raises(InputError, match=r"1 of 3 test pictures have labels .* 'dog' of 2"):
        compare(vectors(), test=vectors(np.array(["ant", "bee", "dog"])), **options)
    with pytest.warns(UserWarning, match="20 of 20 test pictures are also among the training pictures"):
        found = compare(vectors(), test=vectors().select(slice(0, 20)), **options)
    assert "20 of them are also training pictures" in document(found)
    numbers = Pictures(torch.zeros(4, 5), np.array([0.5, 1.5, 2.5, 3.5]), list("abcd"))
    with pytest.raises(InputError, match="one class label per picture"):
        compare(numbers, **options)


def test_a_class_is_the_same_with_its_accents_apart(backbone: Backbone, made_up: list[Any]) -> None:
    del made_up
    options: dict[str, Any] = {"backbone": backbone, "methods": ["first"], "shots": [2], "seeds": 1}
    whole, apart = "caf\u00e9", "cafe\u0301"
    train = vectors().relabelled(np.array([whole if label == "bee" else label for label in LABELS.tolist()]))
    accuracies = [
        compare(train, test=vectors(np.array(["ant", name, "cow"]), seed=1), **options).rows[0].means["accuracy"].mean
        for name in (whole, apart)
    ]
    assert accuracies == [pytest.approx(1 / 3), pytest.approx(1 / 3)]
    both = train.relabelled(np.where(np.arange(60) == 20, apart, class_labels(train)))
    with pytest.warns(UserWarning, match="Classes have names that look alike"):
        compare(both, **options)


def test_warnings_become_notes(backbone: Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    def warn(*_: object) -> list[float]:
        import warnings

        for _i in range(2):
            warnings.warn("look out", stacklevel=1)
        return [0.2, 0.2, 0.6]

    monkeypatch.setitem(METHODS, "last", method(warn))
    found = compare(vectors(), backbone=backbone, methods=["last"], shots=[2], seeds=1)
    assert isinstance(found, Comparison)
    assert found.cells[0].notes == ["look out"]
