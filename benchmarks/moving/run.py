"""How far to move, and what the default makes of it: against swept fine-tuning on seven sets of real pictures.

    python -m benchmarks.moving.run grid      # every rung on draws 100, 101, ...: honesty, regret, and the choice
    python -m benchmarks.moving.run table     # the default against fine-tuning on draws 0 to 4
    python -m benchmarks.moving.run costs     # seconds of both, by pictures a class, one thread, nothing beside it

Measures what docs/results/moving.json lacks, then writes the page. It may be stopped and started again at any time.
With `--device cuda --jobs 14` it shares a GPU among so many processes: its seconds are then of no use, its scores are.
"""

from __future__ import annotations

import argparse
import multiprocessing
import time
from collections.abc import Iterable, Iterator
from functools import cache, partial
from itertools import product
from unittest.mock import patch

import numpy as np
import torch
from torch.nn import functional as F

from benchmarks import datasets, record
from benchmarks.moving.page import (
    COSTS,
    FURTHER,
    GRID_SEEDS,
    NAME,
    NETWORKS,
    RUNGS,
    SETS,
    SHOTS,
    SIZE,
    TABLE_SEEDS,
    publish,
)
from benchmarks.picture_sets.sets import drawn
from benchmarks.record import Row
from benchmarks.study import begin, labels_of, quietly, stopwatch, study_parser
from tangentune import Backbone, Pictures, TangentClassifier, load_backbone
from tangentune.comparison.methods import METHODS, MethodSettings
from tangentune.estimators import outer_steps, tasks
from tangentune.estimators.first_look import held_out_errors, probe_errors
from tangentune.estimators.outer_steps import Expansion, Rung
from tangentune.estimators.summary import class_scores

TEST, UNMIRRORED = 1000, ("digits", "letters")


def main() -> None:
    """Measure what is missing of one part, then write the page."""
    parser = study_parser(__doc__)
    parser.add_argument("part", choices=("grid", "table", "costs"))
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--jobs", type=int, default=1, help="processes that share the work")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="after which nothing new is begun")
    parser.add_argument("--sets", default=",".join(SETS), help="names, with commas between")
    given = begin(parser)
    wanted = [key for key in keys(given.part, given.sets.split(",")) if not record.done(NAME, key, given.part)]
    for key, values in measured(given, wanted):
        record.append(NAME, key, values, given.part)
        short = {name: round(value, 4) for name, value in values.items() if isinstance(value, float)}
        print(key, short or values.get("failed", ""), flush=True)
    publish()


def keys(part: str, sets: Iterable[str]) -> Iterator[Row]:
    """Every cell, draw after draw, so that an early stop hurts all alike; what takes longest first."""
    if part == "costs":
        for shots, method in product(COSTS, ("default", "finetune")):
            yield {"set": "cifar10", "network": "mobilenet_v2", "shots": shots, "seed": 0, "method": method}
        return
    seeds = GRID_SEEDS if part == "grid" else TABLE_SEEDS
    for seed, shots, network, name in product(seeds, sorted(SHOTS, reverse=True), NETWORKS, sets):
        key = {"set": name, "network": network, "shots": shots, "seed": seed}
        if part == "table":
            yield from ({**key, "method": method} for method in ("finetune", "default"))
        elif network == NETWORKS[0]:
            yield key
    if part == "table":
        for seed, method in product(TABLE_SEEDS[:1], ("default", "finetune")):
            yield {"set": "cifar10", "network": NETWORKS[0], "shots": FURTHER, "seed": seed, "method": method}


def measured(given: argparse.Namespace, wanted: list[Row]) -> Iterator[tuple[Row, Row]]:
    """Cells with their rows, as they come; here, or by processes that share the device."""
    work, began = partial(cell, part=given.part, device=given.device), time.monotonic()
    if given.jobs == 1:
        for key in wanted:
            if time.monotonic() - began < given.seconds:
                yield key, work(key)
        return
    with multiprocessing.get_context("spawn").Pool(given.jobs, torch.set_num_threads, (1,)) as pool:
        waiting = [(key, pool.apply_async(work, (key,))) for key in wanted]
        while waiting and (left := given.seconds - (time.monotonic() - began)) > 0:
            ready = [pair for pair in waiting if pair[1].ready()]
            waiting = [pair for pair in waiting if pair not in ready]
            for key, found in ready:
                yield key, found.get()
            time.sleep(min(0.1, left))
        pool.terminate()


def cell(key: Row, part: str, device: str) -> Row:
    """One cell; a failure is its result, since hours of others must not be lost by it."""
    try:
        return grid(key, device) if part == "grid" else contest(key, device)
    except Exception as error:
        return {"failed": f"{type(error).__name__}: {error}"[:300]}


@cache
def network(name: str, device: str) -> Backbone:
    """A network at the size of the study, on a device."""
    return load_backbone(name).with_size(SIZE).to(device)


