"""Copies of pictures: equal in every pixel among those of a fit, or nearly the same to look at as one of a model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from tangentune.pictures.label_sets import plain_labels
from tangentune.pictures.names import some
from tangentune.pictures.pictures import Pictures

SIDE = 16  # of the small picture that is compared
NEAR = 0.99  # correlation of small pictures from which on they count as nearly the same (results/near_copies.md)
PORTION = 2**22  # correlations at a time


class Copy(NamedTuple):
    """Picture `new` repeats picture `old` of all; `exact` in every pixel."""

    new: int
    old: int
    exact: bool


def find_duplicates(pictures: Pictures) -> list[list[int]]:
    """Groups of positions whose pictures are equal in every pixel as the network sees them, two or more, in order."""
    groups: dict[str, list[int]] = {}
    for i, digest in enumerate(pictures.digests):
        groups.setdefault(digest, []).append(i)
    return [group for group in groups.values() if len(group) > 1]


def duplicate_sentences(pictures: Pictures) -> list[str]:
    """What to tell the user about pictures that appear more than once; an empty list when none do."""
    groups, labels, ids = find_duplicates(pictures), pictures.labels, pictures.ids
    if not groups:
        return []
    named = some([" = ".join(ids[i] for i in group) for group in groups], 3)
    one = len(groups) == 1
    sentences = [
        f"{len(groups)} {'picture appears' if one else 'pictures appear'} more than once, so the "
        f"leave-one-out error of {'its' if one else 'their'} copies is optimistic: {named}."
    ]
    conflicts = [] if labels is None else [group for group in groups if (labels[group] != labels[group[0]]).any()]
    if conflicts and labels is not None:
        pairs = [" = ".join(f"{ids[i]} ({plain_labels(labels[[i]])[0]!r})" for i in group) for group in conflicts]
        what = "picture appears" if len(conflicts) == 1 else "pictures appear"
        sentences.append(f"{len(conflicts)} {what} with different labels; correct or remove: {some(pairs, 3)}.")
    return sentences


def find_copies(pictures: Pictures, known: int) -> list[Copy]:
    """What pictures from position `known` on repeat of those before: the first equal one, else the most alike."""
    first: dict[str, int] = {}
    digests, small = pictures.digests, sketches(pictures.pixels)
    found, step = [], max(1, PORTION // len(pictures))
    for i, digest in enumerate(digests[:known]):
        first.setdefault(digest, i)
    for start in range(known, len(pictures), step):
        alike = small[start : start + step] @ small.T
        alike.masked_fill_(torch.arange(len(pictures)) >= torch.arange(start, start + len(alike))[:, None], -1.0)
        for i, (value, old) in enumerate(zip(*(part.tolist() for part in alike.max(1)), strict=True), start):
            if (twin := first.setdefault(digests[i], i)) != i:
                found.append(Copy(i, twin, exact=True))
            elif value >= NEAR:
                found.append(Copy(i, old, exact=False))
    return found


def sketches(pixels: Tensor) -> Tensor:
    """(n, 256 C) small pictures, centred, of length one: their inner products are correlations; an even one is zero."""
    # A portion at a time: they are floats meanwhile.
    small = torch.cat([F.adaptive_avg_pool2d(part.float(), (SIDE, SIDE)).flatten(1) for part in pixels.split(256)])
    small = small - small.mean(1, keepdim=True)
    lengths = small.norm(dim=1, keepdim=True)
    return torch.where(lengths > 1e-3 * small.abs().amax().clamp_min(1e-12), small / lengths.clamp_min(1e-12), 0.0)


def copy_sentences(pictures: Pictures, known: int) -> list[str]:
    """What to tell of labelled pictures from position `known` on that repeat others; another label comes first."""
    if pictures.pixels.dim() != 4 or known >= len(pictures) or pictures.labels is None:
        return []
    copies, labels, ids = find_copies(pictures, known), pictures.labels, pictures.ids
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
    names = [ids[i] if labels is None else f"{ids[i]} ({plain_labels(labels[[i]])[0]!r})" for i in (copy.new, copy.old)]
    return f"{names[0]} {'=' if copy.exact else '≈'} {names[1]}"
