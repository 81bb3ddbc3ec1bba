"""`tangentune predict` as tables: what is in them, where they go, and that a failed command changes nothing."""

from __future__ import annotations

import csv
import io
import json
import re
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cli_cases import SETTINGS, N, X, Y, fitted, folder_of, refused, save_models, small
from PIL import Image

from tangentune import Pictures, TangentClassifier, TangentRegressor, load_pictures
from tangentune.cli.app import main
from tangentune.pictures import stream
from tangentune.reports.explanation import explain

pytestmark = pytest.mark.usefixtures("loadable")
HEAD = ["id", "prediction", "probability", "second_choice", "second_probability"]
HEAD += ["unlike_training", "familiarity", "fitted_on"]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The saved models, and a folder `new` of ten new pictures and two of the fit."""
    folder = save_models(tmp_path_factory.mktemp("place"))
    folder_of(folder / "new", [3, 7, *range(20, 30)], ["x"] * 12)
    return folder


def run(*arguments: Any) -> None:
    assert main(list(map(str, arguments))) == 0


def rows(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


def new_pictures(place: Path, model: TangentClassifier | TangentRegressor) -> Pictures:
    return load_pictures(place / "new", contract=model.backbone_.contract, need_labels=False, n_jobs=1)


@pytest.mark.filterwarnings("ignore:.*fitted on:UserWarning")
def test_a_row_says_what_the_model_says(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run("predict", place / "classes", place / "new", "-q")
    found = rows(capsys.readouterr().out)
    model = TangentClassifier.from_pretrained(place / "classes")
    pictures = new_pictures(place, model)
    proba, far = model.predict_proba(pictures), model.ood_score(pictures)
    explained = explain(model, pictures)
    assert list(found[0]) == HEAD
    assert [row["id"] for row in found] == pictures.ids
    for i, row in enumerate(found):
        known = row["fitted_on"]
        assert known == ("" if pictures.ids[i] not in ("x/3.png", "x/7.png") else pictures.ids[i][2:-4])
        expected = model.loo_proba_[int(known)] if known else proba[i]
        first, second = np.argsort(-expected)[:2]
        assert (row["prediction"], row["second_choice"]) == (str(model.classes_[first]), str(model.classes_[second]))
        values = [float(row[name]) for name in ("probability", "second_probability", "unlike_training")]
        np.testing.assert_allclose(values[:2], expected[[first, second]], atol=1e-5)
        # A picture of the fit has itself among those it is ranked with, up to rounding.
        np.testing.assert_allclose(values[2], explained[i].distance, atol=1 / N + 1e-5 if known else 1e-5)
        if not known:
            np.testing.assert_allclose(values[2], far[i], atol=1e-5)
        word = row["familiarity"]
        assert word == ("unlike" if values[2] > 1 else "unusual" if values[2] > 0.95 else word)
    assert len({row["familiarity"] for row in found}) > 1


@pytest.mark.parametrize("likelihood", ["dirichlet", "laplace"])
def test_other_likelihoods(place: Path, tmp_path: Path, likelihood: str, capsys: pytest.CaptureFixture[str]) -> None:
    model = TangentClassifier(small(), **{**SETTINGS, "likelihood": likelihood}).fit(X[:N], Y[:N])
    model.save_pretrained(tmp_path / "m")
    run("predict", tmp_path / "m", folder_of(tmp_path / "p", [20, 21], ["x", "x"]), "-q")
    found = rows(capsys.readouterr().out)
    np.testing.assert_allclose(
        [float(row["probability"]) for row in found], model.predict_proba(X[20:22]).max(1), atol=1e-5
    )
    np.testing.assert_allclose([float(row["unlike_training"]) for row in found], model.ood_score(X[20:22]), atol=1e-5)


@pytest.mark.filterwarnings("ignore:.*fitted on:UserWarning")
def test_numbers(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run("predict", place / "numbers", place / "new", "-q")
    found = rows(capsys.readouterr().out)
    model = TangentRegressor.from_pretrained(place / "numbers")
    pictures = new_pictures(place, model)
    assert list(found[0]) == ["id", "prediction", *HEAD[5:]]
    new = [not row["fitted_on"] for row in found]
    np.testing.assert_allclose(
        np.array([float(row["prediction"]) for row in found])[new], model.predict(pictures)[new], atol=1e-4
    )


def test_portions_give_the_same_and_never_more_at_once(
    place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ["predict", place / "classes", place / "new", "-q", "--n-jobs", "1"]
    run(*arguments)
    whole = capsys.readouterr().out
    monkeypatch.setattr(stream, "PORTION", 5)
    sizes, predict = [], TangentClassifier.kernel_to_training

    def seen(model: TangentClassifier, pictures: Pictures, **options: Any) -> Any:
        sizes.append(len(pictures))
        return predict(model, pictures, **options)

    monkeypatch.setattr(TangentClassifier, "kernel_to_training", seen)
    run(*arguments)
    assert capsys.readouterr().out == whole
    assert sizes == [1, 5, 5]  # one that reads the rows; the last two are pictures of the fit


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_people_see_a_table(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for more, expected in (
        ((), ["Picture", "Prediction", "Confidence", "Fitted", "on"]),
        (("--unlike",), ["Familiarity"]),
    ):
        terminal = Terminal()
        with monkeypatch.context() as patch:
            patch.setattr(sys, "stdout", terminal)
            run("predict", place / "classes", place / "new", "-q", *more)
        lines = re.sub(r"\x1b\[\d*m", "", terminal.getvalue()).splitlines()
        assert set(expected) <= set(lines[0].split())
        assert len(lines) == 13
        assert "," not in terminal.getvalue()


def test_files_hold_what_a_pipe_gets(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["predict", place / "classes", place / "new", "-q"]
    for more in ([], ["--out", "-"]):
        run(*arguments, *more)
        piped = capsys.readouterr().out
    run(*arguments, "--out", tmp_path / "a.csv")
    assert (tmp_path / "a.csv").read_text(encoding="utf-8") == piped
    assert capsys.readouterr().out == f"12 predictions written to {tmp_path / 'a.csv'}\n"
    pandas = pytest.importorskip("pandas")
    pytest.importorskip("pyarrow")
    run(*arguments, "--out", tmp_path / "a.parquet", "--json")
    assert json.loads(capsys.readouterr().out)["out"] == str(tmp_path / "a.parquet")
    exact, text = (
        pandas.read_parquet(tmp_path / "a.parquet"),
        pandas.read_csv(tmp_path / "a.csv", dtype={"fitted_on": str}),
    )
    assert exact["probability"].dtype == "float64"
    assert exact["id"].tolist() == text["id"].tolist()
    np.testing.assert_allclose(exact["unlike_training"], text["unlike_training"], atol=1e-5)
    assert exact["fitted_on"].isna().tolist() == text["fitted_on"].isna().tolist()


def test_no_cell_is_a_formula(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = np.array(["=1+1", "@SUM(A1)", "+x", "-x"])
    model = TangentClassifier(small(), **SETTINGS).fit(X[:N], names[np.arange(N) % 4])
    model.save_pretrained(tmp_path / "m")
    (tmp_path / "p").mkdir()
    for i, name in enumerate(("=cmd|' C'!A0.png", "@a.png", "+b.png", "-c.png", "plain.png")):
        Image.fromarray(X[20 + i].transpose(1, 2, 0)).save(tmp_path / "p" / name)
    run("predict", tmp_path / "m", tmp_path / "p", "-q")
    found = rows(capsys.readouterr().out)
    assert sorted(row["id"] for row in found)[:4] == sorted(["'=cmd|' C'!A0.png", "'@a.png", "'+b.png", "'-c.png"])
    assert all(row[name].startswith("'") for row in found for name in ("prediction", "second_choice"))


def test_a_failed_command_leaves_the_old_file(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = folder_of(tmp_path / "p", list(range(20, 28)), ["x"] * 8)
    (folder / "x" / "zz.png").write_bytes(b"no picture")
    monkeypatch.setattr(stream, "PORTION", 3)  # so that rows are written before the bad one is met
    kinds = [".csv", *([".parquet"] if find_spec("pyarrow") else [])]
    for kind in kinds:
        out = tmp_path / f"old{kind}"
        out.write_text("kept")
        refused(capsys, "predict", place / "classes", folder, "--out", out, words=("zz.png", "--on-error skip"))
        with monkeypatch.context() as patch:
            patch.setattr(TangentClassifier, "predict_proba", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
            assert main(["predict", str(place / "classes"), str(folder), "--out", str(out), "--no-unlike", "-q"]) == 130
        capsys.readouterr()
        assert out.read_text() == "kept"
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(["p", *(f"old{kind}" for kind in kinds)])
    run("predict", place / "classes", folder, "--out", tmp_path / "old.csv", "--on-error", "skip")
    assert "note: 1 picture was left out, 8 remain: x/zz.png" in capsys.readouterr().err
    assert len(rows((tmp_path / "old.csv").read_text())) == 8
    for path in sorted((folder / "x").iterdir()):
        path.write_bytes(b"no picture")
    words = ("9 of 9 pictures cannot be read",)
    refused(
        capsys, "predict", place / "classes", folder, "--on-error", "skip", "--out", tmp_path / "old.csv", words=words
    )
    assert len(rows((tmp_path / "old.csv").read_text())) == 8


def test_what_cannot_be_written_is_refused_before_the_work(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(TangentClassifier, "from_pretrained", None)  # no work is begun
    begin = ["predict", place / "classes", place / "new", "--out"]
    refused(capsys, *begin, "a.xlsx", words=("--out a.xlsx must end in .csv or .parquet",))
    (tmp_path / "d.csv").mkdir()
    refused(capsys, *begin, tmp_path / "d.csv", words=("it is a folder",))
    refused(capsys, *begin, "-", "--json", words=("both take standard output",))
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    refused(capsys, *begin, tmp_path / "a.parquet", words=("pyarrow", 'pip install "tangentune[parquet]"'))


def test_a_model_without_its_pictures_leaves_columns_empty(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fitted(X[:N], Y[:N]).save_pretrained(tmp_path / "m", pictures=False)
    folder = folder_of(tmp_path / "p", [20], ["x"])
    run("predict", tmp_path / "m", folder)
    out, err = capsys.readouterr()
    assert [rows(out)[0][name] for name in ("unlike_training", "familiarity")] == ["", ""]
    assert "note: this model was saved without its pictures: unlike_training and familiarity stay empty" in err
    refused(capsys, "predict", tmp_path / "m", folder, "--unlike", words=("saved without its pictures",))
