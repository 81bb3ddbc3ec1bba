"""A prior of the temperature, for few pictures: `python -m benchmarks.temperature.run`, about five minutes.

Linear probes (what `subset="none"` fits) on features of MobileNetV2, as many pictures of every class. The prior is
chosen on draws from 100 on, the table is of draws 0 to 4; test pictures are the same for all.
"""

from __future__ import annotations

import statistics
from functools import cache
from itertools import product

import numpy as np
import torch
from torch import Tensor

from benchmarks import record
from benchmarks.datasets import ArrayData, cifar10, fashion_mnist, few_shot, held_out
from benchmarks.record import Row
from benchmarks.study import begin, mean_error, mean_features, study_parser
from tangentune import load_backbone, load_pictures
from tangentune.kernels.choice import FixedChoices, KernelCandidates, search, solution_of
from tangentune.kernels.gram import inverse_lengths
from tangentune.metrics import nll
from tangentune.solvers.calibration import fit_temperature, probabilities

NAME, POOL, TEST, SIZE = "temperature", 300, 1000, 64
DATASETS = {"CIFAR-10": cifar10, "Fashion-MNIST": fashion_mnist}
CLASSES, COUNTS = (2, 5, 10), (10, 20, 50, 100, 200, 500)
SHOWN = 5  # draws of the table, the first of SEEDS; the others choose
SEEDS = (*range(SHOWN), *range(100, 120))
CENTRES, WIDTHS = (0.1, 0.2, 0.3, 0.4, 0.6), (0.25, 0.5, 1.0, 2.0)
PRIORS = {"none": None} | {f"{c:g}, {w:g}": (c, w) for c in CENTRES for w in WIDTHS}


@cache
def features(dataset: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Features and labels of POOL training pictures a class and of TEST test pictures."""
    data: ArrayData = DATASETS[dataset]()
    network = load_backbone("mobilenet_v2").with_size(SIZE)
    rows, kept, out = few_shot(data.train_labels, POOL, seed=0), held_out(len(data.test), TEST), []
    for x, y in ((data.train[rows], data.train_labels[rows]), (data.test[kept], data.test_labels[kept])):
        pictures = load_pictures(x, y, contract=network.contract)
        out += [mean_features(network, pictures, flip=False).double(), torch.from_numpy(y)]
    return out[0], out[1], out[2], out[3]


def measure(key: Row) -> Row:
    """Test log-losses of all draws under every prior, one text for each prior: seeds in the order of SEEDS."""
    drawn = [losses(**key, seed=seed) for seed in SEEDS]
    return {"log_loss": {name: " ".join(f"{draw[name]:.5f}" for draw in drawn) for name in PRIORS}}


def losses(dataset: str, classes: int, pictures: int, seed: int) -> dict[str, float]:
    """Of one draw."""
    x, y, new, truth = features(dataset)
    rng = np.random.default_rng(seed)
    labels = np.sort(rng.permutation(10)[:classes])
    rows = np.concatenate([rng.permutation(np.flatnonzero(y == k))[: pictures // classes] for k in labels])
    asked = torch.from_numpy(np.isin(truth, labels))
    x, new = x[rows], new[asked]
    y, truth = (torch.from_numpy(np.searchsorted(labels, own)) for own in (y[rows], truth[asked]))
    targets = torch.nn.functional.one_hot(y, classes).double()
    problem = KernelCandidates(x @ x.T, {}, targets, torch.ones(len(x)).double())
    best, _ = search(problem, 0.0, FixedChoices())
    found, cross = solution_of(problem, best), new @ x.T
    if best.choice.normalize:
        one, two = (inverse_lengths(own.square().sum(1)) for own in (new, x))
        cross = one[:, None] * cross * two
    scores, out = found.intercept + cross @ found.dual, {}
    for name, prior in PRIORS.items():
        temperature = fit_temperature(found.loo, y, prior=prior)
        out[name] = nll(truth.numpy(), probabilities(scores, temperature).numpy())
    return out


def publish() -> None:
    """The page, with the choice of the prior."""
    rows = record.load(NAME)["rows"]
    gains = {name: {n: [] for n in COUNTS} for name in PRIORS}
    found = [(row["key"], {name: list(map(float, row["log_loss"][name].split())) for name in PRIORS}) for row in rows]
    for (key, own), name in product(found, PRIORS):
        gains[name][key["pictures"]] += [a - b for a, b in zip(own[name], own["none"], strict=True)][SHOWN:]
    means = {name: [statistics.fmean(own[n]) for n in COUNTS] for name, own in gains.items()}
    harmless = [name for name in means if max(means[name]) <= 0]
    chosen = min(harmless, key=lambda name: statistics.fmean(means[name]))
    grid = [{"centre, width": name, **dict(zip(map(str, COUNTS), own, strict=True))} for name, own in means.items()]
    shown, held = [], {n: [] for n in COUNTS}
    for key, own in found:
        before, after = (own[name][:SHOWN] for name in ("none", chosen))
        line = {"set": key["dataset"], **key, "without": mean_error(before)}
        del line["dataset"]
        change = [a - b for a, b in zip(after, before, strict=True)]
        held[key["pictures"]] += change
        shown.append(line | {"with": mean_error(after), "change": mean_error(change)})
    numbers = dict.fromkeys(map(str, COUNTS), "+.4f")
    parts = {"chosen": chosen, "grid": record.markdown_table(grid, {"centre, width": "", **numbers})}
    parts["held"] = "; ".join(f"{n}: {mean_error(change, '+.4f')}" for n, change in held.items())
    record.write_page(NAME, __file__, parts | {"table": record.markdown_table(shown)})


def main() -> None:
    """Measure what is missing, then write the page."""
    begin(study_parser(__doc__))
    every = product(DATASETS, CLASSES, COUNTS)
    record.fill(NAME, [{"dataset": d, "classes": c, "pictures": n} for d, c, n in every], measure)
    publish()


if __name__ == "__main__":
    main()
