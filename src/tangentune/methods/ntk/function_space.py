"""Conditioning in function space: one Cholesky factor of the kernel of all data, in float64."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, final

import torch
from torch import Tensor

from tangentune.errors import InputError
from tangentune.jacobian.layers import Entry
from tangentune.kernels.output_gram import hold_rows
from tangentune.methods.ntk.problems import Moments, Prior, Task, Want


@final
@dataclass(frozen=True, eq=False)
class Conditioned:
    """Normal data of covariance A and mean `basis beta`, beta flat: what is left after factoring."""

    factor: Tensor  # (B, N, N) lower Cholesky factor L of A
    whitened: Tensor  # (B, N, q) `L^-1 basis`
    inner: Tensor  # (B, q, q) Cholesky factor of `basis^T A^-1 basis`
    dual: Tensor  # (B, N, columns) `A^-1 (targets - basis beta)`
    beta: Tensor  # (B, q, columns) generalised least squares
    log_likelihood: float  # restricted log marginal likelihood: that of the data's part orthogonal to the basis


def condition(covariance: Tensor, basis: Tensor, targets: Tensor) -> Conditioned:
    """Condition on (B, N, columns) targets; N^3 / 3 for each of the B problems."""
    factor, failed = torch.linalg.cholesky_ex(covariance)
    if bool(failed.any()):
        message = (
            "kernel plus noise is not positive definite: the noise is below what the network's precision resolves; "
            "give more noise, or a float64 network (`network.double()`)"
        )
        raise InputError(message)
    whitened = _lower(factor, basis)
    inner = torch.linalg.cholesky(whitened.mT @ whitened)
    z = _lower(factor, targets)
    beta = torch.cholesky_solve(whitened.mT @ z, inner)
    z = z - whitened @ beta
    dual = torch.linalg.solve_triangular(factor.mT, z, upper=True)
    columns, freedom = targets.shape[2], targets[0].numel() - beta[0].numel()
    outer = torch.linalg.cholesky(basis.mT @ basis)
    logdet = columns * float(_half_logdet(factor) + _half_logdet(inner) - _half_logdet(outer))
    quadratic = 0.5 * float(z.square().sum())
    likelihood = -quadratic - logdet - 0.5 * len(targets) * freedom * math.log(2 * math.pi)
    return Conditioned(factor, whitened, inner, dual, beta, likelihood)


def moments(found: Conditioned, cross: Tensor, basis: Tensor, own: Tensor | None) -> Moments:
    """Posterior at M rows from the (B, N, M) cross-covariance, their (B, M, q) basis and own covariance or variance.

    Args:
        found: the conditioned data.
        cross: prior covariance of the data with the rows.
        basis: regressors of the rows.
        own: (B, M) prior variances, (B, M, M) prior covariance, or None for the mean alone. Cost N^2 M, and N M^2.
    """
    mean = cross.mT @ found.dual + basis @ found.beta
    if own is None:
        return Moments(mean)
    seen = _lower(found.factor, cross)
    unsure = _lower(found.inner, basis.mT - found.whitened.mT @ seen)
    if own.dim() == 2:
        return Moments(mean, variance=(own - seen.square().sum(1) + unsure.square().sum(1)).clamp_min(0))
    return Moments(mean, covariance=own - seen.mT @ seen + unsure.mT @ unsure)


def leave_out(found: Conditioned, targets: Tensor, width: int) -> Tensor:
    """(B, N, columns) exact prediction of every row by the rest, rows left out `width` at a time; N^3 once."""
    inverse = torch.cholesky_inverse(found.factor)
    spread = torch.linalg.solve_triangular(found.factor.mT, found.whitened, upper=True)
    inverse = inverse - spread @ torch.cholesky_solve(spread.mT, found.inner)
    problems, n = targets.shape[0], targets.shape[1] // width
    blocks = inverse.view(problems, n, width, n, width).diagonal(dim1=1, dim2=3).permute(0, 3, 1, 2)
    dual = found.dual.view(problems, n, width, -1)
    return targets - torch.linalg.solve(blocks, dual).reshape(targets.shape)


@final
class FunctionSpace:
    """The posterior of a prior and tasks, over kernels between inputs.

    Attributes:
        data: the conditioned data.
        log_likelihood: restricted log marginal likelihood.
    """

    space: Literal["function"] = "function"

    def __init__(self, prior: Prior, tasks: Sequence[Task], prior_variance: float, kernel: Tensor | None = None):
        self.prior, self.tasks, self.prior_variance = prior, tuple(tasks), prior_variance
        self.x = torch.cat([task.x for task in tasks])
        self._held: dict[str, Entry] | None = None
        kernel = prior.kernel(self.x) if kernel is None else kernel
        residuals = torch.cat([task.residuals for task in tasks])
        noise = torch.cat([task.residuals.new_full((prior.size(len(task.x)),), task.noise) for task in tasks])
        self.targets, basis = prior.split(residuals), prior.basis(len(self.x), kernel)
        self.data = condition(prior_variance * kernel + torch.diag(noise), basis, self.targets)
        self.log_likelihood = self.data.log_likelihood

    def predict(self, x: Tensor, want: Want) -> Moments:
        """Moments of f, less the fixed part of the mean, at inputs x."""
        if self._held is None:
            self._held = hold_rows(self.prior.rows, self.x, self.prior.batch_size, self.prior.memory_bytes)
        cross = self.prior_variance * self.prior.kernel(self.x, x, self._held)
        own = None
        if want != "mean":
            own = self.prior_variance * (self.prior.diagonal(x) if want == "variance" else self.prior.kernel(x))
        return moments(self.data, cross, self.prior.basis(len(x), cross), own)

    def loo(self) -> Tensor:
        """(n, T) exact leave-one-input-out predictions, less the fixed part of the mean."""
        width = self.prior.size(1)
        return self.prior.merge(leave_out(self.data, self.targets, width), len(self.x))


def _lower(factor: Tensor, right: Tensor) -> Tensor:
    return torch.linalg.solve_triangular(factor, right, upper=False)


def _half_logdet(factor: Tensor) -> Tensor:
    return factor.diagonal(dim1=1, dim2=2).log().sum()
