"""Fine-tuning on target and source pictures together."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any, final

import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from tangentune._torch import usual_torch
from tangentune.errors import InputError
from tangentune.memory import warm_pages
from tangentune.methods.fine_tuning.classifier import spent
from tangentune.methods.fine_tuning.fit import TunedClassifier
from tangentune.methods.fine_tuning.labelled import LabelledPictures, class_positions, training_views
from tangentune.methods.fine_tuning.training import batch_norms, loss_of, start_head, trainable_copy, tune
from tangentune.methods.fine_tuning.validation import keep_aside
from tangentune.methods.joint.settings import JointSettings
from tangentune.methods.joint.source import LabelledSource, SourceDraws, SourceTask, in_eval, source_task
from tangentune.networks.backbone import Backbone
from tangentune.pictures.pictures import Pictures


@final
@dataclass(frozen=True, eq=False)
class JointTuned(TunedClassifier):
    """A copy of a backbone tuned on target and source pictures, with the target's head, and what it cost.

    `losses` are means of `target loss + source_weight * source loss`.

    Attributes:
        settings: how it was trained.
        source_head: one logit a source class; None with pseudo-labels.
        source_classes: (S,) labels of the source pictures with weight, in the order of its logits, sorted; or None.
        source_losses: mean source loss of each epoch; empty if no source picture was looked at.
        source_shares: share of the drawn source pictures that counted in each epoch: 1 with labels, with pseudo-labels
            those that reached the threshold; empty as above.
    """

    settings: JointSettings
    source_head: nn.Linear | None
    source_classes: NDArray[Any] | None
    source_losses: tuple[float, ...]
    source_shares: tuple[float, ...]


@usual_torch
def joint_fine_tune(
    backbone: Backbone,
    target: Pictures,
    source: Pictures,
    settings: JointSettings | None = None,
    *,
    source_weights: NDArray[Any] | None = None,
    source_head: nn.Linear | None = None,
    verbose: int = 0,
) -> JointTuned:
    """Train a copy of the backbone on target pictures and, with less weight, on source pictures.

    Args:
        backbone: left as it is; a deep copy is trained, on the device its parameters are on.
        target: at the backbone's size, with class labels. Validation pictures come from these alone.
        source: pre-training pictures of the same size and type; with class labels for `SourceLabels`.
        settings: rate, epochs, weight of the source and the rest; None takes the defaults.
        source_weights: (n,) at least 0, how much each source picture matters; only their ratios count, and a picture of
            weight 0 is as good as absent. None: all alike, which did better than the weights of a selection
            (docs/results/source_study.md).
        source_head: a linear layer to start the source head from in place of `SourceLabels.start`, such as
            `pretrained_head(backbone, rows)`; its rows are the sorted source classes. Left as it is.
        verbose: 1 shows a progress bar with the time left.

    Returns:
        The tuned copy with its heads. Cost: `1 + batch_ratio` times that of `fine_tune`; a forward pass more over the
        source part with pseudo-labels.

    Raises:
        InputError: labels are missing or of one class only, target and source differ in size or type, there is no
            source picture, weights are not finite and at least 0 or are all 0, a head does not fit, no class has two
            pictures to keep one aside, or training diverged (`DivergedError`).
        BackboneError: the backbone's `features` function uses another module than it is given.

    Source: Liu et al. 2022, section 3 and public code: `L = CE(target) + lambda CE(source)` on one backbone.

    Example:
        >>> import numpy as np
        >>> dots = torch.tensor([[0.0, 0.0], [0.0, 1.0], [4.0, 4.0], [4.0, 5.0]])
        >>> target = Pictures(dots, np.array(["low", "low", "high", "high"]), ["a", "b", "c", "d"])
        >>> source = Pictures(dots + 0.5, np.array([7, 7, 8, 8]), ["e", "f", "g", "h"])
        >>> tuned = joint_fine_tune(Backbone(nn.Linear(2, 3)), target, source)
        >>> tuned.predict_proba(target).shape, tuned.source_classes.tolist()
        (torch.Size([4, 2]), [7, 8])
    """
    settings = settings or JointSettings()
    began = spent()
    classes, positions = class_positions(target)
    _refuse_other_pictures(target, source)
    draws = SourceDraws(source, source_weights, settings.weighting, settings.fine_tune.seed)
    base = dataclasses.replace(settings.fine_tune, batchnorm="eval" if settings.batchnorm == "frozen" else "train")
    tuned = trainable_copy(backbone, target)
    with warm_pages():
        data, others = keep_aside(tuned, target, positions, base.validation_share, base.seed)
        head = start_head(tuned, data, base.head_start, base.flip, base.seed)
        task = source_task(tuned, head, draws, source_head, settings)
        heads = (head, task.head) if isinstance(task, LabelledSource) else (head,)
        loss, count = JointLoss(tuned, head, data, task, settings), len(data.pictures)
        losses, validation = tune(tuned, heads, loss, count, others, base, "joint fine-tuning", verbose)
    by_epoch, temperature = loss.by_epoch(), 1.0 if validation is None else validation.temperature
    own = (task.head, task.classes) if isinstance(task, LabelledSource) else (None, None)
    return JointTuned(
        tuned, classes, *spent(began), head, losses, validation, settings, *own, *by_epoch, temperature=temperature
    )


@final
@dataclass(eq=False)
class JointLoss:
    """`target loss + source_weight * source loss` of one step; remembers the second part.

    Where statistics are not those of the batch, or those of the mixture, both parts are one batch of one forward pass.
    Their order in it does not matter: statistics are of the whole batch.
    """

    tuned: Backbone  # in the modes of the training loop
    head: nn.Linear  # one logit a target class
    data: LabelledPictures  # target pictures
    source: SourceTask  # draws the source pictures
    settings: JointSettings  # weight, ratio, statistics, and those of the target's loss and views
    # target pictures, mean source loss and share that counts of every step
    steps: list[tuple[int, float, float]] = field(default_factory=list)

    def __call__(self, rows: Tensor, generator: torch.Generator) -> Tensor:
        """Of some target pictures, with the next source pictures."""
        settings, data = self.settings.fine_tune, self.data
        x = training_views(self.tuned, data.pictures.pixels[rows], generator, settings)
        if not self.settings.source_weight and self.settings.batchnorm != "mixed":
            return loss_of(self.head(self._features(x)), data.positions[rows], settings)
        batch = self.source.batch(max(1, round(self.settings.batch_ratio * len(rows))))
        features, source_features = self._both_features(x, batch.x)
        source_losses = batch.factors * self.source.losses(source_features, batch)
        source_loss = source_losses.sum() / len(source_losses)  # exactly 0, as its gradient, where no picture counts
        self.steps.append((len(rows), float(source_loss.detach()), batch.counted))
        loss = loss_of(self.head(features), data.positions[rows], settings)
        return loss + self.settings.source_weight * source_loss

    def by_epoch(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Of each epoch: mean source loss, and share of source pictures that counted; empty if none was seen."""
        losses, shares, seen, loss, share = [], [], 0, 0.0, 0.0
        for count, own_loss, own_share in self.steps:
            seen, loss, share = seen + count, loss + count * own_loss, share + count * own_share
            if seen == len(self.data.pictures):
                losses.append(loss / seen)
                shares.append(share / seen)
                seen, loss, share = 0, 0.0, 0.0
        return tuple(losses), tuple(shares)

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


def _refuse_other_pictures(target: Pictures, source: Pictures) -> None:
    """Source pictures must go into one batch with target pictures."""
    if not len(source):
        message = "there is no source picture; give some, or use fine_tune on the target pictures alone"
        raise InputError(message)
    a, b = (tuple(pictures.pixels.shape[1:]) for pictures in (target, source))
    if a != b:
        message = f"target pictures are {a} but source pictures {b}; load both for the same backbone"
        raise InputError(message)
    a, b = (str(pictures.pixels.dtype).removeprefix("torch.") for pictures in (target, source))
    if a != b:
        message = f"target pictures are {a} but source pictures {b}; give both as one type"
        raise InputError(message)
