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
from dataclasses import dataclass, field, replace
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
from tangentune.methods.fine_tuning.labelled import HEAD_PICTURES, class_positions, mean_features, some_of_each
from tangentune.networks.backbone import Backbone
from tangentune.networks.heads import stratified_folds
from tangentune.pictures.label_sets import is_sets, label_matrix, rarest_label
from tangentune.pictures.pictures import Pictures

FOLDS, FOLDS_OF_MANY = 4, 2
MANY = 2000  # pictures above which half of them teach a network enough
LOOKED_AT = 4000  # pictures, of all, on which networks are judged
BATCH, RATE = 32, 1e-4
FROZEN = 0.16  # of the blocks, the first ones: wide maps, a third of a step's cost, and features that suit any picture
# Standard errors by which the first rung may lose to staying: new pictures gain by it on nearly every set, and its
# error is too high, for rows come from networks further apart than each is from the mean.
PRIOR = -1.0
FAR = 1.0  # spread from which on the mean of the networks is not to be trusted


@final
@dataclass(frozen=True)
class Rung:
    """So many steps at a rate, tried from some `pictures` on, which pay for going so far, and `below` some."""

    steps: int
    rate: float
    pictures: int
    below: float = math.inf


RUNGS = (Rung(32, RATE, 2 * FOLDS), Rung(64, 2e-4, 40, 60), Rung(96, 3e-4, 80), Rung(192, 3e-4, 400))
PASSES, MOST_STEPS, RATE_OF_MANY = 5, 2304, 3e-4  # of many pictures: how often each half is gone through, at most
MIRRORS = 400  # pictures from which on moved networks may overrule a probe that is for mirroring


@final
@dataclass(frozen=True, eq=False)
class Expansion:
    """Points of expansion of one fit, after `steps` minibatches: one network a fold, moved without the fold's pictures.

    `fold` (n,) is each picture's, `flip` whether these were mirrored; `mean`, for pictures that none has seen, is the
    network at the mean of the points' weights, and `task` those weights minus the pre-trained ones. `spread` is the
    points' root mean square distance from their mean over the distance that the mean has moved: below 1 the mean does
    better than each of the points, above it may be ruined although each of them is good, which leave-one-out, never
    running the mean, cannot see (docs/decisions/0019).
    """

    steps: int
    rate: float
    spread: float
    fold: NDArray[np.int64]
    flip: bool
    points: tuple[nn.Module, ...]
    mean: nn.Module
    task: TaskVector


@final
@dataclass(frozen=True, eq=False)
class _Ahead:
    """The first network of a rung, its error on the fold that it never saw, and whether that is the lowest so far."""

    rung: Rung
    net: nn.Module
    error: float
    ahead: bool


Choice = tuple[Expansion | None, list[dict[str, float | None]]]


def cross_fitted_expansion(
    backbone: Backbone, pictures: Pictures, steps: int, *, flip: bool, rate: float = RATE, seed: int = 0,
    verbose: int = 0,
) -> Expansion:  # fmt: skip
    """Move the network towards the labels of all folds but one, for each of four folds; the backbone stays as it is.

    Cost: `4 * steps` forward and backward passes of 32 pictures (of over 2,000, half, by two networks), whatever n is:
    as near as whole passes over a network's pictures come. With `flip` half of them are mirrored, at random.
    """
    mover, rung = _Mover.of(backbone, pictures, flip, seed, verbose), Rung(steps, rate, 0)
    return mover.expansion(rung, list(mover.networks(rung)))


