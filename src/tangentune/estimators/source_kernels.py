"""Source pictures put behind a training set: their kernels with it, and what they are told to stand for.

Feature map and source setting stay as the fit left them; which target class a source class stands for follows the
target pictures of the moment.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tangentune.estimators.training_set import RowReader, SourcePictures, SourceSet, TrainingSet, class_names
from tangentune.kernels.feature_map import cross_kernel, own_kernel
from tangentune.pictures.pictures import Pictures
from tangentune.solvers.source.choice import SourceSetting
from tangentune.solvers.source.prior import prior, spectrum

SHOWN = 0.005  # shares of a class below it are not told


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

    Cost: the rows of the source pictures once if there is room for all; else once more for each portion that fits.
    """
    m = len(pictures)
    step = max(1, min(m, reader.room // max(1, reader.one_row_bytes(pictures.pictures))))
    own, between, rows = training.kernel.new_empty(m, m), training.kernel.new_empty(len(training), m), None
    for start in range(0, m, step):
        here = slice(start, min(start + step, m))
        rows = reader.collect(pictures.pictures.select(here))
        between[:, here] = training.cross(reader, rows).T
        own[here, here] = own_kernel(reader.feature_map, rows)
        for before in range(0, start, step):
            there = slice(before, before + step)
            block = cross_kernel(reader.feature_map, rows, reader.collect(pictures.pictures.select(there)))
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
