"""Conjugate gradients on the tangent: every iteration sees all pictures, and nothing is tuned."""

from __future__ import annotations

import warnings
from typing import final

import torch
from torch import Tensor
from tqdm.auto import tqdm

from tangentune.jacobian.tangents import Tangent
from tangentune.methods.lqf.objective import Measured, Objective
from tangentune.methods.lqf.progress import Progress
from tangentune.methods.lqf.settings import LQFSettings
from tangentune.methods.lqf.stochastic import Precondition
from tangentune.solvers.pcg import pcg

SEGMENT = 25


def conjugate(objective: Objective, settings: LQFSettings, progress: Progress, precondition: Precondition) -> Tangent:
    """Iterate until the tolerance or the cap (`settings.epochs`) is met; the tangent.

    With a checkpoint, directions start afresh every 25 iterations: the tangent alone is then the state there.

    Raises:
        InputError: the preconditioned problem is not positive definite, or something is not finite.
    """
    if "u" not in progress.tangents:
        gradient = progress.measure(objective, objective.lin.zeros())
        progress.tangents |= {"u": objective.lin.zeros(), "gradient": gradient}
    watch = _Watch(objective, progress, settings.epochs)
    segment = SEGMENT if progress.checkpoint else settings.epochs
    right = -flat(progress.tangents["gradient"])
    with watch.bar:
        while not progress.solved:
            steps = min(segment, settings.epochs - progress.epoch)
            with warnings.catch_warnings():  # the end of a segment is no failure; the record tells how far it got
                warnings.simplefilter("ignore", RuntimeWarning)
                result = pcg(
                    watch.product,
                    right,
                    precondition=lambda r: flat(precondition(shaped(r, progress.tangents["u"]))),
                    x0=flat(progress.tangents["u"]) if progress.epoch else None,
                    tolerance=settings.tolerance,
                    max_iterations=steps,
                    callback=watch.step,
                )
            progress.tangents["u"] = shaped(result.x, progress.tangents["u"])
            at_its_limit = result.iterations < steps  # rounding allows no better
            progress.solved = result.converged or at_its_limit or progress.epoch == settings.epochs
            if progress.solved:
                progress.measure(objective, progress.tangents["u"])
            progress.keep()
    return progress.tangents["u"]


def flat(tangent: Tangent) -> Tensor:
    """All entries in one vector, parameters in their order, each row by row."""
    return torch.cat([t.reshape(-1) for t in tangent.values()])


def shaped(vector: Tensor, like: Tangent) -> Tangent:
    """The tangent whose `flat` is the vector, in the memory format of another."""
    parts = vector.split([t.numel() for t in like.values()])
    return {
        name: torch.empty_like(t).copy_(part.view(t.shape)) for (name, t), part in zip(like.items(), parts, strict=True)
    }


@final
class _Watch:
    """Products with the Hessian, and the objective after every step without a product of its own.

    A step s along a direction d is its exact minimiser, so it lowers the objective by `1/2 s^T H s`, and `H s` is
    `H d` times |s| / |d|.
    """

    def __init__(self, objective: Objective, progress: Progress, steps: int) -> None:
        self.objective, self.progress, self.like = objective, progress, objective.lin.zeros()
        self.value = progress.points[-1].objective
        self.last = flat(progress.tangents["u"])
        self.curvature = 0.0
        self.bar = tqdm(
            total=steps, initial=progress.epoch, desc="LQF, conjugate gradients", unit="step",
            disable=not progress.verbose, delay=1.0, leave=None,
        )  # fmt: skip

    def product(self, v: Tensor) -> Tensor:
        """`(J^T J + lambda) v`."""
        out = flat(self.objective.normal(shaped(v, self.like))) + self.objective.damping * v
        self.curvature = _dot(v, out) / _dot(v, v)
        self.progress.passes += self.objective.views
        return out

    def step(self, _number: int, residual: float, x: Tensor) -> None:
        """Write a step down."""
        progress, moved = self.progress, x - self.last
        self.last = x.clone()
        self.value -= 0.5 * self.curvature * _dot(moved, moved)
        norm = residual * progress.points[0].gradient_norm
        progress.epoch += 1
        progress.note(Measured(self.value, norm, norm**2 / (2 * self.objective.damping)))
        self.bar.update()


def _dot(a: Tensor, b: Tensor) -> float:
    return float((a.double() * b.double()).sum())
