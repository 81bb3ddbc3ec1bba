"""The angle of rotated garments: a network trained on five classes of Fashion-MNIST, adapted to the other five.

"near": from T-shirt, trouser, dress, sneaker and bag to pullover, coat, shirt, sandal and ankle boot, which have
relatives among the former; "far": from what is worn above the hips to trouser, sandal, sneaker, bag and ankle boot.
5 to 50 target pictures. Every picture is turned by an angle drawn evenly from -60 to 60 degrees; errors in degrees, on
1,000 test pictures of the target classes. About 10 minutes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import product

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn
from torch.nn.functional import mse_loss

from benchmarks.datasets import fashion_mnist
from benchmarks.record import Row
from benchmarks.transfer import methods
from benchmarks.transfer.page import TANGENT, TUNED
from tangentune import ntk

NAME, SEEDS, POINTS, RANGE = "transfer_angles", range(3), (5, 10, 20, 50), 60.0
SPLITS = {"near": ((0, 1, 3, 7, 8), (2, 4, 6, 5, 9)), "far": ((0, 2, 3, 4, 6), (1, 5, 7, 8, 9))}
SOURCE_PICTURES, TEST_PICTURES, RATIO_PICTURES, EPOCHS, RATE = 4000, 1000, 300, 12, 3e-3
TUNING = ((3e-4, 1e-3, 3e-3), 40)


def keys() -> Iterator[Row]:
    """Every row of the study."""
    for seed, split in product(SEEDS, SPLITS):
        yield from ({"split": split, "seed": seed, "points": points} for points in POINTS)


@dataclass(frozen=True, eq=False)
class Source:
    """The trained network, and some source pictures with their scaled angles that it was not trained on."""

    network: nn.Sequential
    x: Tensor
    y: Tensor


@cache
def trained_source(seed: int, split: str) -> Source:
    """One source network."""
    data = fashion_mnist()
    x, y = turned(data.train, data.train_labels, SPLITS[split][0], SOURCE_PICTURES + RATIO_PICTURES, seed)
    torch.manual_seed(seed)
    network = methods.small_cnn(1, 28, 1)
    network = methods.source_network(network, x[:SOURCE_PICTURES], y[:SOURCE_PICTURES], RATE, EPOCHS, mse_loss, seed)
    return Source(network, x[SOURCE_PICTURES:], y[SOURCE_PICTURES:])


def turned(
    pictures: NDArray[np.uint8], labels: NDArray[np.int64], classes: Sequence[int], count: int, seed: int
) -> tuple[Tensor, Tensor]:
    """Random pictures of some classes (n, 1, 28, 28), turned, and their angles in units of 60 degrees (n, 1)."""
    rng = np.random.default_rng(seed)
    chosen = rng.permutation(np.flatnonzero(np.isin(labels, classes)))[:count]
    angles = rng.uniform(-1, 1, count)
    turned = [
        np.asarray(Image.fromarray(pictures[i]).rotate(RANGE * angle, Image.Resampling.BILINEAR))
        for i, angle in zip(chosen, angles, strict=True)
    ]
    x = (torch.from_numpy(np.stack(turned)).float() / 255 - 0.286) / 0.353  # Fashion-MNIST's mean and spread
    return x[:, None], torch.from_numpy(angles).float()[:, None]


def predictions(source: Source, x: Tensor, y: Tensor, new: Tensor, seed: int) -> dict[str, methods.Prediction]:
    """Every method's prediction of new targets; what is learned from the source data is not part of its seconds."""
    network = source.network
    old = ntk.NTKGaussianProcess(network, mean="network", space="function").fit(source.x, source.y)
    ways = {
        TANGENT: lambda: methods.process_prediction(old.adapt(x, y, scales="ratio"), new),
        "tangent GP, own ratio": lambda: methods.tangent_process(network, x, y, new),
        f"{TANGENT}, own ratio, mean constant": lambda: methods.tangent_process(network, x, y, new, mean="constant"),
        TUNED: lambda: methods.fine_tune(lambda *_: network, (x, y), new, TUNING, methods.REGRESSION, seed),
        **methods.on_features(network[0], x, y, new),
        "network as it is": lambda: as_it_is(network, x, y, new),
    }
    return methods.timed(ways)


def as_it_is(network: nn.Module, x: Tensor, y: Tensor, new: Tensor) -> methods.Prediction:
    """The source network, its variance the mean squared error on the adaptation data."""
    mean = network(new)
    return methods.Prediction(mean, (network(x) - y).square().mean().expand(mean.shape))


def measure(split: str, seed: int, points: int) -> Row:
    """Scores of every method, errors in degrees, densities per degree."""
    source, data, classes = trained_source(seed, split), fashion_mnist(), SPLITS[split][1]
    x, y = turned(data.train, data.train_labels, classes, max(POINTS), 100 + seed)
    new, truth = turned(data.test, data.test_labels, classes, TEST_PICTURES, 0)
    scores = {}
    for name, found in predictions(source, x[:points], y[:points], new, seed).items():
        own = methods.regression_scores(found, truth)
        scores[name] = {**own, "rmse": RANGE * own["rmse"], "nll": own["nll"] + float(np.log(RANGE))}
    return {"methods": scores}
