"""The exact optimum through the Gram matrix of the outputs, (n C, n C), with exact leave-one-out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

from torch import Tensor

from tangentune.jacobian.task_vector import TangentVector, combine
from tangentune.kernels.output_gram import logit_gram
from tangentune.methods.lqf.objective import Objective
from tangentune.solvers.leave_out import loo
from tangentune.solvers.system import build


@final
@dataclass(frozen=True, eq=False)
class Exact:
    """The optimum of a squared-loss problem."""

    u: TangentVector  # the tangent
    value: float  # P(u)
    loo: Tensor  # (n, C) outputs at every picture by the problem without it, mean of the views; the head not refitted
    passes: float  # that it took; one for each output and view, a few more for the rest


def solve_exactly(objective: Objective, verbose: int = 0) -> Exact:
    """Solve by one Cholesky factorisation; views count as further pictures of weight 1/2.

    Cost: `(n C)^2 p / 2` multiply-adds for p parameters and `(n C)^3`, n counting views.
    """
    n, views, outputs = len(objective), objective.views, objective.shift.shape[2]
    residual, weight = objective.residual(), views**-0.5
    if any(bool(t.any()) for t in objective.centre.values()):  # in v = u + d: r + J d - J v
        for rows, view in objective.batches():
            residual[view, rows] += objective.lin.jvp(objective.inputs(rows, view), objective.centre)
    kernel = logit_gram(objective.lin, objective.all_inputs(), verbose=verbose)
    shape = (views, n, outputs)
    kernel = kernel.view(*shape, *shape).permute(1, 0, 2, 4, 3, 5).reshape(kernel.shape)
    width = views * outputs
    weighted = weight * residual.transpose(0, 1).reshape(-1, 1)
    system = build(kernel / views, weighted, objective.damping, intercept=False, width=width)
    dual = (weight * system.dual).view(n, views, outputs).transpose(0, 1)
    v = objective.lin.zeros()
    for rows, view in objective.batches():
        v = combine(1, v, 1, objective.lin.vjp(objective.inputs(rows, view), dual[view, rows].to(objective.shift)))
    left_out = (loo(system) / weight).view(n, views, outputs).mean(1)
    predictions = objective.targets + left_out - residual.mean(0)
    value = 0.5 * objective.damping * float((weighted * system.dual).sum())
    return Exact(combine(1, v, -1, objective.centre), value, predictions, (outputs + 2.0) * views)
