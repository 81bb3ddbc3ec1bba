"""`tangentune labels`: corrections in a table, taken back to folders and tables, and a fit that starts from them."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cli_cases import SETTINGS, X, answer, digest, folder_of, refused, small
from PIL import Image

from tangentune import TangentClassifier, TangentRegressor, _files
from tangentune.cli.app import main
from tangentune.pictures.tables import LABELS, quoted, unquoted
from tangentune.workbench import moves
from tangentune.workbench.corrections import forgotten, label_rows, labels_table

pytestmark = pytest.mark.usefixtures("loadable")
NAMES = ("ant", "bee", "cat")
COUNT = 12


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Twelve pictures in three folders."""
    return folder_of(tmp_path / "pictures", list(range(COUNT)), [NAMES[i % 3] for i in range(COUNT)])


def fit(source: Path, target: Path, *edits: Any) -> Path:
    """A saved model, edited."""
    model = TangentClassifier(small(), **SETTINGS).fit(source)
    for name, *given in edits:
        getattr(model, name)(*given)
    model.save_pretrained(target)
    return target


def rows_of(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(path.read_text("utf-8"))))


def test_the_log_tells_labels_without_keeping_names(folder: Path, tmp_path: Path) -> None:
    edits: list[Any] = [
        ("relabel", "bee/1.png", "cat"),
        ("relabel", "bee/1.png", "ant"),
        ("relabel", "ant/3.png", "cat"),
    ]
    edits += [("undo",), ("relabel", "cat/2.png", "cat"), ("forget", "ant/0.png"), ("relabel", "cat/5.png", "bee")]
    fitted = TangentClassifier.from_pretrained(fit(folder, tmp_path / "m", *edits)).fitted_
    rows = {row.id: row for row in label_rows(fitted)}
    assert len(rows) == COUNT - 1
    assert {name for name, row in rows.items() if row.corrected} == {"bee/1.png", "cat/5.png"}
    assert {name for name, row in rows.items() if row.why} == {"bee/1.png", "cat/5.png"}
    assert (rows["bee/1.png"].original, rows["bee/1.png"].current) == ("bee", "ant")
    assert rows["bee/1.png"].when == fitted.edits[1]["when"]
    assert len(forgotten(fitted)) == 1
    written = (tmp_path / "m" / "audit.jsonl").read_text() + labels_table(label_rows(fitted))
    assert "ant/0.png" not in written
    assert not any(f'"{name}"' in (tmp_path / "m" / "audit.jsonl").read_text() for name in NAMES)
    gone = TangentClassifier.from_pretrained(tmp_path / "m").forget_class("bee")  # original of one, current of another
    assert {row.id: row.original for row in label_rows(gone.fitted_) if row.why} == {"bee/1.png": None}


def test_copies_and_pictures_that_came_back(folder: Path) -> None:
    (folder / "bee" / "copy.png").write_bytes((folder / "bee" / "1.png").read_bytes())
    with pytest.warns(UserWarning, match="more than once"):
        model = TangentClassifier(small(), **SETTINGS).fit(folder)
    model.relabel("copy.png", "cat")
    assert [row.id for row in label_rows(model.fitted_) if row.corrected] == ["bee/copy.png"]
    model.forget("copy.png")
    assert [row.id for row in label_rows(model.fitted_) if row.corrected] == []
    assert forgotten(model.fitted_) == set()
    model.forget("ant/0.png").add(folder / "ant" / "0.png", ["cat"])
    (back,) = [row for row in label_rows(model.fitted_) if row.why]
    assert (back.original, back.current, back.why) == ("cat", "cat", "added")
    assert label_rows(model.fitted_, {int(model.fitted_.numbers[-1]): "seen again"})[-1].why == "seen again; added"


