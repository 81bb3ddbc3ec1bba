"""What passes in mixed precision cost in accuracy, and in seconds on this processor: fits with and without `autocast`.

    python -m benchmarks.autocast.run      # CIFAR-10, 10 pictures a class, at 32 pixels; resumable

A processor without instructions for bfloat16 imitates it, so that its seconds tell nothing of a GPU's; digits do.
"""

from __future__ import annotations

import statistics
import warnings
from typing import Any

from benchmarks.datasets import cifar_split
from benchmarks.record import Row, fill, load, matching
from benchmarks.study import STILL, begin, stopwatch, study_parser
from tangentune import TangentClassifier, load_backbone

NAME, SIZE, SHOTS, TEST, DRAWS = "autocast", 32, 10, 500, range(5)
FITS: dict[str, dict[str, Any]] = {"pre-trained": STILL, "moved": {}}


def main() -> None:
    """Measure what is missing in docs/results/autocast.json, and print the means."""
    begin(study_parser(__doc__))
    warnings.simplefilter("ignore")
    passes = (None, "bfloat16")
    fill(NAME, [{"fit": kind, "seed": s, "autocast": p} for kind in FITS for s in DRAWS for p in passes], measure)
    rows = load(NAME).get("rows", [])
    for kind in FITS:
        for one in passes:
            own = matching(rows, fit=kind, autocast=one)
            if own:
                told = {name: statistics.mean(row[name] for row in own) for name in ("accuracy", "loo", "seconds")}
                print(f"{kind}, {one or 'float32'}:", ", ".join(f"{name} {value:.4f}" for name, value in told.items()))


def measure(key: Row) -> Row:
    """One fit: accuracy on held-out pictures and by leave-one-out, and seconds."""
    backbone = load_backbone("mobilenet_v2").with_size(SIZE)
    train, test = cifar_split(backbone, SHOTS, key["seed"], test=TEST)
    model = TangentClassifier(backbone, autocast=key["autocast"], **FITS[key["fit"]])
    with stopwatch() as fitting:
        model.fit(train)
    with stopwatch() as predicting:
        accuracy = model.score(test)
    found = {"accuracy": accuracy, "loo": model.loo_score_, "seconds": fitting["cpu_seconds"]}
    return found | {"predict_seconds": predicting["cpu_seconds"], "steps": model.outer_steps_}


if __name__ == "__main__":
    main()
