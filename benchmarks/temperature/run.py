"""How sure may answers from few pictures be? `python -m benchmarks.temperature.run`, about fifteen minutes.

Linear probes (what `subset="none"` fits) on features of MobileNetV2, as many pictures of every class. The choice is
made on draws from 100 on, the table is of draws 0 to 4; test pictures are the same for all. Beside real pictures there
is noise: random pixels, and real pictures with labels drawn by lot.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from itertools import product
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from benchmarks import record
from benchmarks.datasets import cifar10, fashion_mnist, few_shot, held_out
from benchmarks.record import Row
from benchmarks.study import begin, mean_features, study_parser
from tangentune import load_backbone, load_pictures
from tangentune.kernels.choice import FixedChoices, KernelCandidates, search, solution_of
from tangentune.kernels.gram import inverse_lengths
from tangentune.metrics import nll
from tangentune.solvers.calibration import probabilities

NAME, POOL, TEST, SIZE = "temperature", 300, 1000, 64
REAL, NOISE, LOTS = ("CIFAR-10", "Fashion-MNIST"), "random pixels", "CIFAR-10, labels by lot"
CLASSES, COUNTS = (2, 5, 10), (6, 10, 20, 50, 100, 200, 500)
SHOWN = 5  # draws of the table, the first of SEEDS; the others choose
SEEDS = (*range(SHOWN), *range(100, 116))
TRIED = np.exp(np.linspace(-math.log(1e3), math.log(1e3), 461))  # temperatures, in standard deviations of the scores
CENTRES, WIDTHS, STRENGTHS = (0.2, 0.3, 0.4, 0.6), (0.5, 1.0), (1.0, 2.0, 4.0)
Penalty = Callable[[NDArray[Any]], NDArray[Any]]
PRIORS: dict[str, Penalty] = {"none": np.zeros_like}
PRIORS |= {f"log-normal {c} {w:g}": lambda t, c=c, w=w: (np.log(t / c) / w) ** 2 / 2 for c in CENTRES for w in WIDTHS}
PRIORS |= {f"gamma {c} {k:g}": lambda t, c=c, k=k: k * (np.log(t / c) + c / t) for c in CENTRES for k in STRENGTHS}
OPTIONS = [name + doubt for name in PRIORS for doubt in ("", ", one mistake")]


@cache
def features(dataset: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Features and labels of POOL training pictures a class and of TEST test pictures."""
    if dataset == NOISE:
        rng, ten = np.random.default_rng(12345), np.arange(10)
        draw = [rng.integers(0, 256, (n, 32, 32, 3), dtype=np.uint8) for n in (10 * POOL, TEST)]
        parts = [(draw[0], np.repeat(ten, POOL)), (draw[1], np.repeat(ten, TEST // 10))]
    else:
        data = fashion_mnist() if dataset == "Fashion-MNIST" else cifar10()
        rows, kept = few_shot(data.train_labels, POOL, seed=0), held_out(len(data.test), TEST)
        parts = [(data.train[rows], data.train_labels[rows]), (data.test[kept], data.test_labels[kept])]
    network, out = load_backbone("mobilenet_v2").with_size(SIZE), []
    for x, y in parts:
        pictures = load_pictures(x, y, contract=network.contract)
        out += [mean_features(network, pictures, flip=False).double(), torch.from_numpy(y)]
    return out[0], out[1], out[2], out[3]


def measure(key: Row) -> Row:
    """Test log-losses of all draws under every option, one text for each: seeds in the order of SEEDS."""
    drawn = [losses(**key, seed=seed) for seed in SEEDS]
    return {"log_loss": {name: " ".join(f"{draw[name]:.5f}" for draw in drawn) for name in OPTIONS}}


def losses(dataset: str, classes: int, pictures: int, seed: int) -> dict[str, float]:
    """Of one draw."""
    x, y, new, truth = features("CIFAR-10" if dataset == LOTS else dataset)
    rng = np.random.default_rng(seed)
    labels = np.sort(rng.permutation(10)[:classes])
    rows = np.concatenate([rng.permutation(np.flatnonzero(y == k))[: pictures // classes] for k in labels])
    asked = torch.from_numpy(np.isin(truth, labels))
    x, new = x[rows], new[asked]
    y, truth = (torch.from_numpy(np.searchsorted(labels, own)) for own in (y[rows], truth[asked]))
    if dataset == LOTS:
        y, truth = y[torch.from_numpy(rng.permutation(len(y)))], torch.from_numpy(rng.integers(0, classes, len(truth)))
    targets = torch.nn.functional.one_hot(y, classes).double()
    problem = KernelCandidates(x @ x.T, {}, targets, torch.ones(len(x)).double())
    best, _ = search(problem, 0.0, FixedChoices())
    found, cross = solution_of(problem, best), new @ x.T
    if best.choice.normalize:
        one, two = (inverse_lengths(own.square().sum(1)) for own in (new, x))
        cross = one[:, None] * cross * two
    scores, out, mistake = found.intercept + cross @ found.dual, {}, 1 / (len(x) + 1)
    unit, smooth = float(found.loo.std()) or 1.0, (1 - mistake) * targets + mistake / classes
    likelihood = np.array([float((smooth * (found.loo / (unit * t)).log_softmax(1)).sum()) for t in TRIED])
    for name, penalty in PRIORS.items():
        temperature = unit * float(TRIED[(penalty(TRIED) - likelihood).argmin()])
        proba = probabilities(scores, temperature)
        out[name] = nll(truth.numpy(), proba.numpy())
        out[f"{name}, one mistake"] = nll(truth.numpy(), ((1 - mistake) * proba + mistake / classes).numpy())
    return out


def main() -> None:
    """Measure what is missing; then `python -m benchmarks.temperature.page`."""
    begin(study_parser(__doc__))
    every = [(d, c, n) for d, c, n in product((*REAL, NOISE, LOTS), CLASSES, COUNTS) if n >= c and (n > 6 or c == 2)]
    record.fill(NAME, [{"dataset": d, "classes": c, "pictures": n} for d, c, n in every], measure)


if __name__ == "__main__":
    main()
