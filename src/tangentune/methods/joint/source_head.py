"""The source head before the first step."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from tangentune.errors import InputError
from tangentune.methods.fine_tuning.labelled import Labelled
from tangentune.methods.fine_tuning.preparation import start_head
from tangentune.methods.fine_tuning.settings import FineTuneSettings, HeadStart
from tangentune.methods.joint.source_stream import other_seed
from tangentune.networks.backbone import Backbone
from tangentune.pictures.pictures import Pictures

PROBE_LIMIT = 2000
"""Source pictures that a warm start takes its ridge regression from: it costs the square of their number."""


def start_source_head(
    tuned: Backbone,
    pictures: Pictures,
    positions: NDArray[np.int64],
    start: HeadStart,
    settings: FineTuneSettings,
) -> nn.Linear:
    """A head for source pictures with positions 0..S-1 among their classes (-1: left out), as `start_head` makes it.

    It is made from at most `PROBE_LIMIT` pictures that hold every class.
    """
    seed = other_seed(settings.seed)
    counting = np.flatnonzero(positions >= 0)
    rows = counting[spread_rows(positions[counting], PROBE_LIMIT, seed)]
    device = next(tuned.module.parameters()).device
    data = Labelled(pictures.select(rows), torch.from_numpy(positions[rows]).to(device))
    return start_head(tuned, data, start, settings.flip, seed)


def checked_head(given: Any, like: nn.Linear, classes: int) -> nn.Linear:
    """A trainable copy of a given head, on the device and in the type of another on the same features.

    Raises:
        InputError: it is no linear layer, or has another number of features or classes.
    """
    if not isinstance(given, nn.Linear):
        message = f"source_head is a {type(given).__name__}; give a torch.nn.Linear, such as pretrained_head makes"
        raise InputError(message)
    if (given.out_features, given.in_features) != (classes, like.in_features):
        message = (
            f"source_head gives {given.out_features} classes from {given.in_features} features, but the source has "
            f"{classes} classes and the backbone {like.in_features} features; choose its rows with pretrained_head"
        )
        raise InputError(message)
    return copy.deepcopy(given).to(like.weight).requires_grad_(True)


def spread_rows(positions: NDArray[np.int64], limit: int, seed: int) -> NDArray[np.int64]:
    """At most `limit` rows (more if there are more classes), ascending, of every class as alike as there are.

    Example:
        >>> np.bincount(np.array([0] * 90 + [1] * 7 + [2] * 3)[spread_rows(np.repeat([0, 1, 2], [90, 7, 3]), 12, 0)])
        array([5, 4, 3])
    """
    order = np.random.default_rng(seed).permutation(len(positions))
    by_class = order[np.argsort(positions[order], kind="stable")]
    starts = np.searchsorted(positions[by_class], positions[by_class])
    rank = np.arange(len(by_class)) - starts  # how many of its class come before
    limit = max(limit, int(positions.max()) + 1)
    return np.sort(by_class[np.argsort(rank, kind="stable")[:limit]])
