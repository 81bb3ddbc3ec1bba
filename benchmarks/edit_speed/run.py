"""Seconds of edits and explanations of a model of 2,000 pictures, against the fit they stand in for.

    python -m benchmarks.edit_speed.run            # about ten minutes on one thread
    python -m benchmarks.edit_speed.run --runs 1   # a third of it

CIFAR-10, MobileNetV2 at 96 px, everything chosen. `forget` is the edit itself: solution, leave-one-out, temperature and
the log are then those of the model without the pictures. The first prediction after it sums the network's weights
again, which has a line of its own.
"""

from __future__ import annotations

import json
import statistics
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from benchmarks.datasets import DataMissing, cifar_split
from benchmarks.record import record
from benchmarks.study import STILL, begin, solved, stopwatch, study_parser
from tangentune import TangentClassifier, load_backbone

NAME, SIZE, PICTURES, TEST, SHARE, EDITS = "edit_speed", 96, 2000, 100, 0.01, 9


def main() -> None:
    """Measure, print, write docs/results/edit_speed.json."""
    given = begin(study_parser(__doc__, runs=3))
    warnings.simplefilter("ignore")
    try:
        found = measure(given.runs)
    except DataMissing as error:
        print(f"skipped: {error}")
        return
    print(json.dumps({name: value for name, value in found.items() if name != "seconds"}, indent=1))
    print(f"written: {record(NAME, found)}")


def measure(runs: int) -> dict[str, Any]:
    """Fit, then edit and explain, `runs` times; the equality of the edited and a refitted system comes with it."""
    backbone = load_backbone("mobilenet_v2").with_size(SIZE)
    pictures, held = cifar_split(backbone, PICTURES // 10, seed=0, test=TEST)
    seconds: dict[str, list[float]] = {}

    def timed(name: str, function: Callable[[], Any]) -> None:
        with stopwatch() as spent:
            function()
        seconds.setdefault(name, []).append(spent["seconds"])

    rng, difference = np.random.default_rng(0), 0.0
    for _ in range(runs):
        model = TangentClassifier(backbone, **STILL)
        timed("fit", lambda model=model: model.fit(pictures))
        for _ in range(EDITS):
            timed("influence of all on 100 pictures", lambda model=model: model.influence(held))
            gone = rng.choice(len(model.ids_), int(SHARE * PICTURES), replace=False)
            names = [model.ids_[i] for i in gone]
            timed("forget 1 %", lambda model=model, names=names: model.forget(names))
            timed("weights, at the next prediction", lambda model=model: model.predict(held.select([0])))
            timed("relabel one", lambda model=model: model.relabel(model.ids_[0], int(rng.integers(10))))
        difference = max(difference, dual_error(model))
        timed("leave-one-out of 10 groups", lambda model=model: model.leave_out(10))
    median = {name: statistics.median(values) for name, values in seconds.items()}
    return {
        "pictures": PICTURES,
        "seconds": seconds,
        "medians": median,
        "refit_to_forget": median["fit"] / median["forget 1 %"],
        "influence_to_fit": median["influence of all on 100 pictures"] / median["fit"],
        "difference_to_refitted_system": difference,
    }


def dual_error(model: TangentClassifier) -> float:
    """Largest difference of the edited dual coefficients to those of the same kernel solved outright, relative."""
    targets = torch.nn.functional.one_hot(torch.from_numpy(np.searchsorted(model.classes_, model.targets_))).double()
    dual, _ = solved(torch.from_numpy(model.kernel_), targets, model.damping_)
    return float((torch.from_numpy(model.dual_coef_) - dual).abs().max() / dual.abs().max())


if __name__ == "__main__":
    main()
