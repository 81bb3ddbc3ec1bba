"""Targets and pools of the study of pre-training pictures: shifted few-shot targets, a pool that is half distractors.

The pool of every target is 1,000 training pictures of CIFAR-10, none of them a picture of the target, and 1,000 of
Fashion-MNIST. Everything is prepared at the size of the network, 64 px.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import final

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from benchmarks.datasets import CIFAR10_NAMES, cifar10, fashion_mnist, few_shot, held_out, traffic_lights
from benchmarks.source_study.page import DISTRACTOR, HALF
from benchmarks.study import labels_of
from tangentune import Backbone, Pictures, load_pictures

SIZE, SHOTS, TEST, BLUR = 64, 10, 1000, 0.6  # BLUR: radius in pixels of 32
TARGET_SHARE = 10_000  # of a shuffle of CIFAR-10's training pictures; targets are drawn from these, pools from the rest
RELATIVES = {"dog": "cat", "horse": "deer", "automobile": "truck", "airplane": "ship"}  # source class: target class


@final
@dataclass(frozen=True, eq=False)
class SourceTask:
    """One target with its pool.

    Attributes:
        target: labelled pictures, 10 a class; labels are names.
        test: labelled pictures that nothing is chosen by.
        pool: source pictures; labels are names of source classes, ids tell the data set and the position in it.
        right: for each source class that has one, the target class that shows the same or the most alike thing.
    """

    target: Pictures
    test: Pictures
    pool: Pictures
    right: dict[str, str]


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
        shown = few_shot(train.labels, SHOTS, seed)
        target = named([train.paths[i] for i in shown], train.labels[shown], train.names, backbone)
        kept = named(list(test.paths), test.labels, test.names, backbone)
        return SourceTask(target, kept, pool(rest[:HALF], seed, backbone), {})
    tested = held_out(len(data.test), len(data.test))
    if name == "grey":
        changed, right = grey_blurred, {name: name for name in CIFAR10_NAMES}
    else:
        changed, right = np.asarray, RELATIVES
        wanted = [CIFAR10_NAMES.index(name) for name in RELATIVES.values()]
        own, rest = own[np.isin(data.train_labels[own], wanted)], rest[~np.isin(data.train_labels[rest], wanted)]
        tested = tested[np.isin(data.test_labels[tested], wanted)]
    shown, tested = own[few_shot(data.train_labels[own], SHOTS, seed)], tested[:TEST]
    target = named(changed(data.train[shown]), data.train_labels[shown], CIFAR10_NAMES, backbone)
    test = named(changed(data.test[tested]), data.test_labels[tested], CIFAR10_NAMES, backbone)
    return SourceTask(target, test, pool(rest[:HALF], seed, backbone), right)


def pool(chosen: NDArray[np.int64], seed: int, backbone: Backbone) -> Pictures:
    """These training pictures of CIFAR-10 and as many random ones of Fashion-MNIST."""
    data, other = cifar10(), fashion_mnist()
    clothes = np.random.default_rng(seed).permutation(len(other.train))[: len(chosen)]
    parts = (
        named(data.train[chosen], data.train_labels[chosen], CIFAR10_NAMES, backbone),
        named(other.train[clothes], other.train_labels[clothes], [DISTRACTOR + n for n in other.names], backbone),
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


def named(
    pictures: NDArray[np.uint8] | list[Path], labels: NDArray[np.int64], names: Sequence[str], backbone: Backbone
) -> Pictures:
    """Pictures whose labels are names."""
    return load_pictures(pictures, np.array(names)[labels], contract=backbone.contract)


def distractors(pictures: Pictures) -> NDArray[np.bool_]:
    """Which pictures of a pool, or of a choice from it, are of Fashion-MNIST."""
    return np.array([str(label).startswith(DISTRACTOR) for label in labels_of(pictures)], dtype=bool)
