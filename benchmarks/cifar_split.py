"""What the studies on CIFAR-10 share: pictures of one split, scores, a mean with its spread, and the command line."""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from benchmarks import record
from benchmarks.datasets import cifar10, few_shot, held_out
from tangentune.metrics import accuracy, nll
from tangentune.networks.backbone import Backbone
from tangentune.pictures.load import Pictures, load_pictures

SIZE, TEST = 96, 1000
DATA = (
    "CIFAR-10, few_shot(train labels, shots, seed), bicubic 32 -> 96, ImageNet mean and std; network: MobileNetV2 1.0, "
    "ImageNet weights"
)


class Fitted(Protocol):
    """What every fitted method offers."""

    @property
    def classes(self) -> NDArray[Any]:
        """(C,) labels in the order of the columns, sorted."""
        ...

    def predict_proba(self, pictures: Pictures) -> Tensor:
        """(n, C) class probabilities."""
        ...


def cifar_split(
    backbone: Backbone, shots: int, seed: int, test: int = TEST, start: int = 0
) -> tuple[Pictures, Pictures]:
    """Training pictures, `shots` a class, and `test` of the held-out ones from `start` on; labels are 0 to 9."""
    data = cifar10()
    chosen, kept = few_shot(data.train_labels, shots, seed), held_out(len(data.test), test, start)
    train = load_pictures(data.train[chosen], data.train_labels[chosen], contract=backbone.contract)
    return train, load_pictures(data.test[kept], data.test_labels[kept], contract=backbone.contract)


def scores(fitted: Fitted, test: Pictures) -> dict[str, float]:
    """Accuracy and negative log-likelihood on the test pictures."""
    assert test.labels is not None
    proba, labels = fitted.predict_proba(test), np.searchsorted(fitted.classes, test.labels)
    return {"accuracy": accuracy(labels, proba.argmax(1)), "nll": nll(labels, proba.double())}


def mean_spread(values: Sequence[float], digits: int = 3) -> str:
    """Mean, and standard deviation where there are two values or more, as text; "-" for none."""
    if not values:
        return "-"
    mean = f"{statistics.fmean(values):.{digits}f}"
    return mean if len(values) < 2 else f"{mean} ± {statistics.stdev(values):.{digits}f}"


def study_parser(description: str | None) -> argparse.ArgumentParser:
    """A parser with the option that every study has."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, help="folder for the results instead of docs/results (for trials)")
    return parser


def begin(given: argparse.Namespace) -> None:
    """One thread, fixed random numbers, and the folder that was asked for."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    if given.results:
        record.RESULTS = given.results