def test_numbers_are_told_where_they_can_be(folder: Path) -> None:
    model = TangentRegressor(small(), **SETTINGS).fit(X[:COUNT], np.arange(COUNT) - 0.5)
    model.relabel(0, 3.25)
    first = label_rows(model.fitted_)[0]
    assert (first.original, first.current) == (None, "3.25")
    assert labels_table(label_rows(model.relabel(1, -7).fitted_)).splitlines()[2].split(",")[2] == "-7.0"


@pytest.mark.parametrize(
    "cell", ["=1+1", "+a", "-a", "@x", "'=x", "''-a", "plain", "'plain", "-1.5", "+2e-3", "\t=1", "", "-"]
)
def test_no_cell_is_a_formula(cell: str) -> None:
    assert unquoted(quoted(cell)) == cell
    shown = quoted(cell)
    assert shown[:1] not in ("=", "+", "-", "@", "\t") or np.isfinite(float(shown))


def test_a_fit_starts_from_the_table(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    odd = TangentClassifier(small(), **SETTINGS).fit(folder)
    odd.relabel("bee/1.png", "=ant", new_class=True).relabel("ant/3.png", "cat").forget("cat/2.png")
    odd.save_pretrained(tmp_path / "m")
    table = folder / "labels.csv"
    facts = answer(capsys, "labels", tmp_path / "m", "--out", table)
    assert facts["n"] == COUNT - 1
    assert facts["forgotten"] == 1
    assert [row["id"] for row in facts["labels"]] == ["ant/3.png", "bee/1.png"]
    assert list(rows_of(table)[0]) == list(LABELS)
    assert "'=ant" in table.read_text("utf-8")
    with pytest.warns(UserWarning, match="'=ant' has only one"):
        again = TangentClassifier(small(), **SETTINGS).fit(table)
    assert dict(zip(again.ids_, again.targets_, strict=True)) == dict(zip(odd.ids_, odd.targets_, strict=True))
    refused(capsys, "labels", tmp_path / "m", "--out", table, words=("labels.csv", "not overwritten"))
    refused(capsys, "labels", tmp_path / "m", "--out", folder / "labels.txt", words=("must end in .csv",))
    assert main(["labels", str(tmp_path / "m"), "--out", str(folder / "more.csv")]) == 0
    out = capsys.readouterr().out
    assert "Labels corrected: 2 of 11; pictures forgotten: 1" in out
    assert f"Written to {folder}/more.csv: 11 labels; `tangentune fit" in out
    (moved,) = [row for row in rows_of(folder / "more.csv") if row["id"] == "ant/3.png"]
    assert (moved["original"], moved["current"], moved["why"]) == ("ant", "cat", "relabelled")


def test_files_move_to_the_folders_of_their_classes(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "cat" / "deep").mkdir()
    (folder / "cat" / "2.png").rename(folder / "cat" / "deep" / "2.png")
    Image.fromarray(X[20].transpose(1, 2, 0)).save(folder / "ant" / "1.png")  # in the way of bee/1.png
    edits = [("relabel", "bee/1.png", "ant"), ("relabel", "deep/2.png", "bee"), ("forget", ["bee/4.png"])]
    model = fit(folder, tmp_path / "m", *edits)
    TangentClassifier.from_pretrained(model)  # it is whole
    before, pixels = digest(folder), digest(folder).values()
    tried = answer(capsys, "labels", model, "--apply", folder, "--dry-run")
    assert digest(folder) == before
    assert [Path(one["target"]).relative_to(folder).as_posix() for one in tried["apply"]["moves"]] == [
        "ant/1-from-bee.png",
        "bee/deep/2.png",
    ]
    done = answer(capsys, "labels", model, "--apply", folder, "--forgotten", tmp_path / "gone")
    assert done["apply"]["gone"] == ["bee/4.png"]
    assert (tmp_path / "gone" / "bee" / "4.png").exists()
    after = digest(folder)
    assert sorted([*after.values(), *digest(tmp_path / "gone").values()]) == sorted(pixels)
    again = answer(capsys, "labels", model, "--apply", folder, "--out", folder / "labels.csv")["apply"]
    moved = TangentClassifier(small(), **SETTINGS).fit(folder / "labels.csv")  # ids follow the files
    assert "ant/1-from-bee.png" in moved.ids_
    assert "bee/4.png" not in moved.ids_
    assert (again["moves"], again["before"], again["missing"]) == ([], 2, [])
    fitted = TangentClassifier(small(), **SETTINGS).fit(folder)
    expected = TangentClassifier.from_pretrained(model)
    np.testing.assert_allclose(
        np.sort(fitted.loo_predictions_.ravel()), np.sort(expected.loo_predictions_.ravel()), atol=1e-8
    )
    assert main(["labels", str(model), "--apply", str(folder), "--dry-run"]) == 0
    assert "Would be moved: 0; corrected there already: 2" in capsys.readouterr().out


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_failure_leaves_all_as_it_was(
    error: BaseException,
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    moved = ["bee/1.png", "ant/3.png", "cat/5.png"]
    model = fit(folder, tmp_path / "m")
    edited = TangentClassifier.from_pretrained(model).relabel(moved, ["owl"] * 3, new_class=True)
    edited.save_pretrained(model)
    before, calls = digest(tmp_path), []

    def failing(source: Path, target: Path) -> None:
        calls.append(target)
        if len(calls) == 3:
            raise error
        _files.move_new(source, target)

    monkeypatch.setattr(moves, "move_new", failing)
    code = main(["labels", str(model), "--apply", str(folder), "--out", str(folder / "l.csv"), "-q"])
    assert code == (2 if isinstance(error, OSError) else 130)
    assert len(calls) == 5  # two were taken back
    assert digest(tmp_path) == before
    assert not (folder / "owl").exists()
    assert ("everything is where it was" in capsys.readouterr().err) == isinstance(error, OSError)


def test_labels_of_one_model_for_another(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fit(folder, tmp_path / "other")
    model = TangentClassifier(small(), **SETTINGS).fit(folder).relabel("bee/1.png", "cat").relabel("ant/0.png", "bee")
    model.save_pretrained(tmp_path / "m", pictures=False)  # hashes are enough
    before = digest(folder)
    facts = answer(capsys, "labels", tmp_path / "m", "--out", tmp_path / "l.csv", "--apply", folder, "--dry-run")
    assert (len(facts["apply"]["moves"]), facts["done"]) == (2, False)
    assert digest(folder) == before
    assert not (tmp_path / "l.csv").exists()
    answer(capsys, "labels", tmp_path / "m", "--out", tmp_path / "l.csv")
    answer(capsys, "relabel", tmp_path / "other", "--from", tmp_path / "l.csv")
    other = TangentClassifier.from_pretrained(tmp_path / "other")
    assert other.targets_.tolist() == model.targets_.tolist()
    assert [row.id for row in label_rows(other.fitted_) if row.corrected] == ["ant/0.png", "bee/1.png"]


def test_a_killed_run_goes_on(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = fit(folder, tmp_path / "m", ("relabel", ["bee/1.png", "ant/3.png"], ["cat", "cat"]))
    first, *_ = answer(capsys, "labels", model, "--apply", folder, "--dry-run")["apply"]["moves"]
    _files.move_new(Path(first["source"]), Path(first["target"]))  # as far as it came
    facts = answer(capsys, "labels", model, "--apply", folder)["apply"]
    assert (len(facts["moves"]), facts["before"], facts["missing"]) == (1, 1, [])
    assert sorted(path.name for path in (folder / "cat").iterdir()) == sorted(
        ["1.png", "3.png", *(f"{i}.png" for i in range(2, COUNT, 3))]
    )


def test_what_changed_since_the_fit_is_left_alone(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = fit(folder, tmp_path / "m", ("relabel", "bee/1.png", "ant"), ("relabel", "cat/2.png", "ant"))
    Image.fromarray(X[21].transpose(1, 2, 0)).save(folder / "bee" / "1.png")
    (folder / "cat" / "2.png").unlink()
    facts = answer(capsys, "labels", model, "--apply", folder)["apply"]
    assert (facts["moves"], facts["changed"], facts["missing"]) == ([], ["bee/1.png"], ["cat/2.png"])


def test_a_table_is_corrected_beside_itself(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = [f"{name};{i};pictures/{NAMES[i % 3]}/{i}.png;=x" for i, name in enumerate(np.resize(NAMES, COUNT))]
    table = tmp_path / "t.csv"
    table.write_text("\n".join(["class;n;file;more", *lines]) + "\n", encoding="utf-8")
    model = fit(table, tmp_path / "m", ("relabel", "bee/1.png", "cat"), ("forget", "ant/3.png"))
    facts = answer(capsys, "labels", model, "--apply", table)["apply"]
    written = (tmp_path / "t-corrected.csv").read_text("utf-8").splitlines()
    lines[1] = "cat;1;pictures/bee/1.png;=x"
    assert written == ["class;n;file;more", *lines[:3], *lines[4:]]
    assert (len(facts["moves"]), facts["gone"]) == (1, ["pictures/ant/3.png"])
    refused(capsys, "labels", model, "--apply", table, words=("t-corrected.csv", "not overwritten"))
    again = TangentClassifier(small(), **SETTINGS).fit(tmp_path / "t-corrected.csv")
    assert again.targets_[again.ids_.index("pictures/bee/1.png")] == "cat"


@pytest.mark.parametrize(
    ("edit", "arguments", "words"),
    [
        (("relabel", "bee/1.png", "a/b"), ["--apply", "pictures"], ("'a/b'", "name of a folder")),
        (("relabel", "bee/1.png", ".owl"), ["--apply", "pictures"], ("'.owl'",)),
        (("relabel", "bee/1.png", "owl"), ["--apply", "others"], ("others", "no picture of the model")),
        (("relabel", "bee/1.png", "owl"), ["--apply", "pictures"], ("owl", "in the way")),
        (("relabel", "cat/2.png", "bee"), ["--apply", "pictures"], ("cat/2.png", "link")),
        (("forget", "bee/1.png"), ["--apply", "pictures", "--forgotten", "pictures/x"], ("pictures/x",)),
        (("forget", "bee/1.png"), ["--forgotten", "x"], ("--forgotten", "--apply")),
        (("forget", "bee/1.png"), ["--out", "pictures"], ("pictures", "there already")),
        (("forget", "bee/1.png"), ["--out", "pictures/owl/l.csv"], ("owl", "no folder")),
    ],
)
def test_refusals_come_before_the_work(
    edit: Any, arguments: list[str], words: tuple[str, ...], folder: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    (folder / "cat" / "2.png").rename(tmp_path / "real.png")
    (folder / "cat" / "2.png").symlink_to(tmp_path / "real.png")
    model = TangentClassifier(small(), **SETTINGS).fit("pictures")
    model.relabel(*edit[1:], new_class=True) if edit[0] == "relabel" else model.forget(edit[1])
    model.save_pretrained("m")
    folder_of(tmp_path / "others", [25, 26], ["a", "b"])
    (folder / "owl").write_text("no folder")
    before = digest(tmp_path)
    refused(capsys, "labels", "m", *arguments, words=words)
    assert digest(tmp_path) == before


def test_a_file_takes_no_other_ones_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for rename in (_files._rename, lambda *_, **__: 38):  # the system's step, and where there is none
        monkeypatch.setattr(_files, "_rename", rename)
        one, other, third = (tmp_path / name for name in ("one", "other", "third"))
        one.write_text("1")
        other.write_text("2")
        with pytest.raises(FileExistsError):
            _files.move_new(one, other)
        assert (one.read_text(), other.read_text()) == ("1", "2")
        _files.move_new(one, third)
        assert (one.exists(), third.read_text()) == (False, "1")
        with pytest.raises(FileNotFoundError):
            _files.move_new(tmp_path / "nothing", tmp_path / "else")
        assert not (tmp_path / "else").exists()
        third.unlink()
