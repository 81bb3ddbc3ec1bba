"""A source for a fit: read, weighed by leave-one-out of the target pictures, put behind them if it helps."""

from __future__ import annotations

import os
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from tangentune.errors import BudgetError, InputError
from tangentune.estimators.fitted import FitFacts
from tangentune.estimators.solution import ActivePictures, Targets
from tangentune.estimators.training_set import (
    ROWS_SHARE,
    RowReader,
    TrainingSet,
    plain_kernel,
    problem,
    source_kernels,
    source_pictures,
    with_source,
)
from tangentune.pictures.checks import label_array, one_class_each
from tangentune.pictures.contract import DataContract
from tangentune.pictures.load import Pictures, load_pictures
from tangentune.pictures.names import some
from tangentune.solvers.source.choice import choose_source, source_effects

MANIFESTS = (".json", ".parquet")
KERNELS = 7  # of (m, m) numbers that weighing m source pictures has in memory at once


def read_source(
    source: Any, target: Pictures, contract: DataContract, *, n_jobs: int | None = None, verbose: int = 0
) -> tuple[Pictures, NDArray[np.float64]]:
    """Source pictures with their classes as labels, and relative weights (m,) of mean 1.

    The source is a manifest (`tangentune select`), a folder of class folders, a CSV file (path,label),
    `SelectedPictures`, or labelled `Pictures`; a picture with the pixels of a target picture is left out, with a
    warning.
    """
    from tangentune.methods.source_selection.manifest import SelectedPictures, load_selected  # few fits have a source

    weights = None
    named = isinstance(source, str | os.PathLike)
    if named and Path(source).suffix.lower() in MANIFESTS:
        source = load_selected(source, contract, n_jobs=n_jobs, verbose=verbose)
    if isinstance(source, SelectedPictures):
        source, weights = source.pictures, source.weights
    pictures = load_pictures(source, contract=contract, n_jobs=n_jobs, verbose=verbose, need_labels=named)
    if pictures.labels is None:
        raise InputError(
            "source pictures have no labels; give Pictures with labels, class folders, a CSV file or a manifest"
        )
    pictures = replace(pictures, labels=one_class_each(label_array(pictures.labels), "the source's"))
    weights = np.ones(len(pictures)) if weights is None else np.asarray(weights, np.float64)
    if pictures.pixels.shape[1:] != target.pixels.shape[1:] or pictures.pixels.dtype != target.pixels.dtype:
        shapes = [f"{tuple(p.pixels.shape[1:])} {p.pixels.dtype}" for p in (pictures, target)]
        message = f"source pictures are {shapes[0]}, those of the target {shapes[1]}; give both in one form"
        raise InputError(message.replace("torch.", ""))
    known = set(target.digests)
    fresh = np.array([digest not in known for digest in pictures.digests], bool) & (weights > 0)
    twins = [name for name, kept in zip(pictures.ids, fresh | (weights <= 0), strict=True) if not kept]
    if not fresh.any():
        raise InputError("no source picture is left: each has weight 0 or is one of the target pictures; give others")
    if twins:
        were = "source picture is a target picture" if len(twins) == 1 else "source pictures are target pictures"
        warnings.warn(f"{len(twins)} {were} too and left out of the source: {some(twins)}.", stacklevel=3)
    kept = pictures if fresh.all() else pictures.select(fresh)
    return kept, weights[fresh] / weights[fresh].mean()


def _check_room(m: int, room: int) -> None:
    """Refuse a source whose kernels do not fit into memory; `room` is the share of the budget that rows may take."""
    need, budget = KERNELS * 8 * m**2, room * ROWS_SHARE
    if need > budget:
        kernels = f"{m} source pictures need {need / 2**20:.0f} MiB for their kernels"
        hint = "choose fewer with `tangentune select`, or raise memory_budget"
        raise BudgetError(f"{kernels}, more than the memory budget of {budget / 2**20:.0f} MiB; {hint}")


def fit_source(
    training: TrainingSet,
    reader: RowReader,
    read: tuple[Pictures, NDArray],
    active: ActivePictures,
    plain: Targets,
    facts: FitFacts,
    *,
    fixed: bool,
) -> tuple[TrainingSet, FitFacts, dict[str, Any]]:
    """Weigh a source (`read_source`), and put it behind the training set if it helps; `fixed` if the damping must stay.

    `facts` of the fit without source come back with the damping chosen anew, and what came of the source with them.
    More source pictures than the memory budget has room for are a BudgetError.
    """
    _check_room(len(read[0]), reader.room)
    assert plain.classes is not None
    pictures = source_pictures(*read, plain_kernel(training).device)
    pictures, own, crossed = source_kernels(training, reader, pictures)
    positions = torch.from_numpy(active.positions).to(own.device)
    targets, weights = plain.targets.to(own), plain.weights.to(own)
    kernels = (plain_kernel(training)[positions][:, positions], crossed[positions], own)
    weighing = problem(pictures, *kernels, targets, weights, plain.classes)
    found = choose_source(weighing, facts.damping, fixed)
    setting, shares = found.setting, weights / weights.sum()
    gained = {"pictures": len(pictures), "strength": setting.strength, "deviation": setting.deviation}
    gained |= {"loo_error_without": found.error_without, "loo_error": found.error}
    gained |= {"standard_error": found.standard_error, "classes": [], "tried": found.tried}
    facts = replace(
        facts,
        damping=setting.damping,
        relative_damping=facts.relative_damping * setting.damping / facts.damping,
        source_ids=read[0].ids,
        source_effects=(shares @ source_effects(weighing, setting)).cpu().numpy(),
    )
    if setting.strength > 0:
        training = with_source(training, pictures, own, crossed, setting)
    return training, facts, gained
