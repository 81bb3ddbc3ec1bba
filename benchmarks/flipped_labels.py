"""What learned sample weights repair when a fifth of the labels is wrong: `python -m benchmarks.flipped_labels`.

One kernel a data set and seed, made without labels; all ways to treat the flipped ones solve their problem on it and
are judged on clean held-out pictures. What docs/results/flipped_labels.json lacks is measured, then the page is
written. Kernels are kept in .cache. One thread, about 8 minutes.
"""

from __future__ import annotations

import argparse
import statistics
import time
import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from benchmarks import record
from benchmarks.datasets import ROOT, ArrayData, cifar10, fashion_mnist, few_shot, held_out
from benchmarks.label_noise import flipped
from tangentune import Backbone, TangentClassifier, load_backbone, load_pictures
from tangentune.solvers.calibration import fit_temperature
from tangentune.solvers.leave_out import loo, mean_eigenvalue, suspicion
from tangentune.solvers.reweighting import expected_error, improve_weights
from tangentune.solvers.ridge import factor_ridge, loo_errors, solve
from tangentune.solvers.system import build

NAME, SIZE, SHOTS, SHARE, TESTS, SEEDS = "flipped_labels", 64, 50, 0.2, 1000, (0, 1, 2)
DATASETS: dict[str, Callable[[], ArrayData]] = {"CIFAR-10": cifar10, "Fashion-MNIST": fashion_mnist}
DAMPINGS = torch.logspace(-4, 2, 37, dtype=torch.float64)
COLUMNS = {"accuracy": "accuracy", "raised damping": "raised_damping", "own damping": "own_damping"}
CACHE = ROOT / ".cache" / NAME
Arrays = dict[str, NDArray]


