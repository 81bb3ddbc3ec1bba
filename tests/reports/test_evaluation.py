"""The page and the figures of a test set, against those counted by hand."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cli_cases import N, X, Y, fitted, folder_of, save_models
from sklearn.metrics import precision_recall_fscore_support
from test_report import only_our_script

from tangentune import Pictures
from tangentune.cli.app import main
from tangentune.reports.evaluation import evaluate, render_evaluation
from tangentune.reports.tables import class_rows

pytestmark = pytest.mark.usefixtures("loadable")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = save_models(tmp_path_factory.mktemp("place"))
    folder_of(folder / "new", list(range(N, 30)), Y[N:30].tolist())
    return folder


def new() -> Pictures:
    return Pictures(torch.from_numpy(X[N:]), Y[N:], [f"{i}.png" for i in range(N, 30)])


def test_classes_are_counted_as_scikit_learn_counts_them() -> None:
    model = fitted(X[:N], Y[:N])
    found, said = evaluate(model, new()), model.predict(new())
    rows = class_rows(found.confusion, found.classes)
    none: Any = 0
    precision, recall, _, count = precision_recall_fscore_support(
        Y[N:], said, labels=model.classes_, zero_division=none
    )
    assert [row["name"] for row in rows] == [str(name) for name in model.classes_]
    assert [row["count"] for row in rows] == np.asarray(count).tolist()
    np.testing.assert_allclose(
        [row["found"] for row in rows if row["count"]], np.asarray(recall)[np.asarray(count) > 0]
    )
    np.testing.assert_allclose([row["precision"] for row in rows], precision)
    assert found.scores["accuracy"] == (said == Y[N:]).mean()
    for row in rows:
        assert row["interval"][0] <= row["found"] <= row["interval"][1]
    for name, (low, high) in found.intervals.items():
        assert low < found.scores[name] < high


def test_intervals_of_means_hold_the_truth_as_often_as_they_say() -> None:
    from tangentune.solvers.metrics import mean_interval

    draws = np.random.default_rng(0).exponential(1.0, (2000, 100))
    inside = [low <= 1 <= high for low, high in map(mean_interval, draws)]
    assert 0.92 < np.mean(inside) < 0.96


def test_the_page_says_what_the_command_prints(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["evaluate", str(place / "classes"), str(place / "new"), "-q"]
    assert main([*arguments, "--page", str(tmp_path / "e.html")]) == 0
    out = capsys.readouterr().out
    assert f"Page written to {tmp_path / 'e.html'}" in out
    page = (tmp_path / "e.html").read_text(encoding="utf-8")
    assert page.count("data:image/") == 10
    assert only_our_script(page)
    assert re.findall("(?:https?:|url\\()", page.replace("url(#", "")) == []
    assert main([*arguments, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    accuracy = f"{100 * document['accuracy']:.1f} %"
    assert f"<b>{accuracy}</b>" in page
    assert accuracy in out
    assert np.sum(document["confusion"]["counts"]) == document["n"] == 10
    assert [row["name"] for row in document["classes"]] == document["confusion"]["classes"]
    cells = [int(text) for text in re.findall(r'<td class="(?:right)?(?: none)?" style[^>]*>(\d+)</td>', page)]
    assert cells == np.ravel(document["confusion"]["counts"]).tolist()
    for row in document["classes"]:  # and so says the table by class
        assert (
            re.search(rf"^{row['name']} +{row['count']} +{100 * row['found']:.1f} %", out, re.MULTILINE)
            or not row["count"]
        )


def test_the_hardest_come_first_and_known_ones_are_said() -> None:
    model = fitted(X[:N], Y[:N])
    labels = Y[:12].copy()
    labels[4] = labels[4] + 1 if labels[4] + 1 in Y else labels[4] - 1  # a mistake of the test set
    pictures = Pictures(torch.from_numpy(X[:12]), labels, [f"<b>{i}" for i in range(12)])
    with pytest.warns(UserWarning, match="12 of 12"):
        page = render_evaluation(model, evaluate(model, pictures))
    assert "The model was fitted on 12 of" in page
    proba = model.loo_proba_[np.arange(12), np.searchsorted(model.classes_, labels)]
    assert re.findall(r'class="file copied">&lt;b&gt;(\d+)', page) == [str(i) for i in np.argsort(proba, kind="stable")]


def test_numbers(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, targets = fitted(X[:N], X[:N].mean((1, 2, 3))), X[N:].mean((1, 2, 3))
    found = evaluate(model, new().relabelled(targets))
    low, high = found.intervals["rmse"]
    assert low < found.scores["rmse"] < high
    page = render_evaluation(model, found)
    assert "Predicted against true" in page
    assert f"{found.scores['rmse']:.4g}" in page
    table = "path,label\n" + "".join(f"new/{Y[i]}/{i}.png,{t}\n" for i, t in zip(range(N, 30), targets, strict=True))
    (place / "t.csv").write_text(table)
    arguments: list[Any] = ["evaluate", place / "numbers", place / "t.csv", "--page", tmp_path / "e.html", "-q"]
    assert main(list(map(str, arguments))) == 0
    assert "root mean squared error" in capsys.readouterr().out


def test_a_page_that_cannot_be_written_is_refused_before_the_work(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tangentune.cli.evaluate.saved_model", None)
    assert main(["evaluate", str(place / "classes"), str(place / "new"), "--page", str(tmp_path)]) == 2
    assert "directory" in capsys.readouterr().err
