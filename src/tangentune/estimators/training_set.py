"""The pictures a model was fitted to, and those of a source: pixels, kernels, rows.

A set only grows: a forgotten picture stays here, out of use, until the model is saved, so that edits can be taken back
without the network.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any, final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tangentune.kernels.batches import PictureBatches, Portion, picture_batches, with_progress
from tangentune.kernels.feature_map import (
    FeatureRows,
    KeptRows,
    TangentMap,
    collect_rows,
    cross_kernel,
    portion_rows,
    row_parts,
)
from tangentune.kernels.landmark_map import LandmarkMap, without
from tangentune.networks.backbone import Backbone
from tangentune.pictures.pictures import Pictures
from tangentune.solvers.low_rank import FeatureKernel
from tangentune.solvers.source.choice import SourceProblem, SourceSetting
from tangentune.solvers.source.coupling import coupling
from tangentune.solvers.source.leave_out import SourcePrediction
from tangentune.solvers.source.prior import Prior, prior, spectrum

SHOWN = 0.005  # shares of a class below it are not listed
ROWS_SHARE = 4  # rows are kept where they take at most 1/4 of the memory budget


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
    """Takes the rows of pictures in a feature map; points of None are the map's own network for all."""

    feature_map: TangentMap
    open: Callable[[Pictures, tuple[int, ...]], PictureBatches]  # each picture at its point; -1: the map's own network
    room: int  # bytes that the rows of one set may take in memory

    def portions(self, pictures: Pictures, points: tuple[int, ...] | None = None) -> Iterator[Portion]:
        """Network inputs, batch by batch."""
        return self.open(pictures, (-1,) * len(pictures) if points is None else points).portions(None)

    def collect(self, pictures: Pictures, points: tuple[int, ...] | None = None) -> FeatureRows:
        """All rows in memory."""
        return collect_rows(self.feature_map, partial(self.portions, pictures, points), len(pictures))

    def one_row_bytes(self, pictures: Pictures, points: tuple[int, ...] | None = None) -> int:
        """Memory of the first picture's row."""
        first = None if points is None else points[:1]
        return portion_rows(self.feature_map, next(self.portions(pictures.select([0]), first))).nbytes

    def parts(self, known: SourcePictures | TrainingSet) -> Iterator[tuple[Tensor, FeatureRows]]:
        """Positions and rows of a whole set, from memory or from its pictures, batch by batch."""
        points = known.points if isinstance(known, TrainingSet) else None
        return row_parts(known.rows, self.feature_map, partial(self.portions, known.pictures, points))

    def cross(self, new: FeatureRows, known: SourcePictures | TrainingSet) -> Tensor:
        """(k, m) kernel between new rows and a whole set."""
        out = new.phi.new_empty(len(new), len(known))
        for index, own in self.parts(known):
            out[:, index] = cross_kernel(self.feature_map, new, own)
        return out


