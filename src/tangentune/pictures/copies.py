"""Copies of pictures among others: equal in every pixel, or nearly the same to look at."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from tangentune.pictures.checks import pictures_digest
from tangentune.pictures.names import some
from tangentune.pictures.pictures import Pictures

SIDE = 16  # of the small picture that is compared
NEAR = 0.98  # correlation of small pictures from which on they count as nearly the same (benchmarks/near_copies)
PORTION = 2**22  # correlations at a time


class Copy(NamedTuple):
    """Picture `new` repeats picture `old` of all; `exact` in every pixel."""

    new: int
    old: int
    exact: bool


def find_copies(pixels: Tensor, known: int) -> list[Copy]:
    """What each picture from position `known` on repeats of those before it: the first equal one, else the most alike.

    Pixels (n, C, H, W). Cost: two passes over them, and 256 C multiply-adds for every pair.
    """
    first: dict[str, int] = {}
    digests, small = pictures_digest(pixels), sketches(pixels)
    found, step = [], max(1, PORTION // len(pixels))
    for i, digest in enumerate(digests[:known]):
        first.setdefault(digest, i)
    for start in range(known, len(pixels), step):
        alike = small[start : start + step] @ small.T
        alike.masked_fill_(torch.arange(len(pixels)) >= torch.arange(start, start + len(alike))[:, None], -1.0)
        for i, (value, old) in enumerate(zip(*(part.tolist() for part in alike.max(1)), strict=True), start):
            if (twin := first.setdefault(digests[i], i)) != i:
                found.append(Copy(i, twin, exact=True))
            elif value >= NEAR:
                found.append(Copy(i, old, exact=False))
    return found


def sketches(pixels: Tensor) -> Tensor:
    """(n, 256 C) small pictures, centred, of length one: their inner products are correlations; an even one is zero."""
    parts = [
        F.adaptive_avg_pool2d(part.float(), (SIDE, SIDE)).flatten(1) for part in pixels.split(256)
    ]  # a portion at a time: they are floats meanwhile
    small = torch.cat(parts)
    small = small - small.mean(1, keepdim=True)
    lengths = small.norm(dim=1, keepdim=True)
    return torch.where(lengths > 1e-3 * small.abs().amax().clamp_min(1e-12), small / lengths.clamp_min(1e-12), 0.0)


def copy_sentences(pictures: Pictures, known: int) -> list[str]:
    """What to tell of labelled pictures from position `known` on that repeat others; another label comes first."""
    if pictures.pixels.dim() != 4 or known >= len(pictures) or pictures.labels is None:
        return []
    copies, labels, ids = find_copies(pictures.pixels, known), pictures.labels, pictures.ids
    other = [copy for copy in copies if np.any(labels[copy.new] != labels[copy.old])]
    same = [copy for copy in copies if copy not in other]
    sentences = []
    if other:
        pairs = some([_pair(copy, ids, labels) for copy in other])
        what = "picture looks the same as one" if len(other) == 1 else "pictures look the same as ones"
        sentences.append(f"{len(other)} new {what} with another label; correct one of the two: {pairs}.")
    if same:
        pairs = some([_pair(copy, ids, None) for copy in same])
        what = "picture repeats one" if len(same) == 1 else "pictures repeat ones"
        hint = "leave-one-out of both is optimistic"
        sentences.append(f"{len(same)} new {what} that the model has, so {hint}: {pairs}.")
    return sentences


def _pair(copy: Copy, ids: Sequence[str], labels: NDArray[Any] | None) -> str:
    """Two names, with labels if given, and whether they are equal or nearly so."""
    names = [ids[i] if labels is None else f"{ids[i]} ({labels[i].tolist()!r})" for i in (copy.new, copy.old)]
    return f"{names[0]} {'=' if copy.exact else '≈'} {names[1]}"