def main() -> None:
    """Measure what is missing and write the page."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    torch.set_num_threads(1)
    backbone = load_backbone("mobilenet_v2").with_size(SIZE)
    for seed in SEEDS:
        for dataset in DATASETS:
            key = {"dataset": dataset, "seed": seed}
            if record.done(NAME, key) is None:
                record.append(NAME, key, measure(kernels(backbone, dataset, seed), seed))
    write_page()


def kernels(backbone: Backbone, dataset: str, seed: int) -> Arrays:
    """Kernel (n, n), kernel with the test pictures (m, n), damping and labels of one fit to the flipped labels."""
    path = CACHE / f"{dataset}_{seed}.npz"
    if path.exists():
        return dict(np.load(path))
    data = DATASETS[dataset]()
    rows, kept = few_shot(data.train_labels, SHOTS, seed), held_out(len(data.test), TESTS)
    true = data.train_labels[rows]
    train = load_pictures(data.train[rows], flipped(true, SHARE, seed), contract=backbone.contract)
    test = load_pictures(data.test[kept], data.test_labels[kept], contract=backbone.contract)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*the same picture")
        model = TangentClassifier(backbone, augment="flip").fit(train)
    cross = []
    for start in range(0, TESTS, 250):  # contributions are k(x, x_i) c_i
        shares = model.contributions(replace(test.select(slice(start, start + 250)), labels=None))
        cross.append((shares * model.dual_coef_).sum(2) / np.square(model.dual_coef_).sum(1))
    out: Arrays = {"kernel": model.kernel_, "cross": np.concatenate(cross), "damping": np.array(model.damping_)}
    out |= {"given": np.asarray(train.labels), "true": true, "test": data.test_labels[kept]}
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(path, allow_pickle=False, **out)
    return out


def measure(arrays: Arrays, seed: int) -> dict[str, Any]:
    """Held-out accuracy of every way, at three dampings."""
    kernel, given = torch.from_numpy(arrays["kernel"]), torch.from_numpy(arrays["given"])
    targets, damping = F.one_hot(given).double(), float(arrays["damping"])
    wrong = torch.from_numpy(arrays["given"] != arrays["true"])
    raised = max(damping, mean_eigenvalue(build(kernel, targets, damping)))
    ways, seconds = weightings(kernel, targets, damping, wrong, seed)
    at_raised, _ = weightings(kernel, targets, raised, wrong, seed)
    out = {}
    for name, weights in ways.items():
        again = at_raised[name]
        out[name] = {
            "accuracy": accuracy(arrays, targets, weights, damping),
            "own_damping": accuracy(arrays, targets, weights, None),
            "raised_damping": accuracy(arrays, targets, again, raised),
            "weight_of_wrong": [float(w[wrong].mean()) for w in (weights, again)],
            "weight_of_right": [float(w[~wrong].mean()) for w in (weights, again)],
            "seconds": seconds[name],
        }
    return {"ways": out, "relative_damping": damping / mean_eigenvalue(build(kernel, targets, damping))}


def accuracy(arrays: Arrays, targets: Tensor, weights: Tensor, damping: float | None) -> float:
    """On the test pictures; damping None takes that of the lowest weighted leave-one-out error."""
    kept = weights > 0
    factor = factor_ridge(torch.from_numpy(arrays["kernel"])[kept][:, kept], weights[kept])
    if damping is None:
        grid = DAMPINGS * factor.mean_eigenvalue
        damping = float(grid[int(loo_errors(factor, targets[kept], grid).argmin())])
    solution = solve(factor, targets[kept], damping)
    scores = solution.intercept + torch.from_numpy(arrays["cross"])[:, kept] @ solution.dual
    return float((scores.argmax(1).numpy() == arrays["test"]).mean())


def weightings(
    kernel: Tensor, targets: Tensor, damping: float, wrong: Tensor, seed: int
) -> tuple[dict[str, Tensor], dict[str, float]]:
    """Name -> weights (n,), and the seconds of finding them."""
    n, count = len(kernel), int(SHARE * len(kernel))
    ones, generator = torch.ones(n, dtype=torch.float64), torch.Generator().manual_seed(seed)

    def without(rows: Tensor) -> Tensor:
        weights = ones.clone()
        weights[rows] = 0.0
        return weights

    ways: dict[str, Callable[[], Tensor]] = {
        "all, uniform": lambda: ones,
        "a random fifth removed": lambda: without(torch.randperm(n, generator=generator)[:count]),
        "the most suspicious fifth removed": lambda: without(
            suspicion(build(kernel, targets, damping)).argsort(descending=True)[:count]
        ),
        "learned weights": lambda: improve_weights(kernel, targets, damping)[0],
        "learned weights, expected error": lambda: improve_weights(
            kernel, targets, damping, loss=expected_error(_temperature(kernel, targets, damping))
        )[0],
        "without the flipped ones (oracle)": lambda: without(wrong.nonzero().flatten()),
    }
    weights, seconds = {}, {}
    for name, way in ways.items():
        start = time.perf_counter()
        weights[name] = way()
        seconds[name] = time.perf_counter() - start
    return weights, seconds


def _temperature(kernel: Tensor, targets: Tensor, damping: float) -> float:
    """As the estimator calibrates, on the flipped labels."""
    return fit_temperature(loo(build(kernel, targets, damping)), targets.argmax(1))


def write_page() -> None:
    """docs/results/flipped_labels.md."""
    rows = record.load(NAME)["rows"]
    text = ["# A fifth of the labels flipped: what sample weights repair", "", INTRODUCTION, ""]
    for dataset in DATASETS:
        own = [row["ways"] for row in rows if row["key"]["dataset"] == dataset]
        lines = []
        for way in own[0]:
            line = {"sample weights": way}
            for title, name in COLUMNS.items():
                values = [row[way][name] for row in own]
                line[title] = f"{statistics.fmean(values):.3f} ({', '.join(f'{value:.3f}' for value in values)})"
            for label in ("wrong", "right"):
                both = [statistics.fmean(row[way][f"weight_of_{label}"][k] for row in own) for k in (0, 1)]
                line[f"weight of {label}"] = f"{both[0]:.2f}, {both[1]:.2f}"
            line["s"] = f"{statistics.median(row[way]['seconds'] for row in own):.2f}"
            lines.append(line)
        text += [f"## {dataset}", "", _verdict(own), "", record.markdown_table(lines, dict.fromkeys(lines[0], "")), ""]
    text += ["## Protocol", ""] + [f"- {name}: {words}." for name, words in PROTOCOL.items()]
    (record.RESULTS / f"{NAME}.md").write_text("\n".join(text) + "\n")


def _verdict(rows: list[dict[str, Any]]) -> str:
    """Gains over uniform weights, in points, with the standard error over seeds."""
    said = []
    for way in rows[0]:
        if way == "all, uniform":
            continue
        gains = [100 * (row[way]["accuracy"] - row["all, uniform"]["accuracy"]) for row in rows]
        error = statistics.stdev(gains) / len(gains) ** 0.5
        said.append(f"{way} {statistics.fmean(gains):+.1f} ± {error:.1f}")
    return "Points of accuracy against uniform weights at the damping of the fit: " + "; ".join(said) + "."


INTRODUCTION = """Random mistakes largely average out in a least-squares fit, so that there is little to repair: see
what the oracle gains. A weight acts through damping / weight: where leave-one-out chose a damping far below the
eigenvalues of the kernel, only a weight near 0 changes anything."""
PROTOCOL = {
    "data": f"{SHOTS} pictures a class, {100 * SHARE:.0f} % of the labels moved to another class at random, {TESTS:,} "
    f"clean held-out pictures; MobileNetV2 at {SIZE} px; means over seeds 0, 1, 2, each in brackets",
    "kernel": 'that of `TangentClassifier(augment="flip")` on the flipped labels, the same for every row',
    "accuracy": "at the damping of the fit, chosen by leave-one-out on the flipped labels. Raised damping: at least "
    "the mean eigenvalue of the kernel, weights found there. Own damping: lowest weighted leave-one-out error for the "
    "row's weights",
    "weight": "means over wrong and right labels, found at the damping of the fit, and at the raised one",
    "most suspicious": "by `suspicion`; the share removed is the true share of flipped labels, which one seldom knows",
    "learned weights": "`improve_weights` with its defaults (after Achille et al. 2022, DIVA): dataset derivatives of "
    "the exact leave-one-out loss, here a bounded one of the squared error; 'expected error' is one minus the "
    "probability of the label at the temperature that leave-one-out calibrates; only the flipped labels are seen",
    "oracle": "solved without the flipped pictures",
}

if __name__ == "__main__":
    main()
