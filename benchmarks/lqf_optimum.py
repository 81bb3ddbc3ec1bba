"""The exact optimum of a linearised problem, squared loss or cross-entropy, from one Gram matrix of the outputs.

At the optimum `u = J^T a`, so that `P = sum_i loss(f0_i + (K a)_i) + 1/2 lambda a^T K a` with `K = J J^T`, (n C, n C):
convex in few numbers. Newton's method, one step for the squared loss (Rasmussen and Williams 2006, algorithm 3.3).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tangentune.jacobian.tangents import TangentVector, combine
from tangentune.methods.lqf.objective import Objective

NEWTON_STEPS, PRECISION = 60, 1e-8


@dataclass(frozen=True, eq=False)
class Optimum:
    """The least value of a problem.

    Attributes:
        start: P(0).
        least: P at the solution.
        bound: P there is above the true least value by this at most.
        dual: (n, C) coefficients a.
    """

    start: float
    least: float
    bound: float
    dual: Tensor

    def tangent(self, objective: Objective) -> TangentVector:
        """`J^T a`; one pass."""
        u = objective.lin.zeros()
        for rows, view in objective.batches():
            pulled = objective.lin.vjp(objective.inputs(rows, view), self.dual[rows].to(objective.shift))
            u = combine(1, u, 1, pulled)
        return u


def optimum(objective: Objective, kernel: Tensor) -> Optimum:
    """Minimise exactly; the problem has one view and lies at the pre-trained weights.

    Args:
        objective: the problem.
        kernel: (n C, n C) Gram matrix of its outputs, float64.
    """
    n, outputs = len(objective), objective.shift.shape[2]
    everything = torch.arange(n)
    parts = [objective.lin.f0(objective.inputs(rows, view)) for rows, view in objective.batches()]
    f0 = (torch.cat(parts) + objective.shift[0]).double()
    damping, dual = objective.damping, torch.zeros(n, outputs, dtype=torch.float64)

    def moved(a: Tensor) -> Tensor:
        return (kernel @ a.reshape(-1)).view(n, outputs)

    def value(a: Tensor) -> float:
        change = moved(a)
        return objective.losses(f0 + change, everything)[0] + 0.5 * damping * float((a * change).sum())

    start = least = value(dual)
    bound = float("inf")
    for _ in range(NEWTON_STEPS):
        change = moved(dual)
        errors = objective.losses(f0 + change, everything)[1]
        gradient = errors + damping * dual
        bound = float((gradient * moved(gradient)).sum()) / (2 * damping)
        if bound <= PRECISION * start:
            break
        curvature = _curvature(objective, f0 + change)
        product = torch.bmm(curvature, kernel.view(n, outputs, -1)).view(kernel.shape)
        right = torch.einsum("nij,nj->ni", curvature, change) - errors
        solved = torch.linalg.solve(product + damping * torch.eye(len(kernel), dtype=kernel.dtype), right.reshape(-1))
        step, direction = 1.0, solved.view(n, outputs) - dual
        while value(dual + step * direction) > least and step > 1e-6:
            step /= 2
        dual = dual + step * direction
        least = value(dual)
    return Optimum(start, least, bound, dual)


def _curvature(objective: Objective, f: Tensor) -> Tensor:
    """(n, C, C) second derivatives of the loss in the outputs."""
    if objective.quadratic:
        return torch.eye(f.shape[1], dtype=f.dtype).expand(len(f), -1, -1)
    p = f.softmax(1)
    return torch.diag_embed(p) - p[:, :, None] * p[:, None, :]
