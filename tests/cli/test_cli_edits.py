"""Commands that change a saved model, against fits to the changed pictures."""

from __future__ import annotations

import io
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from cli_cases import SETTINGS, N, X, Y, answer, digest, folder_of, refused, same, small

from tangentune import TangentClassifier
from tangentune.cli.app import main
from tangentune.cli.edit import show_change
from tangentune.estimators.model_directory import read_model
from tangentune.pictures.load import load_pictures

pytestmark = pytest.mark.usefixtures("loadable")


def test_forgetting_is_fitting_the_rest(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = TangentClassifier.from_pretrained(model)
    facts = answer(capsys, "forget", model, "7", "2")
    rest = [i for i in range(N) if i not in (2, 7)]
    after = same(model, X[rest], Y[rest])
    assert after.ids_ == [str(i) for i in rest]
    assert facts["n"] == {"before": N, "after": N - 2}
    assert facts["loo"]["before"]["accuracy"] == pytest.approx(before.loo_score_)
    assert facts["loo"]["after"]["accuracy"] == pytest.approx(after.loo_score_)
    assert facts["edit"] == after.edits_[-1]
    assert facts["edit"]["edit"] == "forget"
    assert facts["edit"]["verification"] < 1e-10
    assert facts["edit"]["residual_after"] < 1e-10
    assert facts["saved"]
    pixels = read_model(model)[1]["pixels"].numpy()
    assert len(pixels) == N - 2
    assert not (pixels == X[7]).all((1, 2, 3)).any()  # nothing of them is left
    assert [path.name for path in model.parent.iterdir()] == ["m"]

    assert main(["forget", str(model), "0"]) == 0  # and a table for people
    out = capsys.readouterr().out
    assert "pictures" in out
    assert out.splitlines()[1].split() == ["pictures", "18", "17"]
    assert "refinement" in out
    assert f"Model in {model} replaced" in out


def test_pictures_are_named_in_every_way(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "ids.txt").write_text("\ufeff3\n\n 5 \r\n")
    facts = answer(capsys, "forget", model, "4", "--ids-from", tmp_path / "ids.txt", "--class", "1")
    gone = {3, 4, 5} | set(np.flatnonzero(Y[:N] == 1).tolist())
    assert facts["n"]["after"] == N - len(gone)
    assert facts["classes"] == {"new": [], "gone": ["1"]}
    assert TangentClassifier.from_pretrained(model).ids_ == [str(i) for i in range(N) if i not in gone]
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"0\n2\n")))
    assert answer(capsys, "forget", model, "--ids-from", "-")["n"]["after"] == N - len(gone) - 2


