"""Changing a fitted model: pictures forgotten, added, relabelled, weighed anew; each as exact as a fit without it.

Every function takes a fitted model and gives another one: if anything fails, nothing has changed.
"""

from __future__ import annotations

import warnings
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from tangentune.errors import InputError
from tangentune.estimators import audit
from tangentune.estimators.fitted import UNDO_BYTES, FittedModel, UndoStep, bounded, solved, with_rows, with_solution
from tangentune.estimators.outer_steps import Expansion
from tangentune.estimators.solution import ActivePictures, Solution, solve, update
from tangentune.estimators.training_set import (
    PictureReader,
    RowReader,
    TrainingSet,
    extend,
    first_set,
    source_kernels,
    with_source,
    without_landmarks,
)
from tangentune.estimators.user_input import (
    as_classes,
    check_classes_known,
    check_weights,
    find_pictures,
    join_labels,
    read_weights,
)
from tangentune.kernels.feature_map import TangentMap
from tangentune.kernels.landmark_fit import remapped
from tangentune.kernels.reestimate import reestimate
from tangentune.kernels.stages import FitSettings
from tangentune.memory import warm_pages
from tangentune.pictures.checks import label_array
from tangentune.pictures.copies import copy_sentences
from tangentune.pictures.label_sets import is_sets, plain_labels
from tangentune.pictures.load import Pictures
from tangentune.solvers.low_rank import FeatureKernel


def forget(fitted: FittedModel, ids: Any) -> FittedModel:
    """Pictures taken out, the feature map as it was, less what landmarks among them gave to it."""
    gone, active = _without(fitted, ids)
    return _edited(
        fitted, "forget", _hashes(fitted, gone), active, without_landmarks(fitted.training, fitted.numbers[gone])
    )


def forget_strictly(fitted: FittedModel, ids: Any, reader: PictureReader, settings: FitSettings) -> FittedModel:
    """Pictures taken out, and the feature map estimated anew without them."""
    gone, active = _without(fitted, ids)
    before = solved(fitted)
    feature_map, expansion, training = _reestimated(fitted, active, reader, settings)
    former = replace(fitted.training, rows=None)  # they can be taken again
    step = UndoStep("forget", fitted.active, before, former, fitted.feature_map, fitted.task_vector)
    active = replace(active, positions=np.argsort(training.numbers))
    task = None if expansion is None else expansion.task
    changed = replace(fitted, feature_map=feature_map, task_vector=task, training=training, active=active)
    changed = replace(changed, undo=bounded((*fitted.undo, step), min(fitted.room, UNDO_BYTES)))
    solution = solve(training, active, fitted.task.encode, fitted.facts.damping)
    return _logged(changed, "forget", _hashes(fitted, gone), solution, before.error, strict=True)


def class_members(fitted: FittedModel, name: Any) -> NDArray[np.int64]:
    """Numbers of the pictures of a class."""
    classes = fitted.outcome.classes
    known = classes.tolist()
    name = as_classes(np.array([name]), classes).tolist()[0] if isinstance(name, str) else name
    if is_sets(fitted.active.labels):
        raise InputError(
            "pictures of this model have several labels each, so none goes with a label; name the pictures in forget, "
            "or fit again without the label"
        )
    if not known:
        raise InputError("this model predicts numbers and has no classes to forget; name the pictures in forget")
    if np.ndim(name) or name not in known:
        shown = " ".join(repr(name).split())
        raise InputError(f"there is no class {shown} to forget; the classes are: {', '.join(map(str, known))}")
    return fitted.numbers[fitted.active.labels == classes[known.index(name)]]


def add(
    fitted: FittedModel, loaded: Pictures, sample_weight: ArrayLike | None, reader: PictureReader, new_class: bool
) -> FittedModel:
    """Pictures added, with their labels; of known classes, unless new ones are allowed."""
    labels, before = fitted.task.read_labels(loaded, fitted.outcome.classes), fitted.active
    ids, numbers = _named(fitted, loaded)
    given, ours = loaded.pixels.dtype, fitted.training.pictures.pixels.dtype
    if given != ours and torch.uint8 in (given, ours):
        scales = f"the new pictures are {given}, but those of the model {ours}, which have another scale"
        raise InputError(f"{scales}; give them as the others were given".replace("torch.", ""))
    pictures = Pictures(loaded.pixels.to(ours), None, ids)
    joined = join_labels(before.labels, labels)
    if not new_class:
        _check_known(fitted, joined[len(before) :], ids)
    active = ActivePictures(
        np.concatenate([before.positions, len(fitted.training) + np.arange(len(ids))]),
        joined,
        np.concatenate([before.sample_weight, read_weights(sample_weight, len(ids))]),
    )
    _check(fitted, active, fitted.ids + ids)
    fitted = with_rows(fitted, reader)
    with warm_pages(), torch.no_grad():
        rows = RowReader(fitted.feature_map, reader.open, fitted.room)
        training = extend(fitted.training, rows, pictures, numbers)
    for sentence in copy_sentences(training.pictures.select(active.positions).relabelled(active.labels), len(before)):
        warnings.warn(sentence, stacklevel=3)
    changed = _edited(fitted, "add", pictures.digests, active, training)
    return replace(changed, next_number=fitted.next_number + len(ids))


