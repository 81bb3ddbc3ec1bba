"""Cleaning a tenth of wrong labels, one look after the other: `python -m benchmarks.cleaning.run`.

An oracle looks at the most doubtful picture of a list and corrects its label if it is wrong. Ours refreshes the list by
an exact edit after every look; cleanlab's ranking waits for cross-validation of the same model, every tenth look. Rows
that docs/results/cleaning.json lacks are measured, then page and plot are written. One thread, about 15 minutes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from itertools import product
from typing import Any

import numpy as np
import torch
from cleanlab.rank import get_label_quality_scores
from numpy.typing import NDArray
from sklearn.model_selection import StratifiedKFold
from torch import Tensor
from torch.nn.functional import one_hot

from benchmarks import record
from benchmarks.cleaning.page import DATASETS, EVERY, LOOKS, NAME, SEEDS, publish
from benchmarks.datasets import cifar_split, few_shot, flipped, traffic_lights
from benchmarks.record import Row
from benchmarks.study import STILL, begin, cross_kernel, labels_of, quietly, solved, stopwatch, study_parser
from tangentune import Backbone, Pictures, TangentClassifier, load_backbone
from tangentune.solvers.calibration import fit_temperature, probabilities

SIZE, SHARE, TESTS = 64, 0.1, 1000
FOLDS = StratifiedKFold(5, shuffle=True, random_state=0)
QUALITIES: dict[str, dict[str, Any]] = {
    "cleanlab, self-confidence": {"method": "self_confidence"},
    "cleanlab, confidence-weighted entropy": {"method": "confidence_weighted_entropy"},
}
Labels = NDArray[np.int64]
Rank = Callable[[Labels], NDArray[np.int64]]  # positions, the most doubtful first


def main() -> None:
    """Measure what is missing and write the page."""
    begin(study_parser(__doc__))
    backbone = load_backbone("mobilenet_v2").with_size(SIZE)
    keys = [{"dataset": dataset, "seed": seed} for seed, dataset in product(SEEDS, DATASETS)]
    record.fill(NAME, keys, lambda key: measure(backbone, **key))
    publish()


def measure(backbone: Backbone, dataset: str, seed: int) -> Row:
    """Every way of cleaning the same wrong labels, with the same features."""
    clean, test = drawn(backbone, dataset, seed)
    true = labels_of(clean)
    given = flipped(true, SHARE, seed)
    with quietly(), stopwatch() as fit:
        model = TangentClassifier(backbone, **STILL).fit(replace(clean, labels=given))
    kernel, cross = torch.from_numpy(model.kernel_), cross_kernel(model, test)
    dual, intercept = solved(kernel, torch.eye(len(given), dtype=torch.float64), model.damping_)
    hat = cross @ dual + intercept  # labels enter linearly: one solve serves them all

    def accuracy(labels: Labels) -> float:
        return float((scores_of(hat, labels).argmax(1).numpy() == labels_of(test)).mean())

    follow = partial(cleaned, given=given, true=true, accuracy=accuracy)
    methods = {"ours": follow(exact_ranks(model), every=1)}
    last = torch.from_numpy(model.dual_coef_)
    assert torch.allclose(cross @ last + torch.from_numpy(model.intercept_), scores_of(hat, model.targets_), atol=1e-8)
    with quietly():
        model.relabel(np.arange(len(given)), given)
    methods["ours, list of the start"] = follow(exact_ranks(model), every=LOOKS)
    for name, how in QUALITIES.items():
        methods[name] = follow(partial(cleanlab_ranks, kernel, model.damping_, how), every=EVERY)
    shuffled = np.random.default_rng(seed).permutation(len(given))
    methods["random order"] = follow(lambda _: shuffled, every=LOOKS)
    ends = {"fit_seconds": fit["cpu_seconds"], "accuracy_clean": accuracy(true), "wrong": int((given != true).sum())}
    return {"methods": methods, "test": len(test)} | ends


def cleaned(rank: Rank, every: int, *, given: Labels, true: Labels, accuracy: Callable[[Labels], float]) -> Row:
    """Labels corrected and accuracy after every tenth look; processor seconds that the oracle waited for lists."""
    labels, looked, waited, ranked = given.copy(), np.zeros(len(given), bool), 0.0, np.arange(len(given))
    corrected, accuracies = [0], [accuracy(given)]
    for look in range(1, LOOKS + 1):
        if (look - 1) % every == 0:
            with quietly(), stopwatch() as spent:
                ranked = rank(labels)
            waited += spent["cpu_seconds"]
        first = ranked[~looked[ranked]][0]
        looked[first], labels[first] = True, true[first]
        if look % EVERY == 0:
            corrected.append(int((labels != given).sum()))
            accuracies.append(accuracy(labels))
    return {"corrected": corrected, "accuracy": accuracies, "waited_seconds": waited}


def exact_ranks(model: TangentClassifier) -> Rank:
    """The library's list, after an exact edit of the labels that have changed."""

    def rank(labels: Labels) -> NDArray[np.int64]:
        changed = np.flatnonzero(labels != model.targets_)
        if len(changed):
            model.relabel(changed, labels[changed])
        return np.array([one.position for one in model.suspects()])

    return rank


def cleanlab_ranks(kernel: Tensor, damping: float, how: Row, labels: Labels) -> NDArray[np.int64]:
    """Order of cleanlab, from probabilities of five-fold cross-validation of the same model: its kernel is kept."""
    scores = torch.empty(len(labels), int(labels.max()) + 1, dtype=torch.float64)
    targets = one_hot(torch.from_numpy(labels)).double()
    for kept, held in FOLDS.split(labels, labels):
        dual, intercept = solved(kernel[kept][:, kept], targets[kept], damping)
        scores[held] = kernel[held][:, kept] @ dual + intercept
    proba = probabilities(scores, fit_temperature(scores, torch.from_numpy(labels))).numpy()
    return np.argsort(get_label_quality_scores(labels, proba, **how), kind="stable")


def scores_of(hat: Tensor, labels: Labels) -> Tensor:
    return hat @ one_hot(torch.from_numpy(labels)).double()


def drawn(backbone: Backbone, dataset: str, seed: int) -> tuple[Pictures, Pictures]:
    """1,000 pictures with their true labels, and clean test pictures."""
    if dataset == "CIFAR-10":
        return cifar_split(backbone, 100, seed, TESTS)
    lights = traffic_lights("train")
    rows = np.random.default_rng(seed).permutation(len(lights.labels))[:1000]
    assert len(few_shot(lights.labels[rows], 5, 0)) == 15, "every class has enough pictures for five folds"
    return lights.loaded(backbone, rows), traffic_lights("test").loaded(backbone)


if __name__ == "__main__":
    main()
