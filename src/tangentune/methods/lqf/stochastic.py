"""Stochastic training of the linearised network: SGD, Adam, and SGD on K-FAC-preconditioned gradients.

A mini-batch estimates the gradient of P(u) / n, so that rates mean what they do in ordinary training; the optimum is
P's. Weight decay is the penalty's own gradient, `lambda (u + d) / n`: it pulls the tangent, never the weights.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from tangentune.jacobian.task_vector import TangentVector, combine, dot
from tangentune.methods.fine_tuning.training import Training
from tangentune.methods.lqf.objective import Objective
from tangentune.methods.lqf.progress import Progress
from tangentune.methods.lqf.settings import LQFSettings

Precondition = Callable[[TangentVector], TangentVector]
POWER_ITERATIONS = 8


def train(objective: Objective, settings: LQFSettings, progress: Progress, precondition: Precondition) -> TangentVector:
    """Run the epochs of "sgd", "adam" or "kfac"; the tangent after the last.

    What a gradient is multiplied by, `precondition`, is symmetric and positive definite on any scale.
    """
    u = objective.lin.zeros()
    progress.measure(objective, u)
    parameters = {name: nn.Parameter(t) for name, t in u.items()}  # steps move u, which shares their memory
    shrink = objective.damping / len(objective)

    def learn(rows: Tensor, generator: torch.Generator) -> float:
        view = torch.randint(0, 2, (len(rows),), generator=generator) if objective.views == 2 else 0
        value, sums = objective.learn(u, rows, view)
        gradient = {name: g / len(rows) + shrink * (u[name] + objective.centre[name]) for name, g in sums.items()}
        for name, direction in precondition(gradient).items():
            parameters[name].grad = torch.empty_like(u[name]).copy_(direction)
        return value

    rate, name = settings.rate / _stable(objective, settings, progress, precondition), f"LQF, {settings.solver}"
    training = Training(len(objective), learn, lambda: _optimiser(parameters, settings), rate, name)
    generators = (_generator(settings.seed, progress.stage, epoch) for epoch in range(settings.epochs))
    for loss in training.epochs(settings, generators, progress.verbose):
        moved = combine(1, u, 1, objective.centre)
        progress.losses.append(loss + 0.5 * objective.damping * dot(moved, moved))
        progress.epoch, progress.passes = progress.epoch + 1, progress.passes + 1
        done, every = progress.epoch, settings.measure_every
        if done == settings.epochs or (every and done % every == 0):
            progress.measure(objective, u)
    return u


def _stable(objective: Objective, settings: LQFSettings, progress: Progress, precondition: Precondition) -> float:
    """Largest curvature of the preconditioned problem on the first mini-batch, by power iteration; 1 for Adam.

    Curvature of P / n: `J^T L J / b + lambda / n` with the loss's own L, 1 for the squared loss and at most 1/2 for the
    cross-entropy. Rayleigh quotients approach the largest eigenvalue from below.
    """
    if settings.solver == "adam":
        return 1.0
    n, per_epoch = len(objective), math.ceil(len(objective) / settings.batch_size)
    generator = _generator(settings.seed, progress.stage, 0)
    rows = torch.randperm(n, generator=generator).tensor_split(per_epoch)[0]
    x, scale = objective.inputs(rows, 0), (1.0 if objective.quadratic else 0.5) / len(rows)

    def hessian(v: TangentVector) -> TangentVector:
        return combine(scale, objective.lin.normal(x, v), objective.damping / n, v)

    point = objective.lin.point()
    v = {name: torch.randn(p.shape, generator=generator, dtype=torch.float64).to(p) for name, p in point.items()}
    w, quotient = hessian(v), 0.0
    for _ in range(POWER_ITERATIONS):
        v = precondition(w)
        weight = dot(v, w)
        w = hessian(v)
        quotient = dot(v, w) / weight
        v, w = combine(weight**-0.5, v, 0, v), combine(weight**-0.5, w, 0, w)
    progress.passes += (POWER_ITERATIONS + 1) * len(rows) / n
    return quotient


def _optimiser(parameters: dict[str, nn.Parameter], settings: LQFSettings) -> torch.optim.Optimizer:
    group = [{"params": list(parameters.values()), "factor": 1.0}]
    if settings.solver == "adam":
        return torch.optim.Adam(group, fused=True)
    return torch.optim.SGD(group, momentum=settings.momentum, fused=True)


def _generator(seed: int, stage: int, epoch: int) -> torch.Generator:
    """Random numbers of one epoch: they depend on nothing that happened before it."""
    state = np.random.SeedSequence([seed, stage, epoch]).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(state) >> 1)
