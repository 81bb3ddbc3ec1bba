"""Source pictures that stand behind a fit: their kernels with the training set, and what they say before it speaks.

Feature map and source setting stay as the fit left them; which target class a source class stands for follows the
target pictures of the moment.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tangentune.estimators.training_set import Opened, TrainingSet, cross, extend
from tangentune.kernels.feature_map import (
    FeatureRows,
    TangentMap,
    collect_rows,
    cross_kernel,
    own_kernel,
    portion_rows,
    row_parts,
)
from tangentune.pictures.pictures import Pictures
from tangentune.solvers.source.choice import SourceProblem, SourceSetting
from tangentune.solvers.source.coupling import coupling
from tangentune.solvers.source.leave_out import SourcePrediction
from tangentune.solvers.source.prior import Prior, prior, spectrum

SHOWN = 0.005  # shares of a class below it are not told


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

    def parts(self, feature_map: TangentMap, opened: Opened) -> Iterator[tuple[Tensor, FeatureRows]]:
        """Positions and rows of all, from memory or from the pictures."""
        source = opened(self.pictures, (-1,) * len(self))
        return row_parts(self.rows, feature_map, partial(source.portions, None))

    def kernel(self, feature_map: TangentMap, opened: Opened, new: FeatureRows) -> Tensor:
        """(k, m) kernel between new pictures and these."""
        out = new.phi.new_empty(len(new), len(self))
        for index, rows in self.parts(feature_map, opened):
            out[:, index] = cross_kernel(feature_map, new, rows)
        return out


@final
@dataclass(frozen=True, eq=False)
class SourceSet:
    """Source pictures at one setting, behind a training set.

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

    def said(self, active: Tensor, targets: Tensor, weights: Tensor, classes: NDArray) -> SourcePrediction:
        """What the source says about the training pictures at some positions; arguments as for `problem`."""
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


def source_pictures(pictures: Pictures, given: NDArray, device: torch.device) -> SourcePictures:
    """Pictures with their source classes as labels, and relative weights (m,)."""
    assert pictures.labels is not None
    classes, positions = np.unique(class_names(pictures.labels), return_inverse=True)
    weights = torch.from_numpy(np.asarray(given, np.float64)).to(device)
    bare, places = replace(pictures, labels=None), torch.from_numpy(positions.astype(np.int64)).to(device)
    return SourcePictures(bare, tuple(map(str, classes)), places, weights)


def source_kernels(
    training: TrainingSet, feature_map: TangentMap, opened: Opened, pictures: SourcePictures, room: int
) -> tuple[SourcePictures, Tensor, Tensor]:
    """The source pictures, with their rows if those fit into `room` bytes; (m, m) kernel, (n, m) with the training set.

    Cost: the rows of the source pictures once if they fit; else once more for each portion that does.
    """
    m = len(pictures)
    size = portion_rows(feature_map, next(iter(opened(pictures.pictures.select([0]), (-1,)).portions(None)))).nbytes
    step = max(1, min(m, room // max(1, size)))
    own, between, rows = training.kernel.new_empty(m, m), training.kernel.new_empty(len(training), m), None
    for start in range(0, m, step):
        here = slice(start, min(start + step, m))
        rows = _rows(feature_map, opened, pictures, here)
        between[:, here] = cross(training, feature_map, opened, rows).T
        own[here, here] = own_kernel(feature_map, rows)
        for before in range(0, start, step):
            there = slice(before, before + step)
            block = cross_kernel(feature_map, rows, _rows(feature_map, opened, pictures, there))
            own[here, there], own[there, here] = block, block.T
    return replace(pictures, rows=rows if step == m else None), own, between


def with_source(
    training: TrainingSet, pictures: SourcePictures, own: Tensor, crossed: Tensor, setting: SourceSetting
) -> TrainingSet:
    """The training set with a source behind it, its kernel what is left to it; 10 m^3."""
    relative = pictures.given * setting.class_weights[pictures.positions]
    basis = spectrum(own, relative, pictures.positions, len(pictures.classes))
    found = prior(basis, setting.damping / setting.strength, setting.deviation)
    source = SourceSet(pictures, own, crossed, training.kernel, setting, found)
    return replace(training, kernel=source.left(source.plain, crossed, crossed), source=source)


def extended(
    training: TrainingSet, feature_map: TangentMap, opened: Opened, pictures: Pictures, numbers: NDArray, room: int
) -> TrainingSet:
    """As `training_set.extend`, with the kernel to the source as well; k m^2 more for k pictures."""
    source = training.source
    if source is None:
        return extend(training, feature_map, opened, pictures, numbers, room)
    plain = replace(training, kernel=source.plain, source=None)
    longer = extend(plain, feature_map, opened, pictures, numbers, room)
    new = opened(pictures, (-1,) * len(pictures))
    rows = collect_rows(feature_map, partial(new.portions, None), len(pictures))
    crossed, n = torch.cat([source.cross, source.pictures.kernel(feature_map, opened, rows)]), len(training)
    left, kernel = source.left(longer.kernel[n:], crossed[n:], crossed), longer.kernel.clone()
    kernel[:n, :n], kernel[n:], kernel[:n, n:] = training.kernel, left, left[:, :n].T
    return replace(longer, kernel=kernel, source=replace(source, cross=crossed, plain=longer.kernel))


def _rows(feature_map: TangentMap, opened: Opened, pictures: SourcePictures, part: slice) -> FeatureRows:
    some = pictures.pictures.select(part)
    source = opened(some, (-1,) * len(some))
    return collect_rows(feature_map, partial(source.portions, None), len(some))


def class_facts(source: SourceSet, labels: Tensor, classes: NDArray) -> list[dict[str, Any]]:
    """For each source class its pictures, its share of the source weight, and the target classes that it stands for.

    Args:
        source: at its setting.
        labels: (S, C) targets of the source classes.
        classes: (C,) names of the target classes.
    """
    pictures = source.pictures
    weights = torch.zeros_like(source.setting.class_weights).index_add_(0, pictures.positions, source.weights)
    counts = torch.bincount(pictures.positions, minlength=len(pictures.classes)).tolist()
    shares, rows = (weights / weights.sum()).tolist(), labels.tolist()
    return [
        {
            "class": name,
            "pictures": counts[i],
            "weight": shares[i],
            "stands_for": {
                str(c): round(value, 4) for c, value in zip(classes, rows[i], strict=True) if value >= SHOWN
            },
        }
        for i, name in enumerate(pictures.classes)
    ]
