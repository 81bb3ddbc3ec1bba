"""`fit_lqf`'s default on the draws of the study of moving: `python -m benchmarks.lqf_conditions.sets`.

Seven sets of real pictures, 50 a class, 96 px. The pictures, the draws and swept fine-tuning are those of
`benchmarks.moving`; only LQF is fitted anew, for some six minutes a cell on one core.
"""

from __future__ import annotations

import numpy as np

from benchmarks import record
from benchmarks.lqf_conditions.page import LARGE, SETS, publish
from benchmarks.moving.run import UNMIRRORED, draw, network, scores
from benchmarks.record import Row
from benchmarks.study import begin, labels_of, quietly, stopwatch, study_parser
from tangentune.comparison.methods import METHODS, MethodSettings

ORDER = ("fashion_mnist", "animals", "clip_art", "digits", "letters", "cifar10", "solar_cells")


def main() -> None:
    """Measure what is missing, then write the page."""
    parser = study_parser(__doc__)
    parser.add_argument("--networks", default="mobilenet_v2", help="names, with commas between")
    parser.add_argument("--seeds", default="0,1", help="draws, with commas between")
    given = begin(parser)
    places = [(net, int(seed)) for net in given.networks.split(",") for seed in given.seeds.split(",")]
    keys = [{"set": name, "network": net, "shots": LARGE, "seed": seed} for net, seed in places for name in ORDER]
    with quietly():
        record.fill(SETS, keys, measure)
    publish()


def measure(key: Row) -> Row:
    """One draw: mirrored where fine-tuning's pictures were."""
    train, test = draw(key["set"], key["shots"], key["seed"], key["network"])
    settings = MethodSettings(seed=key["seed"], flip=key["set"] not in UNMIRRORED)
    with stopwatch() as spent:
        fitted = METHODS["lqf"].fit(network(key["network"], "cpu"), train, settings)
    truth = np.searchsorted(fitted.classes, labels_of(test))
    proba = np.asarray(fitted.predict_proba(test), np.float32)
    return scores(truth, proba) | {"n": len(train), "tests": len(test), **spent, "chosen": fitted.chosen}


if __name__ == "__main__":
    main()
