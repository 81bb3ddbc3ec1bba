"""Where the network is linearised: at its pre-trained weights, or at weights moved a little towards the task.

One linear step from the pre-trained weights misses what ordinary fine-tuning gains, for the tangent kernel itself
turns towards the task in fine-tuning's first few dozen steps (docs/decisions/0010). So a fit may take some of these
steps first, each of them a linearisation at the weights of the moment, and solve the least-squares problem from there.

The steps see labels. To keep leave-one-out honest they are cross-fitted: one network a fold, moved without the fold's
pictures, gives the fold's rows; new pictures go through the mean of all. The networks must stay so close to each other
that rows of one fit weights learnt on the rows of another; their `spread` says whether they did.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from tangentune.estimators.first_look import held_out_errors, lower, probe_errors, spread_over
from tangentune.jacobian.task_vector import TaskVector, difference
from tangentune.memory import progress
from tangentune.methods.fine_tuning import DivergedError, FineTuneSettings, fine_tune
from tangentune.methods.fine_tuning.fit import tune_labels
from tangentune.methods.fine_tuning.labelled import class_positions, mean_features
from tangentune.networks.backbone import Backbone
from tangentune.networks.heads import stratified_folds
from tangentune.pictures.label_sets import is_sets, label_matrix, rarest_label
from tangentune.pictures.pictures import Pictures

FOLDS = 4
BATCH = 32
RATE = 1e-4
# Standard errors by which the first rung may lose to staying: new pictures gain by it on nearly every set, and its
# error is too high, for rows come from networks further apart than each is from the mean.
PRIOR = -1.0
FAR = 1.0  # spread from which on the mean of the networks is not to be trusted


@final
@dataclass(frozen=True)
class Rung:
    """So many steps at a rate, tried where there are that many pictures: more pictures pay for going further."""

    steps: int
    rate: float
    pictures: int


RUNGS = (Rung(32, RATE, 2 * FOLDS), Rung(32, 3e-4, 200), Rung(96, 6e-4, 1000))


@final
@dataclass(frozen=True, eq=False)
class Expansion:
    """Points of expansion of one fit, after `steps` minibatches: one network a fold, moved without the fold's pictures.

    `fold` (n,) is each picture's; `mean`, for pictures that none has seen, is the network at the mean of the points'
    weights, and `task` those weights minus the pre-trained ones. `spread` is the points' root mean square distance from
    their mean over the distance that the mean has moved: below 1 the mean does better than each of the points, above
    it may be ruined although each of them is good, which leave-one-out, never running the mean, cannot see
    (docs/decisions/0019).
    """

    steps: int
    rate: float
    spread: float
    fold: NDArray[np.int64]
    points: tuple[nn.Module, ...]
    mean: nn.Module
    task: TaskVector


Choice = tuple[Expansion | None, list[dict[str, float | None]]]


def cross_fitted_expansion(
    backbone: Backbone, pictures: Pictures, steps: int, *, flip: bool, rate: float = RATE, seed: int = 0,
    verbose: int = 0,
) -> Expansion:  # fmt: skip
    """Move the network towards the labels of all folds but one, for each of four folds; the backbone stays as it is.

    Cost: `4 * steps` forward and backward passes of 32 pictures, whatever n is; at least one pass over the pictures is
    made. With `flip` half of them are mirrored, at random.
    """
    mover, rung = _Mover.of(backbone, pictures, flip, seed, verbose), Rung(steps, rate, 0)
    return mover.expansion(rung, list(mover.networks(rung)))


@final
@dataclass(frozen=True, eq=False)
class _Mover:
    """Moves a network without each fold of some pictures in turn, and looks at what came of it."""

    backbone: Backbone
    pictures: Pictures
    fold: NDArray[np.int64]
    flip: bool
    seed: int
    verbose: int

    @classmethod
    def of(cls, backbone: Backbone, pictures: Pictures, flip: bool, seed: int, verbose: int) -> _Mover:
        positions = torch.from_numpy(_strata(pictures))
        fold = np.unique(stratified_folds(positions, FOLDS, seed).numpy(), return_inverse=True)[1]
        return cls(backbone, pictures, fold, flip, seed, verbose)

    def networks(self, rung: Rung) -> Iterator[nn.Module]:
        """A network for each fold, moved without its pictures."""
        folds, name = range(int(self.fold.max()) + 1), f"moving the network, rate {rung.rate:g}"
        for own in progress(folds, label=name, total=None, unit="network", verbose=self.verbose):
            rest = self.pictures.select(np.flatnonzero(self.fold != own))
            settings = _settings(len(rest), rung.steps, rung.rate, self.flip, self.seed)
            yield _tuned(self.backbone, rest, settings).module

    def expansion(self, rung: Rung, nets: list[nn.Module]) -> Expansion:
        """What the networks of all folds make together."""
        module = self.backbone.module
        start = {name: p for name, p in module.named_parameters() if p.is_floating_point()}
        tasks = [difference(dict(net.named_parameters()), start) for net in nets]
        mean = sum(tasks[1:], tasks[0]) / len(tasks)
        apart = math.sqrt(sum((task - mean).norm() ** 2 for task in tasks) / len(tasks))
        spread = apart / length if (length := mean.norm()) else 0.0
        points = tuple(moved(module, task) for task in tasks)
        return Expansion(rung.steps, rung.rate, spread, self.fold, points, moved(module, mean), mean)

    def climb(self, rung: Rung, former: Tensor, targets: Tensor, margin: float) -> Expansion | None:
        """A rung; None if training diverges, or former features do better on the fold that the first network never saw.

        Better by so many standard errors.
        """
        nets, held_out = [], torch.from_numpy(self.fold == 0)
        try:
            for net in self.networks(rung):
                nets.append(net)
                if len(nets) == 1:
                    seen = (former, self.features_of(net))
                    before, after = (held_out_errors(features, targets, held_out) for features in seen)
                    if lower(before, after, margin):
                        return None
        except DivergedError:
            return None
        return self.expansion(rung, nets)

    def features_of(self, module: nn.Module) -> Tensor:
        """(n, d) features of all pictures from one network."""
        return self._features(module, np.arange(len(self.pictures)))

    def honest_features(self, made: Expansion) -> Tensor:
        """(n, d) features, each picture's from the network that has not seen it."""
        parts, order = [], []
        for own, module in enumerate(made.points):
            order.append(np.flatnonzero(self.fold == own))
            parts.append(self._features(module, order[-1]))
        return torch.cat(parts)[torch.from_numpy(np.concatenate(order).argsort()).to(parts[0].device)]

    def _features(self, module: nn.Module, rows: NDArray[np.int64]) -> Tensor:
        there = copy.copy(self.backbone)
        there.module = module
        return mean_features(there, self.pictures.select(rows), 64, self.flip)