def test_strict_forgetting_and_dry_run(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = digest(model)
    tried = answer(capsys, "forget", model, "7", "--strict", "--dry-run")
    assert digest(model) == before
    assert not tried["saved"]
    assert tried["edit"]["strict"]
    done = answer(capsys, "forget", model, "7", "--strict")
    assert done["loo"] == tried["loo"]
    assert done["n"]["after"] == N - 1
    same(model, np.delete(X[:N], 7, 0), np.delete(Y[:N], 7))


def test_options_of_a_run_are_not_the_models(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = read_model(model)[0]["parameters"]
    answer(capsys, "forget", model, "1", "--batch-size", "3")
    assert read_model(model)[0]["parameters"] == before
    (model / "report.html").write_text("old")
    assert main(["forget", str(model), "2"]) == 0
    assert "note: report.html" in capsys.readouterr().err
    assert not (model / "report.html").exists()


def test_adding_is_fitting_all(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows, labels = [20, 22, 27, 28], [0, 2, 7, 7]
    facts = answer(capsys, "add", model, folder_of(tmp_path / "new", rows, labels), "--n-jobs", "1", "--new-class")
    found = same(model, X[[*range(N), *rows]], np.array([*Y[:N], *labels]))
    assert found.classes_.tolist() == [0, 1, 2, 3, 7]
    assert found.ids_[N:] == ["0/20.png", "2/22.png", "7/27.png", "7/28.png"]
    assert facts["n"] == {"before": N, "after": N + 4}
    assert facts["classes"] == {"new": ["7"], "gone": []}
    assert facts["skipped"] == []
    assert found.edits_[-1]["edit"] == "add"

    refused(capsys, "add", model, tmp_path / "new", "--n-jobs", "1", words=("'0/20.png'", "already"))
    (tmp_path / "new" / "7" / "zz.png").write_bytes(b"no picture")
    for i in (20, 22, 27, 28):
        next((tmp_path / "new").rglob(f"{i}.png")).unlink()
    folder_of(tmp_path / "new", [25], [1])
    before = digest(model)
    refused(capsys, "add", model, tmp_path / "new", "--n-jobs", "1", words=("zz.png",))
    assert digest(model) == before
    capsys.readouterr()
    assert main(["add", str(model), str(tmp_path / "new"), "--n-jobs", "1", "--on-error", "skip"]) == 0
    out, err = capsys.readouterr()
    assert "Pictures left out: 1" in out
    assert "note: 1 picture was left out" in err
    assert out.splitlines()[1].split() == ["pictures", "24", "25"]


def test_relabelling_is_fitting_the_labels(
    model: Path, saved: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    labels = Y[:N].copy()
    labels[6] = 1
    facts = answer(capsys, "relabel", model, "6", "1")
    same(model, X[:N], labels)
    assert facts["n"] == {"before": N, "after": N}
    assert len(facts["edit"]["pictures"]) == 1
    labels[[11, 3, 9]] = 2, 5, 5
    (tmp_path / "t.csv").write_text("label;id;why\n5;9;\n2;11;blurred\n5;3;\n2;11;again\n")  # in an order of its own
    assert answer(capsys, "relabel", model, "--from", tmp_path / "t.csv", "--new-class")["classes"]["new"] == ["5"]
    assert same(model, X[:N], labels).classes_.tolist() == [0, 1, 2, 3, 5]

    numbers = Path(shutil.copytree(saved / "numbers", tmp_path / "numbers"))
    targets = X[:N].mean((1, 2, 3))
    targets[4] = 81.5
    facts = answer(capsys, "relabel", numbers, "4", "81.5")
    same(numbers, X[:N], targets)
    assert set(facts["loo"]["after"]) == {"r2", "rmse"}
    assert main(["relabel", str(numbers), "5", "80", "--dry-run"]) == 0
    assert f"Model in {numbers} left as it was" in capsys.readouterr().out


@pytest.mark.parametrize("classes", [np.array(["no", "yes"]), np.array([False, True]), np.array([1.0, 2.0])])
def test_labels_take_the_kind_of_the_models_own(
    classes: np.ndarray, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    y = classes[Y[:N] % 2]
    model = TangentClassifier(small(), **SETTINGS).fit(X[:N], y)
    model.save_pretrained(tmp_path / "m")
    y[4] = classes[1]
    answer(capsys, "relabel", tmp_path / "m", "4", str(classes[1]))
    found = TangentClassifier.from_pretrained(tmp_path / "m")
    assert found.targets_.tolist() == y.tolist()
    assert found.classes_.dtype.kind == classes.dtype.kind
    if classes.dtype.kind == "b":
        refused(capsys, "relabel", tmp_path / "m", "4", "2", words=("'2'", "False, True"))


def test_scores_that_are_no_numbers_are_shown() -> None:
    loo = {when: {"r2": float("nan"), "rmse": 0.0} for when in ("before", "after")}
    edit = {"residual_before": 0.0, "residual_after": 0.0, "verification": 0.0, "pictures": [], "seal": "ab"}
    classes = {"new": [], "gone": ["a", "b"]}
    stream = io.StringIO()
    facts = {"edit": edit, "n": {"before": 3, "after": 2}, "loo": loo, "classes": classes, "seconds": 1.0}
    show_change(facts | {"saved": True, "model": "m"}, stream)
    assert "nan" in stream.getvalue()
    assert "Gone classes: a, b" in stream.getvalue()


def test_ids_may_be_short_and_classes_are_not_made_by_typing_errors(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = np.array(["ant", "bee", "cat", "dog"])
    folder, made = folder_of(tmp_path / "all", list(range(N)), names[Y[:N]].tolist()), tmp_path / "m"
    TangentClassifier(small(), **SETTINGS).fit(folder).save_pretrained(made)
    assert answer(capsys, "forget", made, "4", "5.png", "cat/2")["n"]["after"] == N - 3
    refused(capsys, "forget", made, "4", words=("'4'", "does not stand"))
    before, new = digest(made), folder_of(tmp_path / "new", [25, 26], ["bee", "catt"])
    (tmp_path / "t.csv").write_text("id,label\n6,ant\n7,Dog\n")
    typo = ("did you mean", "--new-class")
    refused(capsys, "relabel", made, "7", "dogg", words=("'dogg'", "'dog'", *typo))
    refused(capsys, "relabel", made, "--from", tmp_path / "t.csv", words=("7 is to be 'Dog'", "'dog'", *typo))
    refused(capsys, "add", made, new, "--n-jobs", "1", words=("catt/26.png", "'cat'", *typo))
    assert digest(made) == before
    assert answer(capsys, "relabel", made, "7", "dogg", "--new-class")["classes"]["new"] == ["dogg"]
    assert answer(capsys, "add", made, new, "--n-jobs", "1", "--new-class")["classes"]["new"] == ["catt"]
    assert answer(capsys, "relabel", made, "26", "dogg")["classes"] == {"new": [], "gone": ["catt"]}


def test_folders_and_ids_with_accents_of_either_kind(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """macOS writes é as two characters; what people type is one."""
    nfc, nfd, out = "café", "cafe\u0301", tmp_path / "accents"
    folder = folder_of(tmp_path / "one", list(range(8)), [nfd] * 4 + ["tea"] * 4)
    pictures = load_pictures(folder, contract=small().contract)
    TangentClassifier(small(), **SETTINGS).fit(pictures).save_pretrained(out)
    assert answer(capsys, "relabel", out, f"{nfc}/0.png", "tea")["classes"] == {"new": [], "gone": []}
    assert answer(capsys, "relabel", out, f"{nfc}/0", nfc)["n"] == {"before": 8, "after": 8}
    more = folder_of(tmp_path / "two", [8, 9], [nfc, "tea"])
    assert answer(capsys, "evaluate", out, more)["n"] == 2
    assert answer(capsys, "add", out, more)["classes"] == {"new": [], "gone": []}
    assert answer(capsys, "forget", out, f"{nfc}/8.png", f"{nfd}/1.png")["n"]["after"] == 8
    assert sorted(TangentClassifier.from_pretrained(out).classes_) == sorted([nfd, "tea"])
    refused(capsys, "forget", out, f"{nfc}/99.png", words=("does not stand on", nfd))

    both = folder_of(tmp_path / "both", list(range(9)), [nfc, nfd, "tea"] * 3)  # side by side: two classes, and told
    with pytest.warns(UserWarning, match=r"look alike: 'cafe\\u0301' = 'caf\\xe9'|'caf\\xe9' = 'cafe\\u0301'"):
        clf = TangentClassifier(small(), **SETTINGS).fit(load_pictures(both, contract=small().contract))
    assert len(clf.classes_) == 3
