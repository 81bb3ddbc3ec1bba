"""Seconds of edits and explanations of a model of 2,000 pictures, against the fit they stand in for.

    python -m benchmarks.edit_speed            # about ten minutes on one thread
    python -m benchmarks.edit_speed --runs 1   # a third of it

CIFAR-10, MobileNetV2 at 96 px, everything chosen. `forget` is the edit itself: solution, leave-one-out, temperature and
the log are then those of the model without the pictures. The first prediction after it sums the network's weights
again, which has a line of its own.
"""

from __future__ import annotations

import argparse
import statistics
import time
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from benchmarks.datasets import DataMissing, cifar10, few_shot, held_out
from benchmarks.record import record
from tangentune import TangentClassifier, load_backbone, load_pictures

SIZE, PICTURES, TEST, SHARE, EDITS = 96, 2000, 100, 0.01, 9


def measure(runs: int) -> dict[str, Any]:
    """Fit, then edit and explain, `runs` times; the equality of the edited and a refitted system comes with it."""
    data, backbone = cifar10(), load_backbone("mobilenet_v2").with_size(SIZE)
    chosen, test = few_shot(data.train_labels, PICTURES // 10, seed=0), held_out(len(data.test), TEST)
    pictures = load_pictures(data.train[chosen], data.train_labels[chosen], contract=backbone.contract)
    held = load_pictures(data.test[test], contract=backbone.contract, need_labels=False)
    seconds: dict[str, list[float]] = {}

    def timed(name: str, function: Callable[[], Any]) -> Any:
        start = time.perf_counter()
        out = function()
        seconds.setdefault(name, []).append(time.perf_counter() - start)
        return out

    rng, difference = np.random.default_rng(0), 0.0
    for _ in range(runs):
        model = TangentClassifier(backbone)
        timed("fit", lambda model=model: model.fit(pictures))
        for _ in range(EDITS):
            timed("influence of all on 100 pictures", lambda model=model: model.influence(held))
            gone = rng.choice(len(model.ids_), int(SHARE * PICTURES), replace=False)
            names = [model.ids_[i] for i in gone]
            timed("forget 1 %", lambda model=model, names=names: model.forget(names))
            timed("weights, at the next prediction", lambda model=model: model.predict(held.select([0])))
            timed("relabel one", lambda model=model: model.relabel(model.ids_[0], int(rng.integers(10))))
        difference = max(difference, _error(model))
        timed("leave-one-out of 10 groups", lambda model=model: model.leave_out(10))
    median = {name: statistics.median(values) for name, values in seconds.items()}
    return {
        "pictures": PICTURES,
        "seconds": seconds,
        "medians": median,
        "refit_to_forget": median["fit"] / median["forget 1 %"],
        "influence_to_fit": median["influence of all on 100 pictures"] / median["fit"],
        "difference_to_refitted_system": difference,
        "rows_kept_bytes": model.fitted_.training.rows.nbytes if model.fitted_.training.rows is not None else 0,
    }


def _error(model: TangentClassifier) -> float:
    """Largest difference of the edited dual coefficients to those of the same kernel solved outright, relative."""
    n, kernel = len(model.ids_), torch.from_numpy(model.kernel_)
    matrix = torch.ones(n + 1, n + 1, dtype=torch.float64)
    matrix[:n, :n] = kernel + model.damping_ * torch.eye(n, dtype=torch.float64)
    matrix[n, n] = 0
    targets = torch.zeros(n + 1, len(model.classes_), dtype=torch.float64)
    targets[torch.arange(n), torch.from_numpy(np.searchsorted(model.classes_, model.targets_))] = 1
    dual = torch.linalg.solve(matrix, targets)[:n]
    return float((torch.from_numpy(model.dual_coef_) - dual).abs().max() / dual.abs().max())


def main() -> None:
    """Measure, print, write docs/results/edit_speed.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=3, help="fits")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    try:
        found = measure(arguments.runs)
    except DataMissing as error:
        print(f"skipped: {error}")
        return
    print(f"{PICTURES} CIFAR-10 pictures, MobileNetV2 at {SIZE} px, one thread (median seconds)")
    for name, value in found["medians"].items():
        print(f"  {name:34s} {value:9.4f} s")
    print(f"  a fit takes {found['refit_to_forget']:.0f} times a forget")
    print(f"  influence takes {found['influence_to_fit']:.2%} of a fit")
    print(f"  edited against solved outright: {found['difference_to_refitted_system']:.1e}")
    print(f"written: {record('edit_speed', found)}")


if __name__ == "__main__":
    main()