def moved(module: nn.Module, task: TaskVector) -> nn.Module:
    """A frozen copy of the network with a task vector added to its weights."""
    out = copy.deepcopy(module)
    with torch.no_grad():
        for name, parameter in out.named_parameters():
            if name in task:
                parameter.add_(task[name].to(parameter))
    return out.eval().requires_grad_(False)


def moving_seconds(backbone: Backbone, pictures: Pictures, steps: int | str, *, flip: bool) -> float:
    """What moving will take, at "loo" if every rung is climbed: from one minibatch and from three, after a first."""
    rungs = _rungs(pictures) if steps == "loo" else (Rung(int(steps), RATE, 0),)
    if not rungs:
        return 0.0
    trial = spread_over(len(pictures), BATCH)
    few, rate = pictures.select(trial), RATE
    runs = [_timed(backbone, few, _settings(len(trial), steps_, rate, flip, 0)) for steps_ in (1, 1, 3)]
    _, once, thrice = runs
    learning = max(thrice - once, 0.0) / 2 / len(trial)  # a picture in a step: forward and backward
    looking = learning * (2 if flip else 1) / 3  # a picture's features, as for the head that a network starts with
    alone = max(once - (learning + looking) * len(trial), 0.0)  # what a network costs besides
    count = len(pictures) * (FOLDS - 1) // FOLDS
    passes = sum(_settings(count, rung.steps, rung.rate, flip, 0).epochs for rung in rungs)
    judged = 3 * len(rungs) if steps == "loo" else 0  # features of all pictures: a rung's, and for its first look
    networks = FOLDS * (count * (learning * passes + looking * len(rungs)) + alone * len(rungs))
    return networks + looking * judged * len(pictures)


