"""Conditioning in parameter space: the p x p precision of the weights, for small networks and any number of inputs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, final

import torch
from torch import Tensor

from tangentune.methods.ntk.evidence import Spectrum
from tangentune.methods.ntk.problems import Moments, Prior, Task, Want
from tangentune.solvers.factorisation import cholesky, eigh, solve

CONSTANTS = "the constants' part of the sum over the rows"


@final
@dataclass(frozen=True, eq=False)
class Sums:
    """Sums over one task's rows of `[J, basis]` (B, N, p + q), for q constants."""

    normal: Tensor  # (B, p + q, p + q) `[J, basis]^T [J, basis]`
    pulled: Tensor  # (B, p + q, columns) `[J, basis]^T targets`
    squares: Tensor  # (B, columns) squared targets
    count: int  # rows of one problem, N
    constants: int  # q


def features(prior: Prior, x: Tensor) -> Tensor:
    """`[J, basis]` of some inputs, (problems, rows, p + q) in float64; "shared": outputs' J side by side / sqrt C."""
    jacobian = prior.rows.explicit(prior.rows.prepare(x)).double()
    if prior.outputs == "full":
        jacobian = jacobian.flatten(0, 1)[None]
    elif prior.outputs == "independent":
        jacobian = jacobian.transpose(0, 1)
    else:
        jacobian = jacobian.flatten(1)[None] / prior.rows.outputs**0.5
    return torch.cat([jacobian, prior.basis(len(x), jacobian)], 2)


def sum_up(prior: Prior, x: Tensor, residuals: Tensor) -> Sums:
    """One pass over the inputs; cost n C p^2 and memory p^2 for each problem, whatever n is."""
    parts = []
    for part, own in zip(x.split(prior.batch_size), residuals.split(prior.batch_size), strict=True):
        rows, targets = features(prior, part), prior.split(own)
        parts.append((rows.mT @ rows, rows.mT @ targets, targets.square().sum(1)))
        if len(parts) == 2:
            parts = [tuple(a + b for a, b in zip(*parts, strict=True))]
    normal, pulled, squares = parts[0]
    return Sums(normal, pulled, squares, prior.size(len(x)), prior.basis(1, normal).shape[2])


def normal_spectrum(sums: Sums) -> Spectrum:
    """The spectrum of the kernel from that of `J^T J`, constants projected out; p^3.

    What of the targets lies outside the span of J stands at eigenvalue 0.
    """
    p = sums.normal.shape[1] - sums.constants
    across, inner = sums.normal[:, :p, p:], sums.normal[:, p:, p:]
    gain = solve(inner, across.mT, CONSTANTS).mT
    centred = sums.normal[:, :p, :p] - gain @ across.mT
    pulled = sums.pulled[:, :p] - gain @ sums.pulled[:, p:]
    explained = (sums.pulled[:, p:] * solve(inner, sums.pulled[:, p:], CONSTANTS)).sum(1)
    values, vectors = eigh(centred, "the sum over the rows")
    floor = torch.finfo(values.dtype).eps * p * values.amax(1, keepdim=True).clamp_min(0)
    seen = values > floor
    squares = torch.where(seen, (vectors.mT @ pulled).square().sum(2) / values.where(seen, torch.ones(())), 0.0)
    columns = sums.pulled.shape[2]
    left = (sums.squares - explained).sum() - squares.sum()
    outside = columns * (len(values) * (sums.count - sums.constants) - int(seen.sum()))
    kept = values[seen], squares[seen], torch.full_like(values[seen], columns)
    if outside <= 0:
        return Spectrum(*kept)
    rest = values.new_zeros(1), left.clamp_min(0).reshape(1), values.new_full((1,), outside)
    return Spectrum(*(torch.cat(pair) for pair in zip(kept, rest, strict=True)))


@final
class ParameterSpace:
    """The posterior of the weights; sums of earlier tasks can be used again, and likelihoods are restricted ones."""

    space: Literal["parameter"] = "parameter"

    def __init__(self, prior: Prior, tasks: Sequence[Task], prior_variance: float, sums: Sequence[Sums] | None = None):
        self.prior, self.tasks, self.prior_variance = prior, tuple(tasks), prior_variance
        self.sums = [sum_up(prior, task.x, task.residuals) for task in tasks] if sums is None else sums
        weighted = [(own, 1 / task.noise) for own, task in zip(self.sums, tasks, strict=True)]
        precision = torch.stack([w * own.normal for own, w in weighted]).sum(0)
        pulled = torch.stack([w * own.pulled for own, w in weighted]).sum(0)
        q = self.sums[0].constants
        p = precision.shape[1] - q
        precision[:, range(p), range(p)] += 1 / prior_variance
        self.factor = cholesky(precision, "the precision of the weights")
        self.weights = torch.cholesky_solve(pulled, self.factor)
        problems, columns = len(precision), pulled.shape[2]
        quadratic = sum(w * float(own.squares.sum()) for own, w in weighted) - float((pulled * self.weights).sum())
        logdet = 2 * float(self.factor.diagonal(dim1=1, dim2=2).log().sum())
        logdet += problems * p * math.log(prior_variance)
        logdet += problems * sum(own.count * math.log(task.noise) for own, task in zip(self.sums, tasks, strict=True))
        if q:
            outer = cholesky(torch.stack([own.normal for own in self.sums]).sum(0)[:, p:, p:], CONSTANTS)
            logdet -= 2 * float(outer.diagonal(dim1=1, dim2=2).log().sum())
        freedom = problems * columns * (sum(own.count for own in self.sums) - q)
        self.log_likelihood = -0.5 * (quadratic + columns * logdet + freedom * math.log(2 * math.pi))

    def predict(self, x: Tensor, want: Want) -> Moments:
        """Moments of f, less the fixed part of the mean, at inputs x."""
        rows = torch.cat([features(self.prior, part) for part in x.split(self.prior.batch_size)], 1)
        mean = rows @ self.weights
        if want == "mean":
            return Moments(mean)
        spread = torch.linalg.solve_triangular(self.factor, rows.mT, upper=False)
        if want == "variance":
            return Moments(mean, variance=spread.square().sum(1))
        return Moments(mean, covariance=spread.mT @ spread)
