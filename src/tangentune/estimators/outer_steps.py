"""Where the network is linearised: at its pre-trained weights, or at weights moved a little towards the task.

One linear step from the pre-trained weights misses what ordinary fine-tuning gains, for the tangent kernel itself
turns towards the task in fine-tuning's first few dozen steps (docs/decisions/0010). So a fit may take some of these
steps first, each of them a linearisation at the weights of the moment, and solve the least-squares problem from there.

The steps see labels. To keep leave-one-out honest they are cross-fitted: one network a fold, moved without the fold's
pictures, gives the fold's rows; new pictures go through the mean of all. The networks stay so close to each other
that rows of one fit weights learnt on the rows of another.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm.auto import tqdm

from tangentune.jacobian.task_vector import TaskVector, difference
from tangentune.methods.fine_tuning import DivergedError, FineTuneSettings, fine_tune
from tangentune.methods.fine_tuning.labelled import class_positions, mean_features
from tangentune.networks.backbone import Backbone
from tangentune.networks.heads import stratified_folds
from tangentune.pictures.pictures import Pictures
from tangentune.solvers.ridge import factor_ridge, loo_errors

FOLDS = 4
STEPS = 32
RATE = 1e-4
BATCH = 32
RELATIVE_DAMPINGS = torch.logspace(-4, 3, 29, dtype=torch.float64)


@final
@dataclass(frozen=True, eq=False)
class Expansion:
    """Points of expansion of one fit, after `steps` minibatches: one network a fold, moved without the fold's pictures.

    `fold` (n,) is each picture's; `mean`, for pictures that none has seen, is the network at the mean of the points'
    weights, and `task` those weights minus the pre-trained ones.
    """

    steps: int
    fold: NDArray[np.int64]
    points: tuple[nn.Module, ...]
    mean: nn.Module
    task: TaskVector


def cross_fitted_expansion(
    backbone: Backbone, pictures: Pictures, steps: int, *, flip: bool, seed: int = 0, verbose: int = 0
) -> Expansion:
    """Move the network towards the labels of all folds but one, for each of four folds; the backbone stays as it is.

    Cost: `4 * steps` forward and backward passes of 32 pictures, whatever n is; at least one pass over the pictures is
    made. With `flip` half of them are mirrored, at random.
    """
    positions = torch.from_numpy(class_positions(pictures)[1])
    fold = stratified_folds(positions, FOLDS, seed).numpy()
    nets: list[nn.Module] = []
    for own in tqdm(np.unique(fold), desc="moving", unit="network", delay=1.0, disable=not verbose):
        rest = pictures.select(np.flatnonzero(fold != own))
        nets.append(fine_tune(backbone, rest, _settings(len(rest), steps, flip, seed)).backbone.module)
    start = {name: p for name, p in backbone.module.named_parameters() if p.is_floating_point()}
    tasks = [difference(dict(net.named_parameters()), start) for net in nets]
    mean = sum(tasks[1:], tasks[0]) / len(tasks)
    points = tuple(moved(backbone.module, task) for task in tasks)
    return Expansion(steps, fold, points, moved(backbone.module, mean), mean)


def moved(module: nn.Module, task: TaskVector) -> nn.Module:
    """A frozen copy of the network with a task vector added to its weights."""
    out = copy.deepcopy(module)
    with torch.no_grad():
        for name, parameter in out.named_parameters():
            if name in task:
                parameter.add_(task[name].to(parameter))
    return out.eval().requires_grad_(False)


def moving_seconds(backbone: Backbone, pictures: Pictures, steps: int, *, flip: bool) -> float:
    """What `cross_fitted_expansion` will take: from one minibatch and from three, after one for the set-up."""
    trial = np.unique(np.linspace(0, len(pictures) - 1, BATCH).round().astype(int))  # spread: sets are often sorted
    few = pictures.select(trial)
    _, once, thrice = (fine_tune(backbone, few, _settings(len(trial), n, flip, 0)).seconds for n in (1, 1, 3))
    step, count = max(thrice - once, 0.0) / 2, len(pictures) * (FOLDS - 1) // FOLDS
    return FOLDS * (max(once - step, 0.0) + step * _settings(count, steps, flip, 0).epochs * -(-count // BATCH))


def _settings(count: int, steps: int, flip: bool, seed: int) -> FineTuneSettings:
    """So many whole passes over the pictures as come nearest to the steps."""
    epochs = max(1, round(steps / -(-count // BATCH)))
    return FineTuneSettings(
        learning_rate=RATE, epochs=epochs, batch_size=BATCH, head_start="probe", flip=flip, seed=seed
    )


def choose_steps(
    backbone: Backbone, pictures: Pictures, *, flip: bool, seed: int = 0, verbose: int = 0
) -> tuple[Expansion | None, list[dict[str, float]]]:
    """Move or not (None): whatever gives a ridge probe on the features the lower leave-one-out error (sum of squares).

    Each picture's features come from the network that has not seen it, so that the error is honest. Cost: that of
    `cross_fitted_expansion`, and two forward passes.
    """
    if len(pictures) < 2 * FOLDS:  # too few to tell
        return None, []
    positions = torch.from_numpy(class_positions(pictures)[1])
    if positions.bincount().max() == 1:
        return None, []
    tried = [{"outer_steps": 0, "loo_error": _probe_error(_features(backbone, pictures, None, flip), positions)}]
    try:
        made = cross_fitted_expansion(backbone, pictures, STEPS, flip=flip, seed=seed, verbose=verbose)
    except DivergedError:
        return None, tried
    error = _probe_error(_features(backbone, pictures, made, flip), positions)
    tried.append({"outer_steps": STEPS, "loo_error": error})
    return made if error < tried[0]["loo_error"] else None, tried


def _probe_error(features: Tensor, positions: Tensor) -> float:
    """Lowest leave-one-out error of a ridge probe along its damping path, features of length one."""
    unit = F.normalize(features.double(), dim=1)
    factor = factor_ridge(unit @ unit.T)
    dampings = (factor.mean_eigenvalue or 1.0) * RELATIVE_DAMPINGS
    return float(loo_errors(factor, F.one_hot(positions).double(), dampings).min())


def _features(backbone: Backbone, pictures: Pictures, expansion: Expansion | None, flip: bool) -> Tensor:
    """(n, d) features, each picture's from its own fold's network."""
    if expansion is None:
        return mean_features(backbone, pictures, 64, flip)
    parts, order = [], []
    for own, module in enumerate(expansion.points):
        there, rows = copy.copy(backbone), np.flatnonzero(expansion.fold == own)
        there.module = module
        parts.append(mean_features(there, pictures.select(rows), 64, flip))
        order.append(rows)
    return torch.cat(parts)[torch.from_numpy(np.concatenate(order).argsort()).to(parts[0].device)]
