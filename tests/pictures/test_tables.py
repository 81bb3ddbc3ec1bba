"""Tables as people have them: column names of every habit, data frames, and one sentence where it is not clear."""

from __future__ import annotations

import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from picture_cases import class_folder, colours
from PIL import Image

from tangentune import DataContract, load_pictures
from tangentune.errors import InputError, PictureError
from tangentune.pictures.files import find_files
from tangentune.pictures.label_sets import label_matrix, label_names, label_texts
from tangentune.pictures.tables import Columns

CONTRACT = DataContract(input_size=(3, 8, 8))
IDS = [f"cat/{i}.png" for i in range(4)] + ["dog/4.png", "dog/5.png"]
NAMES = ["cat"] * 4 + ["dog"] * 2


class Frame:
    """What data frames have in common."""

    def __init__(self, **columns: Any) -> None:
        self.held, self.columns = columns, list(columns)
        self.shape = (len(next(iter(columns.values()))), len(columns))

    def __getitem__(self, name: str) -> Any:
        return self.held[name]


def table(root: Path, *header: str) -> Path:
    rows = [f"{one},{name},{i}" for i, (one, name) in enumerate(zip(IDS, NAMES, strict=True))]
    (root / "t.csv").write_text("\n".join([",".join(header), *rows]))
    return root / "t.csv"


@pytest.mark.parametrize(
    "header",
    [
        ("image", "class", "n"),
        ("Filename", "Target", "id"),
        ("file_name", "category", "width"),
        ("Image Path", "class-name", "split"),
        ("path", "label", "image"),  # the library's own names go before the others
        ("img", "label", "class"),
    ],
)
def test_columns_of_usual_names_are_found(tmp_path: Path, header: tuple[str, ...]) -> None:
    class_folder(tmp_path)
    loaded = load_pictures(table(tmp_path, *header), contract=CONTRACT)
    assert loaded.ids == IDS
    assert loaded.labels is not None
    assert loaded.labels.tolist() == NAMES


@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_files_are_found_with_their_accents_put_together_otherwise(tmp_path: Path, form: Any) -> None:
    """A table written on one system for files that another has unpacked."""
    path = tmp_path / unicodedata.normalize(form, "gar\u00e7on") / "1.png"
    path.parent.mkdir()
    Image.new("RGB", (8, 8), "red").save(path)
    lines = [unicodedata.normalize(other, "gar\u00e7on") for other in ("NFC", "NFD")]
    (tmp_path / "t.csv").write_text("\n".join(["path", f"{lines[0]}/1.png", f"{lines[1]}\\1.png"]), encoding="utf-8")
    assert len(load_pictures(tmp_path / "t.csv", contract=CONTRACT, need_labels=False)) == 2


def test_columns_can_be_named(tmp_path: Path) -> None:
    class_folder(tmp_path)
    given = table(tmp_path, "wo", "Was", "n")
    loaded = load_pictures(given, contract=CONTRACT, path_column="wo", label_column="was")
    assert (loaded.ids, loaded.labels.tolist()) == (IDS, NAMES)  # type: ignore[union-attr]
    numbers = load_pictures(table(tmp_path, "path", "label", "n"), contract=CONTRACT, label_column="n")
    assert numbers.labels.tolist() == list("012345")  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("header", "columns", "words"),
    [
        (("wo", "was", "n"), Columns(), "must name the columns path and label; it names wo, was, n."),
        (("wo", "was", "n"), Columns(), "Name others with load_pictures(..., path_column=..., label_column=...)."),
        (
            ("image", "file", "class"),
            Columns(),
            'path: image, file; say which with load_pictures(..., path_column="image").',
        ),
        (
            ("image", "class", "target"),
            Columns(),
            'label: class, target; say which with load_pictures(..., label_column="class").',
        ),
        (("path", "label", "Label"), Columns(), "names the column label 2 times; keep one."),
        (("path", "label", "n"), Columns("where"), "names no column where; it names path, label, n."),
    ],
)
def test_unclear_columns_are_one_sentence(tmp_path: Path, header: Any, columns: Columns, words: str) -> None:
    with pytest.raises(PictureError) as caught:
        find_files(table(tmp_path, *header), columns=columns)
    assert words in str(caught.value)
    assert "t.csv" in str(caught.value)


def frames(**columns: Any) -> list[Any]:
    try:
        import pandas
    except ImportError:
        return [Frame(**columns)]
    return [Frame(**columns), pandas.DataFrame(columns)]


