"""What is learnt from source pictures: their own labels, or what the network itself thinks of them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tangentune.methods.fine_tuning.labelled import network_input, training_views
from tangentune.methods.fine_tuning.settings import FineTuneSettings
from tangentune.methods.fine_tuning.training import loss_of
from tangentune.methods.joint.settings import PseudoLabels
from tangentune.methods.joint.source_stream import SourceDraws
from tangentune.methods.joint.strong_views import strong_views
from tangentune.networks.backbone import Backbone


@final
@dataclass(frozen=True, eq=False)
class SourceBatch:
    """Some source pictures, ready to learn from.

    Attributes:
        x: network inputs (m, ...).
        targets: (m,) positions among the source classes, or (m, C) probabilities of the target classes.
        factors: (m,) what each picture's loss is multiplied by before the mean over all m.
        counted: share of the pictures that count; below 1 where the network is not sure enough.
    """

    x: Tensor
    targets: Tensor
    factors: Tensor
    counted: float


class SourceTask(ABC):
    """Draws batches of source pictures and says what their features cost."""

    @abstractmethod
    def batch(self, count: int) -> SourceBatch:
        """The next pictures of the stream."""

    @abstractmethod
    def losses(self, features: Tensor, batch: SourceBatch) -> Tensor:
        """(m,) loss of each picture, its factor not yet in it."""

    def mean_loss(self, features: Tensor, batch: SourceBatch) -> Tensor:
        """Mean over the batch; exactly 0 with a gradient of 0 when no picture counts."""
        return (batch.factors * self.losses(features, batch)).sum() / len(batch.factors)


@final
class LabelledSource(SourceTask):
    """A head of its own learns the source pictures' labels.

    Args:
        tuned: says how pictures are normalised.
        head: one logit a source class.
        positions: (n,) classes of all source pictures; those of pictures without weight are not read.
        draws: of the source pictures.
        settings: loss and views.
    """

    def __init__(
        self,
        tuned: Backbone,
        head: nn.Linear,
        positions: Tensor,
        draws: SourceDraws,
        settings: FineTuneSettings,
    ) -> None:
        self.tuned, self.head, self.positions, self.draws, self.settings = tuned, head, positions, draws, settings

    def batch(self, count: int) -> SourceBatch:
        """Views made as those of the target pictures are."""
        rows, factors = self.draws.take(count)
        pixels, settings = self.draws.pictures.pixels[rows], self.settings
        x = training_views(self.tuned, pixels, self.draws.generator, flip=settings.flip, crop=settings.crop)
        return SourceBatch(x, self.positions[rows.to(x.device)], factors.to(x), 1.0)

    def losses(self, features: Tensor, batch: SourceBatch) -> Tensor:
        """The loss of ordinary fine-tuning, on the source head."""
        return loss_of(self.head(features), batch.targets, self.settings, "none")


@final
class UnlabelledSource(SourceTask):
    """The target head learns to say of a strong view what it says of a weak one.

    Args:
        tuned: judges the weak views as it predicts: in eval mode.
        head: the target head.
        draws: of the source pictures.
        settings: the weak views.
        choices: temperature, threshold and the strong views.
    """

    def __init__(
        self,
        tuned: Backbone,
        head: nn.Linear,
        draws: SourceDraws,
        settings: FineTuneSettings,
        choices: PseudoLabels,
    ) -> None:
        self.tuned, self.head, self.draws, self.settings, self.choices = tuned, head, draws, settings, choices

    def batch(self, count: int) -> SourceBatch:
        """Strong views with the opinion of the weak ones; a picture below the threshold has the factor 0."""
        rows, factors = self.draws.take(count)
        settings, choices, generator = self.settings, self.choices, self.draws.generator
        pixels = self.draws.pictures.pixels[rows].to(self.head.weight.device)
        weak = training_views(self.tuned, pixels, generator, flip=settings.flip, crop=settings.crop)
        opinion = self._opinion(weak)
        sure = opinion.amax(1) >= choices.threshold
        exact = torch.promote_types(self.head.weight.dtype, torch.float32)
        values = pixels.to(exact) / 255 if pixels.dtype == torch.uint8 else pixels
        strong = strong_views(
            values, generator, flip=settings.flip, crop=choices.crop, jitter=choices.jitter, cutout=choices.cutout
        )
        factors = factors.to(opinion) * sure
        return SourceBatch(network_input(self.tuned, strong), opinion, factors, float(sure.double().mean()))

    def losses(self, features: Tensor, batch: SourceBatch) -> Tensor:
        """Cross-entropy to the soft opinion, in nats."""
        return F.cross_entropy(self.head(features), batch.targets, reduction="none")

    @torch.no_grad()
    def _opinion(self, x: Tensor) -> Tensor:
        module = self.tuned.module
        with in_eval(module.modules()):
            logits = self.head(self.tuned.feature_function(module, x))
        return (logits / self.choices.temperature).softmax(1)


@contextmanager
def in_eval(parts: Iterable[nn.Module]) -> Iterator[None]:
    """Have some modules (not what is inside them) in eval mode for a while."""
    were = [part for part in parts if part.training]
    for part in were:
        part.training = False
    try:
        yield
    finally:
        for part in were:
            part.training = True
