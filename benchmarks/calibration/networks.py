"""Pictures and fine-tuned networks of the calibration study: trained once a draw, used by all that start from one.

Two networks a draw. "split" was trained on four fifths of the pictures, its learning rate chosen on the other fifth;
"refit" was trained again on all of them with that rate. Their cost is counted in full for each method that uses them.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from benchmarks.datasets import ROOT, cifar10, fashion_mnist, few_shot, held_out, plankton, traffic_lights
from benchmarks.study import labels_of, mean_features, stopwatch
from tangentune import Backbone, Pictures, baselines, load_backbone, load_pictures
from tangentune.memory import Meter
from tangentune.methods.fine_tuning.validation import split_rows

SIZE, SHOTS, POOL, TEST, FOREIGN = 96, 50, 600, 1000, 500  # POOL and the draws are those of benchmarks.few_shot
TEST_SHARE = 1 / 3  # of the plankton, which come without a test set
PARTS, VALIDATION_SHARE = ("train", "test", "foreign"), 0.2
CACHE = ROOT / ".cache" / "calibration"
Cost = dict[str, float]  # seconds, processor seconds and peak bytes


@final
@dataclass(frozen=True, eq=False)
class Split:
    """One draw of one data set at the network's size; labels are class positions.

    Attributes:
        train: at most 50 pictures a class.
        test: held out; never used for a choice.
        foreign: pictures of another data set, to be told from the test pictures; without labels.
    """

    train: Pictures
    test: Pictures
    foreign: Pictures


@cache
def network() -> Backbone:
    """The network of all methods, at the study's picture size."""
    return load_backbone("mobilenet_v2").with_size(SIZE)


@cache
def split_of(dataset: str, seed: int) -> Split:
    """The pictures of one draw."""
    other = fashion_mnist() if dataset == "cifar10" else cifar10()
    foreign, contract = other.test[held_out(len(other.test), FOREIGN)], network().contract
    train, test = (load_pictures(*given, contract=contract) for given in drawn(dataset, seed))
    return Split(train, test, load_pictures(foreign, contract=contract, need_labels=False))


def drawn(dataset: str, seed: int) -> list[tuple[Any, NDArray[np.int64]]]:
    """Training and test pictures with their labels; of plankton a third of each class for the test."""
    if dataset in ("cifar10", "fashion_mnist"):
        data = cifar10() if dataset == "cifar10" else fashion_mnist()
        pool, kept = few_shot(data.train_labels, POOL, seed=0), held_out(len(data.test), TEST)
        rows = pool[shots(data.train_labels[pool], SHOTS, seed)]
        return [(data.train[rows], data.train_labels[rows]), (data.test[kept], data.test_labels[kept])]
    if dataset == "traffic_lights":
        train, test = traffic_lights("train"), traffic_lights("test")
        rows = shots(train.labels, SHOTS, seed)
        return [([train.paths[i] for i in rows], train.labels[rows]), (list(test.paths), test.labels)]
    data, rng, held = plankton(), np.random.default_rng(seed), []
    for label in np.unique(data.labels):
        members = rng.permutation(np.flatnonzero(data.labels == label))
        held.append(members[: round(TEST_SHARE * len(members))])
    kept = np.sort(np.concatenate(held))
    rest = np.setdiff1d(np.arange(len(data.labels)), kept)
    return [([data.paths[i] for i in rows], data.labels[rows]) for rows in (rest, kept)]


def shots(labels: NDArray[np.int64], count: int, seed: int) -> NDArray[np.int64]:
    """Sorted positions of `count` pictures of every class, all of a class that has fewer; drawn as `compare` does."""
    rng = np.random.default_rng(seed)
    return np.sort(np.concatenate([rng.permutation(np.flatnonzero(labels == k))[:count] for k in np.unique(labels)]))


@contextmanager
def measured() -> Iterator[Cost]:
    """A cost that is filled in at the end of the block."""
    cost, meter = Cost(), Meter(torch.device("cpu"))
    with stopwatch() as spent, meter.stage("all"):
        yield cost
    cost.update(spent, peak_bytes=meter.stages[0]["peak_bytes"])


def together(*costs: Cost) -> Cost:
    """What one after the other costs: times add up, the highest peak counts."""
    total = {name: sum(cost[name] for cost in costs) for name in ("seconds", "cpu_seconds")}
    return {**total, "peak_bytes": max(cost["peak_bytes"] for cost in costs)}


@final
@dataclass(frozen=True, eq=False)
class Tuned:
    """A fine-tuned network of a draw, as what it makes of all pictures.

    Attributes:
        features: "train", "test" and "foreign" -> (n, d), means over each picture and its mirror image.
        weight: (C, d) of the head.
        bias: (C,) of the head.
        fit_rows: training pictures that it was trained on.
        validation_rows: training pictures kept aside, the same for both networks.
        training: cost of the network with the choice of its rate.
        feature_costs: cost of the features of each part.
        chosen: learning rate and epochs.
    """

    features: dict[str, Tensor]
    weight: Tensor
    bias: Tensor
    fit_rows: Tensor
    validation_rows: Tensor
    training: Cost
    feature_costs: dict[str, Cost]
    chosen: dict[str, Any]

    def logits(self, part: str) -> Tensor:
        """(n, C) logits of a part of the pictures."""
        return self.features[part] @ self.weight.T + self.bias


def tuned_networks(dataset: str, seed: int) -> dict[str, Tuned]:
    """Networks "split" and "refit" of a draw, from the cache or, the first time, fine-tuned."""
    path = CACHE / f"{dataset}-{seed}.pt"
    if not path.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        torch.save(_tune(dataset, seed), path)
    return {which: Tuned(**kept) for which, kept in torch.load(path, weights_only=True).items()}


def _tune(dataset: str, seed: int) -> dict[str, dict[str, Any]]:
    """Both networks of a draw as the arguments of `Tuned`."""
    split, backbone, out = split_of(dataset, seed), network(), {}
    known = {"validation_share": VALIDATION_SHARE, "refit": False, "seed": seed}
    with measured() as sweeping:
        found = baselines.sweep(backbone, split.train, baselines.FineTuneSettings(), **known).tuned
    assert found.validation is not None
    settings = replace(found.settings, validation_share=0.0, epochs=found.validation.kept)
    with measured() as refitting:
        refit = baselines.fine_tune(backbone, split.train, settings)
    fit, kept = split_rows(labels_of(split.train), VALIDATION_SHARE, seed)
    for which, tuned, rows, training in (
        ("split", found, fit, sweeping),
        ("refit", refit, np.arange(len(split.train)), together(sweeping, refitting)),
    ):
        features, costs = {}, {}
        for part in PARTS:
            with measured() as costs[part]:
                features[part] = mean_features(tuned.backbone, getattr(split, part), flip=True)
        out[which] = {
            "features": features,
            "weight": tuned.head.weight.detach(),
            "bias": tuned.head.bias.detach(),
            "fit_rows": torch.from_numpy(rows),
            "validation_rows": torch.from_numpy(kept),
            "training": training,
            "feature_costs": costs,
            "chosen": {"learning_rate": settings.learning_rate, "epochs": settings.epochs},
        }
    return out
