"""Conjugate gradients on the tangent: every iteration sees all pictures, and nothing is tuned."""

from __future__ import annotations

import warnings
from typing import final

import torch
from torch import Tensor
from tqdm.auto import tqdm

from tangentune.jacobian.task_vector import TangentVector, flatten, unflatten
from tangentune.methods.lqf.objective import Measured, Objective
from tangentune.methods.lqf.progress import Progress
from tangentune.methods.lqf.settings import LQFSettings
from tangentune.methods.lqf.stochastic import Precondition
from tangentune.solvers.pcg import pcg


def conjugate(
    objective: Objective, settings: LQFSettings, progress: Progress, precondition: Precondition
) -> TangentVector:
    """Iterate until the tolerance or the cap (`settings.epochs`) is met; the tangent."""
    zero = objective.lin.zeros()
    gradient = progress.measure(objective, zero)
    steps = _Steps(objective, progress, zero, settings.epochs)
    with steps.bar, warnings.catch_warnings():  # to stop at the cap is no failure; the record tells how far it got
        warnings.simplefilter("ignore", RuntimeWarning)
        result = pcg(
            steps.product, -flatten(gradient), precondition=lambda r: flatten(precondition(shaped(r, zero))),
            tolerance=settings.tolerance, max_iterations=settings.epochs, callback=steps.note,
        )  # fmt: skip
    u = shaped(result.x, zero)
    progress.measure(objective, u)
    return u


def shaped(vector: Tensor, like: TangentVector) -> TangentVector:
    """The tangent that `flatten` turned into the vector, in the memory format of another."""
    parts = unflatten(vector, {name: t.shape for name, t in like.items()})
    return {name: torch.empty_like(t).copy_(parts[name]) for name, t in like.items()}


@final
class _Steps:
    """Products with the Hessian, and the objective after every step without a product of its own.

    A step s along a direction d is its exact minimiser, so it lowers the objective by `1/2 s^T H s`, and `H s` is `H d`
    times |s| / |d|.
    """

    def __init__(self, objective: Objective, progress: Progress, zero: TangentVector, most: int) -> None:
        self.objective, self.progress, self.zero = objective, progress, zero
        self.value, self.last, self.curvature = progress.points[-1].objective, flatten(zero), 0.0
        self.bar = tqdm(
            total=most, desc="LQF, conjugate gradients", unit="step", disable=not progress.verbose, delay=1, leave=None
        )

    def product(self, v: Tensor) -> Tensor:
        """`(J^T J + lambda) v`."""
        out = flatten(self.objective.normal(shaped(v, self.zero))) + self.objective.damping * v
        self.curvature = _dot(v, out) / _dot(v, v)
        self.progress.passes += self.objective.views
        return out

    def note(self, _number: int, residual: float, x: Tensor) -> None:
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
