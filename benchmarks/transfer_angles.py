"""The angle of rotated garments: a network trained on five classes of Fashion-MNIST, adapted to the other five.

    python -m benchmarks.transfer_angles

"near": from T-shirt, trouser, dress, sneaker and bag to pullover, coat, shirt, sandal and ankle boot, which have
relatives among the former; "far": from what is worn above the hips to trouser, sandal, sneaker, bag and ankle boot.
5 to 50 target pictures. Every picture is turned by an angle drawn evenly from -60 to 60 degrees; errors in degrees, on
1,000 test pictures of the target classes. About 10 minutes.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn
from torch.nn.functional import mse_loss

from benchmarks import record
from benchmarks.cifar_split import begin, study_parser
from benchmarks.datasets import fashion_mnist
from benchmarks.transfer_methods import (
    Prediction,
    Regression,
    Tuning,
    feature_process,
    fine_tune,
    process_prediction,
    regression_scores,
    small_cnn,
    tangent_process,
    timed,
    train_source,
)
from tangentune.methods.ntk import NTKGaussianProcess

NAME, SEEDS, POINTS, RANGE = "transfer_angles", range(3), (5, 10, 20, 50), 60.0
SPLITS = {"near": ((0, 1, 3, 7, 8), (2, 4, 6, 5, 9)), "far": ((0, 2, 3, 4, 6), (1, 5, 7, 8, 9))}
SOURCE_PICTURES, TEST_PICTURES, RATIO_PICTURES, EPOCHS, RATE = 4000, 1000, 300, 12, 3e-3
TUNING = Tuning((3e-4, 1e-3, 3e-3), 40)


@dataclass(frozen=True, eq=False)
class Source:
    """The trained network, and some source pictures with their scaled angles that it was not trained on."""

    network: nn.Sequential
    x: Tensor
    y: Tensor


def main() -> None:
    """Measure what is missing in docs/results/transfer_angles.json."""
    begin(study_parser(__doc__).parse_args())
    for seed, split in itertools.product(SEEDS, SPLITS):
        keys = [{"split": split, "seed": seed, "points": points} for points in POINTS]
        if all(record.done(NAME, key) for key in keys):
            continue
        source = trained_source(seed, split)
        for key in keys:
            if not record.done(NAME, key):
                record.append(NAME, key, {"methods": measure(source, **key)})
                print(key, flush=True)


def trained_source(seed: int, split: str) -> Source:
    """One source network."""
    data = fashion_mnist()
    x, y = turned(data.train, data.train_labels, SPLITS[split][0], SOURCE_PICTURES + RATIO_PICTURES, seed)
    torch.manual_seed(seed)
    network = small_cnn(1, 28, 1)
    network = train_source(network, x[:SOURCE_PICTURES], y[:SOURCE_PICTURES], mse_loss, EPOCHS, RATE, seed)
    assert isinstance(network, nn.Sequential)
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


def predictions(source: Source, x: Tensor, y: Tensor, new: Tensor, seed: int) -> dict[str, Prediction]:
    """Every method's prediction of new targets; what is learned from the source data is not part of its seconds."""
    network, features = source.network, source.network[0]
    old = NTKGaussianProcess(network, mean="network", space="function").fit(source.x, source.y)
    return {
        "tangent GP": timed(lambda: process_prediction(old.adapt(x, y, scales="ratio"), new)),
        "tangent GP, own ratio": timed(lambda: tangent_process(network, x, y, new)),
        "tangent GP, own ratio, mean constant": timed(lambda: tangent_process(network, x, y, new, mean="constant")),
        "fine-tuning, all layers": timed(lambda: fine_tune(lambda *_: network, x, y, new, TUNING, Regression(), seed)),
        "last layer, Bayesian": timed(lambda: feature_process(features(x), y, features(new), "linear")),
        "RBF GP on features": timed(lambda: feature_process(features(x), y, features(new), "rbf")),
        "network as it is": timed(lambda: as_it_is(network, x, y, new)),
    }


def as_it_is(network: nn.Module, x: Tensor, y: Tensor, new: Tensor) -> Prediction:
    """The source network, its variance the mean squared error on the adaptation data."""
    mean = network(new)
    return Prediction(mean, (network(x) - y).square().mean().expand(mean.shape))


def measure(source: Source, split: str, seed: int, points: int) -> dict[str, dict[str, float]]:
    """Scores of every method, errors in degrees, densities per degree."""
    data, classes = fashion_mnist(), SPLITS[split][1]
    x, y = turned(data.train, data.train_labels, classes, max(POINTS), 100 + seed)
    new, truth = turned(data.test, data.test_labels, classes, TEST_PICTURES, 0)
    scores = {}
    for name, found in predictions(source, x[:points], y[:points], new, seed).items():
        own = regression_scores(found, truth)
        scores[name] = {**own, "rmse": RANGE * own["rmse"], "nll": own["nll"] + float(np.log(RANGE))}
    return scores


if __name__ == "__main__":
    main()
