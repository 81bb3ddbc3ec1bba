"""Every command on a model whose pictures have several labels each, or one sentence that says why not."""

from __future__ import annotations

import csv
import re
from pathlib import Path

import numpy as np
import pytest
from cli_cases import N, X, answer, digest, refused, small
from PIL import Image

from tangentune import TangentClassifier, load_pictures
from tangentune.cli.app import main
from tangentune.pictures.files import find_files
from tangentune.pictures.label_sets import label_matrix
from tangentune.pictures.tables import Columns

pytestmark = pytest.mark.usefixtures("loadable")
NAMES = ["bright", "in red", "low"]
MEANS = X.mean((2, 3))
Y = np.stack([X.mean((1, 2, 3)) > X.mean(), MEANS[:, 0] > MEANS[:, 1], X[:, :, 4:].mean((1, 2, 3)) > X.mean()], 1)
QUICK = ["--backbone", "small", "--outer-steps", "0", "--augment", "none", "--damping", "0.05", "--body-scale", "0.3"]
QUICK += ["--metric-power", "0", "--normalize", "false", "--probe-space", "isotropic", "--n-jobs", "1"]


def table(folder: Path, rows: range) -> Path:
    """Pictures, names with | between, and columns of 0 and 1."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "t.csv").open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["path", "label", *NAMES])
        for i in rows:
            Image.fromarray(X[i].transpose(1, 2, 0)).save(folder / f"{i}.png")
            given = "|".join(np.array(NAMES)[Y[i]])
            writer.writerow([f"{i}.png", given, *Y[i].astype(int)])
    return folder / "t.csv"


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("labelled")
    table(folder / "train", range(N))
    table(folder / "test", range(N, 30))
    return folder


@pytest.fixture
def model(labelled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("tangentune.networks.backbone.load_backbone", small)
    out = tmp_path / "m"
    given = ["fit", labelled / "train" / "t.csv", "--out", out, "--label-separator", "|", *QUICK, "-q"]
    assert main(list(map(str, given))) == 0
    return out


def test_both_ways_to_read_a_table_fit_the_same(
    model: Path, labelled: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, columns = tmp_path / "n", ",".join(NAMES)
    document = answer(capsys, "fit", labelled / "train" / "t.csv", "--out", out, "--label-columns", columns, *QUICK)
    assert [row["name"] for row in document["labels"]] == NAMES
    assert [row["pictures"] for row in document["labels"]] == Y[:N].sum(0).tolist()
    assert document["loo"]["macro_f1"] == pytest.approx(np.mean([row["f1"] for row in document["labels"]]))
    one, two = (TangentClassifier.from_pretrained(folder) for folder in (model, out))
    assert np.array_equal(one.targets_, Y[:N])
    np.testing.assert_allclose(one.loo_proba_, two.loo_proba_, rtol=0, atol=1e-12)


def test_evaluate_and_predict(model: Path, labelled: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fitted = TangentClassifier.from_pretrained(model)
    document = answer(capsys, "evaluate", model, labelled / "test" / "t.csv", "--label-columns", ",".join(NAMES))
    again = answer(capsys, "evaluate", model, labelled / "test" / "t.csv", "--label-separator", "|")
    page = labelled / "test" / "e.html"
    command = ["evaluate", model, labelled / "test" / "t.csv", "--label-separator", "|", "--page", page, "-q"]
    assert main(list(map(str, command))) == 0
    capsys.readouterr()
    text = page.read_text(encoding="utf-8")
    for row in document["labels"]:
        numbers = [row[key] for key in ("average_precision", "f1", "precision", "recall")]
        cells = "".join(f'<td class="num">{"–" if one is None else f"{one:.3f}"}</td>' for one in numbers)
        assert re.search(
            f'<td class="name">{row["name"]}</td><td class="num">{row["pictures"]} .{{4,7}}</td>{cells}', text
        )
    assert f"<b>{document['macro_f1']:.3f}</b>" in text
    assert f"The {len(Y[N:]) * len(NAMES)} hardest labels" in text
    assert 'href="25.png"' in text, "a name leads to its file"
    page.unlink()
    assert document == again
    assert document["subset_accuracy"] == fitted.score(X[N:], Y[N:])
    rows = answer(capsys, "predict", model, labelled / "test" / "25.png")["predictions"]
    assert rows[0]["labels"] == [name for name, there in zip(NAMES, fitted.predict(X[25:26])[0], strict=True) if there]
    assert list(rows[0]["probabilities"].values()) == pytest.approx(fitted.predict_proba(X[25:26])[0].tolist())
    assert main(["predict", str(model), str(labelled / "train" / "3.png"), "-q"]) == 0
    assert "fitted_on" in capsys.readouterr().out  # a table for other programs: this is no terminal
    refused(capsys, "evaluate", model, labelled / "test" / "t.csv", words=("there is no label", "|"))


def test_suspects_name_a_command_that_mends(model: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    page = tmp_path / "s.html"
    first = answer(capsys, "suspects", model, "--top", "3", "--out", page)["suspects"][0]
    assert main(["suspects", str(model), "--top", "1", "-q"]) == 0
    shown = capsys.readouterr().out
    assert f"'{first['id']}'" in shown or first["id"] in shown
    assert main(["relabel", str(model), first["id"], ";".join(first["suggestion"]), "-q"]) == 0
    after = TangentClassifier.from_pretrained(model)
    row = after.targets_[after.ids_.index(first["id"])]
    assert [name for name, there in zip(NAMES, row, strict=True) if there] == first["suggestion"]
    assert first["doubted"] in page.read_text()


def test_edits(model: Path, labelled: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fixes = tmp_path / "fixes.csv"
    fixes.write_text("id,label\n3.png,low; bright\n4.png,low\n")
    answer(capsys, "relabel", model, "--from", fixes)
    answer(capsys, "relabel", model, "5.png", "")
    answer(capsys, "forget", model, "0.png")
    document = answer(capsys, "add", model, labelled / "test" / "t.csv", "--label-separator", "|")
    assert document["n"] == {"before": N - 1, "after": 29}
    found = TangentClassifier.from_pretrained(model)
    assert found.targets_[2:5].tolist() == [[1, 0, 1], [0, 0, 1], [0, 0, 0]]
    assert np.array_equal(found.targets_[N - 1 :], Y[N:])
    rows = answer(capsys, "labels", model, "--out", labelled / "train" / "kept.csv")["labels"]
    assert {row["current"] for row in rows} >= {"bright;low", "low", ""}
    kept = find_files(labelled / "train" / "kept.csv", True, Columns(separator=";")).sets
    assert kept is not None
    assert np.array_equal(label_matrix(kept), found.targets_)
    params = found.get_params() | {"backbone": small()}
    fresh = TangentClassifier().set_params(**params).fit(X[1:], found.targets_)
    np.testing.assert_allclose(found.loo_predictions_, fresh.loo_predictions_, rtol=0, atol=1e-8)


def test_what_does_not_work_is_refused_before_it_begins(
    model: Path, labelled: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    before = digest(model)
    refused(capsys, "relabel", model, "3.png", "lwo", words=("no label 'lwo'", "did you mean 'low'"))
    refused(capsys, "forget", model, "--class", "low", words=("several labels each", "forget"))
    refused(capsys, "suggest", model, labelled / "test", "--budget", "2", words=("not for several labels",))
    refused(capsys, "serve", model, words=("one class a picture",))
    refused(capsys, "labels", model, "--apply", labelled / "train" / "t.csv", words=("several labels each", "--out"))
    refused(
        capsys, "fit", labelled / "train" / "t.csv", "--out", tmp_path / "n", "--label-columns", "low,z", *QUICK,
        words=("names no column z",),
    )  # fmt: skip
    refused(
        capsys, "fit", labelled / "train" / "t.csv", "--out", tmp_path / "n", "--label-separator", "|", *QUICK,
        "--class-weight", "balanced", words=("--class-weight is for one class a picture",),
    )  # fmt: skip
    assert digest(model) == before
    assert not (tmp_path / "n").exists()


def test_pages_show_each_label(model: Path, labelled: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(model)]) == 0
    page = (model / "report.html").read_text()
    assert "How well each label is found" in page
    assert page.count("Correct it") <= 24
    for name in NAMES:
        assert f'<td class="name">{name}</td>' in page
    document = answer(capsys, "explain", model, labelled / "test", "--top", "2", "--out", tmp_path / "e.html")
    fitted = TangentClassifier.from_pretrained(model)
    loaded = load_pictures(labelled / "test", contract=small().contract, need_labels=False, n_jobs=1)
    scores = fitted.decision_function(loaded)
    for row, one in enumerate(document["explanations"]):
        given = [name for name, there in zip(NAMES, fitted.predict(loaded)[row], strict=True) if there]
        assert sorted(one["said"]) == given
        assert [account["name"] for account in one["accounts"]] == (one["said"] or [one["answers"][0]["label"]])
        for account in one["accounts"]:
            k = NAMES.index(account["name"])
            assert account["total"] == pytest.approx(scores[row, k], abs=1e-8)
            pull = account["raised"][0]
            influence = fitted.influence(loaded.select([row]))[0, pull["position"], k]
            assert pull["influence"] == pytest.approx(influence, abs=1e-10)
    assert "Each label is asked about by itself" in (tmp_path / "e.html").read_text()
