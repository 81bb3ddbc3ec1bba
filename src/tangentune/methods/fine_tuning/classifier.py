"""What every classifier of the methods answers: logits, probabilities, labels; and the simplest, the linear probe."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Any, final

import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from tangentune._torch import usual_torch
from tangentune.methods.fine_tuning.labelled import class_positions, mean_features
from tangentune.networks.backbone import AnyBackbone, Backbone, as_backbone
from tangentune.networks.heads import probe_head
from tangentune.pictures.pictures import Pictures


def spent(since: tuple[float, float] = (0.0, 0.0)) -> tuple[float, float]:
    """Wall and processor time in seconds since an earlier reading, which a call without arguments gives."""
    return time.perf_counter() - since[0], time.process_time() - since[1]


@usual_torch
@dataclass(frozen=True, eq=False)
class Classifier(ABC):
    """Logits of pictures, and what follows from them; and what fitting it cost.

    Attributes:
        backbone: the network, in eval mode, parameters frozen.
        classes: (C,) labels in the order of the logits, sorted.
        seconds: wall time of the fit, with features and warm starts and without any prediction.
        cpu_seconds: processor time of the same; fair where other programs share the machine.
        temperature: what logits are divided by before the softmax.
    """

    backbone: Backbone
    classes: NDArray[Any]
    seconds: float
    cpu_seconds: float
    temperature: float = field(default=1.0, kw_only=True)

    @abstractmethod
    def logits(self, pictures: Pictures, *, batch_size: int = 64, flip: bool = False) -> Tensor:
        """(n, C) logits; `flip` averages over each picture and its mirror image."""

    def predict_proba(self, pictures: Pictures, *, batch_size: int = 64, flip: bool = False) -> Tensor:
        """(n, C) class probabilities."""
        return (self.logits(pictures, batch_size=batch_size, flip=flip) / self.temperature).softmax(dim=1)

    def predict(self, pictures: Pictures, *, batch_size: int = 64, flip: bool = False) -> NDArray[Any]:
        """(n,) most likely labels."""
        best = self.logits(pictures, batch_size=batch_size, flip=flip).argmax(dim=1)
        return self.classes[best.cpu().numpy()]


@usual_torch
@dataclass(frozen=True, eq=False)
class LinearClassifier(Classifier):
    """A linear `head`, from features to one logit a class, on a backbone's features."""

    head: nn.Linear

    @torch.no_grad()
    def logits(self, pictures: Pictures, *, batch_size: int = 64, flip: bool = False) -> Tensor:
        """(n, C) logits; `flip` averages them over each picture and its mirror image."""
        return self.head(mean_features(self.backbone, pictures, batch_size, flip))


@final
@dataclass(frozen=True, eq=False)
class Probe(LinearClassifier):
    """A linear classifier on the frozen features of the backbone that was given, which is not copied.

    The softmax of its logits is honest by leave-one-out: the head has the temperature in it.
    """


@usual_torch
def fit_probe(backbone: AnyBackbone, pictures: Pictures, *, flip: bool = True) -> Probe:
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
    began, backbone = spent(), as_backbone(backbone)
    classes, positions = class_positions(pictures)
    features = mean_features(backbone, pictures, 64, flip)
    head = probe_head(features, torch.from_numpy(positions).to(features.device), calibrated=True).requires_grad_(False)
    return Probe(backbone, classes, *spent(began), head)
