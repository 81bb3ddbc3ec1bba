"""Target and source of a selection as class prototypes in one feature space: what every method ranks."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tangentune.errors import InputError
from tangentune.methods.source_selection.clusters import nearest_centres, spherical_kmeans
from tangentune.methods.source_selection.directions import check_same_width
from tangentune.methods.source_selection.feature_source import Features
from tangentune.methods.source_selection.prototypes import ClassSums, class_sums
from tangentune.methods.source_selection.scorer import Scorer, nearest_scorer
from tangentune.methods.source_selection.sides import Side


@final
@dataclass(frozen=True, eq=False)
class Prepared:
    """Both sides of a selection.

    Attributes:
        target: labelled pictures.
        source: pictures to choose from.
        target_sums: the target's classes.
        source_sums: the source's classes, or clusters.
        members: (n,) class of each source picture, positions in `source_sums.names`.
        centre: (d,) float64, midpoint of the two sets' mean unit features; None: nothing is taken off.
        targets: (K, d) float64 unit prototypes of the target classes, the centre taken off.
        prototypes: (C, d) float64 of the source classes, likewise.
    """

    target: Side
    source: Side
    target_sums: ClassSums
    source_sums: ClassSums
    members: NDArray[np.int64]
    centre: Tensor | None
    targets: Tensor
    prototypes: Tensor

    @property
    def nearest(self) -> Scorer:
        """The score of the nearest target, whose cosines are those that every method compares."""
        return replace(nearest_scorer(self.targets), centre=self.centre)


def prepare(
    target: Side,
    source: Side,
    *,
    clusters: int | None = None,
    seed: int = 0,
    centred: bool = True,
    cache: Path | None = None,
    verbose: int = 0,
) -> Prepared:
    """Class means of both sides, in one pass over each; with clusters, three more over the source.

    Args:
        target: with labels of at least two classes.
        source: with labels, or with `clusters`.
        clusters: how many spherical k-means makes of the source.
        seed: of these.
        centred: whether the midpoint of both sets' mean unit features is taken off (docs/decisions/0014).
        cache: folder for the states that stopped passes go on from.
        verbose: 1 shows progress bars.

    Raises:
        InputError: one class only, no labels and no clusters, features of different widths, or a broken row.
    """
    if target.labels is None:
        message = "the target's pictures have no labels; give class folders, a CSV file with labels, or target_labels="
        raise InputError(message)
    known = np.unique(target.labels)
    if len(known) < 2:
        message = f"the target holds one class only ({known[0]}); a selection needs at least two target classes"
        raise InputError(message)
    if source.labels is None and clusters is None:
        message = "the source's pictures have no labels; give clusters=, how many groups to divide them into"
        raise InputError(message)
    check_same_width(torch.empty(0, source.features.width), torch.empty(0, target.features.width))
    if target.backbone and source.backbone and target.backbone["digest"] != source.backbone["digest"]:
        message = "the target's features come from another backbone than the source's; take both from one"
        raise InputError(message)
    with _named("target"):
        target_sums = class_sums(target.features, target.labels)
    with _named("source"):
        labels = source.labels if clusters is None else _clustered(source.features, clusters, seed, cache, verbose)
        assert labels is not None
        state = None if cache is None else cache / "sums.safetensors"
        source_sums = class_sums(source.features, labels, checkpoint=state, verbose=verbose)
    names, members = np.unique(labels, return_inverse=True)
    assert tuple(names.tolist()) == source_sums.names
    sides, centre = (target_sums, source_sums), None
    if centred:
        centre = torch.stack([sums.sums.sum(0) / sums.counts.sum() for sums in sides]).mean(0)
    targets, prototypes = (sums.prototypes(centre) for sums in sides)
    return Prepared(target, source, *sides, members.reshape(-1), centre, targets, prototypes)


def _clustered(features: Features, clusters: int, seed: int, cache: Path | None, verbose: int) -> NDArray[np.str_]:
    """The cluster of every row, by name."""
    state = None if cache is None else cache / "clusters.safetensors"
    centres = spherical_kmeans(features, clusters, seed=seed, checkpoint=state, verbose=verbose).centres
    names = np.array([f"cluster {i}" for i in range(len(centres))], dtype=np.str_)
    return names[nearest_centres(features, centres, verbose=verbose)]


@contextmanager
def _named(whose: str) -> Iterator[None]:
    """Errors about rows say of which side they are."""
    try:
        yield
    except InputError as error:
        message = f"the {whose} cannot be used: {error}"
        raise InputError(message) from error
