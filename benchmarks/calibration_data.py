"""The four data sets of the calibration study: training, test and foreign pictures, prepared once and kept."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from benchmarks.datasets import ROOT, ArrayData, cifar10, fashion_mnist, few_shot, held_out, plankton, traffic_lights
from tangentune.comparison.splits import draw
from tangentune.networks.backbone import Backbone, load_backbone
from tangentune.pictures.load import Pictures, load_pictures

BACKBONE, SIZE = "mobilenet_v2", 96
SHOTS, POOL, TEST, FOREIGN = 50, 600, 1000, 500  # POOL and the draws are those of benchmarks.few_shot
TEST_SHARE = 1 / 3  # of the plankton, which come without a test set
CACHE = ROOT / ".cache" / "calibration"
Arrays = tuple[NDArray[np.uint8] | list[Path], NDArray[np.int64]]


@final
@dataclass(frozen=True, eq=False)
class Split:
    """One draw of one data set at the backbone's size; labels are class positions.

    Attributes:
        train: at most 50 pictures a class.
        test: held out; never used for a choice.
        foreign: pictures of another data set, to be told from the test pictures; without labels.
    """

    train: Pictures
    test: Pictures
    foreign: Pictures


def network() -> Backbone:
    """The network of all methods, at the study's picture size."""
    return load_backbone(BACKBONE).with_size(SIZE)


def split_of(dataset: str, seed: int) -> Split:
    """The pictures of one draw, from the cache if they were prepared before."""
    path = CACHE / f"{dataset}-{seed}.npz"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        _prepare(dataset, seed, path)
    with np.load(path) as kept:
        train, test = (_pictures(torch.from_numpy(kept[part]), kept[f"{part}_labels"]) for part in ("train", "test"))
        return Split(train, test, _pictures(torch.from_numpy(kept["foreign"]), None))


def _pictures(pixels: Tensor, labels: NDArray[np.int64] | None) -> Pictures:
    return Pictures(pixels, labels, [str(i) for i in range(len(pixels))])


def _prepare(dataset: str, seed: int, path: Path) -> None:
    """Draw, resize as the network wants it, write."""
    contract = network().contract
    train, test = READERS[dataset](seed)
    other = cifar10() if dataset != "cifar10" else fashion_mnist()
    foreign = other.test[held_out(len(other.test), FOREIGN)]
    pixels = {
        name: load_pictures(given, contract=contract, need_labels=False).pixels.numpy()
        for name, given in (("train", train[0]), ("test", test[0]), ("foreign", foreign))
    }
    np.savez(path, train_labels=train[1], test_labels=test[1], **pixels)  # pyright: ignore[reportArgumentType]


def _of_arrays(data: ArrayData, seed: int) -> tuple[Arrays, Arrays]:
    pool = few_shot(data.train_labels, POOL, seed=0)
    rows = pool[draw(data.train_labels[pool], SHOTS, seed)]
    kept = held_out(len(data.test), TEST)
    return (data.train[rows], data.train_labels[rows]), (data.test[kept], data.test_labels[kept])


def _traffic_lights(seed: int) -> tuple[Arrays, Arrays]:
    train, test = traffic_lights("train"), traffic_lights("test")
    rows = draw(train.labels, SHOTS, seed)
    return ([train.paths[i] for i in rows], train.labels[rows]), (list(test.paths), test.labels)


def _plankton(seed: int) -> tuple[Arrays, Arrays]:
    """A third of each class for the test, another third for each seed: there are 105 pictures only."""
    data, rng = plankton(), np.random.default_rng(seed)
    test = []
    for label in np.unique(data.labels):
        members = rng.permutation(np.flatnonzero(data.labels == label))
        test.append(members[: round(TEST_SHARE * len(members))])
    held = np.sort(np.concatenate(test))
    rest = np.setdiff1d(np.arange(len(data.labels)), held)
    return ([data.paths[i] for i in rest], data.labels[rest]), ([data.paths[i] for i in held], data.labels[held])


READERS: dict[str, Callable[[int], tuple[Arrays, Arrays]]] = {
    "cifar10": lambda seed: _of_arrays(cifar10(), seed),
    "fashion_mnist": lambda seed: _of_arrays(fashion_mnist(), seed),
    "traffic_lights": _traffic_lights,
    "plankton": _plankton,
}
SEEDS = {"cifar10": 3, "fashion_mnist": 3, "traffic_lights": 3, "plankton": 5}
