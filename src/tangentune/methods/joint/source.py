"""Source pictures: how they are weighed and drawn; their labels, or the network's opinion of them, are learnt."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator
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
from tangentune.methods.fine_tuning.labelled import LabelledPictures, network_input, training_views
from tangentune.methods.fine_tuning.settings import FineTuneSettings, HeadStart
from tangentune.methods.fine_tuning.training import loss_of, start_head
from tangentune.methods.joint.settings import PseudoLabels
from tangentune.networks.backbone import Backbone
from tangentune.pictures.pictures import Pictures

PROBE_LIMIT = 2000  # source pictures of a warm start's ridge regression, which costs the square of their number


def refuse_other_pictures(target: Pictures, source: Pictures) -> None:
    """Source pictures must go into one batch with target pictures."""
    if not len(source):
        raise InputError("there is no source picture; give some, or use fine_tune on the target pictures alone")
    a, b = (tuple(pictures.pixels.shape[1:]) for pictures in (target, source))
    if a != b:
        raise InputError(f"target pictures are {a} but source pictures {b}; load both for the same backbone")
    a, b = (str(pictures.pixels.dtype).removeprefix("torch.") for pictures in (target, source))
    if a != b:
        raise InputError(f"target pictures are {a} but source pictures {b}; give both as one type")


def refuse_pseudo_labels(source: Pictures, source_head: nn.Linear | None) -> None:
    """Pseudo-labels have no head of their own, and need pictures."""
    if source_head is not None:
        raise InputError("a source_head needs source labels; with PseudoLabels there is the target head only")
    if source.pixels.ndim != 4:
        raise InputError("pseudo-labels need strong views of pictures, and these are vectors; use SourceLabels")


def checked_weights(weights: NDArray[Any] | None, n: int) -> NDArray[np.float64]:
    """Weights (n,) float64 of mean 1 over the pictures that count; None is even."""
    if weights is None:
        return np.ones(n)
    given = np.asarray(weights)
    if given.dtype.kind not in "iufb":
        raise InputError(f"source_weights are of type {given.dtype}; give one number a source picture")
    if given.shape != (n,):
        raise InputError(
            f"source_weights have the shape {given.shape}; give one number for each of the {n} source pictures"
        )
    wrong = np.flatnonzero(~(np.isfinite(given) & (given >= 0)))
    if len(wrong):
        raise InputError(f"source weight {wrong[0]} is {given[wrong[0]]}; weights must be finite and at least 0")
    if not given.any():
        raise InputError(
            "all source weights are 0; give at least one source picture a weight, or use fine_tune without any"
        )
    scaled = given / given.max()  # first, so that no sum overflows
    return scaled / scaled[scaled > 0].mean()


@final
class SourceDraws:
    """Positions of n pictures with weight, drawn without end in passes that are shuffled anew.

    By "sampling" a pass is n draws in which one of weight w comes up n w / sum(w) times, rounded up or down at random
    so that the mean is exact (systematic sampling of a shuffled order; Madow 1949, Ann. Math. Statist. 20). By "loss",
    and with even weights, it is every picture once, and the weights are factors of the losses. Order and views come
    from a generator of its own: target pictures come in the same order and in the same views whatever the source is.
    """

    def __init__(self, weights: NDArray[np.float64], weighting: Literal["sampling", "loss"], seed: int) -> None:
        self.generator = torch.Generator().manual_seed(_other_seed(seed))
        given, self._waiting = torch.from_numpy(weights), torch.empty(0, dtype=torch.int64)
        even = torch.ones_like(given)
        self._shares, self._factors = (given, even) if weighting == "sampling" else (even, given)

    def take(self, count: int) -> tuple[Tensor, Tensor]:
        """Positions of the next pictures, and the float64 factors of their losses."""
        while len(self._waiting) < count:
            self._waiting = torch.cat([self._waiting, self._one_pass()])
        taken, self._waiting = self._waiting.tensor_split([count])
        return taken, self._factors[taken]

    def _one_pass(self) -> Tensor:
        n = len(self._shares)
        order = torch.randperm(n, generator=self.generator)
        if bool((self._shares == self._shares[0]).all()):
            return order
        ends = self._shares[order].cumsum(0)
        start = torch.rand(1, generator=self.generator, dtype=torch.float64)
        places = (torch.arange(n) + start) * (ends[-1] / n)
        drawn = torch.searchsorted(ends, places, right=True).clamp_max(n - 1)  # rounding may lead past the end
        return order[drawn][torch.randperm(n, generator=self.generator)]


def _other_seed(seed: int) -> int:
    """A seed for draws that must have nothing to do with those of `seed` itself."""
    return int(torch.randint(2**62, (1,), generator=torch.Generator().manual_seed(seed)))


@final
@dataclass(frozen=True, eq=False)
class SourceBatch:
    """Some source pictures, ready to learn from."""

    x: Tensor  # network inputs (m, ...)
    factors: Tensor  # (m,) what each picture's loss is multiplied by before the mean over all m
    losses: Callable[[Tensor], Tensor]  # (m,) of (m, d) features
    counted: float = 1.0  # share of the pictures that count; below 1 where the network is not sure enough


def labelled(
    tuned: Backbone, head: nn.Linear, data: LabelledPictures, draws: SourceDraws, settings: FineTuneSettings
) -> Callable[[int], SourceBatch]:
    """The next pictures, in views as those of the target pictures, whose labels a head of their own learns."""

    def batch(count: int) -> SourceBatch:
        rows, factors = draws.take(count)
        x = training_views(tuned, data.pictures.pixels_at(rows), draws.generator, settings)
        positions = data.positions[rows.to(x.device)]
        return SourceBatch(x, factors.to(x), lambda features: loss_of(head(features), positions, settings, "none"))

    return batch


def unlabelled(
    tuned: Backbone,
    head: nn.Linear,
    source: Pictures,
    draws: SourceDraws,
    settings: FineTuneSettings,
    choices: PseudoLabels,
) -> Callable[[int], SourceBatch]:
    """The next pictures, of whose strong views the target head learns to say what it says of weak ones.

    The opinion is that of the network as it predicts; a picture below the threshold has the factor 0.
    """
    reach = {"crop": choices.crop, "jitter": choices.jitter, "cutout": choices.cutout}

    def batch(count: int) -> SourceBatch:
        rows, factors = draws.take(count)
        pixels = source.pixels[rows].to(head.weight.device)
        weak = training_views(tuned, pixels, draws.generator, settings)
        with torch.no_grad(), in_eval(tuned.module.modules()):
            opinion = (head(tuned.feature_function(tuned.module, weak)) / choices.temperature).softmax(1)
        sure = opinion.amax(1) >= choices.threshold
        exact = torch.promote_types(head.weight.dtype, torch.float32)
        values = pixels.to(exact) / 255 if pixels.dtype == torch.uint8 else pixels
        x = network_input(tuned, strong_views(values, draws.generator, flip=settings.flip, **reach))
        share = float(sure.double().mean())
        return SourceBatch(
            x, factors.to(opinion) * sure, lambda f: F.cross_entropy(head(f), opinion, reduction="none"), share
        )

    return batch


def start_source_head(
    tuned: Backbone,
    data: LabelledPictures,
    start: HeadStart,
    settings: FineTuneSettings,
    given: nn.Linear | None,
    like: nn.Linear,
) -> nn.Linear:
    """A trainable copy of a given head, in the place and type of another on the same features; else by `start_head`.

    That sees at most `PROBE_LIMIT` of the pictures, which hold every class.
    """
    if given is None:
        seed = _other_seed(settings.seed)
        chosen = spread_rows(data.positions.cpu().numpy(), PROBE_LIMIT, seed)
        few = LabelledPictures(data.pictures.select(chosen), data.positions[chosen])
        return start_head(tuned, few, start, settings.flip, seed)
    if not isinstance(given, nn.Linear):
        raise InputError(
            f"source_head is a {type(given).__name__}; give a torch.nn.Linear, such as pretrained_head makes"
        )
    classes = int(data.positions.max()) + 1
    if (given.out_features, given.in_features) != (classes, like.in_features):
        message = f"source_head gives {given.out_features} classes from {given.in_features} features, but the source "
        message += f"has {classes} classes and the backbone {like.in_features} features; choose its rows with "
        raise InputError(message + "pretrained_head")
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
