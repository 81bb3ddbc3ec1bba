"""Data frames and the data sets of other libraries: the same pictures as from files, labels by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from picture_cases import class_folder, colours
from PIL import Image
from torch.utils.data import Dataset, Subset

from tangentune import DataContract, Pictures, load_pictures
from tangentune.errors import InputError, PictureError

RGB = DataContract(input_size=(3, 8, 8))
CATS = ["cat"] * 4 + ["dog"] * 2


def files(folder: Path) -> list[Path]:
    return sorted(class_folder(folder).rglob("*.png"))


def check(found: Pictures, labels: list[Any] = CATS) -> None:
    assert np.array_equal(found.pixels.numpy().transpose(0, 2, 3, 1), colours(6)[: len(labels)])
    assert found.labels is not None
    assert found.labels.tolist() == labels


@pytest.mark.parametrize("library", ["pandas", "polars", "pyarrow"])
def test_data_frames_with_the_name_of_a_column_as_labels(tmp_path: Path, library: str) -> None:
    package = pytest.importorskip(library)
    columns = {"file": [str(path) for path in files(tmp_path)], "species": CATS, "label": list("uvwxyz"), "n": range(6)}
    columns["n"] = list(range(6))
    frame = package.table(columns) if library == "pyarrow" else package.DataFrame(columns)
    check(load_pictures(frame, "species", contract=RGB))
    check(load_pictures(frame, contract=RGB, label_column="species"))
    check(load_pictures(frame, "n", contract=RGB), list(range(6)))
    check(load_pictures(frame, contract=RGB), list("uvwxyz"))
    check(load_pictures(frame, CATS, contract=RGB))
    with pytest.raises(PictureError, match="names no column specie; it names file, species, label, n"):
        load_pictures(frame, "specie", contract=RGB)


def test_a_frame_that_holds_the_bytes_of_pictures(tmp_path: Path) -> None:
    """As Hugging Face keeps them in Parquet files."""
    pandas = pytest.importorskip("pandas")
    cells = [{"bytes": path.read_bytes(), "path": path.name} for path in files(tmp_path)]
    check(load_pictures(pandas.DataFrame({"image": cells, "label": CATS}), contract=RGB))
    check(load_pictures([cell["bytes"] for cell in cells], CATS, contract=RGB))
    cells[2] = {"bytes": None, "path": None}
    with pytest.raises(PictureError, match=r"Cannot read picture 2: the file is empty \(0 bytes\)"):
        load_pictures(pandas.DataFrame({"image": cells, "label": CATS}), contract=RGB)


def test_the_name_of_a_column_needs_columns() -> None:
    with pytest.raises(InputError, match="labels is 'species', the name of a column, but these pictures have no col"):
        load_pictures(colours(6), "species", contract=RGB)


@pytest.fixture(scope="module")
def hugging_face(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The six pictures as a Hugging Face `Dataset`, some in files and some in bytes."""
    datasets = pytest.importorskip("datasets")
    paths = files(tmp_path_factory.mktemp("hf"))
    cells = [str(path) if i % 2 else {"bytes": path.read_bytes(), "path": None} for i, path in enumerate(paths)]
    kinds = {"image": datasets.Image(), "label": datasets.ClassLabel(names=["cat", "dog"])}
    kinds |= {"species": datasets.Value("string"), "weight": datasets.Value("float32")}
    columns = {"image": cells, "label": [int(name == "dog") for name in CATS], "species": list("uvwxyz")}
    return datasets.Dataset.from_dict(columns | {"weight": [0.5] * 6}, features=datasets.Features(kinds))


@pytest.mark.parametrize("n_jobs", [1, 2])
def test_hugging_face(hugging_face: Any, n_jobs: int) -> None:
    check(load_pictures(hugging_face, contract=RGB, n_jobs=n_jobs))
    check(load_pictures(hugging_face.with_format("numpy"), contract=RGB))
    check(load_pictures(hugging_face, "species", contract=RGB), list("uvwxyz"))
    assert load_pictures(hugging_face, contract=RGB, need_labels=False).labels is None
    chosen = load_pictures(hugging_face.select([5, 0]), contract=RGB)
    assert np.array_equal(chosen.pixels.numpy().transpose(0, 2, 3, 1), colours(6)[[5, 0]])


def test_hugging_face_with_a_transform_of_ones_own(hugging_face: Any) -> None:
    def turned(rows: dict[str, Any]) -> dict[str, Any]:
        return {"image": [image.rotate(180) for image in rows["image"]], "label": rows["label"]}

    found = load_pictures(hugging_face.with_transform(turned), contract=RGB)
    assert np.array_equal(found.pixels.numpy().transpose(0, 2, 3, 1), colours(6)[:, ::-1, ::-1])


def test_hugging_face_that_cannot_be_used(hugging_face: Any) -> None:
    datasets = pytest.importorskip("datasets")
    both = datasets.DatasetDict({"train": hugging_face, "test": hugging_face})
    for source, words in (
        (both, r"holds the splits train, test; give one of them, such as dataset\['train'\]"),
        (hugging_face.to_iterable_dataset(), "a stream of unknown length"),
        (hugging_face.remove_columns("label"), "must have the column label; it has image, species, weight"),
        (hugging_face.remove_columns("image"), "must have the column path"),
    ):
        with pytest.raises(InputError, match=words):
            load_pictures(source, contract=RGB)
    named = hugging_face.select_columns(["image", "label"])
    gap = datasets.Dataset.from_dict({"image": [None, None], "label": [0, None]}, features=named.features)
    with pytest.raises(PictureError, match="Row 1 of the Dataset has no label"):
        load_pictures(gap, contract=RGB)


class Folder(Dataset):
    """What torchvision's `ImageFolder` has: the library itself is not needed for its data sets to be read."""

    def __init__(self, root: Path, transform: Any = None) -> None:
        self.root, self.transform = str(root), transform
        self.target_transform: Any = None
        self.classes = ["cat", "dog"]
        self.samples = [(str(path), self.classes.index(path.parent.name)) for path in files(root)]
        self.targets = [label for _, label in self.samples]

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        path, label = self.samples[index]
        image = Image.open(path).convert("RGB")
        return image if self.transform is None else self.transform(image), label


def test_torchvision(tmp_path: Path) -> None:
    plain = load_pictures(Folder(tmp_path), contract=RGB)
    check(plain)
    assert plain.ids[4] == "dog/4.png"  # its files are read, not its items
    turned = Folder(tmp_path, lambda image: image.rotate(180))
    found = load_pictures(turned, contract=RGB)
    assert np.array_equal(found.pixels.numpy().transpose(0, 2, 3, 1), colours(6)[:, ::-1, ::-1])
    assert found.labels is not None
    assert found.labels.tolist() == CATS
    part = load_pictures(Subset(Subset(Folder(tmp_path), [5, 4, 0]), [0, 2]), contract=RGB)
    assert part.ids == ["dog/5.png", "cat/0.png"]
    assert part.labels is not None
    assert part.labels.tolist() == ["dog", "cat"]
    some = load_pictures(Subset(turned, [5]), contract=RGB).labels
    assert some is not None
    assert some.tolist() == ["dog"]
    turned.target_transform = lambda label: label + 7  # then the numbers are no classes any more
    numbers = load_pictures(turned, contract=RGB).labels
    assert numbers is not None
    assert numbers.tolist() == turned.targets
