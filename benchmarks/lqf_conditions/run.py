"""Which condition brings LQF level with fine-tuning: `python -m benchmarks.lqf_conditions.run`; hours on a processor.

    python -m benchmarks.lqf_conditions.run --pool pool.npz          # the pictures that the study needs, in one file
    TANGENTUNE_CIFAR10=pool.npz python -m benchmarks.lqf_conditions.run --device cuda --share 0/8 --scratch FOLDER
    python -m benchmarks.lqf_conditions.run --gather FOLDER --commit HASH   # what such runs measured, into docs/results

A cell (network, resolution, pictures a class, method, draw) is stored as soon as it is measured. CIFAR-10; draws from
200 pictures a class, 1,000 test pictures. --networks, --sizes, --shots, --methods and --seeds measure part of the grid.
"""

from __future__ import annotations

import argparse
import itertools
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks import datasets, record
from benchmarks.lqf_conditions.page import NAME, publish
from benchmarks.record import Row
from benchmarks.study import begin, quietly, scores, study_parser
from tangentune import Backbone, Pictures, load_backbone, load_pictures
from tangentune.comparison.methods import METHODS, FittedMethod, MethodSettings
from tangentune.errors import MissingExtraError, TangentuneError
from tangentune.methods.lqf import LQFSettings, fit_lqf

POOL, TEST = 200, 1000
PARTS = ("train", "train_labels", "test", "test_labels")
NETWORKS = ("mobilenet_v2", "efficientnet_lite1", "resnet50")
MAIN = ("finetune", "lqf", "lqf_start")
# What is measured, the most telling first: networks, resolutions, pictures a class, methods, draws.
GRID: tuple[tuple[tuple[Any, ...], ...], ...] = (
    (NETWORKS, (96,), (25, 50), MAIN, (0, 1)),
    (NETWORKS, (160, 224), (25,), MAIN, (0,)),
    (NETWORKS, (96,), (10, 100), MAIN, (0, 1)),
    (NETWORKS, (96,), (25,), ("probe", "lqf_cross", "lqf_leak"), (0, 1)),
    (NETWORKS, (96,), (10, 25, 50, 100), MAIN, (2,)),
    (NETWORKS, (160, 224), (25,), MAIN, (1,)),
)
AT_START: dict[str, LQFSettings] = {  # LQF at the pre-trained weights, as the paper poses it
    "lqf_start": LQFSettings(),
    "lqf_cross": LQFSettings(head="cross_fitted"),
    "lqf_leak": LQFSettings(slope=0.01),
}


def main() -> None:
    """Measure what is missing, then write the page; or make the file of pictures, or gather what others measured."""
    parser = study_parser(__doc__)
    parser.add_argument("--device", default="cpu", help="cpu, cuda, ...")
    parser.add_argument("--share", default="0/1", metavar="K/N", help="every Nth cell from the Kth on, in its own file")
    parser.add_argument("--minutes", type=float, default=1e9, help="after these no further cell begins")
    parser.add_argument("--pool", type=Path, metavar="FILE", help="only write the pictures into this file")
    parser.add_argument("--gather", type=Path, metavar="FOLDER", help="only take over the rows measured there")
    parser.add_argument("--commit", help="with --gather: what a machine without git ran")
    for name, kind in (("networks", str), ("sizes", int), ("shots", int), ("methods", str), ("seeds", int)):
        parser.add_argument(f"--{name}", type=lambda text, kind=kind: tuple(map(kind, text.split(","))))
    given = begin(parser)
    if given.pool:
        write_pool(given.pool)
    elif given.gather:
        gather(given.gather, given.commit)
        publish()
    else:
        measure(given)


def measure(given: argparse.Namespace) -> None:
    """The cells of this share that are missing."""
    own, shares = map(int, given.share.split("/"))
    name = NAME if shares == 1 else f"{NAME}_{own}"
    started, networks = time.monotonic(), Networks(given.device)
    keys = [key for key in cells(given) if record.done(NAME, key) is None]
    for key in keys[own::shares]:
        if time.monotonic() - started > 60 * given.minutes:
            print("no time is left for another cell")
            break
        with quietly():
            record.fill(name, [key], networks.measure)
    if shares == 1:
        publish()