def _strata(pictures: Pictures) -> NDArray[np.int64]:
    """(n,) what folds are dealt out by: the class of each picture, or its rarest label."""
    if pictures.labels is not None and is_sets(pictures.labels):
        return rarest_label(pictures.labels)
    return class_positions(pictures)[1]


def _targets(pictures: Pictures) -> Tensor:
    """(n, C) one-hot classes, or the 0 and 1 of several labels."""
    if pictures.labels is not None and is_sets(pictures.labels):
        return torch.from_numpy(label_matrix(pictures.labels)).double()
    return F.one_hot(torch.from_numpy(class_positions(pictures)[1])).double()


def _tuned(backbone: Backbone, pictures: Pictures, settings: FineTuneSettings) -> Backbone:
    """The network moved towards the labels of some pictures."""
    if pictures.labels is not None and is_sets(pictures.labels):
        return tune_labels(backbone, pictures, _targets(pictures), settings)
    return fine_tune(backbone, pictures, settings).backbone


def _timed(backbone: Backbone, pictures: Pictures, settings: FineTuneSettings) -> float:
    """Seconds that this takes."""
    began = time.perf_counter()
    _tuned(backbone, pictures, settings)
    return time.perf_counter() - began


def _settings(count: int, steps: int, rate: float, flip: bool, seed: int) -> FineTuneSettings:
    """So many whole passes over the pictures as come nearest to the steps."""
    epochs = max(1, round(steps / -(-count // BATCH)))
    return FineTuneSettings(
        learning_rate=rate, epochs=epochs, batch_size=BATCH, head_start="probe", flip=flip, seed=seed
    )


def _rungs(pictures: Pictures) -> tuple[Rung, ...]:
    """The rungs that this many pictures pay for; none where each class has one."""
    alone = not is_sets(pictures.labels) and np.bincount(_strata(pictures)).max() == 1
    return () if alone else tuple(rung for rung in RUNGS if len(pictures) >= rung.pictures)


def choose_steps(backbone: Backbone, pictures: Pictures, *, flip: bool, seed: int = 0, verbose: int = 0) -> Choice:
    """How far to move, None for not at all: up the ladder while a ridge probe's leave-one-out error falls.

    Each picture's features come from the network that has not seen it, so that the error (squares, summed over classes,
    mean over pictures) is honest. A rung is left after its first network if that does worse on its own fold, and the
    climb ends where the networks have drifted so far apart that their mean is not to be trusted. What was tried comes
    with its error, None where it was given up. Cost: that of `cross_fitted_expansion` a rung, and two forward
    passes.
    """
    best, rungs = None, _rungs(pictures)
    if not rungs:
        return None, []
    mover = _Mover.of(backbone, pictures, flip, seed, verbose)
    targets = _targets(pictures).to(backbone.device)
    former = mover.features_of(backbone.module)
    errors = probe_errors(former, targets)
    tried = [_row(0, 0.0, float(errors.mean()), 0.0)]
    for rung in rungs:
        if best is not None:
            former = mover.features_of(best.points[0])
        made = mover.climb(rung, former, targets, -PRIOR if best is None else 0.0)
        if made is None:
            tried.append(_row(rung.steps, rung.rate, None, None))
            break
        found = probe_errors(mover.honest_features(made), targets)
        tried.append(_row(rung.steps, rung.rate, float(found.mean()), made.spread))
        if made.spread >= FAR or not lower(found, errors, PRIOR if best is None else 0.0):
            break
        best, errors = made, found
    return best, tried


def _row(steps: int, rate: float, error: float | None, spread: float | None) -> dict[str, float | None]:
    return {"outer_steps": steps, "rate": rate, "loo_error": error, "spread": spread}
