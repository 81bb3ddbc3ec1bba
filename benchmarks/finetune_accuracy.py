"""Accuracy of ordinary fine-tuning on few-shot CIFAR-10: MobileNetV2 at 96 px, five seeds, a sweep of rates.

`python -m benchmarks.finetune_accuracy` measures what docs/results/finetune_accuracy.json lacks and prints the
table. `--variants` measures VARIANTS on other held-out pictures instead: how the variant was chosen.
One thread; 40 minutes; it may be stopped and started again at any time.
"""

from __future__ import annotations

import argparse
import math
import statistics
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks import record
from benchmarks.datasets import cifar10, few_shot, held_out
from tangentune.errors import InputError
from tangentune.methods.fine_tuning import FineTuned, FineTuneSettings, fine_tune
from tangentune.metrics import accuracy, ece, nll
from tangentune.networks.backbone import Backbone, load_backbone
from tangentune.pictures.load import Pictures, load_pictures

NAME = "finetune_accuracy"
SIZE, SEEDS, SHOTS = 96, range(5), (10, 50)
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
KEYED = {*VARIANT, "learning_rate", "weight_decay", "seed"}  # later settings entered keys only where they were used
SCORES = ("accuracy", "nll", "ece", "accuracy_flip", "nll_flip", "ece_flip")
# What was compared to choose VARIANT, at a rate of 1e-4 and seed 0 where nothing else is said: (changes, shots).
TRIED: tuple[tuple[dict[str, Any], tuple[int, ...]], ...] = (
    ({}, (10, 50)),
    ({"learning_rate": 3e-5}, (10, 50)),
    ({"learning_rate": 2e-4}, (10, 50)),
    ({"learning_rate": 3e-4}, (10, 50)),
    ({"seed": 1}, (10, 50)),
    ({"seed": 2}, (10,)),
    ({"seed": 3}, (10,)),
    ({"head_start": "probe"}, (10, 50)),
    ({"head_start": "probe", "seed": 1}, (10, 50)),
    ({"head_start": "probe", "seed": 2}, (10,)),
    ({"head_start": "probe", "seed": 3}, (10,)),
    ({"head_start": "probe", "learning_rate": 2e-4}, (10,)),
    ({"head_start": "calibrated_probe"}, (10, 50)),
    ({"head_start": "calibrated_probe", "seed": 1}, (10,)),
    ({"head_start": "calibrated_probe", "learning_rate": 3e-5}, (10,)),
    ({"head_start": "calibrated_probe", "learning_rate": 3e-4}, (10, 50)),
    ({"head_start": "calibrated_probe", "batchnorm": "train"}, (10, 50)),
    ({"head_start": "random"}, (10, 50)),
    ({"head_start": "random", "learning_rate": 3e-4}, (10,)),
    ({"batchnorm": "train"}, (10, 50)),
    ({"batchnorm": "train", "learning_rate": 3e-4}, (10, 50)),
    ({"batch_size": 16}, (10, 50)),
    ({"batch_size": 16, "learning_rate": 5e-5}, (50,)),
    ({"schedule": "constant"}, (10, 50)),
    ({"warmup": 0.0}, (10, 50)),
    ({"weight_decay": 0.05}, (50,)),
)
PROTOCOL = {
    "data": "CIFAR-10, few_shot(train labels, shots, seed), bicubic 32 -> 96, ImageNet mean and std",
    "network": "MobileNetV2 1.0, ImageNet weights, all layers trained, linear head",
    "test": "first 2,000 of the shuffled (seed 12345) test batch; variants: the next 2,000, seed 0",
    "flip columns": "accuracy_flip, nll_flip, ece_flip: logits averaged over the picture and its mirror image",
    "seconds": "training only, one thread; cpu seconds are fair where other programs shared the machine",
    "commits": "rows carry their own (null: before the first commit); made_by is that of the last summary",
    "variants": "measured with drafts of this script: same pictures, network weights and training",
    "best of sweep": "the rate of the highest mean accuracy on the test pictures themselves: generous",
}