def cells(given: argparse.Namespace) -> Iterator[Row]:
    """The grid's cells in order, each once; options take the place of the grid's own values."""
    names = ("networks", "sizes", "shots", "methods", "seeds")
    asked = [getattr(given, name) for name in names]
    seen = set()
    for group in GRID[:1] if any(asked) else GRID:
        axes = [own or usual for own, usual in zip(asked, group, strict=True)]
        network_axis, size_axis, shots_axis, methods, seeds = axes
        for seed, size, shots, network, method in itertools.product(
            seeds, size_axis, shots_axis, network_axis, methods
        ):
            values = (network, size, shots, method, seed)
            if values not in seen:
                seen.add(values)
                yield dict(zip(("network", "size", "shots", "method", "seed"), values, strict=True))


class Networks:
    """The networks on a device, each loaded once, and the pictures."""

    def __init__(self, device: str) -> None:
        self.device, self.pool, self.loaded = device, read_pool(), dict[str, Backbone]()

    def measure(self, key: Row) -> Row:
        """One cell: accuracy, log-loss, seconds of the fit, and what it chose; or why there is none."""
        try:
            backbone = self.loaded.setdefault(key["network"], load_backbone(key["network"]).to(self.device))
        except MissingExtraError as missing:
            raise SystemExit(str(missing)) from missing
        backbone = backbone.with_size(key["size"])
        train, test = split(self.pool, backbone, key["shots"], key["seed"])
        began = time.perf_counter()
        try:
            fitted = method(key["method"])(backbone, train, MethodSettings(seed=key["seed"]))
        except (TangentuneError, RuntimeError) as error:
            return {"accuracy": None, "failed": f"{type(error).__name__}: {error}"[:200]}
        seconds = time.perf_counter() - began
        proba = torch.as_tensor(np.asarray(fitted.predict_proba(test)))
        chosen = {name: value for name, value in fitted.chosen.items() if isinstance(value, (int, float))}
        return {**scores(proba, fitted.classes, test), "seconds": seconds, "chosen": chosen, "device": self.device}


def method(name: str) -> Callable[[Backbone, Pictures, MethodSettings], FittedMethod]:
    """A method of `compare`, or LQF at the pre-trained weights."""
    if name not in AT_START:
        return METHODS[name].fit

    def fit(backbone: Backbone, train: Pictures, settings: MethodSettings) -> FittedMethod:
        found = fit_lqf(backbone, train, replace(AT_START[name], seed=settings.seed))

        def predict_proba(pictures: Pictures) -> torch.Tensor:
            return found.predict_proba(pictures, flip=True).cpu()

        return FittedMethod(found.classes, predict_proba, {"damping": found.damping})

    return fit


def split(pool: datasets.ArrayData, backbone: Backbone, shots: int, seed: int) -> tuple[Pictures, Pictures]:
    """Training pictures of one draw, and all test pictures."""
    chosen = datasets.few_shot(pool.train_labels, shots, seed)
    train = load_pictures(pool.train[chosen], pool.train_labels[chosen], contract=backbone.contract)
    return train, load_pictures(pool.test, pool.test_labels, contract=backbone.contract)


def read_pool() -> datasets.ArrayData:
    """The pictures of the study, from CIFAR-10 or from a file that `write_pool` made of it."""
    path = Path(os.environ.get("TANGENTUNE_CIFAR10", ""))
    if path.suffix == ".npz":
        with np.load(path) as parts:
            train, train_labels, test, test_labels = (parts[name] for name in PARTS)
        return datasets.ArrayData(train, train_labels, test, test_labels, datasets.CIFAR10_NAMES)
    data = datasets.cifar10()
    chosen, kept = datasets.few_shot(data.train_labels, POOL, seed=0), datasets.held_out(len(data.test), TEST)
    return datasets.ArrayData(
        data.train[chosen], data.train_labels[chosen], data.test[kept], data.test_labels[kept], data.names
    )


def write_pool(path: Path) -> None:
    """One file of 9 MB with all pictures of the study."""
    pool = read_pool()
    np.savez(path, **{name: getattr(pool, name) for name in PARTS})
    print(f"{path}: {len(pool.train):,} pictures to draw from, {len(pool.test):,} to test on")


def gather(folder: Path, commit: str | None) -> None:
    """Take over the rows of every share in a folder that are not here yet."""
    here = record.RESULTS
    record.RESULTS = folder
    rows = [row for path in sorted(folder.glob(f"{NAME}*.json")) for row in record.load(path.stem).get("rows", [])]
    record.RESULTS = here
    payload = record.load(NAME)
    known = payload.get("rows", [])
    new = [row | {"commit": row["commit"] or commit} for row in rows if all(row["key"] != old["key"] for old in known)]
    record.record(NAME, payload | {"rows": [*known, *new]})
    print(f"{len(new)} rows taken over, {len(known)} were here")


if __name__ == "__main__":
    main()
