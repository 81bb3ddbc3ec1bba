"""One round of sums against federated averaging, on pictures split over ten owners, evenly and by class.

    python -m benchmarks.owners.run              # about twenty minutes on one thread; goes on where it stopped

Accuracy on held-out pictures, rounds, and bytes that one owner sends and receives. Merged sums are the pooled fit by
construction, whatever the split. Federated averaging has the same network and the rate that is best in hindsight.
"""

from __future__ import annotations

import copy
import time
import warnings
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.datasets import ArrayData, cifar10, fashion_mnist, held_out
from benchmarks.record import Row, fill, load, markdown_table, write_page
from benchmarks.study import begin, mean_features, study_parser
from tangentune import Backbone, Pictures, TangentFeatures, load_backbone
from tangentune.estimators.site import added
from tangentune.methods.fine_tuning.labelled import network_input

NAME, SIZE, OWNERS, PICTURES, TEST, PUBLIC, BATCH = "owners", 32, 10, 500, 1000, 200, 32
SETS: dict[str, Callable[[], ArrayData]] = {"cifar10": cifar10, "fashion_mnist": fashion_mnist}
MAPS: dict[str, dict[str, Any]] = {
    "sums, head alone": {"landmarks": None, "body_scale": 0},
    "sums, data-independent": {"landmarks": None, "width": 2048},
    "sums, landmarks": {"landmarks": PUBLIC, "body_scale": 0.5, "metric_power": 0.25, "normalize": True},
}
ROUNDS = {"head": (1, 10, 100), "network": (1, 10, 100)}
RATES = {"head": (0.1, 1.0, 10.0), "network": (0.01, 0.03)}


def main() -> None:
    """Measure what is missing, write docs/results/owners.json and its page."""
    begin(study_parser(__doc__))
    warnings.simplefilter("ignore")
    keys = [{"set": data, "split": split} for data in SETS for split in ("even", "by class")]
    merged = [{**key, "method": method} for method in MAPS for key in keys]
    averaged = [{**key, "method": f"averaging, {part}"} for part in ROUNDS for key in keys]
    fill(NAME, averaged[:4], average)
    fill(NAME, merged, merge)
    fill(NAME, averaged[4:], average)
    publish()


@cache
def backbone() -> Backbone:
    """The network."""
    return load_backbone("mobilenet_v2").with_size(SIZE)


@cache
def drawn(name: str) -> tuple[Pictures, Pictures, Pictures]:
    """Pictures of the owners, of everybody, and held out."""
    data, rng = SETS[name](), np.random.default_rng(0)
    chosen, kept = rng.permutation(len(data.train))[: PICTURES + PUBLIC], held_out(len(data.test), TEST)
    both, test = data.some(chosen, kept).loaded(backbone())
    return both.select(slice(PICTURES)), both.select(slice(PICTURES, None)), test


def split_of(labels: NDArray[np.int64], split: str) -> list[NDArray[np.int64]]:
    """Positions of each owner's pictures."""
    rng = np.random.default_rng(1)
    if split == "even":
        return np.array_split(rng.permutation(len(labels)), OWNERS)
    owner = np.empty(len(labels), np.int64)
    for label in np.unique(labels):
        owner[labels == label] = rng.choice(OWNERS, (labels == label).sum(), p=rng.dirichlet([0.1] * OWNERS))
    return [np.flatnonzero(owner == one) for one in range(OWNERS) if (owner == one).any()]


def merge(key: Row) -> Row:
    """One round of sums."""
    own, _, test = drawn(key["set"])
    features, pooled = shared(key["set"], key["method"])
    began = time.process_time()
    sites = [features.sums(own.select(place)) for place in split_of(np.asarray(own.labels), key["split"])]
    model = features.solve(added(sites))
    spent = time.process_time() - began
    apart = float(np.abs(model._scores(test) - pooled).max())
    width, classes = len(sites[0].rows), len(model.fitted_.outcome.classes)
    floats = width * (width + 1) // 2 + width * (classes + 1)
    sent = 8 * floats / 2**20 + sum(w.nbytes for w in model.model_.body.values()) / 2**20
    rounds = {"1": {"accuracy": model.score(test), "megabytes": sent}}
    return {"rounds": rounds, "seconds": spent, "apart_from_pooled": apart, "owners": len(sites)}


@cache
def shared(name: str, method: str) -> tuple[TangentFeatures, NDArray[np.float64]]:
    """The map, and the scores of the held-out pictures by the pooled fit."""
    own, public, test = drawn(name)
    features = TangentFeatures(backbone(), **MAPS[method]).fit(public)
    return features, features.solve(features.sums(own))._scores(test)