def test_data_frames_of_paths_or_pictures(tmp_path: Path) -> None:
    folder = class_folder(tmp_path)
    expected = load_pictures(folder, contract=CONTRACT)
    paths = [str(folder / one) for one in IDS]
    for frame in frames(image=paths, split=["a"] * 6, label=NAMES):
        loaded = load_pictures(frame, contract=CONTRACT)
        assert (loaded.pixels == expected.pixels).all()
        assert loaded.labels is not None
        assert loaded.labels.tolist() == NAMES
        assert load_pictures(frame, contract=CONTRACT, label_column="split").labels.tolist() == ["a"] * 6  # type: ignore[union-attr]
        assert load_pictures(frame, ["b"] * 6, contract=CONTRACT).labels.tolist() == ["b"] * 6  # type: ignore[union-attr]
        assert load_pictures(frame, contract=CONTRACT, need_labels=False).labels is None
    held = np.empty(6, object)
    held[:] = [Image.fromarray(picture) for picture in colours(6)]
    for frame in frames(image=held, label=np.arange(6) % 2):
        loaded = load_pictures(frame, contract=CONTRACT)
        assert (loaded.pixels == expected.pixels).all()
        assert loaded.labels.tolist() == [0, 1, 0, 1, 0, 1]  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        ({"a": ["1.png"], "b": ["x"]}, "The data frame must name the columns path and label; it names a, b."),
        ({"path": ["1.png", None], "label": ["x", "y"]}, "Row 1 of the data frame has no path."),
        ({"path": ["1.png", float("nan")], "label": ["x", "y"]}, "Row 1 of the data frame has no path."),
        ({"path": [], "label": []}, "lists no picture"),
        ({"path": ["1.png", "2.png"], "label": ["x", None]}, "Label 1 is missing"),
    ],
)
def test_unclear_frames_are_one_sentence(columns: dict[str, Any], words: str) -> None:
    for frame in frames(**columns):
        with pytest.raises(InputError) as caught:
            load_pictures(frame, contract=CONTRACT)
        assert words in str(caught.value)


def test_numbers_in_a_frame_stay_vectors() -> None:
    vectors = DataContract(input_size=None)
    pandas = pytest.importorskip("pandas")
    rows = np.random.default_rng(0).normal(size=(5, 3))
    loaded = load_pictures(pandas.DataFrame(rows), [0, 1, 0, 1, 0], contract=vectors)
    assert (loaded.pixels.numpy() == rows).all()


def several(root: Path) -> Path:
    class_folder(root)
    cells = ["cat; small,1,0", ",0,0", "small,0,1", "cat;big,1,1", "big,0,TRUE", "big ;big,0,0.0"]
    rows = [f"{one},{text}" for one, text in zip(IDS, cells, strict=True)]
    (root / "t.csv").write_text("\n".join(["path,label,a,b", *rows]))
    return root / "t.csv"


def test_several_labels_in_a_cell(tmp_path: Path) -> None:
    loaded = load_pictures(several(tmp_path), contract=CONTRACT, label_separator=";")
    assert loaded.labels is not None
    assert label_texts(loaded.labels) == ["cat;small", "", "small", "big;cat", "big", "big"]
    assert label_texts(loaded.select([3, 1]).labels) == ["big;cat", ""]  # pyright: ignore[reportArgumentType]
    assert load_pictures(tmp_path / "t.csv", contract=CONTRACT, label_separator=";", need_labels=False).labels is None


def test_columns_that_are_labels(tmp_path: Path) -> None:
    loaded = load_pictures(several(tmp_path), contract=CONTRACT, label_columns=["b", "a"])
    assert loaded.labels is not None
    assert label_names(loaded.labels).tolist() == ["b", "a"]
    assert label_matrix(loaded.labels).T.tolist() == [[0, 0, 1, 1, 1, 0], [1, 0, 0, 1, 0, 0]]
    pandas = pytest.importorskip("pandas")
    frame = pandas.read_csv(tmp_path / "t.csv").assign(path=lambda f: [str(tmp_path / name) for name in f.path])
    frame["b"] = [0, 0, 1, 1, 1, 0]
    again = load_pictures(frame, contract=CONTRACT, label_columns=["b", "a"])
    assert again.labels is not None
    assert np.array_equal(again.labels, loaded.labels)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"label_columns": ["a", "z"]}, "names no column z; it names path, label, a, b"),
        ({"label_columns": ["a", "label"]}, "has 'cat; small' under label; a label is 0 or 1 there"),
        ({"label_columns": ["a", "a"]}, "two labels are called 'a'"),
        ({"label_columns": ["a"], "label_separator": ";"}, "label_columns are labels by themselves"),
        ({"label_separator": " "}, "the label separator is ' '"),
    ],
)
def test_tables_of_several_labels_are_refused_in_a_sentence(
    tmp_path: Path, options: dict[str, Any], words: str
) -> None:
    with pytest.raises(InputError) as caught:
        load_pictures(several(tmp_path), contract=CONTRACT, **options)
    assert words in str(caught.value)
