"""The pictures a model was fitted to, and those of a source: pixels, kernels, rows; what can be asked starts here.

A set only grows: a forgotten picture stays here, out of use, until the model is saved, so that edits can be taken back
without the network.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tangentune.kernels.batches import PictureBatches, Portion, picture_batches, with_progress
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
from tangentune.networks.backbone import Backbone
from tangentune.pictures.pictures import Pictures
from tangentune.solvers.source.choice import SourceProblem, SourceSetting
from tangentune.solvers.source.coupling import coupling
from tangentune.solvers.source.leave_out import SourcePrediction
from tangentune.solvers.source.prior import Prior

ROWS_SHARE = 4  # rows are kept where they take at most 1/4 of the memory budget

# -- how pictures are read ---------------------------------------------------------------------------------------------


@final
@dataclass(frozen=True)
class PictureReader:
    """Pictures as inputs of a network: `batch_size` inputs at a time (a mirrored picture counts as two)."""

    backbone: Backbone
    batch_size: int
    flip: bool
    verbose: int

    def open(self, pictures: Pictures, points: tuple[int, ...] | None = None) -> PictureBatches:
        """Pictures as network inputs, each at its point of expansion."""
        views = 2 if self.flip and pictures.pixels.dim() == 4 else 1
        return picture_batches(pictures, self.backbone, max(1, self.batch_size // views), points)

    def open_training(self, pictures: Pictures, points: tuple[int, ...]) -> PictureBatches:
        """The same with a progress bar."""
        source, label = self.open(pictures, points), "reading the training pictures"
        return replace(source, batches=lambda index: with_progress(source, self.verbose, label, index))


@final
@dataclass(frozen=True)
class RowReader:
    """Takes the rows of pictures in a feature map.

    Attributes:
        feature_map: of the rows.
        open: pictures, and the point of expansion of each (-1: the map's own network), as network inputs.
        room: bytes that the rows of one set may take in memory.
    """

    feature_map: TangentMap
    open: Callable[[Pictures, tuple[int, ...]], PictureBatches]
    room: int

    def portions(self, pictures: Pictures, points: tuple[int, ...] | None = None) -> Iterator[Portion]:
        """Network inputs, batch by batch; None takes all at the map's own network."""
        return self.open(pictures, (-1,) * len(pictures) if points is None else points).portions(None)

    def collect(self, pictures: Pictures, points: tuple[int, ...] | None = None) -> FeatureRows:
        """All rows in memory."""
        return collect_rows(self.feature_map, partial(self.portions, pictures, points), len(pictures))

    def one_row_bytes(self, pictures: Pictures, points: tuple[int, ...] | None = None) -> int:
        """Memory of the first picture's row."""
        first = None if points is None else points[:1]
        return portion_rows(self.feature_map, next(self.portions(pictures.select([0]), first))).nbytes

    def cross(
        self, new: FeatureRows, pictures: Pictures, points: tuple[int, ...] | None, rows: FeatureRows | None
    ) -> Tensor:
        """(k, m) kernel between new rows and pictures, whose rows are at hand or taken batch by batch."""
        out = new.phi.new_empty(len(new), len(pictures))
        for index, own in row_parts(rows, self.feature_map, partial(self.portions, pictures, points)):
            out[:, index] = cross_kernel(self.feature_map, new, own)
        return out


# -- source pictures ---------------------------------------------------------------------------------------------------


@final
@dataclass(frozen=True, eq=False)
class SourcePictures:
    """Pictures of a source.

    Attributes:
        pictures: m, without labels.
        classes: S names.
        positions: (m,) class of each picture.
        given: (m,) relative weights as given, positive.
        rows: theirs, or None: computed again, batch by batch, whenever they are needed.
    """

    pictures: Pictures
    classes: tuple[str, ...]
    positions: Tensor
    given: Tensor
    rows: FeatureRows | None = None

    def __len__(self) -> int:
        return len(self.pictures)

    def parts(self, reader: RowReader) -> Iterator[tuple[Tensor, FeatureRows]]:
        """Positions and rows of all, from memory or from the pictures."""
        return row_parts(self.rows, reader.feature_map, partial(reader.portions, self.pictures))

    def kernel(self, reader: RowReader, new: FeatureRows) -> Tensor:
        """(k, m) kernel between new pictures and these."""
        return reader.cross(new, self.pictures, None, self.rows)


@final
@dataclass(frozen=True, eq=False)
class SourceSet:
    """PictureBatches pictures at one setting, behind a training set.

    Attributes:
        pictures: m source pictures.
        own: (m, m) float64 kernel.
        cross: (n, m) with the training set, forgotten pictures included.
        plain: (n, n) kernel of the training set before the source took its part; the set's own is what is left.
        setting: strength, deviation, damping and class weights.
        prior: that follows.
    """

    pictures: SourcePictures
    own: Tensor
    cross: Tensor
    plain: Tensor
    setting: SourceSetting
    prior: Prior

    @property
    def weights(self) -> Tensor:
        """(m,) of the source pictures in the least-squares problem, that of a target picture being 1."""
        return self.setting.strength * self.setting.class_weights[self.pictures.positions] * self.pictures.given

    def left(self, kernel: Tensor, one: Tensor, two: Tensor) -> Tensor:
        """What is left of a kernel (k, l) once the source has taken its part: less `one Q two^T`.

        Args:
            kernel: between any pictures.
            one: (k, m) kernel of the first with the source pictures.
            two: (l, m) of the second.
        """
        return kernel - one @ self.prior.gain @ two.T

    def predict(self, active: Tensor, targets: Tensor, weights: Tensor, classes: NDArray) -> SourcePrediction:
        """What the source alone predicts for the training pictures at some positions; arguments as for `problem`."""
        kernels = (self.plain[active][:, active], self.cross[active], self.own)
        means = problem(self.pictures, *kernels, targets, weights, classes).means()
        return SourcePrediction(means, self.cross[active] @ self.prior.response, coupling(means))

    def dual(self, active: Tensor, dual: Tensor, labels: Tensor) -> Tensor:
        """(m, C) coefficients of the source pictures in the fitted function.

        Args:
            active: (n,) positions of the target pictures.
            dual: (n, C) their coefficients.
            labels: (S, C) targets of the source classes.
        """
        return self.prior.response @ labels - self.prior.gain @ (self.cross[active].T @ dual)


def problem(
    pictures: SourcePictures,
    plain: Tensor,
    crossed: Tensor,
    own: Tensor,
    targets: Tensor,
    weights: Tensor,
    classes: NDArray,
) -> SourceProblem:
    """Kernels (n, n), (n, m) and (m, m), and the labels and weights of n target pictures, as the solver takes them."""
    named = np.array(pictures.classes)[:, None] == class_names(classes)
    flags = torch.from_numpy(named).to(plain.device)
    return SourceProblem(plain, crossed, own, targets, weights, pictures.positions, pictures.given, flags)


def class_names(labels: NDArray) -> NDArray:
    """Labels as text; whole numbers alike, be they floats or integers.

    Example:
        >>> class_names(np.array([0.0, 3.0])).tolist(), class_names(np.array(["cat"])).tolist()
        (['0', '3'], ['cat'])
    """
    whole = labels.dtype.kind == "f" and (labels == np.rint(labels)).all()
    return (labels.astype(np.int64) if whole else labels).astype(str)


# -- training pictures -------------------------------------------------------------------------------------------------


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

    def with_rows(self, reader: RowReader) -> TrainingSet:
        """The same set with its rows in memory, if there is room for them; else as it was."""
        if self.rows is not None or not len(self):
            return self
        if reader.one_row_bytes(self.pictures, self.points) * len(self) > reader.room:
            return self
        return replace(self, rows=reader.collect(self.pictures, self.points))

    def parts(self, reader: RowReader) -> Iterator[tuple[Tensor, FeatureRows]]:
        """Positions and rows of the whole set, from memory or from its pictures."""
        return row_parts(self.rows, reader.feature_map, partial(reader.portions, self.pictures, self.points))

    def cross(self, reader: RowReader, new: FeatureRows) -> Tensor:
        """(m, n) kernel between new pictures and the set."""
        return reader.cross(new, self.pictures, self.points, self.rows)


def first_set(
    pictures: Pictures, numbers: NDArray, points: tuple[int, ...], kernel: Tensor, rows: FeatureRows | None, room: int
) -> TrainingSet:
    """The set of a fit; its rows are kept if they fit into `room` bytes."""
    bare = replace(pictures, labels=None)
    return TrainingSet(bare, numbers, points, kernel, rows if rows is not None and rows.nbytes <= room else None)


def extend(training: TrainingSet, reader: RowReader, pictures: Pictures, numbers: NDArray) -> TrainingSet:
    """The set with more pictures of its type at its end, their rows taken at the feature map's own network.

    Rows that were kept still are, if there is room for all. With a source, the kernel to it grows as well: k m^2 more
    for k pictures.
    """
    new = reader.collect(pictures)
    between, own = training.cross(reader, new), own_kernel(reader.feature_map, new)
    source, n = training.source, len(training)
    before = training.kernel if source is None else source.plain
    kernel = torch.cat([torch.cat([before, between.T], 1), torch.cat([between, own], 1)])
    keep = training.rows is not None and training.rows.nbytes + new.nbytes <= reader.room
    rows = join_rows(training.rows, new) if keep and training.rows is not None else None
    pixels = torch.cat([training.pictures.pixels, pictures.pixels])
    joined = Pictures(pixels, None, training.pictures.ids + pictures.ids, training.pictures.skipped)
    numbers, points = np.concatenate([training.numbers, numbers]), training.points + (-1,) * len(pictures)
    if source is not None:
        crossed = torch.cat([source.cross, source.pictures.kernel(reader, new)])
        source = replace(source, cross=crossed, plain=kernel)
        left, kernel = source.left(kernel[n:], crossed[n:], crossed), kernel.clone()
        kernel[:n, :n], kernel[n:], kernel[:n, n:] = training.kernel, left, left[:, :n].T
    return TrainingSet(joined, numbers, points, kernel, rows, source)
