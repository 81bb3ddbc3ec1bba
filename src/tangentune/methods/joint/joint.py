"""Fine-tuning on target and source pictures together."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from tangentune._checks import check_numbers, check_positive, check_words
from tangentune._torch import usual_torch
from tangentune.errors import InputError
from tangentune.memory import warm_pages
from tangentune.methods.fine_tuning.classifier import spent
from tangentune.methods.fine_tuning.fit import TunedClassifier
from tangentune.methods.fine_tuning.labelled import LabelledPictures, class_positions, label_positions, training_views
from tangentune.methods.fine_tuning.settings import FineTuneSettings, HeadStart
from tangentune.methods.fine_tuning.training import loss_of, start_head, trainable_copy, tune
from tangentune.methods.fine_tuning.validation import keep_aside
from tangentune.methods.joint.source import SourceDraws, checked_head, checked_weights, refuse_other_pictures, spread
from tangentune.networks.backbone import Backbone
from tangentune.pictures.pictures import Pictures


@final
@dataclass(frozen=True)
class JointSettings:
    """Choices of joint fine-tuning.

    Attributes:
        fine_tune: rate, epochs, batches, views, target head, validation and seed, all as in ordinary fine-tuning; the
            epoch is one pass over the target pictures. With its `batchnorm` "train" the statistics are those of a
            step's target and source pictures together.
        source_weight: lambda, the factor of the source loss. 0 is ordinary fine-tuning, bit for bit.
        batch_ratio: mu, source pictures in a step for each target picture; at least one is drawn.
        source_start: of the source head, as `FineTuneSettings.head_start`; probes see at most 2,000 source pictures.

    Raises:
        InputError: a number is out of range or a choice is unknown.

    Example:
        >>> JointSettings(source_weight=1.0).source_start
        'probe'
    """

    fine_tune: FineTuneSettings = field(default_factory=FineTuneSettings)
    source_weight: float = 0.3
    batch_ratio: float = 1.0
    source_start: HeadStart = "probe"

    def __post_init__(self) -> None:
        if not isinstance(self.fine_tune, FineTuneSettings):
            message = f"fine_tune is {self.fine_tune!r}; it must be FineTuneSettings(...)"
            raise InputError(message)
        check_words(self)
        check_numbers(self, ["source_weight"], lambda value: value >= 0, "a number of at least 0")
        check_positive(self, "batch_ratio")


@final
@dataclass(frozen=True, eq=False)
class JointTuned(TunedClassifier):
    """A copy of a backbone tuned on target and source pictures, with the target's head, and what it cost.

    `losses` are means of `target loss + source_weight * source loss`.

    Attributes:
        settings: how it was trained.
        source_head: one logit a source class.
        source_classes: (S,) labels of the source pictures with weight, in the order of its logits, sorted.
        source_losses: mean source loss of each epoch; empty if no source picture was looked at.
    """

    settings: JointSettings
    source_head: nn.Linear
    source_classes: NDArray[Any]
    source_losses: tuple[float, ...]


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
        source: pre-training pictures of the same size and type, with class labels.
        settings: rate, epochs, weight of the source and the rest; None takes the defaults.
        source_weights: (n,) at least 0, how much each source picture matters; only their ratios count, and a picture of
            weight 0 is as good as absent. None: all alike, which did better than the weights of a selection
            (docs/results/source_study.md).
        source_head: a linear layer to start the source head from in place of `JointSettings.source_start`, such as
            `pretrained_head(backbone, rows)`; its rows are the sorted source classes. Left as it is.
        verbose: 1 shows a progress bar with the time left.

    Returns:
        The tuned copy with its heads. Cost: `1 + batch_ratio` times that of `fine_tune`.

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
    began, base = spent(), settings.fine_tune
    classes, positions = class_positions(target)
    refuse_other_pictures(target, source)
    weights = checked_weights(source_weights, len(source))
    draws = SourceDraws(weights[weights > 0], base.seed)
    source = source if weights.all() else source.select(np.flatnonzero(weights))
    source_classes, source_positions = label_positions(source.labels, "learning source labels")
    tuned = trainable_copy(backbone, target)
    steps: list[tuple[int, float]] = []  # target pictures and mean source loss of each
    with warm_pages():
        data, others = keep_aside(tuned, target, positions, base.validation_share, base.seed)
        theirs = LabelledPictures(source, torch.from_numpy(source_positions).to(tuned.device))
        head = start_head(tuned, data, base.head_start, base.flip, base.seed)
        if source_head is None:
            few, seed = spread(theirs, base.seed)
            own_head = start_head(tuned, few, settings.source_start, base.flip, seed)
        else:
            own_head = checked_head(source_head, head, len(source_classes))

        def loss(rows: Tensor, generator: torch.Generator) -> Tensor:
            """Of some target pictures, and of the next source pictures in the same forward pass."""
            x = training_views(tuned, data.pictures.pixels[rows], generator, base)
            if not settings.source_weight:
                return loss_of(head(tuned.feature_function(tuned.module, x)), data.positions[rows], base)
            drawn = draws.take(max(1, round(settings.batch_ratio * len(rows))))
            source_x = training_views(tuned, source.pixels[drawn], draws.generator, base)
            features = tuned.feature_function(tuned.module, torch.cat([x, source_x]))
            source_loss = loss_of(own_head(features[len(x) :]), theirs.positions[drawn.to(tuned.device)], base)
            steps.append((len(rows), float(source_loss.detach())))
            return loss_of(head(features[: len(x)]), data.positions[rows], base) + settings.source_weight * source_loss

        count = len(data.pictures)
        losses, validation = tune(tuned, (head, own_head), loss, count, others, base, "joint fine-tuning", verbose)
    epochs = np.array_split([size * value for size, value in steps], len(losses)) if steps else ()
    temperature = 1.0 if validation is None else validation.temperature
    found = (head, losses, validation, settings, own_head, source_classes)
    source_losses = tuple(float(sums.sum()) / count for sums in epochs)
    return JointTuned(tuned, classes, *spent(began), *found, source_losses, temperature=temperature)
