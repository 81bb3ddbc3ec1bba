"""Choices of joint fine-tuning."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import final

from tangentune._checks import check_numbers, check_positive, check_words
from tangentune.errors import InputError
from tangentune.methods.fine_tuning.settings import FineTuneSettings, HeadStart


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