def average(key: Row) -> Row:
    """Federated averaging: of each number of rounds the accuracy at the rate that is best for it."""
    part = key["method"].split(", ")[1]
    own, _, test = drawn(key["set"])
    sites = split_of(np.asarray(own.labels), key["split"])
    found: dict[str, Any] = {}
    began = time.process_time()
    for rate in RATES[part]:
        for rounds, (accuracy, sent) in run(own, test, sites, part, rate).items():
            best = found.get(str(rounds))
            if best is None or accuracy > best["accuracy"]:
                found[str(rounds)] = {"accuracy": accuracy, "megabytes": sent, "rate": rate}
    return {"rounds": found, "seconds": (time.process_time() - began) / len(RATES[part]), "owners": len(sites)}


def run(
    own: Pictures, test: Pictures, sites: list[NDArray[np.int64]], part: str, rate: float
) -> dict[int, tuple[float, float]]:
    """Accuracy and megabytes after each number of rounds at one rate."""
    generator = torch.Generator().manual_seed(0)
    y, y_test = (torch.from_numpy(np.asarray(pictures.labels)) for pictures in (own, test))
    seen, seen_test = known_features(own), known_features(test)
    head = nn.Linear(seen.shape[1], 10)
    nn.init.zeros_(head.weight)
    module = nn.ModuleDict({"head": head})
    if part == "network":
        body = copy.deepcopy(backbone().module).eval().requires_grad_(True)
        layout: dict[str, Any] = {"memory_format": torch.channels_last}  # twice as fast on a CPU at this size
        module["body"] = body.to(**layout)
    moving, found = [p for p in module.parameters() if p.is_floating_point()], dict[int, tuple[float, float]]()
    inputs = _network_input(own) if part == "network" else seen

    def scores(x: Tensor) -> Tensor:
        if part == "network":
            x = backbone().feature_function(module["body"], x)
        return head(F.normalize(x, dim=1) * 10)

    for done in range(1, max(ROUNDS[part]) + 1):
        common = [p.detach().clone() for p in moving]
        total = [torch.zeros_like(p) for p in moving]
        for place in sites:
            for p, start in zip(moving, common, strict=True):
                p.data.copy_(start)
            for index in torch.from_numpy(place)[torch.randperm(len(place), generator=generator)].split(BATCH):
                loss = F.cross_entropy(scores(inputs[index]), y[index])
                for p, slope in zip(moving, torch.autograd.grad(loss, moving, allow_unused=True), strict=True):
                    if slope is not None:
                        p.data.sub_(rate * slope)
            for sum_, p in zip(total, moving, strict=True):
                sum_ += p.detach() * (len(place) / len(own))
        for p, new in zip(moving, total, strict=True):
            p.data.copy_(new)
        if done in ROUNDS[part]:
            with torch.no_grad():
                tested = _network_input(test).split(100) if part == "network" else [seen_test]
                right = torch.cat([scores(x).argmax(1) for x in tested]) == y_test
            sent = 2 * done * sum(p.nbytes for p in moving) / 2**20
            found[done] = float(right.double().mean()), sent
    return found


def _network_input(pictures: Pictures) -> Tensor:
    return network_input(backbone(), pictures.pixels).contiguous(memory_format=torch.channels_last)


@cache
def known_features(pictures: Pictures) -> Tensor:
    """Features of the network as it came."""
    return mean_features(backbone(), pictures, False).float()


def publish() -> None:
    """docs/results/owners.md."""
    rows, tables = load(NAME).get("rows", []), []
    for name in SETS:
        lines = []
        for method in [*MAPS, *(f"averaging, {part}" for part in ROUNDS)]:
            mine = {
                row["key"]["split"]: row for row in rows if (row["key"]["set"], row["key"]["method"]) == (name, method)
            }
            for rounds in mine["even"]["rounds"] if len(mine) == 2 else ():
                cells = {split: mine[split]["rounds"][rounds]["accuracy"] for split in ("even", "by class")}
                sent, spent = mine["even"]["rounds"][rounds]["megabytes"], mine["even"]["seconds"]
                lines.append({"method": method, "rounds": rounds, **cells, "megabytes": sent, "CPU seconds": spent})
        if lines:
            formats = {"method": "", "rounds": "", "even": ".3f", "by class": ".3f"}
            formats |= {"megabytes": ".1f", "CPU seconds": ".0f"}
            tables += [f"## {name}", "", markdown_table(lines, formats), ""]
    run_on = [row["key"]["set"] for row in rows if row["key"]["method"] == "averaging, network"]
    left = [name for name in SETS if run_on.count(name) < 2]
    missing = f"Not run: averaging of the whole network on {' and '.join(left)}." if left else ""
    rates = ", ".join(f"{part} {' '.join(map(str, values))}" for part, values in RATES.items())
    facts = {"pictures": PICTURES, "size": SIZE, "test": TEST, "rates": f"({rates})", "missing": missing}
    write_page(NAME, __file__, {name: str(fact) for name, fact in facts.items()} | {"tables": "\n".join(tables)})


if __name__ == "__main__":
    main()
