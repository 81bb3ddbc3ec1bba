"""The linear probe: a linear classifier on the frozen features."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any, final

import torch
from numpy.typing import NDArray
from torch import nn

from tangentune.methods.fine_tuning.classifier import LinearClassifier
from tangentune.methods.fine_tuning.labelled import class_positions, mean_features
from tangentune.networks.backbone import Backbone
from tangentune.networks.heads import probe_head
from tangentune.pictures.pictures import Pictures


@final
@dataclass(frozen=True, eq=False)
class Probe(LinearClassifier):
    """A linear classifier on frozen features.

    Attributes:
        backbone: as given, not copied.
        head: from features to logits whose softmax is honest by leave-one-out.
        classes: (C,) labels in the order of the logits, sorted.
        seconds: wall time of features and fit.
        cpu_seconds: processor time of the same.
    """

    backbone: Backbone
    head: nn.Linear
    classes: NDArray[Any]
    seconds: float
    cpu_seconds: float
    temperature = 1.0  # the head has its own in it


def fit_probe(backbone: Backbone, pictures: Pictures, *, flip: bool = True) -> Probe:
    """Ridge regression of one-hot labels on frozen features; damping and temperature by exact leave-one-out.

    Args:
        backbone: stays as it is.
        pictures: at the backbone's size, with class labels.
        flip: features are means over each picture and its mirror image.

    Returns:
        The classifier. Cost: one forward pass (two with `flip`) and n^2 (n + d).

    Raises:
        InputError: labels are missing or of one class only.
        BackboneError: the pictures do not fit the contract or the features hold NaN or infinity.

    Example:
        >>> import numpy as np
        >>> dots = torch.tensor([[0.0, 0.0], [0.0, 1.0], [4.0, 4.0], [4.0, 5.0]])
        >>> train = Pictures(dots, np.array(["low", "low", "high", "high"]), ["a", "b", "c", "d"])
        >>> fit_probe(Backbone(nn.Linear(2, 3)), train).predict(train).tolist()
        ['low', 'low', 'high', 'high']
    """
    wall, cpu = time.perf_counter(), time.process_time()
    classes, positions = class_positions(pictures)
    features = mean_features(backbone, pictures, 64, flip)
    head = probe_head(features, torch.from_numpy(positions).to(features.device), calibrated=True)
    head.requires_grad_(False)
    return Probe(backbone, head, classes, time.perf_counter() - wall, time.process_time() - cpu)
