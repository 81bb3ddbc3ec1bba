"""Conditioning in function space: one Cholesky factor of the kernel of all data, in float64."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, final

import torch
from torch import Tensor

from tangentune.errors import SingularError
from tangentune.jacobian.layers import Entry
from tangentune.kernels.output_gram import hold_rows
from tangentune.methods.ntk.problems import Moments, Prior, Task, Want
from tangentune.solvers.factorisation import cholesky, solve


@final
class FunctionSpace:
    """The posterior of a prior and tasks: normal data (B, N, columns) of covariance A and mean `basis beta`, beta flat.

    Cost N^3 / 3 for each of the B problems. The log marginal likelihood is the restricted one, that of the data's part
    orthogonal to the basis.
    """

    space: Literal["function"] = "function"

    def __init__(self, prior: Prior, tasks: Sequence[Task], prior_variance: float, kernel: Tensor | None = None):
        self.prior, self.tasks, self.prior_variance = prior, tuple(tasks), prior_variance
        self.x = torch.cat([task.x for task in tasks])
        self._held: dict[str, Entry] | None = None
        kernel = prior.kernel(self.x) if kernel is None else kernel
        noise = torch.cat([task.residuals.new_full((prior.size(len(task.x)),), task.noise) for task in tasks])
        self.targets = targets = prior.split(torch.cat([task.residuals for task in tasks]))
        basis = prior.basis(len(self.x), kernel)
        try:
            factor = cholesky(prior_variance * kernel + torch.diag(noise), "the covariance of the data", as_it_is=True)
        except SingularError as error:
            message = "kernel plus noise is not positive definite: the noise is below what the network's precision "
            message += "resolves; give more noise, or a float64 network (`network.double()`)"
            raise SingularError(message) from error
        self.factor, self.whitened = factor, _lower(factor, basis)  # (B, N, N) L of A = L L^T, (B, N, q) `L^-1 basis`
        inner = self.whitened.mT @ self.whitened
        self.inner = cholesky(inner, "the constants' precision")  # (B, q, q) of `basis^T A^-1 basis`
        z = _lower(factor, targets)
        self.beta = torch.cholesky_solve(self.whitened.mT @ z, self.inner)  # (B, q, columns) generalised least squares
        z = z - self.whitened @ self.beta
        self.dual = torch.linalg.solve_triangular(factor.mT, z, upper=True)  # `A^-1 (targets - basis beta)`
        columns, freedom = targets.shape[2], targets[0].numel() - self.beta[0].numel()
        outer = cholesky(basis.mT @ basis, "the basis of the mean")
        logdet = columns * float(_half_logdet(factor) + _half_logdet(self.inner) - _half_logdet(outer))
        quadratic = 0.5 * float(z.square().sum())
        self.log_likelihood = -quadratic - logdet - 0.5 * len(targets) * freedom * math.log(2 * math.pi)

    def predict(self, x: Tensor, want: Want) -> Moments:
        """Moments of f, less the fixed part of the mean, at M rows of inputs x; cost N^2 M, and N M^2."""
        if self._held is None:
            self._held = hold_rows(self.prior.rows, self.x, self.prior.batch_size, self.prior.memory_bytes)
        cross = self.prior_variance * self.prior.kernel(self.x, x, self._held)
        basis = self.prior.basis(len(x), cross)
        mean = cross.mT @ self.dual + basis @ self.beta
        if want == "mean":
            return Moments(mean)
        own = self.prior_variance * (self.prior.diagonal(x) if want == "variance" else self.prior.kernel(x))
        seen = _lower(self.factor, cross)
        unsure = _lower(self.inner, basis.mT - self.whitened.mT @ seen)
        if want == "variance":
            return Moments(mean, variance=(own - seen.square().sum(1) + unsure.square().sum(1)).clamp_min(0))
        return Moments(mean, covariance=own - seen.mT @ seen + unsure.mT @ unsure)

    def loo(self) -> Tensor:
        """(n, T) exact predictions of every input by the others, less the fixed part of the mean; N^3 once."""
        inverse = torch.cholesky_inverse(self.factor)
        spread = torch.linalg.solve_triangular(self.factor.mT, self.whitened, upper=True)
        inverse = inverse - spread @ torch.cholesky_solve(spread.mT, self.inner)
        width, n = self.prior.size(1), len(self.x)
        blocks = inverse.view(-1, n, width, n, width).diagonal(dim1=1, dim2=3).permute(0, 3, 1, 2)
        errors = solve(blocks, self.dual.view(len(inverse), n, width, -1), "a picture's part of the inverse")
        return self.prior.merge(self.targets - errors.reshape(self.targets.shape), n)


def _lower(factor: Tensor, right: Tensor) -> Tensor:
    return torch.linalg.solve_triangular(factor, right, upper=False)


def _half_logdet(factor: Tensor) -> Tensor:
    return factor.diagonal(dim1=1, dim2=2).log().sum()
