"""`fit_lqf`'s default on draws that others were measured on: `python -m benchmarks.lqf_conditions.draws [--part sets]`.

"few_shot": the draws and the other methods' figures are those of `benchmarks.few_shot`. "sets": seven sets of real
pictures, 50 a class, 96 px; the draws and swept fine-tuning are those of `benchmarks.moving`. Only LQF is fitted anew,
in the latter for some six minutes a cell on one core.
"""

from __future__ import annotations

import json
from functools import cache
from itertools import product

import numpy as np

from benchmarks import record
from benchmarks.few_shot.page import TASKS
from benchmarks.few_shot.run import read
from benchmarks.lqf_conditions.page import DRAWS, LARGE, SETS, publish
from benchmarks.moving import run as moving
from benchmarks.record import Row
from benchmarks.study import begin, labels_of, quietly, stopwatch, study_parser
from tangentune import load_backbone
from tangentune.comparison.measure import Bench
from tangentune.comparison.methods import MethodSettings
from tangentune.comparison.store import FILE
from tangentune.methods.fine_tuning.labelled import view_outputs
from tangentune.methods.lqf import LQFSettings, fit_lqf
from tangentune.solvers.metrics import accuracy

FORMER = ("probe", "lqf", "finetune")  # as few_shot measured them; its "lqf" is at the pre-trained weights
GRID = [
    {"task": task, "shots": shots, "seed": seed}
    for task, shots, seeds in (("cifar10", 25, 3), ("traffic_lights", 10, 2))
    for seed in range(seeds)
]
ORDER = ("fashion_mnist", "letters", "animals", "solar_cells", "cifar10", "digits", "clip_art")


def main() -> None:
    """Measure what is missing, then write the page."""
    parser = study_parser(__doc__)
    parser.add_argument("--part", choices=("few_shot", "sets"), default="few_shot")
    parser.add_argument("--networks", default="mobilenet_v2", help="of the sets: names, with commas between")
    parser.add_argument("--seeds", default="0,1", help="of the sets: draws, with commas between")
    given = begin(parser)
    with quietly():
        if given.part == "few_shot":
            record.fill(DRAWS, GRID, few_shot)
        else:
            # Draw after draw, so that an early stop hurts all alike.
            places = product(given.networks.split(","), map(int, given.seeds.split(",")), ORDER)
            names = ({"set": name, "network": net, "shots": LARGE, "seed": seed} for net, seed, name in places)
            record.fill(SETS, names, sets)
    publish()


@cache
def bench(name: str) -> Bench:
    """A task of few_shot: its pictures, and how they are prepared."""
    task = TASKS[name]
    backbone = load_backbone(task.backbone).with_size(task.size)
    train, test = read(name, backbone)
    assert test is not None
    return Bench(backbone, train, test, MethodSettings(flip=task.flip))


def few_shot(key: Row) -> Row:
    """One draw, with what few_shot has of the other methods there."""
    name, shots, seed = key.values()
    cell = bench(name).measure("lqf", shots, seed)
    assert cell.failed is None, cell.failed
    path = record.ROOT / "docs" / "results" / "few_shot" / name / FILE
    cells = json.loads(path.read_text())["cells"]
    known = {c["method"]: c["scores"].get("accuracy") for c in cells if (c["shots"], c["seed"]) == (shots, seed)}
    facts = {"accuracy": cell.scores["accuracy"], "nll": cell.scores["nll"], "cpu_seconds": cell.cpu_seconds}
    return {**facts, "chosen": cell.chosen, **{f"former_{method}": known[method] for method in FORMER}}


def sets(key: Row) -> Row:
    """One draw of the study of moving, mirrored where fine-tuning's pictures were."""
    train, test = moving.draw(key["set"], key["shots"], key["seed"], key["network"])
    flip = key["set"] not in moving.UNMIRRORED
    with stopwatch() as spent:
        fitted = fit_lqf(moving.network(key["network"], "cpu"), train, LQFSettings.moved(flip=flip, seed=key["seed"]))
    truth, last = np.searchsorted(fitted.classes, labels_of(test)), fitted.records[-1]
    proba = fitted.predict_proba(test, flip=flip).float().numpy()
    outputs = view_outputs(fitted.lin.f0, fitted.backbone, test, 64, flip).mean(
        0
    )  # what the moved network's probe says
    chosen = {"rate": fitted.move and fitted.move.rate, "fell_to": last.points[-1].objective / last.points[0].objective}
    facts = {"n": len(train), "tests": len(test), "probe_there": accuracy(truth, outputs.argmax(1).numpy())}
    return moving.scores(truth, proba) | facts | spent | {"chosen": chosen}


if __name__ == "__main__":
    main()
