"""Conditioning by products alone: the mean by conjugate gradients, variances by a low rank and its complement."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, final

import torch
from torch import Tensor

from tangentune.jacobian.task_vector import TangentVector, flatten, unflatten
from tangentune.methods.ntk.problems import Moments, Prior, Task, Want
from tangentune.solvers.lanczos import lanczos_pairs
from tangentune.solvers.pcg import PCGResult, pcg

CAP = 1000


@final
class MatrixFree:
    """The posterior of the weights of all outputs at once, from products with J and its transpose.

    With prior variance v and noise s2 the weights' precision is `G + I / v`, `G = sum over tasks of J^T J / s2`.
    Variances use eigenpairs (l, q) of a matrix below G: `v (|J_x|^2 - sum_k l_k v / (l_k v + 1) (J_x q_k)^2)`, which is
    never below the true one, never above the prior's, and is the prior's where the data say nothing.
    """

    space: Literal["matrix-free"] = "matrix-free"

    def __init__(self, prior: Prior, tasks: Sequence[Task], prior_variance: float, rank: int, tolerance: float):
        self.prior, self.tasks, self.prior_variance = prior, tuple(tasks), prior_variance
        self.lin = prior.rows.linearization
        self.shapes = {name: p.shape for name, p in self.lin.point().items()}
        pulled = self._sum(self.lin.vjp)
        start = pulled if bool(pulled.any()) else torch.ones_like(pulled)
        self.values, self.vectors = lanczos_pairs(self._data_product, start, rank)
        self.result: PCGResult = pcg(
            lambda v: self._data_product(v) + v / prior_variance, pulled,
            precondition=self._deflate, tolerance=tolerance, max_iterations=CAP,
        )  # fmt: skip

    def predict(self, x: Tensor, want: Want) -> Moments:
        """Moments of f, less the fixed part of the mean, at inputs x."""
        batches = self.prior.rows.prepare(x).split(self.prior.batch_size)

        def outputs(v: Tensor) -> Tensor:
            return torch.cat([self.lin.jvp(part, self._named(v)).double() for part in batches])

        mean = self.prior.split(outputs(self.result.x))
        if want == "mean":
            return Moments(mean)
        shrunk = (self.values * self.prior_variance / (self.values * self.prior_variance + 1)).sqrt()
        known = shrunk[:, None] * torch.stack([outputs(q).reshape(-1) for q in self.vectors])
        if want == "variance":
            own = self.prior.diagonal(x)
            return Moments(mean, variance=self.prior_variance * (own - known.square().sum(0)[None]).clamp_min(0))
        return Moments(mean, covariance=self.prior_variance * (self.prior.kernel(x) - (known.T @ known)[None]))

    def _data_product(self, v: Tensor) -> Tensor:
        tangent = self._named(v)
        return self._sum(lambda x, _: self.lin.normal(x, tangent))

    def _sum(self, of: Callable[[Tensor, Tensor], TangentVector]) -> Tensor:
        """Over inputs and residuals of all tasks, each task's over its noise; added up in float64."""
        like = next(iter(self.lin.point().values()))
        total = torch.zeros(self.prior.rows.width, dtype=torch.float64, device=like.device)
        for task in self.tasks:
            batches = task.x.split(self.prior.batch_size), task.residuals.split(self.prior.batch_size)
            for x, residuals in zip(*batches, strict=True):
                total += flatten(of(x, residuals)).double() / task.noise
        return total.to(like)

    def _deflate(self, r: Tensor) -> Tensor:
        """The inverse of the low-rank precision, its smallest eigenvalue in place of all that it does not know."""
        along = self.vectors @ r
        values = self.values.to(r) + 1 / self.prior_variance
        return r / values[-1] + self.vectors.T @ (along / values - along / values[-1])

    def _named(self, v: Tensor) -> dict[str, Tensor]:
        return unflatten(v, self.shapes)
