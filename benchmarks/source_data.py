"""Targets and pools of the study of pre-training pictures: shifted few-shot targets, a pool that is half distractors.

The pool of every target is 1,000 training pictures of CIFAR-10, none of them a picture of the target, and 1,000 of
Fashion-MNIST. Everything is prepared at the size of the network, 64 px.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import final

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from benchmarks.datasets import CIFAR10_NAMES, cifar10, fashion_mnist, few_shot, held_out, traffic_lights
from tangentune.networks.backbone import Backbone, load_backbone
from tangentune.pictures.load import Pictures, load_pictures

BACKBONE, SIZE = "mobilenet_v2", 64
SHOTS, HALF, TEST, BLUR = 10, 1000, 1000, 0.6  # BLUR: radius in pixels of 32
TARGET_SHARE = 10_000  # of a shuffle of CIFAR-10's training pictures; targets are drawn from these, pools from the rest
DISTRACTOR = "clothing: "  # how the labels of Fashion-MNIST begin in a pool
RELATIVES = {"dog": "cat", "horse": "deer", "automobile": "truck", "airplane": "ship"}  # source class: target class
TARGETS = ("grey", "other classes", "traffic")


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

    @property
    def distractor(self) -> NDArray[np.bool_]:
        """(n,) which pictures of the pool are distractors."""
        return distractors(self.pool)


def distractors(pictures: Pictures) -> NDArray[np.bool_]:
    """Which pictures of a pool, or of a choice from it, are of Fashion-MNIST."""
    assert pictures.labels is not None
    return np.array([str(label).startswith(DISTRACTOR) for label in pictures.labels], dtype=bool)


def network() -> Backbone:
    """The network of all methods, at the study's picture size."""
    return load_backbone(BACKBONE).with_size(SIZE)


def task(name: str, seed: int, backbone: Backbone, start: int = 0) -> SourceTask:
    """The pictures of one draw.

    Args:
        name: one of `TARGETS`.
        seed: of the draw.
        backbone: whose contract the pictures are prepared for.
        start: where the test pictures begin in the shuffled test set; figures come from 0, choices of settings from
            elsewhere (traffic lights have one test set only, and no settings are chosen by them).
    """
    return TASKS[name](seed, backbone, start)


def grey(seed: int, backbone: Backbone, start: int) -> SourceTask:
    """All ten classes of CIFAR-10, grey and blurred; the pool has other pictures of them, in colour and sharp."""
    data = cifar10()
    shown, rest = target_rows(seed), _parts(seed)[1]
    kept = held_out(len(data.test), TEST, start)
    return SourceTask(
        _named(grey_blurred(data.train[shown]), data.train_labels[shown], CIFAR10_NAMES, backbone),
        _named(grey_blurred(data.test[kept]), data.test_labels[kept], CIFAR10_NAMES, backbone),
        pool(rest[:HALF], seed, backbone),
        {name: name for name in CIFAR10_NAMES},
    )


def target_rows(seed: int) -> NDArray[np.int64]:
    """Positions of the grey target's pictures among CIFAR-10's training pictures."""
    own = _parts(seed)[0]
    return own[few_shot(cifar10().train_labels[own], SHOTS, seed)]


def other_classes(seed: int, backbone: Backbone, start: int) -> SourceTask:
    """Cat, deer, truck and ship; the pool has only the other six classes, four of them relatives."""
    data = cifar10()
    own, rest = _parts(seed)
    wanted = np.array([CIFAR10_NAMES.index(name) for name in RELATIVES.values()])
    own = own[np.isin(data.train_labels[own], wanted)]
    shown = own[few_shot(data.train_labels[own], SHOTS, seed)]
    shuffled = held_out(len(data.test), len(data.test))
    kept = shuffled[np.isin(data.test_labels[shuffled], wanted)][start : start + TEST]
    others = rest[~np.isin(data.train_labels[rest], wanted)]
    return SourceTask(
        _named(data.train[shown], data.train_labels[shown], CIFAR10_NAMES, backbone),
        _named(data.test[kept], data.test_labels[kept], CIFAR10_NAMES, backbone),
        pool(others[:HALF], seed, backbone),
        RELATIVES,
    )


def traffic(seed: int, backbone: Backbone, start: int) -> SourceTask:
    """Red, yellow and green traffic lights; nothing in the pool is like them."""
    if start:
        message = "the traffic lights have one test set; no settings are chosen by it"
        raise ValueError(message)
    train, test = traffic_lights("train"), traffic_lights("test")
    shown = few_shot(train.labels, SHOTS, seed)
    return SourceTask(
        _named([train.paths[i] for i in shown], train.labels[shown], train.names, backbone),
        _named(list(test.paths), test.labels, test.names, backbone),
        pool(_parts(seed)[1][:HALF], seed, backbone),
        {},
    )


def pool(chosen: NDArray[np.int64], seed: int, backbone: Backbone) -> Pictures:
    """These training pictures of CIFAR-10 and as many random ones of Fashion-MNIST."""
    data, other = cifar10(), fashion_mnist()
    clothes = np.random.default_rng(seed).permutation(len(other.train))[: len(chosen)]
    parts = (
        _named(data.train[chosen], data.train_labels[chosen], CIFAR10_NAMES, backbone),
        _named(other.train[clothes], other.train_labels[clothes], [DISTRACTOR + n for n in other.names], backbone),
    )
    ids = [f"cifar10/{i}" for i in chosen] + [f"fashion_mnist/{i}" for i in clothes]
    return joined(parts, ids)


def joined(parts: Sequence[Pictures], ids: list[str]) -> Pictures:
    """Labelled pictures one after the other."""
    labels = [part.labels for part in parts if part.labels is not None]
    return Pictures(torch.cat([part.pixels for part in parts]), np.concatenate(labels), ids)


def grey_blurred(pictures: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """(n, H, W, 3) without colour and fine detail."""
    out = np.empty_like(pictures)
    for row, picture in zip(out, pictures, strict=True):
        soft = Image.fromarray(picture).convert("L").filter(ImageFilter.GaussianBlur(BLUR))
        row[...] = np.asarray(soft)[:, :, None]
    return out


def _parts(seed: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Positions of CIFAR-10's training pictures that targets, and that pools, are drawn from."""
    order = np.random.default_rng(seed).permutation(len(cifar10().train))
    return order[:TARGET_SHARE], order[TARGET_SHARE:]


def _named(
    pictures: NDArray[np.uint8] | list[Path], labels: NDArray[np.int64], names: Sequence[str], backbone: Backbone
) -> Pictures:
    return load_pictures(pictures, np.array(names)[labels], contract=backbone.contract)


TASKS: dict[str, Callable[[int, Backbone, int], SourceTask]] = {
    "grey": grey,
    "other classes": other_classes,
    "traffic": traffic,
}
