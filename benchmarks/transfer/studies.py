"""The three transfer studies: waves, angles of garments, classes of CIFAR-10; small networks trained on a source task.

Sines, about 5 minutes. Source: `A sin(w x + b)`, A in [0.1, 5], w in [0.5, 2], b in [0, 2 pi], x in [-5, 5], noise
0.01 A; 200 points, MLP 1-40-40-1 with tanh. Targets: the same w, A and b drawn anew. Errors in units of the target's A.

Angles, about 10 minutes. Every picture is turned by an angle drawn evenly from -60 to 60 degrees; errors in degrees, on
1,000 test pictures of the target classes. "near": from T-shirt, trouser, dress, sneaker and bag to pullover, coat,
shirt, sandal and ankle boot, which have relatives among the former; "far": from what is worn above the hips to
trouser, sandal, sneaker, bag and ankle boot.

Classes, about 8 minutes. Source: airplane, automobile, bird, cat, deer (6,000 pictures); target: dog, frog, horse,
ship, truck, 2 to 20 pictures a class, 2,000 test pictures. Processes regress on one-hot targets with a free constant;
their temperature is fitted to exact leave-one-out predictions.

What is learned from the source data is not part of the seconds of a prediction.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache
from itertools import product
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.datasets import cifar10, fashion_mnist, few_shot
from benchmarks.record import Row
from benchmarks.transfer import methods
from benchmarks.transfer.methods import Prediction
from benchmarks.transfer.page import LAST, RBF, TANGENT, TUNED
from tangentune import heads, ntk

POINTS, SHOTS, NOISE, RANGE, CLASSES = (5, 10, 20, 50), (2, 5, 10, 20), 0.01, 60.0, 5
SPLITS = {"near": ((0, 1, 3, 7, 8), (2, 4, 6, 5, 9)), "far": ((0, 2, 3, 4, 6), (1, 5, 7, 8, 9))}
RATES = (3e-4, 1e-3, 3e-3)
TUNING: dict[str, tuple[Sequence[float], int]] = {  # rates, and the most epochs
    "sines": ((1e-3, 3e-3, 1e-2), 300),
    "angles": (RATES, 40),
    "classes": (RATES, 40),
}
Wave = tuple[float, float, float]  # amplitude, frequency and phase
Source = tuple[nn.Sequential, ntk.NTKGaussianProcess]  # a trained network, and its process on source data


def keys(study: str) -> list[Row]:
    """Every row of a study."""
    if study == "sines":
        return [{"seed": s, "task": task, "points": n} for s, task, n in product(range(5), range(3), POINTS)]
    if study == "angles":
        return [{"split": split, "seed": s, "points": n} for s, split, n in product(range(3), SPLITS, POINTS)]
    return [{"seed": s, "shots": n} for s, n in product(range(3), SHOTS)]


def predictions(
    study: str, source: Source, x: Tensor, y: Tensor, new: Tensor, seed: int, body: nn.Module, **process: Any
) -> dict[str, Prediction]:
    """Every method's prediction of new targets from the adaptation data: numbers, or classes."""
    network, old = source
    task, values = methods.REGRESSION, y
    if study == "classes":
        task, values = methods.CLASSIFICATION, F.one_hot(y, CLASSES).double()

    def start(x: Tensor, y: Tensor) -> nn.Module:
        return nn.Sequential(body, heads.probe_head(body(x), y)) if study == "classes" else network

    ways = {
        TANGENT: lambda: methods.process_prediction(old.adapt(x, values, scales="ratio"), new),
        "tangent GP, own ratio": lambda: methods.tangent_process(network, x, values, new, **process),
        TUNED: lambda: methods.fine_tune(start, (x, y), new, TUNING[study], task, seed),
        LAST: lambda: methods.feature_process(body(x), values, body(new), "linear"),
        RBF: lambda: methods.feature_process(body(x), values, body(new), "rbf"),
    }
    if study == "sines":
        ways["tangent GP, own ratio, mean network"] = lambda: methods.tangent_process(network, x, y, new)
        ways["RBF GP on x"] = lambda: methods.feature_process(x, y, new, "rbf")
    if study == "angles":
        constant = f"{TANGENT}, own ratio, mean constant"
        ways[constant] = lambda: methods.tangent_process(network, x, y, new, mean="constant")
        ways["network as it is"] = lambda: as_it_is(network, x, y, new)
    return methods.timed(ways)


def as_it_is(network: nn.Module, x: Tensor, y: Tensor, new: Tensor) -> Prediction:
    """The source network, its variance the mean squared error on the adaptation data."""
    mean = network(new)
    return Prediction(mean, (network(x) - y).square().mean().expand(mean.shape))


def height(wave: Wave, x: Tensor) -> Tensor:
    """Without noise."""
    return wave[0] * (wave[1] * x + wave[2]).sin()


@cache
def sine_source(seed: int) -> tuple[Source, Wave]:
    """One source task of waves, in float64: 6,000 steps."""
    generator = torch.Generator().manual_seed(seed)
    wave = _draw(generator, (0.1, 5.0), (0.5, 2.0), (0.0, 2 * math.pi))
    torch.manual_seed(seed)
    network = nn.Sequential(nn.Linear(1, 40), nn.Tanh(), nn.Linear(40, 40), nn.Tanh(), nn.Linear(40, 1)).double()
    x = _inputs(200, generator)
    y = height(wave, x) + NOISE * wave[0] * _normal(200, generator)
    network = methods.source_network(network, x, y, 1e-2, 1500, F.mse_loss, seed)
    return (network, ntk.NTKGaussianProcess(network, mean="constant", space="function").fit(x, y)), wave


