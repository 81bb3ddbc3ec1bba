"""Source pictures: how they are weighed and drawn; their labels, or the network's opinion of them, are learnt."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from tangentune.errors import InputError
from tangentune.methods.fine_tuning.augment import strong_views
from tangentune.methods.fine_tuning.labelled import LabelledPictures, label_positions, network_input, training_views
from tangentune.methods.fine_tuning.settings import FineTuneSettings, HeadStart
from tangentune.methods.fine_tuning.training import loss_of, start_head
from tangentune.methods.joint.settings import JointSettings, PseudoLabels
from tangentune.networks.backbone import Backbone
from tangentune.pictures.pictures import Pictures

PROBE_LIMIT = 2000  # source pictures of a warm start's ridge regression, which costs the square of their number


def checked_weights(weights: NDArray[Any] | None, n: int) -> NDArray[np.float64]:
    """Weights (n,) float64 of mean 1 over the pictures that count; None is even."""
    if weights is None:
        return np.ones(n)
    given = np.asarray(weights)
    if given.dtype.kind not in "iufb":
        message = f"source_weights are of type {given.dtype}; give one number a source picture"
        raise InputError(message)
    if given.shape != (n,):
        message = f"source_weights have the shape {given.shape}; give one number for each of the {n} source pictures"
        raise InputError(message)
    wrong = np.flatnonzero(~(np.isfinite(given) & (given >= 0)))
    if len(wrong):
        message = f"source weight {wrong[0]} is {given[wrong[0]]}; weights must be finite and at least 0"
        raise InputError(message)
    if not given.any():
        message = "all source weights are 0; give at least one source picture a weight, or use fine_tune without any"
        raise InputError(message)
    scaled = given / given.max()  # first, so that no sum overflows
    return scaled / scaled[scaled > 0].mean()


@final
class Stream:
    """Positions 0..n-1 in passes without end, each shuffled anew, in proportion to (n,) positive shares.

    A pass is n draws in which position i comes up n w_i / sum(w) times, rounded up or down at random so that the mean
    is exact (systematic sampling of a shuffled order; Madow 1949, Ann. Math. Statist. 20). With even weights that is
    every position once.
    """

    def __init__(self, shares: NDArray[np.float64], generator: torch.Generator) -> None:
        self.shares = torch.from_numpy(np.asarray(shares, dtype=np.float64))
        self.even = bool((self.shares == self.shares[0]).all())
        self.generator = generator
        self.waiting = torch.empty(0, dtype=torch.int64)

    def take(self, count: int) -> Tensor:
        """The next `count` positions."""
        while len(self.waiting) < count:
            self.waiting = torch.cat([self.waiting, self._one_pass()])
        taken, self.waiting = self.waiting[:count], self.waiting[count:]
        return taken

    def _one_pass(self) -> Tensor:
        n = len(self.shares)
        order = torch.randperm(n, generator=self.generator)
        if self.even:
            return order
        ends = self.shares[order].cumsum(0)
        start = torch.rand(1, generator=self.generator, dtype=torch.float64)
        places = (torch.arange(n) + start) * (ends[-1] / n)
        drawn = torch.searchsorted(ends, places, right=True).clamp_max(n - 1)  # rounding may lead past the end
        return order[drawn][torch.randperm(n, generator=self.generator)]


@final
class SourceDraws:
    """Source pictures with weight, `rows`, drawn without end: in proportion to their weights, or with them as factors.

    Order and views come from a generator of its own: target pictures come in the same order and in the same views
    whatever the source is.
    """

    def __init__(
        self, pictures: Pictures, weights: NDArray[Any] | None, weighting: Literal["sampling", "loss"], seed: int
    ) -> None:
        weights = checked_weights(weights, len(pictures))
        self.pictures, self.rows = pictures, np.flatnonzero(weights)
        self.generator = torch.Generator().manual_seed(other_seed(seed))
        even, kept = np.ones(len(self.rows)), weights[self.rows]
        shares, factors = (kept, even) if weighting == "sampling" else (even, kept)
        self._stream, self._factors = Stream(shares, self.generator), torch.from_numpy(factors)

    def take(self, count: int) -> tuple[Tensor, Tensor]:
        """Rows of the next pictures, and the float64 factors of their losses."""
        drawn = self._stream.take(count)
        return torch.from_numpy(self.rows)[drawn], self._factors[drawn]


def other_seed(seed: int) -> int:
    """A seed for draws that must have nothing to do with those of `seed` itself."""
    return int(torch.randint(2**62, (1,), generator=torch.Generator().manual_seed(seed)))


@final
@dataclass(frozen=True, eq=False)
class SourceBatch:
    """Some source pictures, ready to learn from."""

    x: Tensor  # network inputs (m, ...)
    targets: Tensor  # (m,) positions among the source classes, or (m, C) probabilities of the target classes
    factors: Tensor  # (m,) what each picture's loss is multiplied by before the mean over all m
    counted: float  # share of the pictures that count; below 1 where the network is not sure enough


@final
@dataclass(frozen=True, eq=False)
class LabelledSource:
    """A head of its own learns the source pictures' labels."""

    tuned: Backbone  # says how pictures are normalised
    head: nn.Linear  # one logit a source class
    classes: NDArray[Any]  # (S,) labels of the pictures with weight, sorted
    positions: Tensor  # (n,) classes of all source pictures; those of pictures without weight are not read
    draws: SourceDraws  # of the source pictures
    settings: FineTuneSettings  # loss and views

    def batch(self, count: int) -> SourceBatch:
        """Views made as those of the target pictures are."""
        rows, factors = self.draws.take(count)
        pixels = self.draws.pictures.pixels[rows]
        x = training_views(self.tuned, pixels, self.draws.generator, self.settings)
        return SourceBatch(x, self.positions[rows.to(x.device)], factors.to(x), 1.0)

    def losses(self, features: Tensor, batch: SourceBatch) -> Tensor:
        """(m,) losses of ordinary fine-tuning, on the source head."""
        return loss_of(self.head(features), batch.targets, self.settings, "none")


