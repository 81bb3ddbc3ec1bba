"""Judging a network after each epoch by pictures kept aside, and stopping by it."""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor, nn

from tangentune.errors import BackboneError, diverged
from tangentune.methods.fine_tuning.labelled import Labelled, mean_features
from tangentune.methods.fine_tuning.validation import Validation, judge
from tangentune.networks.backbone import Backbone


@final
class Watch:
    """Judges the network after each epoch and remembers the best weights if training may stop early.

    Args:
        tuned: judged with `head`.
        head: one logit a class.
        kept_aside: what it is judged by.
        patience: epochs without a better result after which it is enough; 0 never stops.
        others: heads that are trained along; their weights of the best epoch come back too.
    """

    def __init__(
        self,
        tuned: Backbone,
        head: nn.Linear,
        kept_aside: Labelled,
        patience: int,
        others: tuple[nn.Linear, ...] = (),
    ) -> None:
        self.tuned, self.head, self.kept_aside, self.patience = tuned, head, kept_aside, patience
        self.parts = (tuned.module, head, *others)
        self.scores: list[tuple[float, float, float]] = []
        self.kept = 0
        self.weights: list[dict[str, Tensor]] = []

    def is_enough(self) -> bool:
        """Look once more; whether `patience` epochs went by without a better result.

        Raises:
            DivergedError: a feature or a logit is NaN or infinite.
        """
        self.tuned.module.eval()
        try:
            features = mean_features(self.tuned, self.kept_aside.pictures, 64, False)
        except BackboneError as error:
            raise diverged(len(self.scores) + 1) from error
        with torch.no_grad():
            logits = self.head(features)
        if not bool(torch.isfinite(logits).all()):
            raise diverged(len(self.scores) + 1)
        self.scores.append(judge(logits, self.kept_aside.positions))
        better = self.kept == 0 or _order(self.scores[-1]) > _order(self.scores[self.kept - 1])
        if better or not self.patience:
            self.kept = len(self.scores)
        if better and self.patience:
            self.weights = [{k: v.detach().clone() for k, v in part.state_dict().items()} for part in self.parts]
        return 0 < self.patience <= len(self.scores) - self.kept

    def result(self) -> Validation:
        """The curve; brings the best weights back if training could stop early."""
        for part, weights in zip(self.parts, self.weights, strict=False):
            part.load_state_dict(weights)
        accuracies, nlls, temperatures = zip(*self.scores, strict=True)
        return Validation(len(self.kept_aside.pictures), accuracies, nlls, self.kept, temperatures[self.kept - 1])


def _order(score: tuple[float, float, float]) -> tuple[float, float]:
    """Higher is better: accuracy, then log-loss."""
    return score[0], -score[1]
