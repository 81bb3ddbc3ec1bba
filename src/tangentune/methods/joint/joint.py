"""Fine-tuning on target and source pictures together."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from tangentune._torch import usual_torch
from tangentune.memory import warm_pages
from tangentune.methods.fine_tuning.classifier import spent
from tangentune.methods.fine_tuning.fit import TunedClassifier
from tangentune.methods.fine_tuning.labelled import LabelledPictures, class_positions, label_positions, training_views
from tangentune.methods.fine_tuning.training import batch_norms, loss_of, start_head, trainable_copy, tune
from tangentune.methods.fine_tuning.validation import keep_aside
from tangentune.methods.joint.settings import JointSettings, PseudoLabels
from tangentune.methods.joint.source import (
    SourceDraws,
    checked_weights,
    in_eval,
    labelled,
    refuse_other_pictures,
    refuse_pseudo_labels,
    start_source_head,
    unlabelled,
)
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
    began, choices = spent(), settings.source_task
    base = replace(settings.fine_tune, batchnorm="eval" if settings.batchnorm == "frozen" else "train")
    classes, positions = class_positions(target)
    refuse_other_pictures(target, source)
    weights = checked_weights(source_weights, len(source))
    draws = SourceDraws(weights[weights > 0], settings.weighting, base.seed)
    source = source if weights.all() else source.select(np.flatnonzero(weights))
    source_classes, source_positions = None, np.zeros(0)
    if isinstance(choices, PseudoLabels):
        refuse_pseudo_labels(source, source_head)
    else:
        what = "learning source labels (PseudoLabels needs none)"
        source_classes, source_positions = label_positions(source.labels, what)
    tuned = trainable_copy(backbone, target, base.frozen)
    steps: list[tuple[int, float, float]] = []  # target pictures, mean source loss and share that counts of each
    with warm_pages():
        data, others = keep_aside(tuned, target, positions, base.validation_share, base.seed)
        head, own_head = start_head(tuned, data, base.head_start, base.flip, base.seed), None
        if isinstance(choices, PseudoLabels):
            next_source = unlabelled(tuned, head, source, draws, base, choices)
        else:
            theirs = LabelledPictures(source, torch.from_numpy(source_positions).to(tuned.device))
            own_head = start_source_head(tuned, theirs, choices.start, base, source_head, head)
            next_source = labelled(tuned, own_head, theirs, draws, base)

        def features(x: Tensor) -> Tensor:
            return tuned.feature_function(tuned.module, x)

        def loss(rows: Tensor, generator: torch.Generator) -> Tensor:
            """Of some target pictures, with the next source pictures.

            Where statistics are not those of the batch, or those of the mixture, both are one batch of one pass.
            """
            x = training_views(tuned, data.pictures.pixels_at(rows), generator, base)
            if not settings.source_weight and settings.batchnorm != "mixed":
                return loss_of(head(features(x)), data.positions[rows], base)
            batch = next_source(max(1, round(settings.batch_ratio * len(rows))))
            if settings.batchnorm == "target":
                own = features(x)
                with in_eval(batch_norms(tuned.module)):
                    other = features(batch.x)
            else:
                own, other = features(torch.cat([x, batch.x])).split([len(x), len(batch.x)])
            source_loss = (batch.factors * batch.losses(other)).sum() / len(batch.x)  # exactly 0 where none counts
            steps.append((len(rows), float(source_loss.detach()), batch.counted))
            return loss_of(head(own), data.positions[rows], base) + settings.source_weight * source_loss

        heads, count = (head,) if own_head is None else (head, own_head), len(data.pictures)
        losses, validation = tune(tuned, heads, loss, count, others, base, "joint fine-tuning", verbose)
    epochs = np.array_split(np.array(steps), len(losses)) if steps else []  # as many steps in each
    by_epoch = (tuple(float(each[:, 0] @ each[:, k]) / count for each in epochs) for k in (1, 2))
    temperature = 1.0 if validation is None else validation.temperature
    found = (head, losses, validation, settings, own_head, source_classes, *by_epoch)
    return JointTuned(tuned, classes, *spent(began), *found, temperature=temperature)
