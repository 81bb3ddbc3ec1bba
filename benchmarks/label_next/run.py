"""What to label next, from one picture a class to 400: `python -m benchmarks.label_next.run`.

Every strategy asks for pictures of the same pool, in the same frozen kernel, and is answered with their true labels.
Rows that docs/results/label_next.json lacks are measured, then page and plot are written. One thread, about 20 minutes.
Seeds 100 to 102, with other test pictures, were for choices (`--tuning` measures them); the figures are of 0 to 2.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import one_hot

from benchmarks import record
from benchmarks.datasets import cifar10, fashion_mnist, held_out
from benchmarks.label_next.page import DATASETS, NAME, SEEDS, publish
from benchmarks.record import Row
from benchmarks.study import STILL, begin, quietly, stopwatch, study_parser
from tangentune import Backbone, TangentClassifier, load_backbone, load_pictures
from tangentune.solvers import acquisition
from tangentune.solvers.calibration import fit_temperature, probabilities
from tangentune.solvers.ridge import factor_ridge, loo_errors, solve
from tangentune.solvers.system import System, build

SIZE, POOL, TESTS, CLASSES = 64, 1200, 800, 10
FIXED: dict[str, Any] = {"metric_power": 0.25, "normalize": True, "body_scale": 2.0, "damping": 1.0}
BATCHES = [10] * 9 + [25] * 12
DRAWS = 4  # random orders a seed
PATH = torch.logspace(-4, 1, 31, dtype=torch.float64)  # dampings, in mean eigenvalues
Rng = np.random.Generator


@dataclass(frozen=True, eq=False)
class State:
    """A model of the labelled pictures, and what it knows of the others."""

    system: System
    loo: Tensor  # (n, C)
    labels: Tensor  # (n,)
    free: NDArray[np.int64]  # positions of the m unlabelled pictures
    kernel: Tensor  # (m, m)
    cross: Tensor  # (m, n)
    margins: Tensor  # (m,)
    accuracy: float  # on the test pictures

    def ask(self, count: int, stage: acquisition.Stage) -> NDArray[np.int64]:
        """The pictures that one criterion of the library chooses."""
        return self.free[acquisition.next_pictures(self.system, self.cross, self.kernel, count, stage, self.margins)]

    def suited(self) -> acquisition.Stage:
        """The criterion that the library would take."""
        return acquisition.stage_of(acquisition.skill(self.loo, self.labels))


def farthest(state: State, count: int, rng: Rng) -> NDArray[np.int64]:
    """k-centre: the picture farthest from all labelled and chosen ones, again and again."""
    own = state.kernel.diagonal()
    apart = acquisition.distances(state.kernel, own, own)
    left = acquisition.distances(state.cross, own, state.system.kernel.diagonal()).min(1).values
    del rng  # nothing is drawn
    chosen: list[int] = []
    for _ in range(count):
        chosen.append(int(left.argmax()))
        left = torch.minimum(left, apart[chosen[-1]])
    return state.free[chosen]


STRATEGIES: dict[str, Callable[[State, int, Rng], NDArray[np.int64]]] = {
    "ours": lambda state, count, _: state.ask(count, state.suited()),
    "random": lambda state, count, rng: rng.permutation(state.free)[:count],
    "margin": lambda state, count, _: state.free[state.margins.argsort()[:count].numpy()],
    "k-centre": farthest,
    "typical only": lambda state, count, _: state.ask(count, "typical"),
    "variance only": lambda state, count, _: state.ask(count, "variance"),
    "doubt times variance only": lambda state, count, _: state.ask(count, "doubt"),
}


def main() -> None:
    """Measure what is missing and write the page."""
    parser = study_parser(__doc__)
    parser.add_argument("--tuning", action="store_true", help="the seeds on which choices were made, without a page")
    given = begin(parser)
    backbone = load_backbone("mobilenet_v2").with_size(SIZE)
    keys = [{"dataset": d, "seed": s} for s, d in product(range(100, 103) if given.tuning else SEEDS, DATASETS)]
    record.fill(NAME, keys, lambda key: measure(backbone, **key), "tuning" if given.tuning else "rows")
    if not given.tuning:
        publish()


def measure(backbone: Backbone, dataset: str, seed: int) -> Row:
    """Accuracy of every strategy after each batch, from the same ten pictures, in one kernel."""
    with stopwatch() as spent:
        kernel, labels = drawn(backbone, dataset, seed)
    first = np.array([np.flatnonzero(labels[:POOL].numpy() == k)[0] for k in range(CLASSES)])
    curves, stages = {}, []
    for name, choose in STRATEGIES.items():
        runs = []
        for draw in range(DRAWS if name == "random" else 1):
            rng, labelled, accuracies = np.random.default_rng([seed, draw]), first, []
            for count in [*BATCHES, 0]:
                state = fitted(kernel, labels, labelled)
                accuracies.append(state.accuracy)
                if name == "ours":
                    stages.append(state.suited())
                if count:
                    labelled = np.concatenate([labelled, choose(state, count, rng)])
            assert len(set(labelled.tolist())) == CLASSES + sum(BATCHES), "none twice"
            runs.append(accuracies)
        curves[name] = np.mean(runs, 0).round(6).tolist()
    return {"accuracy": curves, "stages": stages, "kernel_seconds": spent["cpu_seconds"]}


def drawn(backbone: Backbone, dataset: str, seed: int) -> tuple[Tensor, Tensor]:
    """Kernel and labels of the pool, and after it of the test pictures; nothing of the kernel depends on a label."""
    data = cifar10() if dataset == "CIFAR-10" else fashion_mnist()
    rows = np.random.default_rng(seed).permutation(len(data.train))[:POOL]
    kept = held_out(len(data.test), TESTS, 2000 if seed >= 100 else 0)
    x, y = np.concatenate([data.train[rows], data.test[kept]]), [data.train_labels[rows], data.test_labels[kept]]
    labels = np.concatenate(y)
    with quietly():
        model = TangentClassifier(backbone, **(STILL | FIXED)).fit(load_pictures(x, labels, contract=backbone.contract))
    return torch.from_numpy(model.kernel_), torch.from_numpy(labels)


def fitted(kernel: Tensor, labels: Tensor, labelled: NDArray[np.int64]) -> State:
    """Balanced least squares on the labelled pictures, the damping by leave-one-out where a class has two of them."""
    own, given = kernel[labelled][:, labelled], labels[labelled]
    targets = one_hot(given, CLASSES).double()
    counts = targets.sum(0)
    weights = (len(given) / (CLASSES * counts))[given]
    factor = factor_ridge(own, weights)
    damping = 1.0
    if counts.max() > 1:
        path = PATH * factor.mean_eigenvalue
        damping = float(path[loo_errors(factor, targets, path).argmin()])
    solution = solve(factor, targets, damping)
    free = np.setdiff1d(np.arange(POOL), labelled)
    cross = kernel[free][:, labelled]
    proba = probabilities(cross @ solution.dual + solution.intercept, fit_temperature(solution.loo, given))
    top = proba.topk(2, 1).values
    tested = kernel[POOL:][:, labelled] @ solution.dual + solution.intercept
    accuracy = float((tested.argmax(1) == labels[POOL:]).double().mean())
    system = build(own, targets, damping, weights)
    return State(system, solution.loo, given, free, kernel[free][:, free], cross, top[:, 0] - top[:, 1], accuracy)


if __name__ == "__main__":
    main()
