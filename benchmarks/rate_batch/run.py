"""How much tuning does it take? Accuracy over learning rate x batch size, ordinary fine-tuning against LQF.

    python -m benchmarks.rate_batch.run    # what is missing, then page and heat-maps; about 12 minutes, one thread

Few-shot CIFAR-10, both with Adam for 15 epochs, with flips, cosine decay and a warm-up; LQF with the squared loss.
It may be stopped and started again at any time.
"""

from __future__ import annotations

import math
from itertools import product
from typing import Any

from benchmarks import record
from benchmarks.datasets import cifar_split
from benchmarks.rate_batch.page import METHODS, NAME, SETTING, publish
from benchmarks.record import Row
from benchmarks.study import begin, scores, study_parser
from tangentune import Backbone, Pictures, TangentuneError, baselines, load_backbone, lqf

SIZE, RATES, BATCHES = 96, (3e-5, 1e-4, 3e-4, 1e-3, 3e-3), (8, 16, 32, 100)


def main() -> None:
    """Measure what is missing, then write page and heat-maps."""
    parser = study_parser(__doc__)
    parser.add_argument("--seeds", type=int, default=1)
    given = begin(parser)
    backbone = load_backbone("mobilenet_v2").with_size(SIZE)
    for seed in range(given.seeds):
        parts = cifar_split(backbone, SETTING["shots"], seed, SETTING["test"])
        every = product(METHODS, RATES, BATCHES)
        keys = [{"method": m, "rate": rate, "batch": batch, "seed": seed, **SETTING} for m, rate, batch in every]
        record.fill(NAME, keys, lambda key, parts=parts: measure(backbone, *parts, key))
    publish()


def measure(backbone: Backbone, train: Pictures, test: Pictures, key: Row) -> Row:
    """Train and score one cell."""
    shared: dict[str, Any] = {"learning_rate": key["rate"], "batch_size": key["batch"]}
    shared |= {"epochs": key["epochs"], "seed": key["seed"]}
    try:
        if key["method"] == "finetune":
            settings = baselines.FineTuneSettings(head_start="probe", **shared)
            fitted = baselines.fine_tune(backbone, train, settings)
            rose = fitted.losses[-1] > math.log(len(fitted.classes))
        else:
            settings = lqf.LQFSettings(head="cross_fitted", damping=key["damping"], **shared)
            fitted = lqf.fit_lqf(backbone, train, settings)
            rose = fitted.records[0].points[-1].objective > 0.5 * len(train)
        values = scores(fitted, test)
    except TangentuneError as error:  # diverged, in training or by NaN features in prediction
        return {"diverged": True, "reason": str(error)}
    return values | {"diverged": rose, "cpu_seconds": round(fitted.cpu_seconds, 2)}


if __name__ == "__main__":
    main()
