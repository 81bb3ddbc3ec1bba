"""Pictures with labels flipped at random, and how well a ranking finds them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.metrics import roc_auc_score

from benchmarks.datasets import cifar10, few_shot, traffic_lights
from tangentune import Backbone, Pictures, load_pictures

SHARES = tuple(round(0.01 * k, 2) for k in range(51))


@dataclass(frozen=True, eq=False)
class Noisy:
    """Pictures that carry the given labels, and the true ones."""

    pictures: Pictures
    true: NDArray[np.int64]

    @property
    def given(self) -> NDArray[np.int64]:
        """(n,) labels, some of them wrong."""
        return np.asarray(self.pictures.labels)

    @property
    def wrong(self) -> NDArray[np.bool_]:
        """(n,) which were flipped."""
        return self.given != self.true


def flipped(labels: ArrayLike, share: float, seed: int) -> NDArray[np.int64]:
    """Labels with exactly this share moved to another class, each other class being as likely.

    Example:
        >>> (flipped([0] * 10 + [1] * 10, 0.2, seed=0) != [0] * 10 + [1] * 10).sum()
        np.int64(4)
    """
    given, rng = np.array(labels, dtype=np.int64), np.random.default_rng(1000 + seed)
    classes = int(given.max()) + 1
    rows = rng.permutation(len(given))[: round(share * len(given))]
    given[rows] = (given[rows] + rng.integers(1, classes, len(rows))) % classes
    return given


def noisy_traffic_lights(backbone: Backbone, share: float, seed: int) -> Noisy:
    """1,000 random pictures of the train split, about 30 of them of the rarest class."""
    data = traffic_lights()
    rows = np.random.default_rng(seed).permutation(len(data.labels))[:1000]
    pictures = load_pictures([data.paths[row] for row in rows], data.labels[rows], contract=backbone.contract)
    return _noisy(pictures, data.labels[rows], share, seed)


def noisy_cifar10(backbone: Backbone, share: float, seed: int) -> Noisy:
    """100 pictures a class."""
    data = cifar10()
    rows = few_shot(data.train_labels, 100, seed)
    pictures = load_pictures(data.train[rows], data.train_labels[rows], contract=backbone.contract)
    return _noisy(pictures, data.train_labels[rows], share, seed)


def detection(scores: ArrayLike, wrong: NDArray[np.bool_]) -> dict[str, Any]:
    """AUROC, and the share of wrong labels among the most suspicious 0, 1, ... 50 %; larger scores come first.

    Equal scores are taken in the order of the pictures.

    Example:
        >>> out = detection([0.9, 0.1, 0.2, 0.3, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0], np.arange(10) < 2)
        >>> out["auroc"], out["recall"][10], out["recall"][40]
        (0.875, 0.5, 1.0)
    """
    scores = np.asarray(scores, dtype=np.float64)
    order = np.argsort(-scores, kind="stable")
    found = np.concatenate([[0.0], wrong[order].cumsum() / wrong.sum()])
    recall = [float(found[round(share * len(scores))]) for share in SHARES]
    return {"auroc": float(roc_auc_score(wrong, scores)), "recall": recall}


def _noisy(pictures: Pictures, true: NDArray[np.int64], share: float, seed: int) -> Noisy:
    return Noisy(replace(pictures, labels=flipped(true, share, seed)), true)
