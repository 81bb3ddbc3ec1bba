"""Choices of joint fine-tuning."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, final

from tangentune.errors import InputError, check_numbers, check_positive, check_shares, check_words
from tangentune.methods.fine_tuning.settings import FineTuneSettings, HeadStart


@final
@dataclass(frozen=True)
class SourceLabels:
    """The source pictures' own labels, with a head of their own.

    Attributes:
        start: of the source head, as `FineTuneSettings.head_start`; probes see at most 2,000 source pictures.

    Raises:
        InputError: the choice is unknown.
    """

    start: HeadStart = "probe"

    def __post_init__(self) -> None:
        check_words(self)


@final
@dataclass(frozen=True)
class PseudoLabels:
    """No source labels: the network's own opinion of a weak view, in target classes, is what a strong view learns.

    The weak view is made as `FineTuneSettings.flip` and `.crop` say and judged by the network as it predicts (eval
    mode, no gradient); the strong one is made by `strong_views`, mirrored as `FineTuneSettings.flip` says. The loss is
    the cross-entropy to the soft opinion `softmax(logits / temperature)`, averaged over the batch; pictures below the
    threshold count as 0 in that mean.

    Attributes:
        temperature: below 1 sharpens the opinion.
        threshold: least probability of the most likely class for a picture to count, in [0, 1); 0: all count.
        crop: smallest share of the area that the strong view's random crop keeps, in (0, 1].
        jitter: in [0, 1); factors of brightness, contrast and saturation are uniform in [1 - jitter, 1 + jitter].
        cutout: side of the grey square as a share of the picture's shorter side, in [0, 1).

    Raises:
        InputError: a number is out of range.
    """

    temperature: float = 1.0
    threshold: float = 0.0
    crop: float = 0.4
    jitter: float = 0.4
    cutout: float = 0.5

    def __post_init__(self) -> None:
        check_positive(self, "temperature")
        check_shares(self, "threshold", "jitter", "cutout")
        check_numbers(self, ["crop"], lambda value: 0 < value <= 1, "above 0 and at most 1")


@final
@dataclass(frozen=True)
class JointSettings:
    """Choices of joint fine-tuning.

    Attributes:
        fine_tune: rate, epochs, batches, views, target head, validation and seed, all as in ordinary fine-tuning; the
            epoch is one pass over the target pictures. Its `batchnorm` must stay "eval".
        source_weight: lambda, the factor of the source loss. 0 is ordinary fine-tuning, bit for bit, and learns from no
            source picture ("mixed" statistics still see them).
        batch_ratio: mu, source pictures in a step for each target picture; at least one is drawn.
        weighting: how source weights act, with the same loss in expectation. "sampling" draws pictures in proportion:
            in a pass of n draws n w / sum(w) times, rounded up or down at random. "loss" draws all alike and multiplies
            losses by w / mean(w): exact in every pass, but uneven weights waste most of the work.
        batchnorm: "frozen" keeps the pre-trained statistics. "mixed" normalises by those of the step's target and
            source pictures together, and updates the running ones by them. "target" does so with the target pictures
            alone; source pictures go through a second forward pass that uses the running ones.
        source_task: what is learnt from source pictures: `SourceLabels` (two heads) or `PseudoLabels` (one).

    Raises:
        InputError: a number is out of range, a choice is unknown or two choices contradict each other.

    Example:
        >>> JointSettings(source_weight=1.0, source_task=PseudoLabels(threshold=0.5)).batchnorm
        'frozen'
    """

    fine_tune: FineTuneSettings = field(default_factory=FineTuneSettings)
    source_weight: float = 0.3
    batch_ratio: float = 1.0
    weighting: Literal["sampling", "loss"] = "sampling"
    batchnorm: Literal["frozen", "mixed", "target"] = "frozen"
    source_task: SourceLabels | PseudoLabels = field(default_factory=SourceLabels)

    def __post_init__(self) -> None:
        if not isinstance(self.fine_tune, FineTuneSettings):
            raise InputError(f"fine_tune is {self.fine_tune!r}; it must be FineTuneSettings(...)")
        if not isinstance(self.source_task, SourceLabels | PseudoLabels):
            raise InputError(f"source_task is {self.source_task!r}; it must be SourceLabels(...) or PseudoLabels(...)")
        check_words(self)
        check_numbers(self, ["source_weight"], lambda value: value >= 0, "a number of at least 0")
        check_positive(self, "batch_ratio")
        if self.fine_tune.batchnorm != "eval":
            raise InputError(
                "fine_tune.batchnorm is 'train', which does not say whose statistics; leave it at 'eval' and set the "
                "batchnorm of JointSettings to 'mixed' or 'target'"
            )
        if isinstance(self.source_task, PseudoLabels) and self.fine_tune.loss != "cross_entropy":
            raise InputError("pseudo-labels are probabilities and need fine_tune.loss='cross_entropy'")
