"""`fit_lqf`'s default on the draws of the study of moving: `python -m benchmarks.lqf_conditions.draws`.

Seven sets of real pictures, 50 a class, 96 px. The pictures, the draws and swept fine-tuning are those of
`benchmarks.moving`; only LQF is fitted anew, for some ten minutes a cell on one core.
"""

from __future__ import annotations

from itertools import product

import numpy as np

from benchmarks import record
from benchmarks.lqf_conditions.page import LARGE, SETS, publish
from benchmarks.moving import run as moving
from benchmarks.record import Row
from benchmarks.study import begin, labels_of, quietly, stopwatch, study_parser
from tangentune.estimators.summary import class_scores
from tangentune.methods.fine_tuning.labelled import view_outputs
from tangentune.methods.lqf import LQFSettings, fit_lqf
from tangentune.solvers.metrics import accuracy

ORDER = "fashion_mnist,letters,animals,solar_cells,cifar10,digits,clip_art"


def main() -> None:
    """Measure what is missing, then write the page."""
    parser = study_parser(__doc__)
    for name, usual in (("networks", "mobilenet_v2"), ("seeds", "0,1"), ("sets", ORDER)):
        parser.add_argument(f"--{name}", default=usual, help="with commas between")
    given = begin(parser)
    # Draw after draw, so that an early stop hurts all alike.
    places = product(given.networks.split(","), map(int, given.seeds.split(",")), given.sets.split(","))
    keys = ({"set": name, "network": net, "shots": LARGE, "seed": seed} for net, seed, name in places)
    with quietly():
        record.fill(SETS, keys, sets)
    publish()


def sets(key: Row) -> Row:
    """One draw of the study of moving, mirrored where fine-tuning's pictures were."""
    train, test = moving.draw(key["set"], key["shots"], key["seed"], key["network"])
    flip = key["set"] not in moving.UNMIRRORED
    with stopwatch() as spent:
        fitted = fit_lqf(moving.network(key["network"], "cpu"), train, LQFSettings.moved(flip=flip, seed=key["seed"]))
    truth, last = np.searchsorted(fitted.classes, labels_of(test)), fitted.records[-1]
    proba = fitted.predict_proba(test, flip=flip).float().numpy()
    outputs = view_outputs(fitted.lin.f0, fitted.backbone, test, 64, flip).mean(0)  # what its probe says there
    chosen = {"rate": fitted.move and fitted.move.rate, "fell_to": last.points[-1].objective / last.points[0].objective}
    facts = {"n": len(train), "tests": len(test), "probe_there": accuracy(truth, outputs.argmax(1).numpy())}
    return class_scores(truth, proba) | facts | spent | {"chosen": chosen}


if __name__ == "__main__":
    main()
