"""Accuracy of linear probe, tangent kernel and ordinary fine-tuning on few-shot CIFAR-10, five seeds.

`python -m benchmarks.accuracy.run` measures what docs/results/accuracy.json lacks, then writes table and figure beside
it. Fine-tuning is read from docs/results/finetune_accuracy.json, measured once; splits and test pictures are the same.
One thread, about 25 minutes; it may be stopped and started again at any time.
"""

from __future__ import annotations

from itertools import product

import numpy as np

from benchmarks import record
from benchmarks.accuracy.page import METHODS, NAME, SEEDS, SHOTS, digest, publish
from benchmarks.datasets import cifar_split
from benchmarks.record import Row
from benchmarks.study import STILL, begin, labels_of, quietly, stopwatch, study_parser
from tangentune import Backbone, TangentClassifier, load_backbone
from tangentune.solvers.metrics import accuracy, ece, nll

SIZE, TEST = 96, 2000


def main() -> None:
    """Measure what is missing, then write table and figure."""
    begin(study_parser(__doc__))
    backbone = load_backbone("mobilenet_v2").with_size(SIZE)
    every = product(SEEDS, METHODS, SHOTS)
    keys = [{"shots": shots, "seed": seed, "method": method} for seed, method, shots in every]
    record.fill(NAME, keys, lambda key: measure(backbone, **key))
    record.record(NAME, {**record.load(NAME), **digest()})
    publish()


def measure(backbone: Backbone, shots: int, seed: int, method: str) -> Row:
    """Scores on the test pictures, leave-one-out scores, what was chosen, and what it cost."""
    train, test = cifar_split(backbone, shots, seed, TEST)
    model = TangentClassifier(backbone, **(STILL | METHODS[method]))
    with quietly(), stopwatch() as fit:
        model.fit(train)
    with stopwatch() as predict:
        proba = model.predict_proba(test)
    labels, own = (np.searchsorted(model.classes_, given) for given in (labels_of(test), model.targets_))
    scores = {"accuracy": accuracy(labels, proba.argmax(1)), "nll": nll(labels, proba), "ece": ece(labels, proba)}
    scores |= {"loo_accuracy": model.loo_score_, "loo_nll": nll(own, model.loo_proba_)}
    spent = {f"fit_{clock}": round(fit[clock], 2) for clock in ("seconds", "cpu_seconds")}
    spent |= {"predict_cpu_seconds": round(predict["cpu_seconds"], 2), "peak_bytes": model.fit_report_["peak_bytes"]}
    chosen = {name: getattr(model, f"{name}_") for name in ("outer_steps", "metric_power", "relative_damping")}
    chosen |= {"body_scale": float(model.body_scale_), "normalize": bool(model.normalize_)}
    chosen["blocks"] = [name for name, scale in model.block_scales_.items() if scale > 0]
    return scores | {"loo_ece": ece(own, model.loo_proba_)} | spent | {"chosen": chosen}


if __name__ == "__main__":
    main()
