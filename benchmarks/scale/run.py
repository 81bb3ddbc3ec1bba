"""What a fit costs as its pictures grow, beside fine-tuning; what choosing on a part loses, and few directions gain.

    python -m benchmarks.scale.run                 # about an hour, one thread; goes on where it was stopped
    python -m benchmarks.scale.run --child KEY     # one of the fits, as JSON

Seconds are the processor's, for other work may share the machine. Each fit has a process of its own.
"""

from __future__ import annotations

import json
import sys
import time
import warnings

import numpy as np
import torch

from benchmarks.datasets import ArrayData, cifar10, fashion_mnist, few_shot, held_out
from benchmarks.record import Row, fill, load
from benchmarks.study import STILL, begin, scores, stopwatch, study_parser, watched
from tangentune import Backbone, Pictures, TangentClassifier, load_backbone
from tangentune.kernels import metric, pilot
from tangentune.methods.fine_tuning import FineTuneSettings, fine_tune, fit_probe

NAME = "scale"
SETS = {"CIFAR-10": cifar10, "Fashion-MNIST": fashion_mnist}
COSTS: list[Row] = [{"set": "CIFAR-10", "a_class": n, "size": 96, "seed": 100} for n in (25, 50, 100, 200, 500)]
CHOICES: list[Row] = [
    {"set": name, "a_class": 200, "size": 64, "seed": seed, "chosen_on": way}
    for name in SETS
    for seed in (100, 101)
    for way in ("all", "a part")
]
LANDMARKS: list[Row] = [
    {"set": "CIFAR-10", "a_class": n, "size": 96, "seed": 100, "landmarks": m}
    for n, m in ((200, 500), (200, 1000), (500, 1000), (1000, 1000), (2000, 1000))
]
LANDMARKS += [{"set": "Fashion-MNIST", "a_class": 200, "size": 96, "seed": 100, "landmarks": m} for m in (0, 500, 1000)]
ALL: Row = {"set": "CIFAR-10", "a_class": 5000, "size": 96, "seed": 100}
WHOLE: list[Row] = [ALL | {"landmarks": 1000, "edited": 500, "budget": "4GiB"} | own for own in ({}, {"moved": True})]
RATES = (1e-4, 3e-4, 1e-3)
EPOCHS = (1, 3, 10)  # the first by all rates; the others by the best of them on the test pictures, which flatters it
PART: Row = {"set": "CIFAR-10", "a_class": 500, "size": 96, "seed": 0}  # a draw on which nothing was chosen
MOVED: list[Row] = [PART | {"landmarks": 1000, "edited": 50} | own for own in ({"moved": True}, {})]
PROBES: list[Row] = [PART | {"probe": True}]
PROBES += [ALL | {"a_class": n, "probe": True} for n in (25, 50, 100, 200, 500, 1000, 2000, 5000)]
DIRECTIONS: list[Row] = [
    {"set": name, "a_class": n, "size": 96, "seed": seed, "kept": kept}
    for n, seeds in ((10, (100, 101)), (50, (100, 101)), (200, (100,)))
    for name in SETS
    for seed in seeds
    for kept in (1.0, 0.9, 0.8, 0.7)
]
TIMED = 64  # pictures of the fine-tuning step that is timed


