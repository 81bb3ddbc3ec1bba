"""What every classifier of this package answers: logits, probabilities, labels."""

from __future__ import annotations

from abc import ABC
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from tangentune.methods.fine_tuning.labelled import mean_features
from tangentune.networks.backbone import Backbone
from tangentune.pictures.pictures import Pictures


class LinearClassifier(ABC):
    """A linear head on a backbone's features.

    Attributes:
        backbone: in eval mode, parameters frozen.
        head: linear layer from features to one logit a class.
        classes: (C,) labels in the order of the logits, sorted.
        temperature: what logits are divided by before the softmax.
    """

    backbone: Backbone
    head: nn.Linear
    classes: NDArray[Any]
    temperature: float

    @torch.no_grad()
    def logits(self, pictures: Pictures, *, batch_size: int = 64, flip: bool = False) -> Tensor:
        """(n, C) logits; `flip` averages them over each picture and its mirror image."""
        return self.head(mean_features(self.backbone, pictures, batch_size, flip))

    def predict_proba(self, pictures: Pictures, *, batch_size: int = 64, flip: bool = False) -> Tensor:
        """(n, C) class probabilities."""
        return (self.logits(pictures, batch_size=batch_size, flip=flip) / self.temperature).softmax(dim=1)

    def predict(self, pictures: Pictures, *, batch_size: int = 64, flip: bool = False) -> NDArray[Any]:
        """(n,) most likely labels."""
        best = self.logits(pictures, batch_size=batch_size, flip=flip).argmax(dim=1)
        return self.classes[best.cpu().numpy()]
