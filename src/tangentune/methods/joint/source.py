"""Source pictures of joint fine-tuning: which there are, how they are weighed and drawn, and the head they teach."""

from __future__ import annotations

import copy
from typing import Any, final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from tangentune.errors import InputError
from tangentune.methods.fine_tuning.labelled import LabelledPictures
from tangentune.pictures.pictures import Pictures

PROBE_LIMIT = 2000  # source pictures of a warm start's ridge regression, which costs the square of their number


def refuse_other_pictures(target: Pictures, source: Pictures) -> None:
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
class SourceDraws:
    """Positions of pictures, drawn without end in proportion to (n,) positive weights, in passes shuffled anew.

    A pass over n pictures is n draws in which one of weight w comes up n w / sum(w) times, rounded up or down at random
    so that the mean is exact (systematic sampling of a shuffled order; Madow 1949, Ann. Math. Statist. 20). With even
    weights that is every picture once. Order and views come from a generator of its own: target pictures come in the
    same order and in the same views whatever the source is.
    """

    def __init__(self, weights: NDArray[np.float64], seed: int) -> None:
        self.generator = torch.Generator().manual_seed(_other_seed(seed))
        self._weights, self._waiting = torch.from_numpy(weights), torch.empty(0, dtype=torch.int64)

    def take(self, count: int) -> Tensor:
        """Positions of the next pictures."""
        while len(self._waiting) < count:
            self._waiting = torch.cat([self._waiting, self._one_pass()])
        taken, self._waiting = self._waiting.tensor_split([count])
        return taken

    def _one_pass(self) -> Tensor:
        n = len(self._weights)
        order = torch.randperm(n, generator=self.generator)
        if bool((self._weights == self._weights[0]).all()):
            return order
        ends = self._weights[order].cumsum(0)
        start = torch.rand(1, generator=self.generator, dtype=torch.float64)
        places = (torch.arange(n) + start) * (ends[-1] / n)
        drawn = torch.searchsorted(ends, places, right=True).clamp_max(n - 1)  # rounding may lead past the end
        return order[drawn][torch.randperm(n, generator=self.generator)]


def _other_seed(seed: int) -> int:
    """A seed for draws that must have nothing to do with those of `seed` itself."""
    return int(torch.randint(2**62, (1,), generator=torch.Generator().manual_seed(seed)))


def spread(data: LabelledPictures, seed: int) -> tuple[LabelledPictures, int]:
    """At most `PROBE_LIMIT` of the pictures that hold every class, and a seed for what is started from them."""
    other = _other_seed(seed)
    chosen = spread_rows(data.positions.cpu().numpy(), PROBE_LIMIT, other)
    return LabelledPictures(data.pictures.select(chosen), data.positions[chosen]), other


def checked_head(given: Any, like: nn.Linear, classes: int) -> nn.Linear:
    """A trainable copy of a given head, on the device and in the type of another on the same features."""
    if not isinstance(given, nn.Linear):
        message = f"source_head is a {type(given).__name__}; give a torch.nn.Linear, such as pretrained_head makes"
        raise InputError(message)
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
