"""Labelled pictures as a network and a loss take them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tangentune.errors import InputError
from tangentune.memory import in_halves
from tangentune.methods.fine_tuning.augment import random_views
from tangentune.methods.fine_tuning.settings import FineTuneSettings
from tangentune.networks.backbone import Backbone
from tangentune.pictures.checks import one_class_each
from tangentune.pictures.pictures import Pictures, normalise

HEAD_PICTURES = 4000  # that a probe to start from is fitted to; more cost a forward pass each and hardly better it


@final
@dataclass(frozen=True, eq=False)
class LabelledPictures:
    """Pictures with their classes as positions (n,), on the network's device."""

    pictures: Pictures
    positions: Tensor


def class_positions(pictures: Pictures) -> tuple[NDArray[Any], NDArray[np.int64]]:
    """Sorted classes (C,) and every picture's position among them (n,)."""
    return label_positions(pictures.labels, "fine-tuning")


def label_positions(labels: NDArray[Any] | None, what: str) -> tuple[NDArray[Any], NDArray[np.int64]]:
    """Sorted classes (C,) and the position of each label among them (n,); `what` begins the messages."""
    labels = None if labels is None else one_class_each(labels)
    if labels is None or labels.dtype.kind == "f":
        raise InputError(f"{what} needs one class label per picture; give labels= or class folders")
    classes, positions = np.unique(labels, return_inverse=True)
    if len(classes) < 2:
        raise InputError(f"{what} needs pictures of two classes at least; these have {classes.tolist()}")
    return classes, positions


def spread_over(count: int, most: int) -> NDArray[np.int64]:
    """Places of at most so many pictures, evenly over all: sets are often sorted by class."""
    return np.unique(np.linspace(0, count - 1, most).round().astype(np.int64))


def some_of_each(classes: NDArray[np.int64], most: int) -> NDArray[np.int64]:
    """Places of about `most` pictures, ascending, every class in its share, the rarest by one; all if they are few."""
    if len(classes) <= most:
        return np.arange(len(classes))
    order = np.argsort(classes, kind="stable")
    even = order[spread_over(len(order), most)]
    return np.union1d(even, np.unique(classes, return_index=True)[1])


def for_head(pictures: Pictures, classes: NDArray[np.int64]) -> tuple[Pictures, NDArray[np.int64]]:
    """Pictures of classes (n,) that a head to start from is fitted to, and their places; not copied if that is all."""
    some = some_of_each(classes, HEAD_PICTURES)
    return (pictures if len(some) == len(pictures) else pictures.select(some)), some


@torch.no_grad()
def view_outputs(
    outputs: Callable[[Tensor], Tensor], backbone: Backbone, pictures: Pictures, batch_size: int, flip: bool
) -> Tensor:
    """(views, n, ...) outputs of a function of network inputs; with `flip` the second view is the mirror image."""

    def run(views: list[Tensor]) -> Tensor:
        return torch.stack([outputs(view) for view in views])

    rows = []
    for pixels in pictures.pixels.split(batch_size):
        x = network_input(backbone, pixels)
        views = [x, x.flip(-1)] if flip and x.ndim == 4 else [x]
        rows.append(in_halves(run, partial(torch.cat, dim=1), views, backbone.module))
    return torch.cat(rows, 1)


def mean_features(backbone: Backbone, pictures: Pictures, batch_size: int, flip: bool) -> Tensor:
    """(n, d) features; `flip` averages those of each picture and its mirror image."""
    return view_outputs(backbone.features, backbone, pictures, batch_size, flip).mean(0)


def network_input(backbone: Backbone, pixels: Tensor) -> Tensor:
    """Pixels normalised by the contract, where and as the parameters are."""
    x = normalise(pixels.to(backbone.device), backbone.contract, backbone.dtype)
    return x.contiguous(memory_format=torch.channels_last) if x.ndim == 4 else x


def training_views(
    backbone: Backbone, pixels: Tensor, generator: torch.Generator, settings: FineTuneSettings
) -> Tensor:
    """Network inputs of random views of some pictures; see `random_views`."""
    return random_views(network_input(backbone, pixels), generator, flip=settings.flip, crop=settings.crop)
