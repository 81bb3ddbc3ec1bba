"""Accuracy of ordinary fine-tuning on few-shot CIFAR-10: MobileNetV2 at 96 px, five seeds, a sweep of rates.

`python -m benchmarks.finetune_accuracy.run` measures what docs/results/finetune_accuracy.json lacks and prints the
table. One thread; 40 minutes; it may be stopped and started again at any time. How the variant was chosen is in the
section "variants" of the file: 58 runs on other held-out pictures, by a draft of this script.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from itertools import product
from typing import Any

import numpy as np

from benchmarks import record
from benchmarks.datasets import cifar_split
from benchmarks.record import Row
from benchmarks.study import begin, labels_of, study_parser
from tangentune import Backbone, Pictures, TangentuneError, baselines, load_backbone
from tangentune.metrics import accuracy, ece, nll

NAME = "finetune_accuracy"
SIZE, SEEDS, SHOTS, TEST = 96, range(5), (10, 50), 2000
RATES = (5e-5, 1e-4, 2e-4, 4e-4)


VARIANT: dict[str, Any] = {
    "epochs": 15,
    "batch_size": 32,
    "warmup": 0.1,
    "schedule": "cosine",
    "flip": True,
    "head_start": "zero",
    "batchnorm": "eval",
}
KEYED = {**VARIANT, "weight_decay": 0.0}  # what a row is known by beside shots, seed and rate
SCORES = ("accuracy", "nll", "ece", "accuracy_flip", "nll_flip", "ece_flip")


def main() -> None:
    """Measure what is missing, then write and print the summary."""
    begin(study_parser(__doc__))
    backbone = load_backbone("mobilenet_v2").with_size(SIZE)
    keys = [
        {"shots": shots, "learning_rate": rate, "seed": seed, **KEYED}
        for shots, seed, rate in product(SHOTS, SEEDS, RATES)
    ]
    record.fill(NAME, keys, lambda key: measure(backbone, **key))
    payload = record.load(NAME)
    found = summarise(payload["rows"])
    record.record(NAME, {**payload, **found})
    shown = {f"{name}_{kind}": ".3f" for name in SCORES for kind in ("mean", "std")}
    columns = {"shots": "", "learning_rate": "g", "seeds": "", **shown, "train_cpu_seconds": ".1f"}
    print(record.markdown_table(found["summary"], columns))


def measure(backbone: Backbone, shots: int, seed: int, **settings: Any) -> Row:
    """Train and score one setting."""
    train, test = cifar_split(backbone, shots, seed, TEST)
    try:
        tuned = baselines.fine_tune(backbone, train, baselines.FineTuneSettings(seed=seed, **settings))
    except TangentuneError as error:
        return {"diverged": True, "reason": str(error)}
    spent = {"train_seconds": round(tuned.seconds, 2), "train_cpu_seconds": round(tuned.cpu_seconds, 2)}
    return {"diverged": False, **spent, "last_loss": tuned.losses[-1], **both_scores(tuned, test)}


def both_scores(tuned: baselines.FineTuned, test: Pictures) -> dict[str, float]:
    """Accuracy, NLL and ECE of plain predictions, and of those averaged over the mirrored picture."""
    labels, out = np.searchsorted(tuned.classes, labels_of(test)), {}
    for suffix, flip in (("", False), ("_flip", True)):
        proba = tuned.predict_proba(test, flip=flip).double().numpy()
        out["accuracy" + suffix] = accuracy(labels, proba.argmax(1))
        out["nll" + suffix] = nll(labels, proba)
        out["ece" + suffix] = ece(labels, proba)
    return out


def summarise(rows: Sequence[Row]) -> Row:
    """Mean and standard deviation over seeds for each (shots, rate), and the best rate for each shots."""
    groups: dict[tuple[int, float], list[Row]] = {}
    for row in rows:
        groups.setdefault((row["key"]["shots"], row["key"]["learning_rate"]), []).append(row)
    summary = [
        {"shots": shots, "learning_rate": rate, "seeds": len(group), **spread(group)}
        for (shots, rate), group in sorted(groups.items())
    ]
    best = {name: best_lines(summary, name) for name in ("accuracy", "accuracy_flip")}
    return {"summary": summary, "best_of_sweep": best["accuracy"], "best_of_sweep_flip": best["accuracy_flip"]}


def best_lines(summary: Sequence[Row], score: str) -> dict[str, Row]:
    """For each shots, the line of the highest mean score."""
    return {
        str(shots): max((r for r in summary if r["shots"] == shots), key=lambda r: r[f"{score}_mean"])
        for shots in sorted({r["shots"] for r in summary})
    }


def spread(rows: Sequence[Row]) -> dict[str, float]:
    """Mean and sample standard deviation of every score; mean seconds. A diverged run counts as a guess."""
    out: dict[str, float] = {}
    guess = {"accuracy": 0.1, "nll": math.log(10), "ece": 0.0}
    for name in SCORES:
        values = [row.get(name, guess[name.removesuffix("_flip")]) for row in rows]
        out[f"{name}_mean"] = statistics.fmean(values)
        out[f"{name}_std"] = statistics.stdev(values) if len(values) > 1 else 0.0
    for name in ("train_seconds", "train_cpu_seconds"):
        timed = [row[name] for row in rows if name in row]
        out[name] = statistics.fmean(timed) if timed else 0.0
    return out


if __name__ == "__main__":
    main()
