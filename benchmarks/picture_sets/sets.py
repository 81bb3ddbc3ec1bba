"""Eight sets of labelled pictures inside packages: where they come from, and fair draws from them.

    data = drawn("animals", per_class=10, seed=0)

A set is read once and kept as arrays in the folder of `archives.sets_folder`. docs/results/sets.md shows them all.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.datasets import ArrayData
from benchmarks.picture_sets import readers
from benchmarks.picture_sets.archives import ARCHIVES, fetch, sets_folder, unpacked
from benchmarks.picture_sets.drawing import drawn_rows, without_copies


@dataclass(frozen=True)
class Recipe:
    """Where a set comes from, how it is read, and what a reader of its figures must know.

    `near` is the limit of `without_copies`, and `pool` the pictures a class that a comparison draws from.
    """

    read: Callable[..., readers.Found]
    near: float
    pool: int
    shows: str
    licence: str
    beware: str
    archives: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class PictureSet:
    """uint8 pictures (n, S, S) or (n, S, S, 3), labels (n,) as positions in `names`, groups (n,) that stay together."""

    pictures: NDArray[np.uint8]
    labels: NDArray[np.int64]
    groups: NDArray[np.int64]
    names: tuple[str, ...]
    found: int  # pictures before copies were left out


def read(name: str) -> PictureSet:
    """All pictures of a set, copies left out; a second from the disk, up to two minutes the first time.

    Raises:
        DataMissing: its packages were not fetched.
    """
    return _read(name, sets_folder())


def drawn(name: str, per_class: int, seed: int, tests: int = 1000) -> ArrayData:
    """A draw: `per_class` training pictures a class, and up to `tests` others for the test, both by the seed.

    The test is balanced as far as the set allows. Raises as `read` and `drawn_rows`.
    """
    data = read(name)
    train, test = drawn_rows(data.labels, data.groups, per_class, seed, tests)
    return ArrayData(data.pictures[train], data.labels[train], data.pictures[test], data.labels[test], data.names)


def fetch_set(name: str) -> None:
    """Download and unpack what a set needs. Raises as `archives.fetch`."""
    for package in SETS[name].archives:
        fetch(ARCHIVES[package])


def assembled(found: readers.Found, near: float) -> PictureSet:
    """Arrays of what a reader found: classes in alphabetical order, near copies left out."""
    names = tuple(sorted({label for _, label, _ in found}))
    pictures = np.stack([np.asarray(picture) for picture, _, _ in found])
    labels = np.array([names.index(label) for _, label, _ in found])
    together = [group or f" {i}" for i, (_, _, group) in enumerate(found)]
    groups = np.unique(together, return_inverse=True)[1]
    rows = without_copies(pictures, labels, near)
    return PictureSet(pictures[rows], labels[rows], groups[rows], names, len(found))


@cache
def _read(name: str, folder: Path) -> PictureSet:
    recipe, kept = SETS[name], folder / f"{name}.npz"
    folders = [unpacked(ARCHIVES[package], name) for package in recipe.archives]
    code = b"".join(Path(__file__).with_name(f"{own}.py").read_bytes() for own in ("readers", "drawing"))
    made_by = f"{hashlib.sha256(code).hexdigest()} {recipe.near}"
    if kept.exists():
        with np.load(kept) as parts:
            if str(parts["made_by"]) == made_by:
                arrays = (parts["pictures"], parts["labels"], parts["groups"])
                return PictureSet(*arrays, tuple(parts["names"].tolist()), int(parts["found"]))
    data = assembled(recipe.read(*folders), recipe.near)
    with tempfile.NamedTemporaryFile(dir=folder, suffix=".part", delete=False) as part:
        np.savez_compressed(part, made_by=np.array(made_by), **vars(data))
    os.chmod(part.name, 0o644)
    os.replace(part.name, kept)
    return data


SETS = {
    "animals": Recipe(
        readers.animals,
        near=0.005,
        pool=200,
        shows="silhouettes of ten animals, 28 px, cut from photographs",
        licence="MIT, as the package says; which photographs they were cut from, and how, is not stated",
        beware="568 pictures had an exact copy; more are one photograph cut twice or mirrored",
        archives=("animal-mnist",),
    ),
    "clip_art": Recipe(
        readers.clip_art,
        near=0.002,
        pool=60,
        shows="drawings of animals, flags, food, people, tools, vehicles, offices and maps, by many hands",
        licence="public domain, dedicated by each author, as the package says",
        beware="folders are topics: a padlock is among the animals; copies, often in two folders, are left out; "
        "drawings of one author share a style, and two say that a linked image was not found",
        archives=("openclipart-png",),
    ),
    "deep_sky": Recipe(
        readers.deep_sky,
        near=1e-6,
        pool=20,
        shows="photographs of galaxies, globular and open clusters, planetary and other nebulae",
        licence="GPL-2+ for the package, whose pictures name their authors; the kinds of object CC BY-SA 4.0",
        beware="one picture an object; pictures of one survey or author look alike, and clusters were cut out round",
        archives=("stellarium-data", "pyongc"),
    ),
    "digits": Recipe(
        readers.digits,
        near=1e-6,
        pool=200,
        shows="handwritten digits, 20 px",
        licence="Apache-2.0 and BSD-3-Clause, as the package says",
        beware="writers are not told apart, so that one hand may be on both sides",
        archives=("opencv-doc",),
    ),
    "furniture": Recipe(
        readers.furniture,
        near=0.002,
        pool=20,
        shows="rendered furniture and household objects, by room or kind",
        licence="CC BY 3.0 (eTeks, Scopia, Kator and Legaz, Reallusion, contributors of BlendSwap) and CC0",
        beware="variants of one model (kitchen units, beds) remain; rooms overlap: a chair may be in three",
        archives=("sweethome3d-furniture",),
    ),
    "letters": Recipe(
        readers.letters,
        near=0.002,
        pool=100,
        shows="the letters A to J in 465 display fonts by Brian Kent, drawn by Pillow",
        licence="may be used, changed and passed on if changes are noted and the author named, as the package says",
        beware="a family of fonts is on one side only; some are hard to read, and drawing may differ between Pillows",
        archives=("fonts-aenigma",),
    ),
    "solar_cells": Recipe(
        readers.solar_cells,
        near=1e-6,
        pool=200,
        shows="electroluminescence pictures of solar cells, functional or defective as experts judged",
        licence="CC BY-NC-SA 4.0: for research, not for trade",
        beware="cells of a module look alike, and wafers of one block nearly the same: modules are kept on one side, "
        "as well as the order of the files tells; a draw from anywhere would flatter",
        archives=("elpv-dataset",),
    ),
    "stamps": Recipe(
        readers.stamps,
        near=0.002,
        pool=20,
        shows="animals, food, household things, plants, towns and vehicles, cut out of photographs, some drawn",
        licence="GPL-2, as the package says",
        beware="some things are there in several colours; towns are mostly drawn, and animals photographed",
        archives=("tuxpaint-stamps-default",),
    ),
}
