"""Which condition brings LQF level with fine-tuning: `python -m benchmarks.lqf_conditions.run`; hours on a processor.

A cell (network, resolution, pictures a class, method, draw) is stored as soon as it is measured. CIFAR-10; draws from
200 pictures a class, 1,000 test pictures. --networks, --sizes, --shots, --methods and --seeds measure part of the grid.
"""

from __future__ import annotations

import argparse
import itertools
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import torch

from benchmarks import datasets, record
from benchmarks.lqf_conditions.page import NAME, publish
from benchmarks.record import Row
from benchmarks.study import begin, quietly, scores, study_parser
from tangentune import Backbone, Pictures, load_backbone
from tangentune.comparison.methods import METHODS, FittedMethod, MethodSettings
from tangentune.errors import MissingExtraError, TangentuneError
from tangentune.methods.lqf import LQFSettings, fit_lqf

POOL, TEST = 200, 1000
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
    """Measure what is missing, then write the page."""
    parser = study_parser(__doc__)
    parser.add_argument("--device", default="cpu", help="cpu, cuda, ...")
    for name, kind in (("networks", str), ("sizes", int), ("shots", int), ("methods", str), ("seeds", int)):
        parser.add_argument(f"--{name}", type=lambda text, kind=kind: tuple(map(kind, text.split(","))))
    given = begin(parser)
    with quietly():
        record.fill(NAME, cells(given), lambda key: measure(key, given.device))
    publish()


def cells(given: argparse.Namespace) -> Iterator[Row]:
    """The grid's cells in order; options take the place of the grid's own values."""
    names = ("networks", "sizes", "shots", "methods", "seeds")
    asked = [getattr(given, name) for name in names]
    for group in GRID[:1] if any(asked) else GRID:
        axes = [own or usual for own, usual in zip(asked, group, strict=True)]
        network_axis, size_axis, shots_axis, methods, seeds = axes
        for seed, size, shots, network, method in itertools.product(
            seeds, size_axis, shots_axis, network_axis, methods
        ):
            yield {"network": network, "size": size, "shots": shots, "method": method, "seed": seed}


def measure(key: Row, device: str) -> Row:
    """One cell: accuracy, log-loss, seconds of the fit, and what it chose; or why there is none."""
    backbone = loaded(key["network"], device).with_size(key["size"])
    train, test = split(backbone, key["shots"], key["seed"])
    began = time.perf_counter()
    try:
        fitted = method(key["method"])(backbone, train, MethodSettings(seed=key["seed"]))
    except (TangentuneError, RuntimeError) as error:
        return {"accuracy": None, "failed": f"{type(error).__name__}: {error}"[:200]}
    seconds = time.perf_counter() - began
    proba = torch.as_tensor(np.asarray(fitted.predict_proba(test)))
    chosen = {name: value for name, value in fitted.chosen.items() if isinstance(value, (int, float))}
    return {**scores(proba, fitted.classes, test), "seconds": seconds, "chosen": chosen, "device": device}


@cache
def loaded(name: str, device: str) -> Backbone:
    """A network on a device."""
    try:
        return load_backbone(name).to(device)
    except MissingExtraError as missing:
        raise SystemExit(str(missing)) from missing


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


def split(backbone: Backbone, shots: int, seed: int) -> tuple[Pictures, Pictures]:
    """Training pictures of one draw, and all test pictures."""
    data = datasets.cifar10()
    pool = datasets.few_shot(data.train_labels, POOL, seed=0)
    chosen = pool[datasets.few_shot(data.train_labels[pool], shots, seed)]
    return data.some(chosen, datasets.held_out(len(data.test), TEST)).loaded(backbone)


if __name__ == "__main__":
    main()
