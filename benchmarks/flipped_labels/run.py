"""What learned sample weights repair when a fifth of the labels is wrong: `python -m benchmarks.flipped_labels.run`.

One kernel a data set and seed, made without labels; all ways to treat the flipped ones solve their problem on it and
are judged on clean held-out pictures. What docs/results/flipped_labels.json lacks is measured, then the page is
written. One thread, about 8 minutes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import product

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks import record
from benchmarks.datasets import ArrayData, cifar10, fashion_mnist, few_shot, flipped, held_out
from benchmarks.flipped_labels.page import NAME, publish
from benchmarks.record import Row
from benchmarks.study import begin, cross_kernel, quietly, stopwatch, study_parser
from tangentune import Backbone, TangentClassifier, load_backbone, load_pictures
from tangentune.solvers.calibration import fit_temperature
from tangentune.solvers.leave_out import loo, mean_eigenvalue, suspicion
from tangentune.solvers.reweighting import expected_error, improve_weights
from tangentune.solvers.ridge import factor_ridge, loo_errors, solve
from tangentune.solvers.system import build

SIZE, SHOTS, SHARE, TESTS, SEEDS = 64, 50, 0.2, 1000, (0, 1, 2)
DATASETS: dict[str, Callable[[], ArrayData]] = {"CIFAR-10": cifar10, "Fashion-MNIST": fashion_mnist}
DAMPINGS = torch.logspace(-4, 2, 37, dtype=torch.float64)


@dataclass(frozen=True, eq=False)
class Problem:
    """Kernel (n, n), kernel with the test pictures (m, n), one-hot targets, damping of the fit, labels."""

    kernel: Tensor
    cross: Tensor
    targets: Tensor
    damping: float
    wrong: Tensor
    test: Tensor


def main() -> None:
    """Measure what is missing and write the page."""
    begin(study_parser(__doc__))
    backbone = load_backbone("mobilenet_v2").with_size(SIZE)
    keys = [{"dataset": dataset, "seed": seed} for seed, dataset in product(SEEDS, DATASETS)]
    record.fill(NAME, keys, lambda key: measure(posed(backbone, **key), key["seed"]))
    publish()


def posed(backbone: Backbone, dataset: str, seed: int) -> Problem:
    """The problem of one fit to the flipped labels."""
    data = DATASETS[dataset]()
    rows, kept = few_shot(data.train_labels, SHOTS, seed), held_out(len(data.test), TESTS)
    true = data.train_labels[rows]
    given = flipped(true, SHARE, seed)
    train = load_pictures(data.train[rows], given, contract=backbone.contract)
    test = load_pictures(data.test[kept], data.test_labels[kept], contract=backbone.contract)
    with quietly():
        model = TangentClassifier(backbone, augment="flip").fit(train)
    targets = F.one_hot(torch.from_numpy(given)).double()
    wrong, labels = torch.from_numpy(given != true), torch.from_numpy(data.test_labels[kept])
    return Problem(torch.from_numpy(model.kernel_), cross_kernel(model, test), targets, model.damping_, wrong, labels)


def measure(problem: Problem, seed: int) -> Row:
    """Held-out accuracy of every way, at three dampings."""
    unit = mean_eigenvalue(build(problem.kernel, problem.targets, problem.damping))
    raised = replace(problem, damping=max(problem.damping, unit))
    at_raised, out = weightings(raised, seed), {}
    for name, (weights, seconds) in weightings(problem, seed).items():
        both = (weights, at_raised[name][0])
        out[name] = {
            "accuracy": accuracy(problem, weights, problem.damping),
            "own_damping": accuracy(problem, weights, None),
            "raised_damping": accuracy(raised, both[1], raised.damping),
            "weight_of_wrong": [float(w[problem.wrong].mean()) for w in both],
            "weight_of_right": [float(w[~problem.wrong].mean()) for w in both],
            "seconds": seconds,
        }
    return {"ways": out, "relative_damping": problem.damping / unit}


def accuracy(problem: Problem, weights: Tensor, damping: float | None) -> float:
    """On the test pictures; damping None takes that of the lowest weighted leave-one-out error."""
    kept = weights > 0
    factor, targets = factor_ridge(problem.kernel[kept][:, kept], weights[kept]), problem.targets[kept]
    if damping is None:
        grid = DAMPINGS * factor.mean_eigenvalue
        damping = float(grid[int(loo_errors(factor, targets, grid).argmin())])
    solution = solve(factor, targets, damping)
    scores = solution.intercept + problem.cross[:, kept] @ solution.dual
    return float((scores.argmax(1) == problem.test).double().mean())


def weightings(problem: Problem, seed: int) -> dict[str, tuple[Tensor, float]]:
    """Name -> weights (n,), and the seconds of finding them."""
    kernel, targets, damping = problem.kernel, problem.targets, problem.damping
    n, count = len(kernel), int(SHARE * len(kernel))
    ones, generator = torch.ones(n, dtype=torch.float64), torch.Generator().manual_seed(seed)

    def without(rows: Tensor) -> Tensor:
        return ones.index_fill(0, rows, 0.0)

    def bounded_loss() -> Callable[[Tensor, Tensor], Tensor]:
        """At the temperature that the estimator would calibrate, on the flipped labels."""
        return expected_error(fit_temperature(loo(build(kernel, targets, damping)), targets.argmax(1)))

    def suspects() -> Tensor:
        return suspicion(build(kernel, targets, damping)).argsort(descending=True)[:count]

    ways: dict[str, Callable[[], Tensor]] = {
        "all, uniform": lambda: ones,
        "a random fifth removed": lambda: without(torch.randperm(n, generator=generator)[:count]),
        "the most suspicious fifth removed": lambda: without(suspects()),
        "learned weights": lambda: improve_weights(kernel, targets, damping)[0],
        "learned weights, expected error": lambda: improve_weights(kernel, targets, damping, loss=bounded_loss())[0],
        "without the flipped ones (oracle)": lambda: without(problem.wrong.nonzero().flatten()),
    }
    out = {}
    for name, way in ways.items():
        with stopwatch() as spent:
            weights = way()
        out[name] = weights, spent["seconds"]
    return out


if __name__ == "__main__":
    main()