def relabel(fitted: FittedModel, ids: Any, y: Any, new_class: bool) -> FittedModel:
    """Pictures given other labels, one for all or one for each; of known classes, unless new ones are allowed."""
    fitted.check_pictures()
    found, old = find_pictures(ids, fitted.ids, fitted.numbers), fitted.active.labels
    one_set = isinstance(y, str | set | frozenset)
    single = one_set or (not is_sets(old) and np.ndim(y) < (1 if old.size == len(old) else 2))
    given = label_array([y] if single else y)
    given = np.repeat(given, len(found), 0) if len(given) == 1 else given
    if len(given) != len(found):
        raise InputError(f"{len(given)} labels for {len(found)} ids; give one for all or one for each")
    counts, places = [len(same) for same in found], np.concatenate(found)
    bare = Pictures(torch.empty(len(places), 1), given.repeat(counts, 0), [fitted.ids[i] for i in places])
    joined = join_labels(old, fitted.task.read_labels(bare, fitted.outcome.classes))
    if not new_class:
        _check_known(fitted, joined[len(old) :], bare.ids)
    labels = joined[: len(old)]
    labels[places] = new = joined[len(old) :]
    if (twice := (labels[places] != new).reshape(len(new), -1).any(1)).any():  # the last one was taken
        first = int(np.argmax(twice))
        name, given = fitted.ids[places[first]], [plain_labels(one[[first]])[0] for one in (new, labels[places])]
        raise InputError(f"the picture {name!r} is given two labels, {given[0]!r} and {given[1]!r}; give it one")
    active, changed = replace(fitted.active, labels=labels), np.unique(places)
    _check(fitted, active, fitted.ids)
    pictures = _hashes(fitted, changed)
    former = [audit.former(name, label) for name, label in zip(pictures, plain_labels(old[changed]), strict=True)]
    return _edited(fitted, "relabel", pictures, active, former=former)


def reweight(fitted: FittedModel, weights: ArrayLike) -> FittedModel:
    """Every picture given another sample weight."""
    fitted.check_pictures()
    given = read_weights(weights, len(fitted.active))
    active = replace(fitted.active, sample_weight=given)
    _check(fitted, active, fitted.ids)
    pictures = _hashes(fitted, np.flatnonzero(given != fitted.active.sample_weight))
    return _edited(fitted, "reweight", pictures, active)


def undo(fitted: FittedModel) -> FittedModel:
    """The last edit taken back; one of many edits ago is solved anew from the kernel."""
    if not fitted.undo:
        raise InputError("there is no edit to undo; only edits since this estimator was fitted or loaded can be")
    step, before = fitted.undo[-1], solved(fitted)
    changed = replace(fitted, active=step.active, undo=fitted.undo[:-1])
    if step.feature_map is not None and step.training is not None:
        changed = replace(changed, training=step.training, feature_map=step.feature_map, task_vector=step.task_vector)
    solution = step.solution
    if solution is None:
        solution = solve(changed.training, step.active, fitted.task.encode, fitted.facts.damping)
    return _logged(changed, "undo", [], solution, before.error, undone=step.edit)


def _edited(
    fitted: FittedModel,
    edit: str,
    pictures: list[str],
    active: ActivePictures,
    training: TrainingSet | None = None,
    **facts: Any,
) -> FittedModel:
    """The model of another choice of pictures, labels and weights, perhaps from a training set that has grown."""
    training, before = fitted.training if training is None else training, solved(fitted)
    solution = update(before, fitted.active, active, fitted.task.encode, training)
    step = UndoStep(edit, fitted.active, before)
    if training.landmarks is not fitted.training.landmarks:
        step = replace(step, training=fitted.training, feature_map=fitted.feature_map, task_vector=fitted.task_vector)
    steps = bounded((*fitted.undo, step), min(fitted.room, UNDO_BYTES), solution)
    changed = replace(fitted, training=training, active=active, undo=steps)
    return _logged(changed, edit, pictures, solution, before.error, strict=False, **facts)


