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
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import normalize, one_hot

from benchmarks.record import Row
from benchmarks.source_study.data import SourceTask, distractors
from benchmarks.source_study.results import ALL, DISTRACTOR, EVEN, FREE, KERNEL, NEAREST, PAPER, PAPER_FINE, RANDOM, UOT
from benchmarks.study import labels_of, mean_features, proba_scores, quietly, scores, stopwatch
from tangentune import Backbone, TangentClassifier, baselines, joint, transport

# The best of two rates, two starts of the target head and two weights of the source on pictures that no figure is from:
# grey and other classes, another draw, other test pictures.
ALONE = baselines.FineTuneSettings(learning_rate=1e-4, batch_size=16, head_start="probe")
TOGETHER = baselines.FineTuneSettings(learning_rate=3e-4, batch_size=16, head_start="zero")
STEPS = 100  # about so many, whatever the size of the target
SCALES = {KERNEL: 0.1, PAPER: 0.1, PAPER_FINE: 0.05}
WEIGHT_CAP = 10.0  # no picture counts for more than this many average ones


@final
@dataclass(frozen=True, eq=False)
class Geometry:
    """Features of pool and target as the network gives them, and whether the pool's mean is taken off."""

    pool: Tensor
    target: Tensor
    labels: tuple[NDArray[Any], NDArray[Any]]
    centred: bool

    @property
    def targets(self) -> tuple[str, ...]:
        """Names of the target classes, sorted."""
        return tuple(np.unique(self.labels[1]).tolist())

    def units(self) -> tuple[Tensor, Tensor, Tensor]:
        """Unit features of the pool (n, d), its class means (S, d) and those of the target (K, d)."""
        pool, target = normalize(self.pool.double()), normalize(self.target.double())
        if self.centred:
            mean = pool.mean(0)
            pool, target = normalize(pool - mean), normalize(target - mean)
        means = []
        for features, labels in zip((pool, target), self.labels, strict=True):
            rows = [features[torch.from_numpy(labels == name)].mean(0) for name in np.unique(labels)]
            means.append(normalize(torch.stack(rows)))
        return pool, means[0], means[1]


def geometry(task: SourceTask, backbone: Backbone, centred: bool = True) -> Geometry:
    """Of one draw."""
    pool, target = (mean_features(backbone, part, flip=False) for part in (task.pool, task.target))
    return Geometry(pool, target, (labels_of(task.pool), labels_of(task.target)), centred)


@final
@dataclass(frozen=True, eq=False)
class Chosen:
    """Rows of a pool, best first, with weights of mean 1 and shares (n, K) of the target classes."""

    rows: NDArray[np.int64]
    weights: NDArray[np.float64]
    shares: NDArray[np.float64]


def chosen(ranking: str, own: Geometry, budget: int, seed: int) -> Chosen:
    """The best pictures of the pool by a ranking, or "all"."""
    if ranking in (UOT, FREE, EVEN):  # the library's own choice: the mass of a class divided between its pictures
        labels = {"target_labels": own.labels[1], "source_labels": own.labels[0]}
        settings: dict[str, Any] = {"cost_scale": 0.05, "tau_target": 1.0, "granularity": "nested", **labels}
        settings |= {"centre": own.centred, "budget": budget} | ({"quota": 0} if ranking == FREE else {})
        made = transport.select_source(own.target, own.pool, None, **settings).manifest
        rows = np.array([int(name) for name in made.ids])
        return Chosen(rows, np.ones(len(rows)) if ranking == EVEN else made.weights, made.shares)
    pool, source_means, target_means = own.units()
    cosines = pool @ target_means.T
    shares, masses = one_hot(cosines.argmax(1), len(own.targets)).double(), torch.ones(len(pool)).double()
    if ranking in SCALES:
        exponents, power = (cosines - 1) / SCALES[ranking], 1.0
        if ranking != KERNEL:  # of a source of mass 1, transport's row mass is `(sum_j v_j exp(-cost_j))^(1/2)`
            cost = (1 - source_means @ target_means.T) / SCALES[ranking]
            ones = (cost.new_ones(len(source_means)), cost.new_ones(len(target_means)))
            plan = transport.unbalanced_sinkhorn(cost, *ones, eps=1, tau_source=1, tau_target=100)
            exponents, power = exponents + plan.target_potential, 0.5
        ranks, shares = power * exponents.logsumexp(1), exponents.softmax(1)
        masses = ranks.exp()
    elif ranking == RANDOM:
        ranks = torch.from_numpy(np.random.default_rng(seed).random(len(pool)))
    else:
        ranks = {NEAREST: cosines.amax(1), "mean cosine": cosines.mean(1), ALL: torch.zeros(len(pool))}[ranking]
    best = ranks.argsort(descending=True, stable=True)[: len(pool) if ranking == ALL else budget]
    return Chosen(best.numpy(), capped(masses[best]).numpy(), shares[best].numpy())


def capped(masses: Tensor) -> Tensor:
    """Weights proportional to masses, with mean 1 and none above the cap."""
    weights, free = masses / masses.mean(), torch.ones(len(masses), dtype=torch.bool)
    while bool((weights[free] > WEIGHT_CAP).any()):
        free &= weights <= WEIGHT_CAP
        weights = torch.where(
            free, masses * (len(masses) - WEIGHT_CAP * (~free).sum()) / masses[free].sum(), WEIGHT_CAP
        )
    return weights


def facts(task: SourceTask, own: Geometry, found: Chosen) -> dict[str, float | None]:
    """Of a choice: distractors by number and weight, pictures that serve the right target class, effective number."""
    part = task.pool.select(found.rows)
    wrong, best = distractors(part), np.array(own.targets)[found.shares.argmax(1)]
    right = [task.right.get(str(label)) == served for label, served in zip(labels_of(part), best, strict=True)]
    return {
        "distractors": float(wrong.mean()),
        "distractor_mass": float(found.weights[wrong].sum() / found.weights.sum()),
        "right": float(np.mean(right)) if task.right else None,
        "effective": float(found.weights.sum() ** 2 / np.square(found.weights).sum()),
    }


def joint_training(
    task: SourceTask, backbone: Backbone, source: transport.SelectedPictures | None, seed: int
) -> dict[str, Any]:
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
    with quietly(), stopwatch() as spent:
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
