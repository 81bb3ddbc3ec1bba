"""A prior of the temperature, for few pictures: `python -m benchmarks.temperature.run`, about five minutes.

Linear probes (what `subset="none"` fits) on features of MobileNetV2, as many pictures of every class. The prior is
chosen on draws from CHOOSING on, the table is of draws 0 to 4; test pictures are the same for all.
"""

from __future__ import annotations

import statistics
from functools import cache

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
CHOOSING, CHOICES, SHOWN = 100, 20, 5
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
    """Test log-loss and temperature of one draw under every prior."""
    x, y, new, truth = features(key["dataset"])
    rng, classes = np.random.default_rng(key["seed"]), key["classes"]
    labels = np.sort(rng.permutation(10)[:classes])
    rows = np.concatenate([rng.permutation(np.flatnonzero(y == k))[: key["pictures"] // classes] for k in labels])
    asked = np.isin(truth, labels)
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
        loss = nll(truth.numpy(), probabilities(scores, temperature).numpy())
        out[name] = [round(loss, 5), round(temperature / float(found.loo.std()), 4)]
    return {"log_loss_and_temperature": out}


def publish() -> None:
    """The page, with the choice of the prior."""
    rows = record.load(NAME)["rows"]
    gains = {name: {n: [] for n in COUNTS} for name in PRIORS}
    for row in [row for row in rows if row["key"]["seed"] >= CHOOSING]:
        found = row["log_loss_and_temperature"]
        for name in PRIORS:
            gains[name][row["key"]["pictures"]].append(found[name][0] - found["none"][0])
    means = {name: [statistics.fmean(own[n]) for n in COUNTS] for name, own in gains.items()}
    harmless = [name for name in means if max(means[name]) <= 0]
    chosen = min(harmless, key=lambda name: statistics.fmean(means[name]))
    grid = [{"centre, width": name, **dict(zip(map(str, COUNTS), own, strict=True))} for name, own in means.items()]
    shown = []
    for dataset, classes, n in [(d, c, n) for d in DATASETS for c in CLASSES for n in COUNTS]:
        own = record.matching(rows, dataset=dataset, classes=classes, pictures=n)
        own = [row["log_loss_and_temperature"] for row in own if row["key"]["seed"] < SHOWN]
        before, after = ([row[name][0] for row in own] for name in ("none", chosen))
        line = {"pictures": n, "classes": classes, "set": dataset, "without": mean_error(before)}
        line |= {"with": mean_error(after), "change": mean_error([a - b for a, b in zip(after, before, strict=True)])}
        shown.append(line)
    numbers = dict.fromkeys(map(str, COUNTS), "+.4f")
    parts = {"chosen": chosen, "grid": record.markdown_table(grid, {"centre, width": "", **numbers})}
    record.write_page(NAME, __file__, parts | {"table": record.markdown_table(shown)})


def main() -> None:
    """Measure what is missing, then write the page."""
    begin(study_parser(__doc__))
    seeds = [*range(SHOWN), *range(CHOOSING, CHOOSING + CHOICES)]
    every = [(d, c, n, seed) for d in DATASETS for c in CLASSES for n in COUNTS for seed in seeds]
    names = ("dataset", "classes", "pictures", "seed")
    known = {tuple(row["key"].values()) for row in record.load(NAME).get("rows", [])}
    keys = [dict(zip(names, one, strict=True)) for one in every if one not in known]
    rows = record.load(NAME).get("rows", []) + [{"key": key, **measure(key)} for key in keys]
    record.record(NAME, {"rows": rows})
    publish()


if __name__ == "__main__":
    main()