@final
@dataclass(frozen=True, eq=False)
class UnlabelledSource:
    """The target head learns to say of a strong view what it says of a weak one."""

    tuned: Backbone  # judges the weak views as it predicts: in eval mode
    head: nn.Linear  # the target head
    draws: SourceDraws  # of the source pictures
    settings: FineTuneSettings  # the weak views
    choices: PseudoLabels  # temperature, threshold and the strong views

    def batch(self, count: int) -> SourceBatch:
        """Strong views with the opinion of the weak ones; a picture below the threshold has the factor 0."""
        rows, factors = self.draws.take(count)
        choices, generator = self.choices, self.draws.generator
        pixels = self.draws.pictures.pixels[rows].to(self.head.weight.device)
        weak = training_views(self.tuned, pixels, generator, self.settings)
        opinion = self._opinion(weak)
        sure = opinion.amax(1) >= choices.threshold
        exact = torch.promote_types(self.head.weight.dtype, torch.float32)
        values = pixels.to(exact) / 255 if pixels.dtype == torch.uint8 else pixels
        reach = {"crop": choices.crop, "jitter": choices.jitter, "cutout": choices.cutout}
        strong = strong_views(values, generator, flip=self.settings.flip, **reach)
        factors = factors.to(opinion) * sure
        return SourceBatch(network_input(self.tuned, strong), opinion, factors, float(sure.double().mean()))

    def losses(self, features: Tensor, batch: SourceBatch) -> Tensor:
        """(m,) cross-entropies to the soft opinion, in nats."""
        return F.cross_entropy(self.head(features), batch.targets, reduction="none")

    @torch.no_grad()
    def _opinion(self, x: Tensor) -> Tensor:
        module = self.tuned.module
        with in_eval(module.modules()):
            logits = self.head(self.tuned.feature_function(module, x))
        return (logits / self.choices.temperature).softmax(1)


SourceTask = LabelledSource | UnlabelledSource


def source_task(
    tuned: Backbone, head: nn.Linear, draws: SourceDraws, given: nn.Linear | None, settings: JointSettings
) -> SourceTask:
    """What is learnt from the source pictures; `head` is the target's, `given` what the source head starts from."""
    base, choices, source = settings.fine_tune, settings.source_task, draws.pictures
    if isinstance(choices, PseudoLabels):
        if given is not None:
            message = "a source_head needs source labels; with PseudoLabels there is the target head only"
            raise InputError(message)
        if source.pixels.ndim != 4:
            message = "pseudo-labels need strong views of pictures, and these are vectors; use SourceLabels"
            raise InputError(message)
        return UnlabelledSource(tuned, head, draws, base, choices)
    labels = None if source.labels is None else source.labels[draws.rows]
    classes, counting = label_positions(labels, "learning source labels (PseudoLabels needs none)")
    positions = np.full(len(source), -1)  # of pictures without weight
    positions[draws.rows] = counting
    if given is None:
        own_head = _start_head(tuned, draws, counting, choices.start, base)
    else:
        own_head = _checked_head(given, head, len(classes))
    return LabelledSource(tuned, own_head, classes, torch.from_numpy(positions).to(head.weight.device), draws, base)


def _start_head(
    tuned: Backbone, draws: SourceDraws, positions: NDArray[np.int64], start: HeadStart, settings: FineTuneSettings
) -> nn.Linear:
    """As `start_head` makes it, from at most `PROBE_LIMIT` of the pictures with weight that hold every class."""
    seed = other_seed(settings.seed)
    chosen = spread_rows(positions, PROBE_LIMIT, seed)
    data = LabelledPictures(
        draws.pictures.select(draws.rows[chosen]), torch.from_numpy(positions[chosen]).to(tuned.device)
    )
    return start_head(tuned, data, start, settings.flip, seed)


def _checked_head(given: Any, like: nn.Linear, classes: int) -> nn.Linear:
    """A trainable copy of a given head, on the device and in the type of another on the same features."""
    if not isinstance(given, nn.Linear):
        message = f"source_head is a {type(given).__name__}; give a torch.nn.Linear, such as pretrained_head makes"
        raise InputError(message)
    if (given.out_features, given.in_features) != (classes, like.in_features):
        message = (
            f"source_head gives {given.out_features} classes from {given.in_features} features, but the source has "
            f"{classes} classes and the backbone {like.in_features} features; choose its rows with pretrained_head"
        )
        raise InputError(message)
    return copy.deepcopy(given).to(like.weight).requires_grad_(True)


def spread_rows(positions: NDArray[np.int64], limit: int, seed: int) -> NDArray[np.int64]:
    """At most `limit` rows (more if there are more classes), ascending, of every class as alike as there are."""
    order = np.random.default_rng(seed).permutation(len(positions))
    by_class = order[np.argsort(positions[order], kind="stable")]
    starts = np.searchsorted(positions[by_class], positions[by_class])
    rank = np.arange(len(by_class)) - starts  # how many of its class come before
    limit = max(limit, int(positions.max()) + 1)
    return np.sort(by_class[np.argsort(rank, kind="stable")[:limit]])


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
