"""What a training run starts from: a trainable copy, pictures to train on and to validate on, and a head."""

from __future__ import annotations

import copy

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from tangentune.errors import InputError
from tangentune.methods.fine_tuning.labelled import LabelledPictures, mean_features
from tangentune.methods.fine_tuning.settings import HeadStart
from tangentune.methods.fine_tuning.validation import split_rows
from tangentune.networks.backbone import Backbone
from tangentune.networks.heads import probe_head
from tangentune.pictures.pictures import Pictures


def trainable_copy(backbone: Backbone, pictures: Pictures) -> Backbone:
    """A deep copy in eval mode whose parameters take gradients, laid out for these pictures."""
    tuned = copy.deepcopy(backbone)
    if pictures.pixels.ndim == 4:  # a quarter faster on a processor, the same up to rounding
        tuned.module.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    tuned.module.eval().requires_grad_(True)
    return tuned


def keep_aside(
    tuned: Backbone, pictures: Pictures, positions: NDArray[np.int64], share: float, seed: int
) -> tuple[LabelledPictures, LabelledPictures | None]:
    """Pictures to train on, and the share of each class to validate on (None for a share of 0)."""
    targets = torch.from_numpy(positions).to(next(tuned.module.parameters()).device)
    if not share:
        return LabelledPictures(pictures, targets), None
    split = split_rows(positions, share, seed)
    if not len(split[1]):
        message = "validation_share needs a class of two pictures at least; every class here has one: set it to 0"
        raise InputError(message)
    training, kept_aside = (LabelledPictures(pictures.select(rows), targets[rows]) for rows in split)
    return training, kept_aside


def start_head(tuned: Backbone, data: LabelledPictures, start: HeadStart, flip: bool, seed: int) -> nn.Linear:
    """The head before the first step, in the features' dtype and on their device; `flip` averages a probe's features.

    The data's positions are 0..C-1, the last of them at least once; the seed is that of a random head.
    """
    if start in ("probe", "calibrated_probe"):
        features = mean_features(tuned, data.pictures, 64, flip)
        return probe_head(features, data.positions, calibrated=start == "calibrated_probe")
    width = mean_features(tuned, data.pictures.select([0]), 1, False)
    head = nn.Linear(width.shape[1], int(data.positions.max()) + 1)
    generator = torch.Generator().manual_seed(seed)
    bound = 0.0 if start == "zero" else width.shape[1] ** -0.5  # PyTorch's own scale
    with torch.no_grad():
        head.weight.uniform_(-bound, bound, generator=generator)
        head.bias.zero_()
    return head.to(width)
