"""What the study of pre-training pictures compares: rankings of single pictures, and two ways to learn from the chosen.

Pictures are ranked by the cosines of their features with the class means of the target. With the paper's settings,
transport is solved between the class means of the pool and those of the target, and its potentials score each picture.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, final

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from benchmarks.record import Row
from benchmarks.source_study.data import SourceTask, distractors
from benchmarks.source_study.page import ALL, DISTRACTOR, EVEN, FREE, NEAREST, PAPER, PAPER_FINE, RANDOM, UOT
from benchmarks.study import labels_of, mean_features, proba_scores, scores, stopwatch
from tangentune import Backbone, TangentClassifier, baselines, joint, transport

# The best of two rates, two starts of the target head and two weights of the source on pictures that no figure is from:
# grey and other classes, another draw, other test pictures.
ALONE = baselines.FineTuneSettings(learning_rate=1e-4, batch_size=16, head_start="probe")
TOGETHER = baselines.FineTuneSettings(learning_rate=3e-4, batch_size=16, head_start="zero")
STEPS = 100  # about so many, whatever the size of the target
SINGLE: dict[str, Any] = {"granularity": "pictures", "quota": 0, "tau_target": 100.0}
RANKINGS: dict[str, dict[str, Any]] = {  # as `select_source` takes them
    RANDOM: {"method": "random"},
    NEAREST: {"method": "nearest"},
    PAPER: SINGLE | {"cost_scale": 0.1},
    PAPER_FINE: SINGLE | {"cost_scale": 0.05},
    UOT: {},
    FREE: {"quota": 0},
    EVEN: {},
    ALL: {"method": "all"},
}


@final
@dataclass(frozen=True, eq=False)
class Drawn:
    """One draw of a target: its pictures, and the features (n, d) of pool and target as the network gives them."""

    task: SourceTask
    pool: Tensor
    target: Tensor


def drawn(task: SourceTask, backbone: Backbone) -> Drawn:
    """With the features."""
    return Drawn(task, *(mean_features(backbone, part, flip=False) for part in (task.pool, task.target)))


def chosen(own: Drawn, ranking: str, budget: int, seed: int, centred: bool = True) -> transport.SelectedPictures:
    """The best pictures of the pool by a ranking, or all, with their weights and shares."""
    pool, target, ours = own.pool, own.target, ranking in (UOT, FREE, EVEN)
    if centred and not ours:  # the library's centre, a midpoint, is for its own ranking; rivals lose the pool's mean
        pool, target = normalize(pool.double()), normalize(target.double())
        pool, target = pool - pool.mean(0), target - pool.mean(0)
    settings = RANKINGS[ranking] | {"seed": seed, "centre": centred and ours}
    settings |= {"target_labels": labels_of(own.task.target), "source_labels": labels_of(own.task.pool)}
    made = transport.select_source(target, pool, None, budget=None if ranking == ALL else budget, **settings).manifest
    weights = np.ones(len(made.ids)) if ranking == EVEN else made.weights
    pictures = own.task.pool.select(np.array(made.ids, dtype=int))
    return transport.SelectedPictures(pictures, weights, made.shares, tuple(made.target["classes"]))


def facts(right: dict[str, str], found: transport.SelectedPictures) -> dict[str, float | None]:
    """Of a choice: distractors by number and weight, pictures that serve the right target class, effective number."""
    wrong, best = distractors(found.pictures), np.array(found.targets)[found.shares.argmax(1)]
    served = [right.get(str(label)) == name for label, name in zip(labels_of(found.pictures), best, strict=True)]
    return {
        "distractors": float(wrong.mean()),
        "distractor_mass": float(found.weights[wrong].sum() / found.weights.sum()),
        "right": float(np.mean(served)) if right else None,
        "effective": float(found.weights.sum() ** 2 / np.square(found.weights).sum()),
    }


def joint_training(task: SourceTask, backbone: Backbone, source: transport.SelectedPictures | None, seed: int) -> Row:
    """Two heads on one network; without source ordinary fine-tuning."""
    epochs = round(STEPS / math.ceil(len(task.target) / ALONE.batch_size))
    if source is None:
        tuned = baselines.fine_tune(backbone, task.target, replace(ALONE, seed=seed, epochs=epochs))
    else:
        tuning = replace(TOGETHER, seed=seed, epochs=epochs)
        settings = joint.JointSettings(tuning, 1.0, source_task=joint.SourceLabels("probe"))
        tuned = joint.joint_fine_tune(backbone, task.target, source.pictures, settings, source_weights=source.weights)
    return {**scores(tuned, task.test), "cpu_seconds": round(tuned.cpu_seconds, 2), "epochs": epochs}


def closed_form(task: SourceTask, backbone: Backbone, source: transport.SelectedPictures | None, _: int) -> Row:
    """Source pictures as weighted rows of the least-squares problem, their weight by leave-one-out of the target's."""
    with stopwatch() as spent:
        fitted = TangentClassifier(backbone, augment="flip").fit(task.target, source=source)
    proba = torch.from_numpy(np.asarray(fitted.predict_proba(task.test)))
    values = {**proba_scores(proba, fitted.classes_, task.test), "cpu_seconds": round(spent["cpu_seconds"], 2)}
    told = fitted.source_
    if source is None or told is None:
        return values
    shares = {own["class"]: own["weight"] for own in told["classes"]}
    wrong = sum(share for name, share in shares.items() if name.startswith(DISTRACTOR))
    return {
        **values,
        **{name: told[name] for name in ("strength", "deviation", "loo_error_without", "loo_error", "standard_error")},
        "distractor_mass": wrong if told["strength"] > 0 else 0.0,
        "distractors": float(distractors(source.pictures).mean()),
        "source_classes": sum(share > 0 for share in shares.values()),
    }
