"""What a notebook shows: plain values, pictures, no name that breaks out of its place; and axes that plots draw on."""

from __future__ import annotations

import html
import json
import pickle
import re
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pytest
import torch
from cli_cases import N, X, Y, fitted, small
from small import FIXED
from torch import nn

from tangentune import Backbone, Pictures, TangentClassifier
from tangentune.errors import InputError, MissingExtraError
from tangentune.estimators.explanations import Suspect

NAMES = np.array(["ant", "<script>alert(1)</script>", "cat & co"])[Y % 3]
IDS = [f'day{i % 4}/<img src=x onerror="alert({i})">.png' for i in range(N)]


@pytest.fixture(scope="module")
def model() -> TangentClassifier:
    return TangentClassifier(small(), **FIXED).fit(Pictures(torch.from_numpy(X[:N]), NAMES[:N], IDS))


@pytest.fixture(scope="module")
def numbers() -> Any:
    return fitted(X[:N], X[:N].mean((1, 2, 3)))


@pytest.fixture(autouse=True)
def closed() -> Any:
    with mpl.rc_context({"backend": "agg"}):
        yield
    from matplotlib import pyplot

    pyplot.close("all")


def test_suspects_are_a_list_of_plain_values(model: TangentClassifier, numbers: Any) -> None:
    found = model.suspects(5)
    assert isinstance(found, list)
    assert all(isinstance(one, Suspect) for one in found)
    assert json.loads(json.dumps(found)) == [list(one) for one in found]  # no value of numpy's, no tensor
    assert "np." not in str(found[0]) + repr(found) + repr(numbers.suspects(3)) + str(numbers.suspects(3)[0])
    assert found[:2] == model.suspects(2)
    assert len(model.suspects()) == N
    assert pickle.loads(pickle.dumps(found)) == found
    assert json.loads(json.dumps(numbers.suspects(2)))[0][2] == pytest.approx(
        numbers.targets_[numbers.suspects(1)[0].position]
    )


def test_suspects_show_their_pictures(model: TangentClassifier) -> None:
    shown = model.suspects(5)._repr_html_()
    assert shown.count("data:image/png") == 5
    assert re.findall("<(?!/?(?:div|figure|figcaption|img|b|br|span|p)[ >])", shown) == []
    assert 'onerror="' not in shown
    many = model.suspects()._repr_html_()
    assert many.count("<figure") == min(N, 24)
    vectors = nn.Sequential(nn.Linear(4, 8), nn.Tanh())
    x = np.random.default_rng(0).normal(size=(20, 4)).astype("float32")
    alone = TangentClassifier(Backbone(vectors), **FIXED).fit(x, x[:, 0] > 0).suspects(3)
    assert "<img" not in alone._repr_html_()


def test_the_report_is_the_page(model: TangentClassifier, numbers: Any, tmp_path: Path) -> None:
    for one in (model, numbers):
        report = one.report()
        frame = report._repr_html_()
        page = html.unescape(re.findall('srcdoc="(.*?)"', frame, re.DOTALL)[0])
        assert report.save(tmp_path / "r.html").read_text(encoding="utf-8") == page
        assert page.startswith("<!doctype html>")
        assert frame.replace("&quot;", "").count('"') == 10  # no name ends an attribute
        for name, value in report.scores.items():
            assert f"{name} {value:.3g}" in repr(report)


def test_frames(model: TangentClassifier, numbers: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("pandas")
    table = model.report().to_frame()
    assert table["id"].tolist() == IDS
    assert (table["label"] == table["left_out"]).mean() == model.loo_score_
    given = np.searchsorted(model.classes_, model.targets_)
    np.testing.assert_array_equal(table["probability_of_label"], model.loo_proba_[np.arange(N), given])
    np.testing.assert_array_equal(numbers.report().to_frame()["left_out"], numbers.loo_predictions_[:, 0])
    assert model.suspects(4).to_frame()["score"].is_monotonic_decreasing
    explained = model.explain(X[N : N + 2], top=3)
    effects = explained.to_frame()
    influence = model.influence(X[N : N + 2])
    first, second = (model.classes_.tolist().index(answer.label) for answer in explained[0].answers[:2])
    for _, row in effects[effects["id"] == "0"].iterrows():
        i = IDS.index(row["training_picture"])
        assert row["influence"] == pytest.approx(influence[0, i, first] - influence[0, i, second], abs=1e-8)
    monkeypatch.setitem(__import__("sys").modules, "pandas", None)
    with pytest.raises(MissingExtraError, match="pip install pandas"):
        model.suspects(4).to_frame()


def test_explanations_are_a_sequence_with_a_page(model: TangentClassifier, numbers: Any, tmp_path: Path) -> None:
    found = model.explain(X[N : N + 2])
    assert len(found) == 2
    assert [one.answers[0].label for one in found] == model.predict(X[N : N + 2]).tolist()
    assert found[1:][0].id == "1"
    assert 'onerror="' not in found._repr_html_()
    assert found.save(tmp_path / "x.html").read_text(encoding="utf-8").count("<section") >= 2
    assert "most for it: " in repr(found)
    assert repr(numbers.explain(X[N : N + 1])).startswith("0: ")


@pytest.mark.parametrize("name", ["confusion", "reliability", "damping_path", "block_shares"])
def test_plots_return_the_axes_that_they_draw_on(model: TangentClassifier, name: str) -> None:
    from matplotlib import pyplot
    from matplotlib.axes import Axes

    plot, before = getattr(model, f"plot_{name}"), mpl.rcParams.copy()
    new = plot()
    assert isinstance(new, Axes)
    assert new.figure is pyplot.gcf()
    given = pyplot.subplots(1, 2)[1][1]
    assert plot(ax=given) is given
    assert len(given.lines) + len(given.patches) + len(given.images) > 0
    assert mpl.rcParams == before


def test_plots_hold_the_numbers(model: TangentClassifier, numbers: Any) -> None:
    texts = [int(text.get_text()) for text in model.plot_confusion().texts]
    assert sum(texts) == N
    path = model.damping_path_
    assert set(model.plot_damping_path().lines[0].get_xdata()) <= set(np.asarray(path["damping"]).tolist())
    points = np.asarray(numbers.plot_predictions().collections[0].get_offsets())
    np.testing.assert_allclose(points, np.column_stack([numbers.targets_, numbers.loo_predictions_[:, 0]]))
    with pytest.raises(InputError, match="has no classes to plot"):
        numbers.plot_confusion()
    with pytest.raises(InputError, match="for regressors of one number"):
        model.plot_predictions()