def child(key: Row) -> Row:
    """Fit, and answer a thousand held-out pictures."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    time.perf_counter = time.process_time  # what the planner and the meter read
    if key.get("chosen_on") == "all":
        pilot.CHOOSING_PICTURES = 10**9
    metric.KEPT = key.get("kept", metric.KEPT)
    data, backbone = SETS[key["set"]](), load_backbone("mobilenet_v2").with_size(key["size"])
    if "rate" in key or key.get("probe"):
        return rival(key, data, backbone)
    edited = key.get("edited", 0)  # of all pictures, whose answers to all test pictures are wanted too
    index = few_shot(data.train_labels, key["a_class"], key["seed"])
    test = held_out(len(data.test), len(data.test) if edited else 1000)
    data = data.some(index, test)
    pictures, new = data.loaded(backbone)
    count = key.get("landmarks")
    way: Row = {"solver": "landmarks", "landmarks": count} if count else {"solver": "dual"}
    way |= {} if key.get("moved") else STILL
    clf = TangentClassifier(backbone, memory_budget=key.get("budget"), **way)
    planned = clf.plan(pictures)
    report = clf.fit(pictures).fit_report_
    truth = np.eye(len(clf.classes_))[data.test_labels]
    found, own = clf.decision_function(new), np.eye(len(clf.classes_))[np.asarray(clf.targets_)]
    out: Row = {"pictures": len(pictures), "seconds": report["total_seconds"], "peak_bytes": report["peak_bytes"]}
    out |= {"planned_seconds": planned["seconds"], "planned_bytes": planned["peak_bytes"], "stages": report["stages"]}
    out |= {"probe": report["probe"], "landmarks": len(clf.landmarks_), "augment": clf.augment_}
    out |= {"outer_steps": clf.outer_steps_, "outer_rate": clf.outer_rate_, "outer_selection": clf.outer_selection_}
    out |= {"passes": report["passes"], "damping": clf.relative_damping_, "body_scale": clf.body_scale_}
    out |= {"numbers": sum(weights.shape[1] for weights in clf.model_.body.values())}
    out |= {"loo_error": float(np.square(clf.loo_predictions_ - own).sum(1).mean()), "loo_accuracy": clf.loo_score_}
    out |= {"error": float(np.square(found - truth).sum(1).mean())}
    out |= {"accuracy": float((found.argmax(1) == truth.argmax(1)).mean())}
    if edited:
        some = (np.arange(edited) * (len(pictures) // edited)).tolist()
        others = clf.classes_[(own.argmax(1)[some] + 1) % len(clf.classes_)]
        for name, edit in (("relabel", lambda: clf.relabel(some, others)), ("forget", lambda: clf.forget(some))):
            with stopwatch() as spent:
                edit()
                found = clf.loo_score_
            out |= {f"{name}_seconds": spent["cpu_seconds"], f"{name}_loo_accuracy": found}
    x = next(iter(new.batches(backbone.contract, TIMED, backbone.dtype, backbone.device)))
    x, module = x.contiguous(memory_format=torch.channels_last), backbone.module
    module.requires_grad_(True)
    taken = list[float]()
    for _ in range(2):  # the first one finds its kernels
        with stopwatch() as spent:
            backbone.feature_function(module, x).sum().backward()
        taken.append(spent["cpu_seconds"] / TIMED)
    return out | {"tuning_seconds_a_picture": taken[-1], "epoch_seconds_a_picture": an_epoch(backbone, pictures)}


def an_epoch(backbone: Backbone, pictures: Pictures) -> float:
    """Seconds a picture of an epoch of our own fine-tuning: of three epochs more than of one."""
    few, spent = pictures.select(np.linspace(0, len(pictures) - 1, 2 * TIMED).astype(int)), list[float]()
    for epochs in (1, 1, 3):  # the first one finds its kernels
        with stopwatch() as own:
            fine_tune(backbone, few, FineTuneSettings(epochs=epochs))
        spent.append(own["cpu_seconds"])
    return (spent[2] - spent[1]) / 2 / len(few)


def rival(key: Row, data: ArrayData, backbone: Backbone) -> Row:
    """A linear probe; or all layers moved at a rate for some epochs. Mirrored; judged on all test pictures."""
    index = few_shot(data.train_labels, key["a_class"], key["seed"])
    pictures, new = data.some(index, np.arange(len(data.test))).loaded(backbone)
    with stopwatch() as spent:
        if key.get("probe"):
            found = fit_probe(backbone, pictures)
        else:
            found = fine_tune(backbone, pictures, FineTuneSettings(learning_rate=key["rate"], epochs=key["epochs"]))
    proba = found.predict_proba(new, flip=True)
    truth = np.eye(len(found.classes))[np.searchsorted(found.classes, data.test_labels)]
    error = float(np.square(proba.numpy() - truth).sum(1).mean())
    return {"pictures": len(pictures), **spent, **scores(proba, found.classes, new), "error": error}


def measure(key: Row) -> Row:
    """One fit, in a process of its own."""
    printed, highest = watched([sys.executable, "-m", "benchmarks.scale.run", "--scratch", "--child", json.dumps(key)])
    return json.loads(printed) | {"seen_bytes": highest}


def main() -> None:
    """All fits, one after the other; docs/results/scale.json."""
    parser = study_parser(__doc__)
    parser.add_argument("--child", metavar="KEY", help="only this fit, and print what it took")
    parts = {"choices": CHOICES, "costs": COSTS, "landmarks": LANDMARKS, "directions": DIRECTIONS, "whole": WHOLE}
    parts |= {"probes": PROBES, "moved": MOVED, "tuned_part": [PART | {"epochs": 15, "rate": rate} for rate in RATES]}
    parser.add_argument("--only", choices=[*parts, "tuned"], help="this part of it alone")
    given = begin(parser)
    if given.child:
        print(json.dumps(child(json.loads(given.child))))
        return
    for name, keys in parts.items():
        if given.only in (None, name):
            fill(NAME, keys, measure, name)
    if given.only in (None, "tuned"):
        fine_tune_all()


def fine_tune_all() -> None:
    """All pictures by ordinary fine-tuning: an epoch at each rate, then more at the best."""
    fill(NAME, [ALL | {"epochs": EPOCHS[0], "rate": rate} for rate in RATES], measure, "tuned")
    once = [row for row in load(NAME)["tuned"] if row["key"]["epochs"] == EPOCHS[0]]
    best = max(once, key=lambda row: row["accuracy"])["key"]["rate"]
    fill(NAME, [ALL | {"epochs": epochs, "rate": best} for epochs in EPOCHS[1:]], measure, "tuned")


if __name__ == "__main__":
    main()
