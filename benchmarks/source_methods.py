"""What the study of pre-training pictures compares: rankings of single pictures, and two ways to learn from the chosen.

Pictures are ranked by the cosines of their features with the class means of the target. With the paper's settings,
transport is solved between the class means of the pool and those of the target, and its potentials score each picture.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, replace
from typing import Any, final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import normalize

from benchmarks.cifar_split import scores
from benchmarks.source_data import DISTRACTOR, SourceTask, distractors
from tangentune.estimators.classifier import TangentClassifier
from tangentune.methods.fine_tuning import FineTuneSettings, fine_tune
from tangentune.methods.fine_tuning.labelled import mean_features
from tangentune.methods.joint import JointSettings, SourceLabels, joint_fine_tune
from tangentune.methods.source_selection.budget import choose
from tangentune.methods.source_selection.manifest import SelectedPictures
from tangentune.methods.source_selection.prototypes import class_sums
from tangentune.methods.source_selection.rankings import Ranking, Scorer, rank
from tangentune.methods.source_selection.select import select_source
from tangentune.methods.source_selection.settings import Budget
from tangentune.metrics import accuracy, nll
from tangentune.networks.backbone import Backbone
from tangentune.pictures.load import Pictures

NONE, RANDOM, ALL = "none", "random", "all"
NEAREST, KERNEL, UOT, FREE, PAPER, PAPER_FINE = "nearest", "kernel sum", "UOT", "UOT free", "UOT .1", "UOT .05"
EVEN = "UOT even"  # what "UOT" chooses, every picture counting the same
RANKINGS: dict[str, dict[str, Any]] = {
    RANDOM: {"method": "random"},
    NEAREST: {"method": "nearest"},
    "mean cosine": {"method": "mean_cosine"},
    "EMD": {"method": "emd"},
    KERNEL: {"method": "kernel_sum", "cost_scale": 0.1},
    PAPER: {"method": "uot", "cost_scale": 0.1, "tau_target": 100.0},
    PAPER_FINE: {"method": "uot", "cost_scale": 0.05, "tau_target": 100.0},
    UOT: {"cost_scale": 0.05, "tau_target": 1.0},  # these two by `select_source`; every target gets an even share
    FREE: {"cost_scale": 0.05, "tau_target": 1.0, "quota": 0},  # without the quota
}
# The best of two rates, two starts of the target head and two weights of the source on pictures that no figure is from:
# grey and other classes, seed 100, test pictures from 2,000 on.
ALONE = FineTuneSettings(learning_rate=1e-4, batch_size=16, head_start="probe")
TOGETHER = FineTuneSettings(learning_rate=3e-4, batch_size=16, head_start="zero")
SOURCE_WEIGHT = 1.0
STEPS = 100  # about so many, whatever the size of the target
TRAINED = {"joint": (UOT, EVEN, FREE, PAPER, NEAREST, KERNEL, RANDOM), "closed": (UOT, FREE, NEAREST, KERNEL, RANDOM)}


@final
@dataclass(frozen=True, eq=False)
class Geometry:
    """Unit features that pictures are compared by.

    Attributes:
        pool: (n, d) of the pool's pictures.
        source: (S, d) class means of the pool.
        target: (K, d) class means of the target.
        targets: names of the target classes.
        plain: features of pool and target as the network gives them.
        labels: of both.
        centred: whether a mean is taken off.
    """

    pool: Tensor
    source: Tensor
    target: Tensor
    targets: tuple[str, ...]
    plain: tuple[Tensor, Tensor]
    labels: tuple[NDArray[Any], NDArray[Any]]
    centred: bool


def geometries(task: SourceTask, backbone: Backbone) -> dict[bool, Geometry]:
    """Without and with the pool's mean taken off all unit features, which are then brought to length 1 again."""
    plain = mean_features(backbone, task.pool, 64, False), mean_features(backbone, task.target, 64, False)
    pool, target = (normalize(features.double()) for features in plain)
    mean = pool.mean(0)
    made = {False: (pool, target), True: (normalize(pool - mean), normalize(target - mean))}
    assert task.pool.labels is not None
    assert task.target.labels is not None
    out = {}
    for centred, (own, shown) in made.items():
        source_means = class_sums(own, task.pool.labels).prototypes()
        target_sums = class_sums(shown, task.target.labels)
        names, target_means = target_sums.names, target_sums.prototypes()
        labels = task.pool.labels, task.target.labels
        out[centred] = Geometry(own, source_means, target_means, names, plain, labels, centred)
    return out


@final
@dataclass(frozen=True, eq=False)
class Chosen:
    """Rows of a pool, best first, with weights of mean 1 and shares (n, K) of the target classes."""

    rows: NDArray[np.int64]
    weights: NDArray[np.float64]
    shares: NDArray[np.float64]