def _logged(
    fitted: FittedModel, edit: str, pictures: list[str], solution: Solution, before: float, **facts: Any
) -> FittedModel:
    """The model with its new solution, and the edit in its log; `before` is the former error of the inverse."""
    facts |= {"n": len(fitted.active), "residual_before": before, "residual_after": solution.error}
    facts["verification"] = solution.step
    changed = with_solution(fitted, solution)
    return replace(changed, edits=[*fitted.edits, audit.entry(fitted.edits, edit, pictures, **facts)])


def _reestimated(
    fitted: FittedModel, active: ActivePictures, reader: PictureReader, settings: FitSettings
) -> tuple[TangentMap, Expansion | None, TrainingSet]:
    """Probes, metric and outer steps taken from fewer pictures; the kernel's choice stays."""
    pictures, former, facts = fitted.training.pictures.select(active.positions), fitted.feature_map, fitted.facts
    pictures, numbers = pictures.relabelled(active.labels), fitted.training.numbers[active.positions]
    kept = fitted.task.encode(active.labels, active.sample_weight).weights.numpy() > 0
    used = pictures.select(kept)
    settings = replace(settings, mirrored=former.mirrored)
    expansion, _ = fitted.task.expand(fitted.backbone, used, settings, facts.outer_steps, facts.outer_rate)
    tangent = replace(former.tangent, module=fitted.backbone.module, points=())
    points = (-1,) * len(used)
    if expansion is not None:
        tangent = replace(tangent, module=expansion.mean, points=expansion.points)
        points = tuple(expansion.fold.tolist())
    with warm_pages():
        inputs, outputs = reader.open(used, points), len(fitted.outcome.intercept)
        anew, first = (former, tangent, inputs, settings, facts.metric_power, outputs), (used, numbers[kept], points)
        if (marks := fitted.training.landmarks) is not None:
            made, places, own = remapped(*anew, len(marks.numbers))
            feature_map = made.feature_map
            training = first_set(*first, FeatureKernel.of(own), None, fitted.room, (made, places))
        else:
            found = reestimate(*anew)
            feature_map = found.feature_map
            training = first_set(*first, found.kernel, found.rows, fitted.room)
        if not kept.all():
            rows = RowReader(feature_map, reader.open, fitted.room)
            training = extend(training, rows, pictures.select(~kept), numbers[~kept])
        if (source := fitted.training.source) is not None:
            rows = RowReader(feature_map, reader.open_training, fitted.room)
            training = with_source(training, *source_kernels(training, rows, source.pictures), source.setting)
    return feature_map, expansion, training


def _without(fitted: FittedModel, ids: Any) -> tuple[NDArray[np.int64], ActivePictures]:
    """Positions of the pictures that are named, and what is left."""
    fitted.check_pictures()
    gone = np.unique(np.concatenate(find_pictures(ids, fitted.ids, fitted.numbers)))
    rest = np.setdiff1d(np.arange(len(fitted.active)), gone)
    active = fitted.active.keep(rest)
    _check(fitted, active, [fitted.ids[i] for i in rest])
    return gone, active


def _hashes(fitted: FittedModel, places: NDArray) -> list[str]:
    return fitted.training.pictures.select(fitted.active.positions[places]).digests


def _named(fitted: FittedModel, loaded: Pictures) -> tuple[list[str], NDArray[np.int64]]:
    """Ids and numbers of new pictures: their paths, or, of arrays, the next numbers."""
    if not len(loaded):
        raise InputError("there is no picture to add")
    numbers = fitted.next_number + np.arange(len(loaded))
    if all(name.isdecimal() for name in loaded.ids):  # positions in an array
        return [str(number) for number in numbers], numbers
    known = set(fitted.ids)
    if twins := [name for name in loaded.ids if name in known]:
        hint = "relabel or forget that one, or give the new one another name"
        raise InputError(f"the model already stands on a picture {twins[0]!r}; {hint}")
    return loaded.ids, numbers


def _check_known(fitted: FittedModel, labels: NDArray, ids: list[str]) -> None:
    if fitted.outcome.classes.size and not is_sets(labels):  # none of numbers; sets hold known names alone
        check_classes_known(labels, fitted.outcome.classes, ids, "pass new_class=True")


def _check(fitted: FittedModel, active: ActivePictures, ids: list[str]) -> None:
    """Refuse what could not be fitted."""
    check_weights(active.sample_weight, ids)
    fitted.task.check_labels(active.labels, ids)
