"""The pictures a model was fitted to, so that it can be asked about them and changed: pixels, kernel, rows.

A set only grows: a forgotten picture stays here, out of use, until the model is saved, so that edits can be taken back
without the network.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tangentune.kernels.batches import PictureBatches
from tangentune.kernels.feature_map import (
    FeatureRows,
    TangentMap,
    collect_rows,
    cross_kernel,
    join_rows,
    own_kernel,
    portion_rows,
    row_parts,
)
from tangentune.pictures.pictures import Pictures

if TYPE_CHECKING:
    from tangentune.estimators.source_kernels import SourceSet

ROWS_SHARE = 4  # rows are kept where they take at most 1/4 of the memory budget


@final
@dataclass(frozen=True, eq=False)
class TrainingSet:
    """Pictures of a fit.

    Attributes:
        pictures: all of them, in the order in which they came, without labels.
        numbers: (n,) what each is called for good: its position at the fit; later ones go on counting.
        points: (n,) point of expansion of each picture's rows; -1 is the feature map's own network.
        kernel: (n, n) float64; less what a source takes of it.
        rows: their rows, or None: computed again, batch by batch, whenever they are needed.
        source: source pictures that stand behind the fit.
    """

    pictures: Pictures
    numbers: NDArray[np.int64]
    points: tuple[int, ...]
    kernel: Tensor
    rows: FeatureRows | None
    source: SourceSet | None = None

    def __len__(self) -> int:
        return len(self.pictures)

    @property
    def has_pictures(self) -> bool:
        """False for the set of a model that was saved without them: its rows cannot be taken."""
        return self.pictures.pixels.numel() > 0


Opened = Callable[[Pictures, tuple[int, ...]], PictureBatches]  # pictures as network inputs


def with_rows(training: TrainingSet, feature_map: TangentMap, opened: Opened, room: int) -> TrainingSet:
    """The same set with its rows in memory, if they fit into `room` bytes; else as it was."""
    if training.rows is not None or not len(training):
        return training
    source = opened(training.pictures, training.points)
    first = next(iter(source.portions([0])))
    if portion_rows(feature_map, first).nbytes * len(training) > room:
        return training
    rows = collect_rows(feature_map, lambda: source.portions(None), len(training))
    return replace(training, rows=rows)


def parts(training: TrainingSet, feature_map: TangentMap, opened: Opened) -> Iterator[tuple[Tensor, FeatureRows]]:
    """Positions and rows of the whole set, from memory or from its pictures."""
    return row_parts(training.rows, feature_map, lambda: opened(training.pictures, training.points).portions(None))


def cross(training: TrainingSet, feature_map: TangentMap, opened: Opened, new: FeatureRows) -> Tensor:
    """(m, n) kernel between new pictures and the set."""
    out = new.phi.new_empty(len(new), len(training))
    for index, rows in parts(training, feature_map, opened):
        out[:, index] = cross_kernel(feature_map, new, rows)
    return out


def first_set(
    pictures: Pictures, numbers: NDArray, points: tuple[int, ...], kernel: Tensor, rows: FeatureRows | None, room: int
) -> TrainingSet:
    """The set of a fit; its rows are kept if they fit into `room` bytes."""
    bare = replace(pictures, labels=None)
    return TrainingSet(bare, numbers, points, kernel, rows if rows is not None and rows.nbytes <= room else None)


def extend(
    training: TrainingSet, feature_map: TangentMap, opened: Opened, pictures: Pictures, numbers: NDArray, room: int
) -> TrainingSet:
    """The set with more pictures of its type at its end, their rows taken at the feature map's own network.

    Rows that were kept still are, if all fit into `room` bytes.
    """
    points = (-1,) * len(pictures)
    source = opened(pictures, points)
    new = collect_rows(feature_map, lambda: source.portions(None), len(pictures))
    between, own = cross(training, feature_map, opened, new), own_kernel(feature_map, new)
    kernel = torch.cat([torch.cat([training.kernel, between.T], 1), torch.cat([between, own], 1)])
    keep = training.rows is not None and training.rows.nbytes + new.nbytes <= room
    rows = join_rows(training.rows, new) if keep and training.rows is not None else None
    pixels = torch.cat([training.pictures.pixels, pictures.pixels])
    joined = Pictures(pixels, None, training.pictures.ids + pictures.ids, training.pictures.skipped)
    return TrainingSet(joined, np.concatenate([training.numbers, numbers]), training.points + points, kernel, rows)
