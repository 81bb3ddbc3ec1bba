"""Conjugate gradients on the tangent: every iteration sees all pictures, and nothing is tuned."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor
from tqdm.auto import tqdm

from tangentune.jacobian.task_vector import TangentVector, flatten, unflatten
from tangentune.methods.lqf.objective import Objective
from tangentune.methods.lqf.progress import Progress
from tangentune.methods.lqf.settings import LQFSettings
from tangentune.methods.lqf.stochastic import Precondition
from tangentune.solvers.pcg import pcg


def conjugate(
    objective: Objective, settings: LQFSettings, progress: Progress, precondition: Precondition
) -> TangentVector:
    """Iterate until the tolerance or the cap (`settings.epochs`) is met; the tangent.

    The objective after a step takes no product of its own: a step s along a direction d is its exact minimiser, so it
    lowers the objective by `1/2 s^T H s`, and `H s` is `H d` times |s| / |d|.
    """
    zero, most = objective.lin.zeros(), settings.epochs
    gradient = progress.measure(objective, zero)
    value, last, curvature = progress.points[-1].objective, flatten(zero), 0.0
    bar = tqdm(
        total=most, desc="LQF, conjugate gradients", unit="step", disable=not progress.verbose, delay=1, leave=None
    )

    def product(v: Tensor) -> Tensor:
        """`(J^T J + lambda) v`."""
        nonlocal curvature
        out = flatten(objective.normal(shaped(v, zero))) + objective.damping * v
        curvature = _dot(v, out) / _dot(v, v)
        progress.passes += objective.views
        return out

    def note(_number: int, residual: float, x: Tensor) -> None:
        """Write a step down."""
        nonlocal value, last
        moved, last = x - last, x.clone()
        value -= 0.5 * curvature * _dot(moved, moved)
        norm = residual * progress.points[0].gradient_norm
        progress.epoch += 1
        progress.note(value, norm, norm**2 / (2 * objective.damping))
        bar.update()

    with bar, warnings.catch_warnings():  # to stop at the cap is no failure; the record tells how far it got
        warnings.simplefilter("ignore", RuntimeWarning)
        result = pcg(
            product, -flatten(gradient), precondition=lambda r: flatten(precondition(shaped(r, zero))),
            tolerance=settings.tolerance, max_iterations=most, callback=note,
        )  # fmt: skip
    u = shaped(result.x, zero)
    progress.measure(objective, u)
    return u


def shaped(vector: Tensor, like: TangentVector) -> TangentVector:
    """The tangent that `flatten` turned into the vector, in the memory format of another."""
    parts = unflatten(vector, {name: t.shape for name, t in like.items()})
    return {name: torch.empty_like(t).copy_(parts[name]) for name, t in like.items()}


def _dot(a: Tensor, b: Tensor) -> float:
    return float((a.double() * b.double()).sum())
