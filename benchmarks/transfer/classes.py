"""From five classes of CIFAR-10 to the other five with few pictures: a small network trained on the former.

Source: airplane, automobile, bird, cat, deer (6,000 pictures); target: dog, frog, horse, ship, truck, 2 to 20 pictures
a class. Processes regress on one-hot targets with a free constant; their temperature is fitted to exact leave-one-out
predictions. 2,000 test pictures. About 8 minutes.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.datasets import cifar10, few_shot
from benchmarks.record import Row
from benchmarks.transfer import methods
from benchmarks.transfer.page import TANGENT, TUNED
from tangentune import heads, ntk

NAME, SEEDS, SHOTS, CLASSES = "transfer_classes", range(3), (2, 5, 10, 20), 5
SOURCE_PICTURES, RATIO_PICTURES, TEST_PICTURES, EPOCHS, RATE = 6000, 300, 2000, 12, 4e-3
TUNING = ((3e-4, 1e-3, 3e-3), 40)
SHARED: dict[str, Any] = {"outputs": "shared", "mean": "constant"}


def keys() -> Iterator[Row]:
    """Every row of the study."""
    for seed in SEEDS:
        yield from ({"seed": seed, "shots": shots} for shots in SHOTS)


@cache
def trained_source(seed: int) -> tuple[nn.Sequential, ntk.NTKGaussianProcess, float]:
    """The source network, its process on source pictures it has not seen, and its accuracy on source classes."""
    data = cifar10()
    members = np.random.default_rng(seed).permutation(np.flatnonzero(data.train_labels < CLASSES))
    chosen, others = members[:SOURCE_PICTURES], members[SOURCE_PICTURES : SOURCE_PICTURES + RATIO_PICTURES]
    labels = torch.from_numpy(data.train_labels)
    torch.manual_seed(seed)
    network = methods.small_cnn(3, 32, CLASSES)
    network = methods.source_network(
        network, prepared(data.train[chosen]), labels[chosen], RATE, EPOCHS, F.cross_entropy, seed
    )
    held = np.flatnonzero(data.test_labels < CLASSES)[:TEST_PICTURES]
    right = network(prepared(data.test[held])).argmax(1) == torch.from_numpy(data.test_labels[held])
    old = ntk.NTKGaussianProcess(network, space="function", **SHARED)
    old.fit(prepared(data.train[others]), F.one_hot(labels[others], CLASSES))
    return network, old, float(right.double().mean())


def prepared(pictures: np.ndarray) -> Tensor:
    """(n, 3, 32, 32), roughly of mean 0 and spread 1."""
    return ((torch.from_numpy(pictures).float() / 255 - 0.47) / 0.25).permute(0, 3, 1, 2).contiguous()


def predictions(
    network: nn.Sequential, old: ntk.NTKGaussianProcess, x: Tensor, labels: Tensor, new: Tensor, seed: int
) -> dict[str, methods.Prediction]:
    """Every method's prediction of new targets; what is learned from the source data is not part of its seconds."""
    body, y = network[0], F.one_hot(labels, CLASSES).double()

    def from_probe(x: Tensor, labels: Tensor) -> nn.Module:
        return nn.Sequential(body, heads.probe_head(body(x), labels))

    ways = {
        TANGENT: lambda: methods.process_prediction(old.adapt(x, y, scales="ratio"), new),
        "tangent GP, own ratio": lambda: methods.tangent_process(network, x, y, new, **SHARED),
        TUNED: lambda: methods.fine_tune(from_probe, (x, labels), new, TUNING, methods.CLASSIFICATION, seed),
        **methods.on_features(body, x, y, new),
    }
    return methods.timed(ways)


def measure(seed: int, shots: int) -> Row:
    """Scores of every method on the target classes' test pictures."""
    data, (network, old, share) = cifar10(), trained_source(seed)
    targets = np.flatnonzero(data.train_labels >= CLASSES)
    chosen = targets[few_shot(data.train_labels[targets], shots, seed)]
    x, labels = prepared(data.train[chosen]), torch.from_numpy(data.train_labels[chosen]) - CLASSES
    kept = np.flatnonzero(data.test_labels >= CLASSES)[:TEST_PICTURES]
    new, truth = prepared(data.test[kept]), torch.from_numpy(data.test_labels[kept]) - CLASSES
    found = predictions(network, old, x, labels, new, seed)
    scores = {name: methods.class_scores(own, truth, labels) for name, own in found.items()}
    return {"methods": scores, "source_accuracy": share}
