"""What the study of pre-training pictures compares: targets with pools, rankings of pictures, two ways to learn.

The pool of every target is 1,000 training pictures of CIFAR-10, none of them a picture of the target, and 1,000 of
Fashion-MNIST, all at the size of the network, 64 px. They are ranked by the cosines of their features with the class
means of the target. With the paper's settings, transport is solved between the class means of the pool and those of the
target, and its potentials score each picture.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, final

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageFilter
from torch import Tensor
from torch.nn.functional import normalize

from benchmarks.datasets import CIFAR10_NAMES, cifar10, fashion_mnist, few_shot, for_network, held_out, traffic_lights
from benchmarks.record import Row
from benchmarks.source_study.page import ALL, DISTRACTOR, EVEN, FREE, HALF, NEAREST, PAPER, PAPER_FINE, RANDOM, UOT
from benchmarks.study import labels_of, mean_features, scores, stopwatch
from tangentune import Backbone, Pictures, TangentClassifier, baselines, joint, transport

SIZE, SHOTS, TEST, BLUR = 64, 10, 1000, 0.6  # BLUR: radius in pixels of 32
TARGET_SHARE = 10_000  # of a shuffle of CIFAR-10's training pictures; targets are drawn from these, pools from the rest
RELATIVES = {"dog": "cat", "horse": "deer", "automobile": "truck", "airplane": "ship"}  # source class: target class


@final
@dataclass(frozen=True, eq=False)
class SourceTask:
    """One target with its pool."""

    target: Pictures  # labelled with names, 10 a class
    test: Pictures  # labelled; nothing is chosen by them
    pool: Pictures  # labels are names of source classes, ids tell the data set and the position in it
    right: dict[str, str]  # of source classes, the target class that shows the same or the most alike thing


def task(name: str, seed: int, backbone: Backbone) -> SourceTask:
    """The pictures of one draw of a target: "grey", "other classes" or "traffic".

    Grey: all ten classes of CIFAR-10, grey and blurred; the pool has other pictures of them, in colour and sharp. Other
    classes: cat, deer, truck and ship; the pool has only the other six classes, four of them relatives. Traffic: red,
    yellow and green lights; nothing in the pool is like them.
    """
    data = cifar10()
    order = np.random.default_rng(seed).permutation(len(data.train))
    own, rest = order[:TARGET_SHARE], order[TARGET_SHARE:]
    if name == "traffic":
        train, test = traffic_lights("train"), traffic_lights("test")
        target = train.loaded(backbone, few_shot(train.labels, SHOTS, seed), names=True)
        return SourceTask(target, test.loaded(backbone, names=True), pool(rest[:HALF], seed, backbone), {})
    tested = held_out(len(data.test), len(data.test))
    if name == "grey":
        changed, right = grey_blurred, {name: name for name in CIFAR10_NAMES}
    else:
        changed, right = np.asarray, RELATIVES
        wanted = [CIFAR10_NAMES.index(name) for name in RELATIVES.values()]
        own, rest = own[np.isin(data.train_labels[own], wanted)], rest[~np.isin(data.train_labels[rest], wanted)]
        tested = tested[np.isin(data.test_labels[tested], wanted)]
    shown, tested = own[few_shot(data.train_labels[own], SHOTS, seed)], tested[:TEST]
    seen = data.some(shown, tested)
    target, test = replace(seen, train=changed(seen.train), test=changed(seen.test)).loaded(backbone, names=True)
    return SourceTask(target, test, pool(rest[:HALF], seed, backbone), right)


def pool(chosen: NDArray[np.int64], seed: int, backbone: Backbone) -> Pictures:
    """These training pictures of CIFAR-10 and as many random ones of Fashion-MNIST."""
    data, other = cifar10(), fashion_mnist()
    clothes = np.random.default_rng(seed).permutation(len(other.train))[: len(chosen)]
    parts = (
        for_network(data.train[chosen], data.train_labels[chosen], backbone, CIFAR10_NAMES),
        for_network(other.train[clothes], other.train_labels[clothes], backbone, [DISTRACTOR + n for n in other.names]),
    )
    ids = [f"cifar10/{i}" for i in chosen] + [f"fashion_mnist/{i}" for i in clothes]
    labels = np.concatenate([labels_of(part) for part in parts])
    return Pictures(torch.cat([part.pixels for part in parts]), labels, ids)


def grey_blurred(pictures: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """(n, H, W, 3) without colour and fine detail."""
    out = np.empty_like(pictures)
    for row, picture in zip(out, pictures, strict=True):
        soft = Image.fromarray(picture).convert("L").filter(ImageFilter.GaussianBlur(BLUR))
        row[...] = np.asarray(soft)[:, :, None]
    return out


def distractors(pictures: Pictures) -> NDArray[np.bool_]:
    """Which pictures of a pool, or of a choice from it, are of Fashion-MNIST."""
    return np.array([str(label).startswith(DISTRACTOR) for label in labels_of(pictures)], dtype=bool)


# The best of two rates, two starts of the target head and two weights of the source on pictures that no figure is from:
# grey and other classes, another draw, other test pictures.
ALONE = baselines.FineTuneSettings(learning_rate=1e-4, batch_size=16, head_start="probe")
TOGETHER = baselines.FineTuneSettings(learning_rate=3e-4, batch_size=16, head_start="zero")
STEPS = 100  # about so many, whatever the size of the target
SINGLE: dict[str, Any] = {"granularity": "pictures", "quota": 0, "tau_target": 100.0}
RANKINGS: dict[str, dict[str, Any]] = {  # as `select_source` takes them
    RANDOM: {"method": "random"},
    NEAREST: {"method": "nearest"},
    PAPER: SINGLE | {"cost_scale": 0.1},
    PAPER_FINE: SINGLE | {"cost_scale": 0.05},
    UOT: {},
    FREE: {"quota": 0},
    EVEN: {},
    ALL: {"method": "all"},
}


@final
@dataclass(frozen=True, eq=False)
class Drawn:
    """One draw of a target: its pictures, and the features (n, d) of pool and target as the network gives them."""

    task: SourceTask
    pool: Tensor
    target: Tensor


def drawn(task: SourceTask, backbone: Backbone) -> Drawn:
    """With the features."""
    return Drawn(task, *(mean_features(backbone, part, flip=False) for part in (task.pool, task.target)))


def chosen(own: Drawn, ranking: str, budget: int, seed: int, centred: bool = True) -> transport.SelectedPictures:
    """The best pictures of the pool by a ranking, or all, with their weights and shares."""
    pool, target, ours = own.pool, own.target, ranking in (UOT, FREE, EVEN)
    if centred and not ours:  # the library's centre, a midpoint, is for its own ranking; rivals lose the pool's mean
        pool, target = normalize(pool.double()), normalize(target.double())
        pool, target = pool - pool.mean(0), target - pool.mean(0)
    settings = RANKINGS[ranking] | {"seed": seed, "centre": centred and ours}
    settings |= {"target_labels": labels_of(own.task.target), "source_labels": labels_of(own.task.pool)}
    made = transport.select_source(target, pool, None, budget=None if ranking == ALL else budget, **settings).manifest
    weights = np.ones(len(made.ids)) if ranking == EVEN else made.weights
    pictures = own.task.pool.select(np.array(made.ids, dtype=int))
    return transport.SelectedPictures(pictures, weights, made.shares, tuple(made.target["classes"]))


def facts(right: dict[str, str], found: transport.SelectedPictures) -> dict[str, float | None]:
    """Of a choice: distractors by number and weight, pictures that serve the right target class, effective number."""
    wrong, best = distractors(found.pictures), np.array(found.targets)[found.shares.argmax(1)]
    served = [right.get(str(label)) == name for label, name in zip(labels_of(found.pictures), best, strict=True)]
    return {
        "distractors": float(wrong.mean()),
        "distractor_mass": float(found.weights[wrong].sum() / found.weights.sum()),
        "right": float(np.mean(served)) if right else None,
        "effective": float(found.weights.sum() ** 2 / np.square(found.weights).sum()),
    }


def joint_training(task: SourceTask, backbone: Backbone, source: transport.SelectedPictures | None, seed: int) -> Row:
    """Two heads on one network; without source ordinary fine-tuning."""
    epochs = round(STEPS / math.ceil(len(task.target) / ALONE.batch_size))
    if source is None:
        tuned = baselines.fine_tune(backbone, task.target, replace(ALONE, seed=seed, epochs=epochs))
    else:
        tuning = replace(TOGETHER, seed=seed, epochs=epochs)
        settings = joint.JointSettings(tuning, source_weight=1.0)
        tuned = joint.joint_fine_tune(backbone, task.target, source.pictures, settings, source_weights=source.weights)
    told = scores(tuned.predict_proba(task.test), tuned.classes, task.test)
    return {**told, "cpu_seconds": round(tuned.cpu_seconds, 2), "epochs": epochs}


def closed_form(task: SourceTask, backbone: Backbone, source: transport.SelectedPictures | None, _: int) -> Row:
    """Source pictures as weighted rows of the least-squares problem, their weight by leave-one-out of the target's."""
    with stopwatch() as spent:
        fitted = TangentClassifier(backbone, augment="flip", outer_steps=0).fit(task.target, source=source)
    proba = torch.from_numpy(np.asarray(fitted.predict_proba(task.test)))
    values = {**scores(proba, fitted.classes_, task.test), "cpu_seconds": round(spent["cpu_seconds"], 2)}
    told = fitted.source_
    if source is None or told is None:
        return values
    shares = {own["class"]: own["weight"] for own in told["classes"]}
    wrong = sum(share for name, share in shares.items() if name.startswith(DISTRACTOR))
    return {
        **values,
        **{name: told[name] for name in ("strength", "deviation", "loo_error_without", "loo_error", "standard_error")},
        "distractor_mass": wrong if told["strength"] > 0 else 0.0,
        "distractors": float(distractors(source.pictures).mean()),
        "source_classes": sum(share > 0 for share in shares.values()),
    }
