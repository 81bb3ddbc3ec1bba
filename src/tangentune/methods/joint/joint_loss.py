"""The loss of joint fine-tuning: that of the target pictures plus a multiple of the source's."""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor, nn

from tangentune.methods.fine_tuning.labelled import Labelled, training_views
from tangentune.methods.fine_tuning.training import batch_norms, loss_of
from tangentune.methods.joint.settings import JointSettings
from tangentune.methods.joint.source import SourceTask, in_eval
from tangentune.networks.backbone import Backbone


@final
class JointLoss:
    """`target loss + source_weight * source loss` of one step; remembers both parts.

    Where statistics are not those of the batch, or those of the mixture, both parts are one batch of one forward
    pass. Their order in it does not matter: statistics are of the whole batch.

    Args:
        tuned: in the modes of the training loop.
        head: one logit a target class.
        data: target pictures.
        source: draws the source pictures.
        settings: weight, ratio, statistics, and those of the target's loss and views.
    """

    def __init__(
        self, tuned: Backbone, head: nn.Linear, data: Labelled, source: SourceTask, settings: JointSettings
    ) -> None:
        self.tuned, self.head, self.data, self.source, self.settings = tuned, head, data, source, settings
        self.steps: list[tuple[int, float, float]] = []  # target pictures, mean source loss, share that counts
        self.seen = settings.source_weight > 0 or settings.batchnorm == "mixed"

    def __call__(self, rows: Tensor, generator: torch.Generator) -> Tensor:
        """Of some target pictures, with the next source pictures."""
        settings, data = self.settings.fine_tune, self.data
        x = training_views(self.tuned, data.pictures.pixels[rows], generator, flip=settings.flip, crop=settings.crop)
        if not self.seen:
            return loss_of(self.head(self._features(x)), data.positions[rows], settings)
        batch = self.source.batch(max(1, round(self.settings.batch_ratio * len(rows))))
        features, source_features = self._both_features(x, batch.x)
        source_loss = self.source.mean_loss(source_features, batch)
        self.steps.append((len(rows), float(source_loss.detach()), batch.counted))
        loss = loss_of(self.head(features), data.positions[rows], settings)
        return loss + self.settings.source_weight * source_loss

    def by_epoch(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Of each epoch: mean source loss, and share of source pictures that counted; empty if none was seen."""
        means: list[tuple[float, float]] = []
        seen, sums = 0, [0.0, 0.0]
        for count, *values in self.steps:
            seen += count
            sums = [total + count * value for total, value in zip(sums, values, strict=True)]
            if seen == len(self.data.pictures):
                means.append((sums[0] / seen, sums[1] / seen))
                seen, sums = 0, [0.0, 0.0]
        return tuple(loss for loss, _ in means), tuple(share for _, share in means)

    def _both_features(self, x: Tensor, source_x: Tensor) -> tuple[Tensor, Tensor]:
        """(n, d) of the target and (m, d) of the source pictures."""
        if self.settings.batchnorm != "target":
            target, source = self._features(torch.cat([x, source_x])).split([len(x), len(source_x)])
            return target, source
        target = self._features(x)
        with in_eval(batch_norms(self.tuned.module)):
            return target, self._features(source_x)

    def _features(self, x: Tensor) -> Tensor:
        return self.tuned.feature_function(self.tuned.module, x)