def block_kernels(
    new: RowReader,
    pictures: Pictures,
    known: RowReader,
    sets: Sequence[SourcePictures | TrainingSet],
    tell: Callable[[int], object] = lambda _: None,
) -> tuple[Tensor, list[Tensor], FeatureRows | None]:
    """(m, m) kernel of pictures, theirs (m, n) with each of some sets, and their rows, if there is room for all.

    Cost: their rows once if there is room; else once more for each portion that fits. `tell` hears how many are done.
    """
    m, like = len(pictures), new.feature_map.probes.new_empty(0, dtype=torch.float64)
    step = max(1, min(m, new.room // max(1, new.one_row_bytes(pictures))))
    own, crossed = like.new_empty(m, m), [like.new_empty(m, len(one)) for one in sets]
    rows = None
    for start in range(0, m, step):
        here = slice(start, min(start + step, m))
        rows = new.collect(pictures.select(here))
        for found, one in zip(crossed, sets, strict=True):
            found[here] = known.cross(rows, one)
        own[here, here] = cross_kernel(new.feature_map, rows)
        tell(len(rows))
        for before in range(0, start, step):
            there = slice(before, before + step)
            block = cross_kernel(new.feature_map, rows, new.collect(pictures.select(there)))
            own[here, there], own[there, here] = block, block.T
            tell(step)
    return own, crossed, rows if step == m else None


@final
@dataclass(frozen=True, eq=False)
class SourcePictures:
    """m pictures of a source, of S classes."""

    pictures: Pictures
    classes: tuple[str, ...]
    positions: Tensor  # (m,) class of each
    given: Tensor  # (m,) relative weights, positive
    rows: FeatureRows | None = None  # None where they are computed again, batch by batch, whenever they are needed

    def __len__(self) -> int:
        return len(self.pictures)


@final
@dataclass(frozen=True, eq=False)
class SourceSet:
    """Source pictures at one setting, behind a training set, and the prior that follows."""

    pictures: SourcePictures
    own: Tensor  # (m, m) float64 kernel
    cross: Tensor  # (n, m) with the training set, forgotten pictures included
    plain: Tensor  # (n, n) of the training set before the source took its part; the set's own is what is left
    setting: SourceSetting
    prior: Prior

    @property
    def weights(self) -> Tensor:
        """(m,) of the source pictures in the least-squares problem, that of a target picture being 1."""
        return self.setting.strength * self.setting.class_weights[self.pictures.positions] * self.pictures.given

    def left(self, kernel: Tensor, one: Tensor, two: Tensor) -> Tensor:
        """What a source leaves of a kernel (k, l), given those of its pictures with the source, (k, m) and (l, m)."""
        return kernel - one @ self.prior.gain @ two.T

    def predict(self, active: Tensor, targets: Tensor, weights: Tensor, classes: NDArray) -> SourcePrediction:
        """What the source alone predicts for the training pictures at some positions; arguments as for `problem`."""
        kernels = (self.plain[active][:, active], self.cross[active], self.own)
        means = problem(self.pictures, *kernels, targets, weights, classes).means()
        return SourcePrediction(means, self.cross[active] @ self.prior.response, coupling(means))

    def dual(self, active: Tensor, dual: Tensor, labels: Tensor) -> Tensor:
        """(m, C) coefficients of the source pictures; from those of the targets (n, C), and class targets (S, C)."""
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
    """Labels as text; whole numbers alike, be they floats or integers."""
    whole = labels.dtype.kind == "f" and (labels == np.rint(labels)).all()
    return (labels.astype(np.int64) if whole else labels).astype(str)


@final
@dataclass(frozen=True, eq=False)
class Landmarks:
    """Pictures of a training set whose rows span its kernel (`kernels/landmark_map.py`)."""

    numbers: NDArray[np.int64]  # (m,) what they are called for good
    root: Tensor  # (m, rank)
    rows: FeatureRows | None  # None of a loaded model, until they are needed

    def map(self, feature_map: TangentMap) -> LandmarkMap:
        """The map; their rows must be there."""
        assert self.rows is not None
        return LandmarkMap(feature_map, self.rows, self.root)


@final
@dataclass(frozen=True, eq=False)
class TrainingSet:
    """Pictures of a fit, in the order in which they came, without labels."""

    pictures: Pictures
    numbers: NDArray[np.int64]  # (n,) what each is called for good: its position at the fit; later ones go on counting
    points: tuple[int, ...]  # (n,) point of expansion of each picture's rows; -1 is the feature map's own network
    kernel: Tensor | FeatureKernel  # (n, n) float64; less what a source takes of it
    rows: KeptRows | None  # None where they are computed again, batch by batch, whenever they are needed
    source: SourceSet | None = None
    landmarks: Landmarks | None = None  # which span the kernel, on rows of theirs; None where all pictures do
    hashes: tuple[str, ...] = ()  # of the pictures' pixels, where the pixels themselves were not kept

    def __len__(self) -> int:
        return len(self.pictures)

    @property
    def digests(self) -> list[str]:
        """Of the pictures' pixels."""
        return list(self.hashes) or self.pictures.digests

    @cached_property
    def by_digest(self) -> dict[str, list[int]]:
        """Positions by the digest of the pixels; about 1 s/GB, once."""
        places = dict[str, list[int]]()
        for i, name in enumerate(self.digests):
            places.setdefault(name, []).append(i)
        return places

    @property
    def has_pictures(self) -> bool:
        """False for the set of a model that was saved without them: its rows cannot be taken."""
        return self.pictures.pixels.numel() > 0

    def select(self, index: Tensor) -> TrainingSet:
        """Only some of the pictures, the others gone from memory too."""
        places, source = index.numpy(), self.source
        if source is not None:
            source = replace(source, cross=source.cross[index], plain=source.plain[index][:, index])
        return TrainingSet(
            self.pictures.select(places),
            self.numbers[places],
            tuple(self.points[i] for i in index.tolist()),
            kernel_of(self.kernel, index),
            None if self.rows is None else KeptRows((self.rows.select(index),)),
            source,
            self.landmarks,
            tuple(self.hashes[i] for i in index.tolist()) if self.hashes else (),
        )

    def with_rows(self, reader: RowReader) -> TrainingSet:
        """The same set with its rows in memory, if there is room for them; else as it was. On landmarks theirs only."""
        if self.landmarks is not None:
            return self if self.landmarks.rows is not None else replace(self, landmarks=self._landmark_rows(reader))
        needed = self.rows is None and len(self) > 0
        if needed and reader.one_row_bytes(self.pictures, self.points) * len(self) <= reader.room:
            return replace(self, rows=KeptRows((reader.collect(self.pictures, self.points),)))
        return self

    def _landmark_rows(self, reader: RowReader) -> Landmarks:
        """The landmarks with their rows, each at its own point of expansion."""
        assert self.landmarks is not None
        order = np.argsort(self.numbers)
        places = order[np.searchsorted(self.numbers, self.landmarks.numbers, sorter=order)]
        points = tuple(self.points[i] for i in places.tolist())
        return replace(self.landmarks, rows=reader.collect(self.pictures.select(places), points))


def without_landmarks(training: TrainingSet, gone: NDArray[np.int64]) -> TrainingSet:
    """The set on the rows that its other landmarks span, some numbers gone; itself where none of them is a landmark."""
    marks, kernel = training.landmarks, training.kernel
    if marks is None or not isinstance(kernel, FeatureKernel) or not (lost := np.isin(marks.numbers, gone)).any():
        return training
    wide = kernel.width - marks.root.shape[1]  # the head's columns, none of which is ever lost
    root, basis = without(marks.root, torch.from_numpy(np.flatnonzero(lost)), kernel.lost[wide:])
    rows = None if marks.rows is None else marks.rows.select(torch.from_numpy(np.flatnonzero(~lost)))
    narrowed = replace(kernel, lost=torch.cat([basis.new_zeros(wide, basis.shape[1]), basis]))
    return replace(training, kernel=narrowed, landmarks=Landmarks(marks.numbers[~lost], root, rows))


def kernel_of(kernel: Tensor | FeatureKernel, index: Tensor) -> Tensor | FeatureKernel:
    """The kernel of some pictures alone, nothing of the others with it."""
    return kernel.select(index).compacted() if isinstance(kernel, FeatureKernel) else kernel[index][:, index]


def first_set(
    pictures: Pictures,
    numbers: NDArray,
    points: tuple[int, ...],
    kernel: Tensor | FeatureKernel,
    rows: FeatureRows | None,
    room: int,
    landmarks: tuple[LandmarkMap, list[int]] | None = None,
) -> TrainingSet:
    """The set of a fit; its rows are kept if they fit into `room` bytes. `landmarks`: their map and positions."""
    bare = pictures.relabelled(None)
    kept = KeptRows((rows,)) if rows is not None and rows.nbytes <= room else None
    found = None
    if landmarks is not None:
        found = Landmarks(numbers[landmarks[1]], landmarks[0].root, landmarks[0].landmarks)
    return TrainingSet(bare, numbers, points, kernel, kept, landmarks=found)


def extend(training: TrainingSet, reader: RowReader, pictures: Pictures, numbers: NDArray) -> TrainingSet:
    """The set with k more pictures of its type at its end; with a source, its kernel grows as well: k m^2 more."""
    new = reader.collect(pictures)
    numbers, points = np.concatenate([training.numbers, numbers]), training.points + (-1,) * len(pictures)
    joined = training.pictures.joined(pictures)
    if isinstance(training.kernel, FeatureKernel):
        assert training.landmarks is not None
        kernel = training.kernel.joined(training.landmarks.map(reader.feature_map).rows(new))
        return TrainingSet(joined, numbers, points, kernel, None, landmarks=training.landmarks)
    between, own = reader.cross(new, training), cross_kernel(reader.feature_map, new)
    source, n = training.source, len(training)
    before = training.kernel if source is None else source.plain
    kernel = before.new_empty(n + len(new), n + len(new))
    kernel[:n, :n], kernel[n:, :n], kernel[:n, n:], kernel[n:, n:] = before, between, between.T, own
    keep = training.rows is not None and training.rows.nbytes + new.nbytes <= reader.room
    rows = training.rows.joined(new) if keep and training.rows is not None else None
    if source is not None:
        crossed = torch.cat([source.cross, reader.cross(new, source.pictures)])
        source = replace(source, cross=crossed, plain=kernel)
        left, kernel = source.left(kernel[n:], crossed[n:], crossed), kernel.clone()
        kernel[:n, :n], kernel[n:], kernel[:n, n:] = training.kernel, left, left[:, :n].T
    return TrainingSet(joined, numbers, points, kernel, rows, source)


# -- a source behind the training set: its setting stays as the fit left it, what its classes stand for does not --


def source_pictures(pictures: Pictures, given: NDArray, device: torch.device) -> SourcePictures:
    """Pictures with their source classes as labels, and relative weights (m,)."""
    assert pictures.labels is not None
    classes, positions = np.unique(class_names(pictures.labels), return_inverse=True)
    weights = torch.from_numpy(np.asarray(given, np.float64)).to(device)
    bare, places = replace(pictures, labels=None), torch.from_numpy(positions.astype(np.int64)).to(device)
    return SourcePictures(bare, tuple(map(str, classes)), places, weights)


def source_kernels(
    training: TrainingSet, reader: RowReader, pictures: SourcePictures
) -> tuple[SourcePictures, Tensor, Tensor]:
    """The source pictures, with their rows if there is room; (m, m) kernel, (n, m) with the training set.

    Cost: as of `block_kernels`.
    """
    own, (between,), rows = block_kernels(reader, pictures.pictures, reader, [training])
    return replace(pictures, rows=rows), own, between.T.contiguous()


def plain_kernel(training: TrainingSet) -> Tensor:
    """The kernel as a matrix; no source comes behind one of landmarks."""
    assert isinstance(training.kernel, Tensor)
    return training.kernel


def with_source(
    training: TrainingSet, pictures: SourcePictures, own: Tensor, crossed: Tensor, setting: SourceSetting
) -> TrainingSet:
    """The training set with a source behind it, its kernel what is left to it; 10 m^3."""
    relative = pictures.given * setting.class_weights[pictures.positions]
    basis = spectrum(own, relative, pictures.positions, len(pictures.classes))
    found = prior(basis, setting.damping / setting.strength, setting.deviation)
    source = SourceSet(pictures, own, crossed, plain_kernel(training), setting, found)
    return replace(training, kernel=source.left(source.plain, crossed, crossed), source=source)


def class_facts(source: SourceSet, labels: Tensor, classes: NDArray) -> list[dict[str, Any]]:
    """Of each source class its pictures, share of the weight, and target classes; targets (S, C), names (C,)."""
    pictures = source.pictures
    weights = torch.zeros_like(source.setting.class_weights).index_add_(0, pictures.positions, source.weights)
    counts = torch.bincount(pictures.positions, minlength=len(pictures.classes)).tolist()
    shares, facts = (weights / weights.sum()).tolist(), []
    for name, count, share, row in zip(pictures.classes, counts, shares, labels.tolist(), strict=True):
        meant = {str(c): round(v, 4) for c, v in zip(classes, row, strict=True) if v >= SHOWN}
        facts.append({"class": name, "pictures": count, "weight": share, "stands_for": meant})
    return facts