def main() -> None:
    """Measure what is missing, then write and print the summary."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--variants", action="store_true", help="compare variants on the development pictures")
    variants = parser.parse_args().variants
    torch.set_num_threads(1)
    backbone = load_backbone("mobilenet_v2").with_size(SIZE)
    for shots, settings in tried() if variants else sweep():
        measure_once(backbone, shots, settings, "variants" if variants else "rows")
    record.record(NAME, {**record.load(NAME), "protocol": PROTOCOL, "variant": VARIANT, **summarise()})
    summary = record.load(NAME)
    shown = {f"{name}_{kind}": ".3f" for name in SCORES for kind in ("mean", "std")}
    columns = {"shots": "", "learning_rate": "g", "seeds": "", **shown, "train_cpu_seconds": ".1f"}
    print(record.markdown_table(summary["summary"], columns))


def sweep() -> Iterator[tuple[int, FineTuneSettings]]:
    """Every run of the table."""
    for shots in SHOTS:
        for seed in SEEDS:
            for rate in RATES:
                yield shots, FineTuneSettings(learning_rate=rate, seed=seed, **VARIANT)


def tried() -> Iterator[tuple[int, FineTuneSettings]]:
    """Every run of the comparison of variants."""
    for changed, all_shots in TRIED:
        for shots in all_shots:
            yield shots, FineTuneSettings(**{**VARIANT, **changed})


def measure_once(backbone: Backbone, shots: int, settings: FineTuneSettings, section: str) -> None:
    """Train and score one setting unless the results file has it already."""
    key = {"shots": shots, **keyed(settings)}
    if record.done(NAME, key, section):
        return
    data = cifar10()
    train = few_shot(data.train_labels, shots, settings.seed)
    test = held_out(len(data.test), start=2000 if section == "variants" else 0)
    pictures = load_pictures(data.train[train], data.train_labels[train], contract=backbone.contract)
    others = load_pictures(data.test[test], data.test_labels[test], contract=backbone.contract)
    values: dict[str, Any] = {"diverged": False}
    try:
        tuned = fine_tune(backbone, pictures, settings)
        values |= {"train_seconds": round(tuned.seconds, 2), "train_cpu_seconds": round(tuned.cpu_seconds, 2)}
        values |= {"last_loss": tuned.losses[-1], **scores(tuned, others, data.test_labels[test])}
    except InputError as error:
        values |= {"diverged": True, "reason": str(error)}
    record.append(NAME, key, values, section)
    print(shots, differences(settings), values, flush=True)


def keyed(settings: FineTuneSettings) -> dict[str, Any]:
    """The settings that know a row: KEYED, and others that are not at their default."""
    usual = asdict(FineTuneSettings())
    return {name: value for name, value in asdict(settings).items() if name in KEYED or value != usual[name]}


def differences(settings: FineTuneSettings) -> dict[str, Any]:
    """What is set otherwise than in VARIANT."""
    return {name: value for name, value in keyed(settings).items() if VARIANT.get(name) != value}


def scores(tuned: FineTuned, test: Pictures, labels: NDArray[np.int64]) -> dict[str, float]:
    """Accuracy, NLL and ECE of plain predictions, and of those averaged over the mirrored picture."""
    out: dict[str, float] = {}
    for suffix, flip in (("", False), ("_flip", True)):
        proba = tuned.predict_proba(test, flip=flip).double().numpy()
        out["accuracy" + suffix] = accuracy(labels, tuned.classes[proba.argmax(1)])
        out["nll" + suffix] = nll(labels, proba)
        out["ece" + suffix] = ece(labels, proba)
    return out


def summarise() -> dict[str, Any]:
    """Mean and standard deviation over seeds for each (shots, rate), and the best rate for each shots."""
    groups: dict[tuple[int, float], list[dict[str, Any]]] = {}
    for row in record.load(NAME).get("rows", []):
        groups.setdefault((row["key"]["shots"], row["key"]["learning_rate"]), []).append(row)
    summary = []
    for (shots, rate), rows in sorted(groups.items()):
        line = {"shots": shots, "learning_rate": rate, "seeds": len(rows), **spread(rows)}
        summary.append(line)
    best = {name: best_lines(summary, name) for name in ("accuracy", "accuracy_flip")}
    return {"summary": summary, "best_of_sweep": best["accuracy"], "best_of_sweep_flip": best["accuracy_flip"]}


def best_lines(summary: list[dict[str, Any]], score: str) -> dict[str, dict[str, Any]]:
    """For each shots, the line of the highest mean score."""
    return {
        str(shots): max((r for r in summary if r["shots"] == shots), key=lambda r: r[f"{score}_mean"])
        for shots in sorted({r["shots"] for r in summary})
    }


def spread(rows: list[dict[str, Any]]) -> dict[str, float]:
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