@final
@dataclass(frozen=True, eq=False)
class _Mover:
    """Moves a network without each fold of some pictures in turn; those at `judges` say what came of it."""

    backbone: Backbone
    pictures: Pictures
    strata: NDArray[np.int64]
    fold: NDArray[np.int64]
    judges: NDArray[np.int64]
    flip: bool
    seed: int
    verbose: int
    firsts: dict[Rung, tuple[nn.Module, Tensor]] = field(default_factory=dict)  # what `first` made

    @classmethod
    def of(cls, backbone: Backbone, pictures: Pictures, flip: bool, seed: int, verbose: int) -> _Mover:
        strata = _strata(pictures)
        dealt = stratified_folds(torch.from_numpy(strata), _folds(len(pictures)), seed)
        fold = np.unique(dealt.numpy(), return_inverse=True)[1]
        return cls(backbone, pictures, strata, fold, some_of_each(strata, LOOKED_AT), flip, seed, verbose)

    def networks(self, rung: Rung, first: int = 0) -> Iterator[nn.Module]:
        """A network for each fold from the first on, moved without its pictures."""
        folds, name = range(first, int(self.fold.max()) + 1), f"moving the network, rate {rung.rate:g}"
        for own in progress(folds, label=name, total=None, unit="network", verbose=self.verbose):
            others = np.flatnonzero(self.fold != own)
            taken = some_of_each(self.strata[others], rung.steps * BATCH)  # a pass over more would be more steps
            rest = self.pictures.select(others[taken])
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
        return Expansion(rung.steps, rung.rate, spread, self.fold, self.flip, points, moved(module, mean), mean)

    def first(self, rung: Rung, targets: Tensor) -> tuple[nn.Module, Tensor]:
        """The first network of a rung, and its errors (m,) on the fold that it never saw; made once."""
        if rung not in self.firsts:
            net = next(self.networks(rung))
            self.firsts[rung] = net, self.errors_of(self.features_of(net), targets)
        return self.firsts[rung]

    def errors_of(self, features: Tensor, targets: Tensor) -> Tensor:
        """(m,) errors on the first fold of a probe on the others."""
        return held_out_errors(features, targets, torch.from_numpy(self.fold[self.judges] == 0))

    def suited(self, rung: Rung, targets: Tensor) -> _Mover:
        """This, or without mirroring where the first network then does better by a standard error.

        A mean over a picture and its mirror image is the steadier feature, so that a probe on the pre-trained network
        may prefer it for digits; a network that learns from mirrored digits is misled (docs/decisions/0019).
        """
        plain = replace(self, flip=False, firsts={})
        try:
            better = lower(plain.first(rung, targets)[1], self.first(rung, targets)[1], 1.0)
        except DivergedError:
            return self
        return plain if better else self

    def climb(self, rungs: tuple[Rung, ...], still: Tensor, targets: Tensor) -> Iterator[_Ahead]:
        """The first network of each rung, as long as it does better on its own fold than the one before; from `still`.

        The first rung may lose to staying by some standard errors.
        """
        former = self.errors_of(still, targets)
        for place, rung in enumerate(rungs):
            try:
                net, own = self.first(rung, targets)
            except DivergedError:
                return
            ahead = not lower(former, own, 0.0 if place else -PRIOR)
            yield _Ahead(rung, net, float(own.mean()), ahead)
            if not ahead:
                return
            former = own

    def finished(self, ahead: _Ahead) -> Expansion | None:
        """A rung with the networks of all folds; None if training diverges."""
        try:
            return self.expansion(ahead.rung, [ahead.net, *self.networks(ahead.rung, 1)])
        except DivergedError:
            return None

    def features_of(self, module: nn.Module) -> Tensor:
        """(j, d) features of the judges from one network."""
        return self._features(module, self.judges)

    def honest_features(self, made: Expansion) -> Tensor:
        """(j, d) features, each judge's from the network that has not seen it."""
        parts, order, own = [], [], self.fold[self.judges]
        for fold, module in enumerate(made.points):
            order.append(np.flatnonzero(own == fold))
            parts.append(self._features(module, self.judges[order[-1]]))
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
    folds = _folds(len(pictures))
    judges, most = min(len(pictures), LOOKED_AT), len(pictures) * (folds - 1) // folds
    counts = [min(most, rung.steps * BATCH) for rung in rungs]
    passes = [_settings(own, rung.steps, rung.rate, flip, 0).epochs for own, rung in zip(counts, rungs, strict=True)]
    # features of the judges: before, by first networks, and by those of all folds
    judged = len(rungs) + 2 if steps == "loo" else 0
    seen = zip(counts, passes, strict=True)
    networks = [own * learning * times + min(own, HEAD_PICTURES) * looking + alone for own, times in seen]
    again = networks[0] if flip and steps == "loo" and len(pictures) >= MIRRORS else 0.0  # without mirroring
    return again + sum(networks[:-1]) + folds * networks[-1] + looking * judged * judges


def _folds(count: int) -> int:
    return FOLDS if count <= MANY else FOLDS_OF_MANY


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
        learning_rate=rate, epochs=epochs, batch_size=BATCH, head_start="probe", flip=flip, seed=seed, frozen=FROZEN
    )


def _rungs(pictures: Pictures) -> tuple[Rung, ...]:
    """The rungs that this many pictures pay for; none where each class has one.

    Of many pictures there are two, so far apart that the race costs an eighth of what is raced for.
    """
    count = len(pictures)
    if not is_sets(pictures.labels) and np.bincount(_strata(pictures)).max() == 1:
        return ()
    if count <= MANY:
        return tuple(rung for rung in RUNGS if rung.pictures <= count < rung.below)
    most = min(MOST_STEPS, PASSES * count // (FOLDS_OF_MANY * BATCH))
    return tuple(Rung(steps, RATE_OF_MANY, MANY) for steps in (-(-most // 4), most))


def choose_steps(
    backbone: Backbone, pictures: Pictures, *, flip: bool, may_unmirror: bool = False, seed: int = 0, verbose: int = 0
) -> Choice:
    """How far to move, None for not at all: as far as a network moved without a fold does better and better on it.

    The networks of the other folds are made for the highest rung alone, which is taken if leave-one-out of a ridge
    probe on the judges agrees, the features of each from the network that has not seen it; where they have drifted so
    far apart that their mean is not to be trusted, or the probe is against it, the next lower one. Squared errors,
    summed over classes, mean over pictures. What was tried comes with its errors, None where they were not needed. With
    `may_unmirror` mirroring is given up where moved networks do better without. Cost: a network for each rung (and one
    for that) and one for each other fold, and a forward pass for each and two more.
    """
    rungs = _rungs(pictures)
    if not rungs:
        return None, []
    mover = _Mover.of(backbone, pictures, flip, seed, verbose)
    targets = _targets(pictures)[mover.judges].to(backbone.device)
    if flip and may_unmirror and len(pictures) >= MIRRORS:
        mover = mover.suited(rungs[0], targets)
    still = mover.features_of(backbone.module)
    errors = probe_errors(still, targets)
    tried, best = {0: _row(0, 0.0, loo_error=float(errors.mean()), spread=0.0)}, None
    seen = list(mover.climb(rungs, still, targets))
    for place, found in reversed(list(enumerate(seen, 1))):
        tried[place] = _row(found.rung.steps, found.rung.rate, first_error=found.error)
        if best is None and found.ahead and (made := mover.finished(found)) is not None:
            honest = probe_errors(mover.honest_features(made), targets)
            tried[place] |= {"loo_error": float(honest.mean()), "spread": made.spread}
            best = made if made.spread < FAR and lower(honest, errors, PRIOR) else None
    return best, [tried[place] for place in sorted(tried)]


def _row(
    steps: int, rate: float, first_error: float | None = None, loo_error: float | None = None,
    spread: float | None = None,
) -> dict[str, float | None]:  # fmt: skip
    return {"outer_steps": steps, "rate": rate, "first_error": first_error, "loo_error": loo_error, "spread": spread}