def sine_task(seed: int, task: int, points: int) -> tuple[Wave, Tensor, Tensor]:
    """Another wave, and noisy points of it; fewer points are the first of more."""
    generator = torch.Generator().manual_seed(1000 + 10 * seed + task)
    amplitude, phase = _draw(generator, (0.1, 5.0), (0.0, 2 * math.pi))
    wave = amplitude, sine_source(seed)[1][1], phase
    x, noise = _inputs(max(POINTS), generator), _normal(max(POINTS), generator)
    return wave, x[:points], (height(wave, x) + NOISE * amplitude * noise)[:points]


def sines(seed: int, task: int, points: int) -> Row:
    """Scores of every method at 400 places in [-5, 5], noisy, in units of the amplitude."""
    (wave, x, y), source = sine_task(seed, task, points), sine_source(seed)[0]
    new = torch.linspace(-5, 5, 400, dtype=torch.float64)[:, None]
    found = predictions("sines", source, x, y, new, seed, source[0][:-1], mean="constant")
    truth = height(wave, new) + NOISE * wave[0] * _normal(400, torch.Generator().manual_seed(7))
    return {"methods": {name: methods.regression_scores(own, truth, wave[0]) for name, own in found.items()}}


@cache
def angle_source(seed: int, split: str) -> Source:
    """One source network of turned garments, its process on 300 pictures that it was not trained on."""
    data, trained = fashion_mnist(), 4000
    x, y = turned(data.train, data.train_labels, SPLITS[split][0], trained + 300, seed)
    torch.manual_seed(seed)
    network = methods.small_cnn(1, 28, 1)
    network = methods.source_network(network, x[:trained], y[:trained], 3e-3, 12, F.mse_loss, seed)
    old = ntk.NTKGaussianProcess(network, mean="network", space="function")
    return network, old.fit(x[trained:], y[trained:])


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


def angles(split: str, seed: int, points: int) -> Row:
    """Scores of every method, errors in degrees, densities per degree."""
    source, data, classes = angle_source(seed, split), fashion_mnist(), SPLITS[split][1]
    x, y = turned(data.train, data.train_labels, classes, max(POINTS), 100 + seed)
    new, truth = turned(data.test, data.test_labels, classes, 1000, 0)
    found = predictions("angles", source, x[:points], y[:points], new, seed, source[0][0])
    return {"methods": {name: methods.regression_scores(own, truth, 1 / RANGE) for name, own in found.items()}}


@cache
def class_source(seed: int) -> tuple[Source, float]:
    """The source network, its process on 300 pictures it has not seen, and its accuracy on source classes."""
    data, trained = cifar10(), 6000
    members = np.random.default_rng(seed).permutation(np.flatnonzero(data.train_labels < CLASSES))
    chosen, others = members[:trained], members[trained : trained + 300]
    labels = torch.from_numpy(data.train_labels)
    torch.manual_seed(seed)
    network, x = methods.small_cnn(3, 32, CLASSES), prepared(data.train[chosen])
    network = methods.source_network(network, x, labels[chosen], 4e-3, 12, F.cross_entropy, seed)
    held = np.flatnonzero(data.test_labels < CLASSES)[:2000]
    right = network(prepared(data.test[held])).argmax(1) == torch.from_numpy(data.test_labels[held])
    old = ntk.NTKGaussianProcess(network, space="function", outputs="shared", mean="constant")
    old.fit(prepared(data.train[others]), F.one_hot(labels[others], CLASSES))
    return (network, old), float(right.double().mean())


def prepared(pictures: np.ndarray) -> Tensor:
    """(n, 3, 32, 32), roughly of mean 0 and spread 1."""
    return ((torch.from_numpy(pictures).float() / 255 - 0.47) / 0.25).permute(0, 3, 1, 2).contiguous()


def classes(seed: int, shots: int) -> Row:
    """Scores of every method on the target classes' test pictures."""
    data, (source, share) = cifar10(), class_source(seed)
    targets = np.flatnonzero(data.train_labels >= CLASSES)
    chosen = targets[few_shot(data.train_labels[targets], shots, seed)]
    kept = np.flatnonzero(data.test_labels >= CLASSES)[:2000]
    labels, truth = (torch.from_numpy(own) - CLASSES for own in (data.train_labels[chosen], data.test_labels[kept]))
    x, new = prepared(data.train[chosen]), prepared(data.test[kept])
    shared = {"outputs": "shared", "mean": "constant"}
    found = predictions("classes", source, x, labels, new, seed, source[0][0], **shared)
    scores = {name: methods.calibrated_scores(own, truth, labels) for name, own in found.items()}
    return {"methods": scores, "source_accuracy": share}


def _draw(generator: torch.Generator, *ranges: tuple[float, float]) -> Any:
    return tuple(low + (high - low) * float(torch.rand(1, generator=generator)) for low, high in ranges)


def _inputs(count: int, generator: torch.Generator) -> Tensor:
    return 10 * torch.rand(count, 1, generator=generator, dtype=torch.float64) - 5


def _normal(count: int, generator: torch.Generator) -> Tensor:
    return torch.randn(count, 1, generator=generator, dtype=torch.float64)