@cache
def draw(name: str, shots: int, seed: int, network_name: str) -> tuple[Pictures, Pictures]:
    """Training and test pictures of a cell."""
    backbone = network(network_name, "cpu")
    if name == "cifar10" or name == "fashion_mnist":
        data = datasets.cifar10() if name == "cifar10" else datasets.fashion_mnist()
        kept = datasets.held_out(len(data.test), TEST, start=2000 if seed in GRID_SEEDS else 0)
        data = data.some(datasets.few_shot(data.train_labels, shots, seed), kept)
    else:
        data = drawn(name, shots, seed, TEST)
    return data.loaded(backbone, names=True)


def contest(key: Row, device: str) -> Row:
    """The default, or fine-tuning, on one draw."""
    train, test = draw(key["set"], key["shots"], key["seed"], key["network"])
    backbone, chosen = network(key["network"], device), {}
    with quietly(), stopwatch() as spent:
        if key["method"] == "default":
            model = TangentClassifier(backbone, random_state=key["seed"]).fit(train)
            classes, predict = model.classes_, model.predict_proba
            chosen = {"outer_steps": model.outer_steps_, "outer_rate": model.outer_rate_, "loo": model.loo_score_}
        else:
            settings = MethodSettings(seed=key["seed"], flip=key["set"] not in UNMIRRORED)
            fitted = METHODS["finetune"].fit(backbone, train, settings)
            classes, predict, chosen = fitted.classes, fitted.predict_proba, fitted.chosen
    truth = np.searchsorted(classes, labels_of(test))
    proba = np.asarray(predict(test), np.float32)
    return class_scores(truth, proba) | {"n": len(train), "tests": len(test), **spent, "chosen": chosen}


def grid(key: Row, device: str) -> Row:
    """Every rung on one draw: the cheap looks that a choice could rest on, leave-one-out of the fit, and the test."""
    train, test = draw(key["set"], key["shots"], key["seed"], key["network"])
    backbone = network(key["network"], device)
    with quietly():
        still = TangentClassifier(backbone, outer_steps=0, random_state=key["seed"]).fit(train)
    mirrored = still.augment_ == "flip"
    mover = outer_steps._Mover.of(backbone, train, mirrored, key["seed"], 0)
    targets, unseen = outer_steps._targets(train).to(backbone.device), torch.from_numpy(mover.fold == 0)
    features = mover.features_of(backbone.module)
    errors, first = probe_errors(features, targets), held_out_errors(features, targets, unseen)
    found = [facts(still, train, test) | looks(0, 0.0, errors, errors, first, first, 0.0)]
    for steps, rate in RUNGS[key["shots"]]:
        with stopwatch() as spent:
            made = mover.expansion(Rung(steps, rate, 0), list(mover.networks(Rung(steps, rate, 0))))
        own = held_out_errors(mover.features_of(made.points[0]), targets, unseen)
        honest = probe_errors(mover.honest_features(made), targets)
        seen = looks(steps, rate, honest, errors, own, first, made.spread)
        found.append(facts(moved(backbone, train, made, key["seed"], mirrored), train, test) | seen | spent)
    return {"n": len(train), "tests": len(test), "mirrored": mirrored, "rungs": found}


def moved(backbone: Backbone, train: Pictures, made: Expansion, seed: int, mirrored: bool) -> TangentClassifier:
    """The fit at networks that were moved already."""
    model = TangentClassifier(backbone, outer_steps=made.steps, augment="flip" if mirrored else None, random_state=seed)
    with quietly(), patch.object(tasks, "cross_fitted_expansion", lambda *_, **__: made):
        return model.fit(train)


def looks(
    steps: int, rate: float, honest: torch.Tensor, before: torch.Tensor, own: torch.Tensor, first: torch.Tensor,
    spread: float,
) -> Row:  # fmt: skip
    """Leave-one-out of the probe on all folds and held-out error on the first, with errors of the gain over staying."""
    gains = {"probe": before - honest, "first": first - own}
    doubts = {f"{name}_doubt": float(gain.std()) / len(gain) ** 0.5 for name, gain in gains.items()}
    return {
        "steps": steps,
        "rate": rate,
        "probe": float(honest.mean()),
        "first": float(own.mean()),
        "spread": spread,
    } | doubts


def facts(model: TangentClassifier, train: Pictures, test: Pictures) -> Row:
    """Leave-one-out and test of a fit: squared error, accuracy, log-loss."""
    out: Row = {}
    for name, pictures, raw, proba in (
        ("loo", train, model.loo_predictions_, model.loo_proba_),
        ("test", test, model.decision_function(test), model.predict_proba(test)),
    ):
        truth = np.searchsorted(model.classes_, labels_of(pictures))
        raw = np.stack([(1 - raw) / 2, (1 + raw) / 2], 1) if raw.ndim == 1 else raw
        hot = F.one_hot(torch.from_numpy(truth), len(model.classes_)).numpy()
        out |= {f"{name}_{score}": value for score, value in class_scores(truth, np.asarray(proba)).items()}
        out[f"{name}_square"] = float(np.square(hot - raw).sum(1).mean())
    return out


if __name__ == "__main__":
    main()
