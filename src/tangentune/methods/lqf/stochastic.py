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
from tqdm.auto import tqdm

from tangentune.jacobian.tangents import Tangent, combine, dot
from tangentune.methods.fine_tuning.schedule import rate_factor
from tangentune.methods.lqf.objective import Objective
from tangentune.methods.lqf.progress import Progress
from tangentune.methods.lqf.settings import LQFSettings

Precondition = Callable[[Tangent], Tangent]
POWER_ITERATIONS = 8


def train(objective: Objective, settings: LQFSettings, progress: Progress, precondition: Precondition) -> Tangent:
    """Run the epochs that are left; the tangent after the last.

    Args:
        objective: the problem.
        settings: solver "sgd", "adam" or "kfac", rates, epochs.
        progress: gets measurements and losses; where the run goes on from.
        precondition: what a gradient is multiplied by, symmetric and positive definite on any scale.

    Raises:
        DivergedError: the objective became NaN or infinite.
    """
    n, per_epoch = len(objective), math.ceil(len(objective) / settings.batch_size)
    if "u" not in progress.tangents:
        progress.tangents["u"] = objective.lin.zeros()
        progress.measure(objective, progress.tangents["u"])
    parameters = {name: nn.Parameter(t) for name, t in progress.tangents["u"].items()}
    u = {name: p.data for name, p in parameters.items()}
    progress.tangents["u"] = u
    peak = settings.rate / _stable(objective, settings, progress, precondition)
    optimiser = _optimiser(parameters, settings)
    _load(optimiser, parameters, progress)
    with tqdm(
        total=per_epoch * settings.epochs, initial=per_epoch * progress.epoch, desc=f"LQF, {settings.solver}",
        unit="step", disable=not progress.verbose, delay=1.0, leave=None,
    ) as bar:  # fmt: skip
        while progress.epoch < settings.epochs:
            generator = _generator(settings.seed, progress.stage, progress.epoch)
            batches, total = torch.randperm(n, generator=generator).tensor_split(per_epoch), 0.0
            for k, rows in enumerate(batches):
                step = per_epoch * progress.epoch + k
                value, gradient = _mean_gradient(objective, u, rows, generator)
                total += value
                for name, direction in precondition(gradient).items():
                    parameters[name].grad = torch.empty_like(u[name]).copy_(direction)
                factor = rate_factor(step, per_epoch * settings.epochs, settings.warmup, settings.schedule)
                optimiser.param_groups[0]["lr"] = peak * factor
                optimiser.step()
                bar.update()
            progress.losses.append(total + 0.5 * objective.damping * _penalty(objective, u))
            progress.epoch, progress.passes = progress.epoch + 1, progress.passes + 1
            _after_epoch(objective, settings, progress)
            _save(optimiser, parameters, progress)
            progress.keep()
    return u


def _after_epoch(objective: Objective, settings: LQFSettings, progress: Progress) -> None:
    every, progress.solved = settings.measure_every, progress.epoch == settings.epochs
    if progress.solved or (every and progress.epoch % every == 0):
        progress.measure(objective, progress.tangents["u"])


def _mean_gradient(objective: Objective, u: Tangent, rows: Tensor, generator: torch.Generator) -> tuple[float, Tangent]:
    """Sum of a batch's losses, and its estimate of the gradient of P / n."""
    view: Tensor | int = 0
    if objective.views == 2:
        view = torch.randint(0, 2, (len(rows),), generator=generator)
    value, grads = objective.learn(u, rows, view)
    shrink = objective.damping / len(objective)
    return value, {name: g / len(rows) + shrink * (u[name] + objective.centre[name]) for name, g in grads.items()}


def _stable(objective: Objective, settings: LQFSettings, progress: Progress, precondition: Precondition) -> float:
    """Largest curvature of the preconditioned problem on the first mini-batch, by power iteration; 1 for Adam.

    Curvature of P / n: `J^T L J / b + lambda / n` with the loss's own L, 1 for the squared loss and at most 1/2 for
    the cross-entropy. Rayleigh quotients approach the largest eigenvalue from below.
    """
    if settings.solver == "adam":
        return 1.0
    if "curvature" not in progress.scalars:
        n, per_epoch = len(objective), math.ceil(len(objective) / settings.batch_size)
        generator = _generator(settings.seed, progress.stage, 0)
        rows = torch.randperm(n, generator=generator).tensor_split(per_epoch)[0]
        x, scale = objective.inputs(rows, 0), (1.0 if objective.quadratic else 0.5) / len(rows)

        def hessian(v: Tangent) -> Tangent:
            return combine(scale, objective.lin.normal(x, v), objective.damping / n, v)

        v = {
            name: torch.randn(p.shape, generator=generator, dtype=torch.float64).to(p)
            for name, p in objective.lin.point().items()
        }
        w, quotient = hessian(v), 0.0
        for _ in range(POWER_ITERATIONS):
            v = precondition(w)
            weight = dot(v, w)
            w = hessian(v)
            quotient = dot(v, w) / weight
            v, w = combine(weight**-0.5, v, 0, v), combine(weight**-0.5, w, 0, w)
        progress.scalars["curvature"] = quotient
        progress.passes += (POWER_ITERATIONS + 1) * len(rows) / n
    return progress.scalars["curvature"]


def _penalty(objective: Objective, u: Tangent) -> float:
    total = combine(1, u, 1, objective.centre)
    return dot(total, total)


def _optimiser(parameters: dict[str, nn.Parameter], settings: LQFSettings) -> torch.optim.Optimizer:
    if settings.solver == "adam":
        return torch.optim.Adam(parameters.values(), fused=True)
    return torch.optim.SGD(parameters.values(), lr=1.0, momentum=settings.momentum, fused=True)


def _save(optimiser: torch.optim.Optimizer, parameters: dict[str, nn.Parameter], progress: Progress) -> None:
    for name, parameter in parameters.items():
        for key, value in optimiser.state[parameter].items():
            if value is not None:
                progress.tangents.setdefault(f"optimiser.{key}", {})[name] = value


def _load(optimiser: torch.optim.Optimizer, parameters: dict[str, nn.Parameter], progress: Progress) -> None:
    for use, tensors in progress.tangents.items():
        if use.startswith("optimiser."):
            for name, value in tensors.items():
                optimiser.state[parameters[name]][use.removeprefix("optimiser.")] = value


def _generator(seed: int, stage: int, epoch: int) -> torch.Generator:
    """Random numbers of one epoch: they depend on nothing that happened before it."""
    state = np.random.SeedSequence([seed, stage, epoch]).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(state) >> 1)
