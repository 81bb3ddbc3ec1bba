"""`load_pictures`: all sources give the same, what cannot be used is named, skipping is counted."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from picture_cases import class_folder, colours
from PIL import Image
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from tangentune import memory
from tangentune.errors import InputError, PictureError
from tangentune.pictures import load as data
from tangentune.pictures.contract import IMAGENET_MEAN, IMAGENET_STD, DataContract
from tangentune.pictures.load import Pictures, load_pictures

CONTRACT = DataContract(input_size=(3, 8, 8), mean=IMAGENET_MEAN, std=IMAGENET_STD)
VECTORS = DataContract(input_size=None)


def first_channels(pictures: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(pictures.transpose(0, 3, 1, 2).copy())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return class_folder(tmp_path / "set")


# ---------------------------------------------------------------- sources


def test_all_sources_give_the_same_pictures(folder: Path, tmp_path: Path) -> None:
    pixels, names = colours(6), ["cat"] * 4 + ["dog"] * 2
    ids = [f"{name}/{i}.png" for i, name in enumerate(names)]
    (tmp_path / "t.csv").write_text("path,label\n" + "".join(f"set/{i},{n}\n" for i, n in zip(ids, names, strict=True)))
    paths = [folder / i for i in ids]
    images = [Image.fromarray(p) for p in pixels]
    sources: dict[str, tuple[Any, Any]] = {
        "folder": (folder, None),
        "folder as text": (str(folder), None),
        "folder, labels given": (folder, names),
        "table": (tmp_path / "t.csv", None),
        "paths": (paths, names),
        "tuple of text": (tuple(map(str, paths)), names),
        "iterator": (iter(paths), names),
        "array of text": (np.array(list(map(str, paths))), names),
        "NHWC": (pixels, names),
        "NCHW": (pixels.transpose(0, 3, 1, 2), np.array(names, dtype=object)),
        "tensor": (torch.from_numpy(pixels), names),
        "Pillow pictures": (images, names),
        "arrays": (list(pixels), names),
        "pairs": (list(zip(images, names, strict=True)), None),
        "dicts": (Items([{"image": i, "label": n} for i, n in zip(images, names, strict=True)]), None),
        "dataset": (Items(list(zip(images, names, strict=True))), None),
        "dataset, labels given": (Items(images), names),
        "pictures": (Pictures(first_channels(pixels), np.array(names), ids), None),
    }
    for what, (source, labels) in sources.items():
        pictures = load_pictures(source, labels, contract=CONTRACT)
        assert torch.equal(pictures.pixels, first_channels(pixels)), what
        assert pictures.labels is not None
        assert pictures.labels.tolist() == names, what
        assert len(pictures) == len(pictures.ids) == 6
        assert pictures.skipped == []
    assert load_pictures(folder, contract=CONTRACT).ids == ids
    assert load_pictures(tmp_path / "t.csv", contract=CONTRACT).ids == [f"set/{i}" for i in ids]
    assert load_pictures(pixels, names, contract=CONTRACT).ids == ["0", "1", "2", "3", "4", "5"]


class Items(Dataset[Any]):
    def __init__(self, items: list[Any]) -> None:
        self.items = items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, position: int) -> Any:
        item = self.items[position]
        if isinstance(item, Exception):
            raise item
        return item


def test_prediction_needs_no_labels(folder: Path, tmp_path: Path) -> None:
    for source in (folder, list((folder / "cat").iterdir()), colours(3), Items(list(colours(3)))):
        assert load_pictures(source, contract=CONTRACT, need_labels=False).labels is None
    one = load_pictures(folder / "cat" / "0.png", contract=CONTRACT, need_labels=False)
    assert one.ids == ["0.png"]
    assert len(load_pictures(Image.new("L", (9, 9)), contract=CONTRACT, need_labels=False)) == 1
    for source in (colours(3), [folder / "cat" / "0.png"], Items(list(colours(3))), folder / "cat" / "0.png"):
        with pytest.raises(InputError, match="These pictures have no labels; give labels="):
            load_pictures(source, contract=CONTRACT)
    with pytest.raises(InputError, match="have no labels"):  # said before any file is read
        load_pictures(["nowhere.jpg"], contract=CONTRACT)
    (tmp_path / "t.csv").write_text("path,label\nset/cat/0.png,cat\n")
    labelled = load_pictures(tmp_path / "t.csv", contract=CONTRACT, need_labels=False)
    assert labelled.labels is not None


def test_vectors_and_float_pictures() -> None:
    rows = np.random.default_rng(0).normal(size=(5, 4))
    pictures = load_pictures(rows, [0, 1, 0, 1, 0], contract=VECTORS)
    (batch,) = pictures.batches(VECTORS, 10, torch.float64, "cpu")
    assert torch.equal(batch, torch.from_numpy(rows))
    assert pictures.thumbnail(0) is None
    tensors = TensorDataset(torch.rand(5, 3, 8, 8), torch.arange(5))
    pictures = load_pictures(tensors, contract=CONTRACT)
    assert torch.equal(pictures.pixels, tensors.tensors[0])
    assert pictures.labels is not None
    assert pictures.labels.tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(
    ("source", "sentence"),
    [
        (None, "NoneType"),
        ({"a": 1}, "dict cannot be used as pictures"),
        (object(), "object cannot be used"),
        ([], "holds no pictures"),
        (Items([]), "holds no pictures"),
        (DataLoader(TensorDataset(torch.rand(2, 3, 8, 8))), "not an iterable one, not a DataLoader"),
        (
            [np.zeros((8, 8, 3), np.uint8), np.zeros((8, 8, 3))],
            "Picture 1 is .*float64, unlike those before it",
        ),
        (
            ["nowhere.jpg", "none.jpg"],
            r"2 of 2 pictures cannot be read: nowhere.jpg \(the file does not exist\), none.*Paths in a table start",
        ),
    ],
)
def test_sources_that_cannot_be_used(source: Any, sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        load_pictures(source, [0, 1], contract=CONTRACT)


def test_iterable_dataset_and_wrong_arguments(folder: Path) -> None:
    class Stream(IterableDataset[Any]):
        def __iter__(self) -> Iterator[Any]:
            return iter([])

    with pytest.raises(InputError, match="map-style"):
        load_pictures(Stream(), contract=CONTRACT)
    with pytest.raises(InputError, match="There are 5 labels for 6 pictures"):
        load_pictures(folder, [0] * 5, contract=CONTRACT)
    with pytest.raises(InputError, match="3 labels for 2 pictures"):
        load_pictures(colours(2), [0] * 3, contract=CONTRACT)
    with pytest.raises(InputError, match="on_error is 'ignore'"):
        load_pictures(folder, contract=CONTRACT, on_error="ignore")
    with pytest.raises(InputError, match="takes no pictures"):
        load_pictures(folder, contract=VECTORS)
    for n_jobs in (0, 1.5, True):
        with pytest.raises(InputError, match="n_jobs is"):
            load_pictures(folder, contract=CONTRACT, n_jobs=n_jobs)  # type: ignore[arg-type]


def test_random_transforms_are_noticed() -> None:
    class Augmented(Items):
        def __getitem__(self, position: int) -> Any:
            return np.random.default_rng().integers(0, 256, (8, 8, 3), dtype=np.uint8), position

    with pytest.warns(UserWarning, match="gives other pixels each time item 0 is read"):
        load_pictures(Augmented([0, 1]), contract=CONTRACT)


def test_suspicious_float_ranges_warn() -> None:
    pictures = colours(2).astype(np.float32)
    bare = DataContract(input_size=(3, 8, 8))
    for source in (pictures, list(pictures), Items(list(pictures))):
        with pytest.raises(InputError, match=r"like 0\.\.255, but floats are taken as \[0, 1\]"):
            load_pictures(source, [0, 1], contract=CONTRACT)
        with pytest.warns(UserWarning, match=r"like 0\.\.255"):  # the network may take them so
            load_pictures(source, [0, 1], contract=bare)
    with pytest.warns(UserWarning, match=r"like 0\.\.255"):
        load_pictures(pictures / 60, [0, 1], contract=CONTRACT)
    with pytest.warns(UserWarning, match="as if normalised"):
        load_pictures(pictures / 100 - 1, [0, 1], contract=CONTRACT)
    load_pictures(pictures / 100 - 1, [0, 1], contract=DataContract(input_size=(3, 8, 8)))  # no mean: no warning


def test_twelve_bits_in_sixteen_bit_files_warn(tmp_path: Path) -> None:
    for name in ("a/1.tif", "b/1.tif"):
        (tmp_path / name).parent.mkdir()
        Image.fromarray(np.full((9, 9), 4095, dtype=np.uint16)).save(tmp_path / name)
    with pytest.warns(UserWarning, match="nearly black .highest value 16 of 255"):
        load_pictures(tmp_path, contract=CONTRACT)


@pytest.mark.parametrize("wrap", [np.asarray, torch.as_tensor])
@pytest.mark.parametrize(("highest", "cure"), [(4095, "multiply by 16"), (1023, "multiply by 64"), (255, "give uint8")])
def test_fewer_bits_in_sixteen_bit_arrays_are_refused(wrap: Any, highest: int, cure: str) -> None:
    pictures = wrap(np.linspace(0, highest, 2 * 3 * 64).astype(np.uint16).reshape(2, 3, 8, 8))
    with pytest.raises(InputError, match=rf"go up to {highest}, as if they had .* bits, .*0\.\.65535: {cure}"):
        load_pictures(pictures, [0, 1], contract=CONTRACT)
    with pytest.warns(UserWarning, match=cure):  # a model may be asked about one dark picture
        load_pictures(pictures, contract=CONTRACT, need_labels=False)


def test_fewer_bits_in_sixteen_bit_datasets_warn() -> None:
    items = Items([(np.full((8, 8), 4095, np.uint16), label) for label in "ab"])
    with pytest.warns(UserWarning, match="nearly black .highest value 16 of 255"):
        load_pictures(items, contract=CONTRACT)


def test_notes_on_folders_are_warnings(folder: Path) -> None:
    (folder / "empty").mkdir()
    with pytest.warns(UserWarning, match="without a picture are left out: empty"):
        load_pictures(folder, contract=CONTRACT)


# ---------------------------------------------------------------- unreadable pictures


def test_bad_files_raise_or_are_skipped_with_a_count(folder: Path) -> None:
    (folder / "cat" / "1.png").write_bytes(b"")
    whole = (folder / "dog" / "5.png").read_bytes()
    (folder / "dog" / "5.png").write_bytes(whole[:60])
    (folder / "dog" / "loop").symlink_to(folder)
    named = r"3 of 6 pictures cannot be read: dog/loop \(it is a symbolic link back"
    with pytest.raises(PictureError, match=named + r".*\), cat/1\.png \(.*0 bytes\)\), dog/5\.png \("):
        load_pictures(folder, contract=CONTRACT)
    with pytest.warns(UserWarning, match="3 pictures were left out, 4 remain: dog/loop"):
        pictures = load_pictures(folder, contract=CONTRACT, on_error="skip")
    assert pictures.ids == ["cat/0.png", "cat/2.png", "cat/3.png", "dog/4.png"]
    assert pictures.labels is not None
    assert pictures.labels.tolist() == ["cat", "cat", "cat", "dog"]
    assert torch.equal(pictures.pixels, first_channels(colours(6)[[0, 2, 3, 4]]))
    assert [name for name, _ in pictures.skipped] == ["dog/loop", "cat/1.png", "dog/5.png"]
    assert "cat/1.png (the file is empty (0 bytes))" in pictures.skip_report()
    with pytest.warns(UserWarning, match="3 pictures were left out"):
        relabelled = load_pictures(folder, [10, 11, 12, 13, 14, 15], contract=CONTRACT, on_error="skip")
    assert relabelled.labels is not None
    assert relabelled.labels.tolist() == [10, 12, 13, 14]
    (folder / "dog" / "loop").unlink()
    (folder / "cat" / "1.png").write_bytes(whole)
    with pytest.raises(PictureError, match=r"Cannot read picture dog/5\.png: the file is truncated\. .*on_error=.skip"):
        load_pictures(folder, contract=CONTRACT)
    kept = pictures.pixels.untyped_storage().nbytes()
    assert kept == pictures.pixels.nbytes  # room for what was skipped is not pickled along


def test_up_to_ten_unreadable_pictures_are_named_then_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = [tmp_path / f"{i:02d}.png" for i in range(14)]
    for i, path in enumerate(paths):
        path.write_bytes(b"" if i % 2 else b"no picture")
    (tmp_path / "13.png").unlink()
    Image.fromarray(colours(1)[0]).save(paths[0])
    with pytest.raises(PictureError) as caught:
        load_pictures(paths, list(range(14)), contract=CONTRACT)
    assert str(caught.value).startswith("13 of 14 pictures cannot be read: ")
    assert [f"{i:02d}.png" in str(caught.value) for i in range(14)] == [False] + [True] * 10 + [False] * 3
    assert " and 3 more. " in str(caught.value)
    monkeypatch.setattr(data, "_READ_ON_S", -1.0)  # as if the others took long to read
    with pytest.raises(PictureError, match="1 of 4 pictures cannot be read, and 2 were not tried: .*02.png"):
        load_pictures([paths[0], paths[2], paths[0], paths[0]], [0, 1, 2, 3], contract=CONTRACT)
    with pytest.raises(PictureError, match="1 of 4 pictures cannot be read, and 4 were not tried: .*01.png"):
        load_pictures([paths[0], paths[1], paths[0], paths[2]], [0, 1, 2, 3], contract=CONTRACT)  # known to be empty


def test_nothing_readable_is_an_error_even_when_skipping(folder: Path) -> None:
    for path in folder.rglob("*.png"):
        path.write_bytes(b"no picture")
    with pytest.raises(PictureError, match="6 of 6 pictures cannot be read: cat/0.png"):
        load_pictures(folder, contract=CONTRACT, on_error="skip")


def test_dataset_errors_are_named_and_keep_their_cause() -> None:
    items = Items([(colours(1)[0], 0), OSError("disk gone"), (np.full((8, 8), np.nan), 1), ("text", 1)])
    with pytest.raises(PictureError, match="Cannot read picture 1: OSError: disk gone") as caught:
        load_pictures(items, contract=CONTRACT)
    assert caught.value.__cause__ is items.items[1]
    with pytest.warns(UserWarning, match="3 pictures were left out, 1 remain"):
        pictures = load_pictures(items, contract=CONTRACT, on_error="skip")
    reasons = dict(pictures.skipped)
    assert reasons["2"] == "it holds NaN or inf"
    assert reasons["3"].startswith("it is str; give a Pillow picture")
    assert pictures.ids == ["0"]


def test_progress_goes_to_stderr_only_when_asked(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = memory.tqdm
    monkeypatch.setattr(memory, "tqdm", lambda *a, **k: real(*a, **{**k, "delay": 0, "mininterval": 0}))
    load_pictures(folder, contract=CONTRACT)
    assert capsys.readouterr() == ("", "")
    load_pictures(folder, contract=CONTRACT, verbose=1)
    out, err = capsys.readouterr()
    assert out == ""
    assert "reading pictures" in err
    assert "6/6" in err