def chosen(ranking: str, geometry: Geometry, budget: int, seed: int) -> Chosen:
    """The best pictures of the pool by one of `RANKINGS`, or "all"."""
    if ranking == EVEN:
        made = chosen(UOT, geometry, budget, seed)
        return replace(made, weights=np.ones_like(made.weights))
    if ranking in (UOT, FREE):
        return library_choice(geometry, budget, **RANKINGS[ranking])
    cosines = geometry.pool @ geometry.target.T
    nearest = Scorer(geometry.target).shares(cosines)
    if ranking == ALL:
        return Chosen(np.arange(len(cosines)), np.ones(len(cosines)), nearest.numpy())
    made = ranked(ranking, geometry, seed)
    found = choose(made.scores, made.shares, Budget("pictures", budget), masses=made.masses)
    rows = found.chosen.numpy()
    return Chosen(rows, found.weights.numpy(), made.shares[found.chosen].numpy())


def library_choice(geometry: Geometry, budget: int, **settings: Any) -> Chosen:
    """What `select_source` chooses: the mass of a class divided between its pictures."""
    pool, target = geometry.plain
    offered, wanted = geometry.labels
    labels = {"target_labels": wanted, "source_labels": offered}
    settings |= {"budget": budget, "centre": geometry.centred, "granularity": "nested"}
    made = select_source(target, pool, None, **labels, **settings).manifest
    assert tuple(made.target["classes"]) == geometry.targets
    return Chosen(np.array([int(name) for name in made.ids]), made.weights, made.shares)


def ranked(ranking: str, geometry: Geometry, seed: int) -> Ranking:
    """All pictures of the pool; for transport by the potentials of the class means."""
    settings = RANKINGS[ranking]
    if settings["method"] != "uot":
        return rank(source=geometry.pool, target=geometry.target, seed=seed, **settings)
    of_classes = rank(source=geometry.source, target=geometry.target, **settings)
    scorer, cosines = of_classes.scorer, geometry.pool @ geometry.target.T
    assert scorer is not None
    scores = scorer.scores(cosines.clone())
    order = torch.argsort(scores, descending=True, stable=True)
    return replace(of_classes, order=order, scores=scores, shares=scorer.shares(cosines), masses=scores.exp())


def facts(task: SourceTask, geometry: Geometry, found: Chosen) -> dict[str, float | None]:
    """Of a choice: distractors by number and weight, pictures that serve the right target class, effective number."""
    part = task.pool.select(found.rows)
    assert part.labels is not None
    wrong, best = distractors(part), np.array(geometry.targets)[found.shares.argmax(1)]
    right = [task.right.get(str(label)) == served for label, served in zip(part.labels, best, strict=True)]
    return {
        "distractors": float(wrong.mean()),
        "distractor_mass": float(found.weights[wrong].sum() / found.weights.sum()),
        "right": float(np.mean(right)) if task.right else None,
        "effective": float(found.weights.sum() ** 2 / np.square(found.weights).sum()),
    }


def selected(task: SourceTask, geometry: Geometry, found: Chosen) -> SelectedPictures:
    """The choice as fits take it."""
    return SelectedPictures(task.pool.select(found.rows), found.weights, found.shares, geometry.targets)


def joint(task: SourceTask, backbone: Backbone, source: SelectedPictures | None, seed: int) -> dict[str, Any]:
    """Two heads on one network; without source ordinary fine-tuning."""
    epochs = round(STEPS / math.ceil(len(task.target) / ALONE.batch_size))
    if source is None:
        tuned = fine_tune(backbone, task.target, replace(ALONE, seed=seed, epochs=epochs))
    else:
        tuning = replace(TOGETHER, seed=seed, epochs=epochs)
        settings = JointSettings(tuning, SOURCE_WEIGHT, source_task=SourceLabels("probe"))
        tuned = joint_fine_tune(backbone, task.target, source.pictures, settings, source_weights=source.weights)
    return {**scores(tuned, task.test), "cpu_seconds": round(tuned.cpu_seconds, 2), "epochs": epochs}


def closed_form(task: SourceTask, backbone: Backbone, source: SelectedPictures | None, seed: int) -> dict[str, Any]:
    """Source pictures as weighted rows of the least-squares problem, their weight by leave-one-out of the target's."""
    del seed  # nothing is drawn
    start = time.process_time()
    fitted = TangentClassifier(backbone, augment="flip").fit(task.target, source=source)
    values = {**closed_scores(fitted, task.test), "cpu_seconds": round(time.process_time() - start, 2)}
    told = fitted.source_
    if source is None or told is None:
        return values
    shares = {own["class"]: own["weight"] for own in told["classes"]}
    wrong = sum(share for name, share in shares.items() if name.startswith(DISTRACTOR))
    mine = distractors(source.pictures)
    return {
        **values,
        **{name: told[name] for name in ("strength", "deviation", "loo_error_without", "loo_error", "standard_error")},
        "distractor_mass": wrong if told["strength"] > 0 else 0.0,
        "distractors": float(mine.mean()),
        "source_classes": sum(share > 0 for share in shares.values()),
    }


def closed_scores(fitted: TangentClassifier, test: Pictures) -> dict[str, float]:
    """Accuracy and negative log-likelihood on the test pictures."""
    assert test.labels is not None
    proba = torch.from_numpy(np.asarray(fitted.predict_proba(test)))
    labels = np.searchsorted(fitted.classes_, test.labels)
    return {"accuracy": accuracy(labels, proba.argmax(1)), "nll": nll(labels, proba)}
