"""The metric of a parameter block: K-FAC factors of the tangent rows, damped, raised to a power.

`M = c (G^-p (x) A^-p)` with p in {0, 1/4, 1/2}: p = 0 leaves rows alone, p = 1/2 is the Fisher kernel. Of each factor
only the leading eigenvectors stay, which hold most of what the rows hold: the others make the kernel dearer and noisier
(decision 36). Both factors come from primal inputs and probe cotangents: no label enters. Martens and Grosse (2015);
Grosse and Martens (2016) for convolutions.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tangentune.jacobian.kfac_factors import FactorSums, outer_sums
from tangentune.jacobian.layers import Entry, Pairs, Rows
from tangentune.solvers.factorisation import eigh

POWERS = (0.0, 0.25, 0.5)
FACTOR_DAMPING = 1.0  # in mean eigenvalues; less makes leave-one-out optimistic and predictions worse (decision 5)
KEPT = 0.8  # of the mean square of metric rows on each side, by the leading directions that stay (decision 36)


@dataclass(frozen=True)
class KroneckerFactors:
    """K-FAC factors of one parameter, as eigen-decompositions with mean eigenvalue 1."""

    a_values: Tensor  # (groups, i) of the input factor
    a_vectors: Tensor  # (groups, i, i)
    g_values: Tensor  # (groups, o) of the cotangents' factor
    g_vectors: Tensor  # (groups, o, o)
    mean_square: float  # of a row's entries: the mean eigenvalue of the block's Fisher matrix


@dataclass(frozen=True)
class Whitening:
    """Two matrices that turn rows `P` (o, i) into metric rows `left^T P right` (k, l).

    `left` (groups, o, k) and `right` (groups, i, l): with k < o or l < i in coordinates of their own, else symmetric.
    """

    left: Tensor
    right: Tensor


def matrix_kronecker(sample: FactorSums, mean_square: float) -> KroneckerFactors:
    """Eigen-decompose the sums of `sample`; cost `groups (i^3 + o^3)`."""
    a, g = sample.both
    return KroneckerFactors(*_unit_mean_eigh(a), *_unit_mean_eigh(g), mean_square)


def pairs_sample(pairs: Pairs, limit: int = 2048) -> FactorSums:
    """Second moments of stored positions, evenly thinned to about `limit`; cost `limit (i^2 + o^2)`."""
    a, g = pairs.a.flatten(0, 1), pairs.g.flatten(0, 1)
    step = max(1, len(a) // limit)
    if step % pairs.a.shape[1] == 0 or pairs.a.shape[1] % step == 0:
        step += step > 1  # do not keep meeting the same corner of every picture
    a, g = a[::step], g[::step].flatten(0, 1)
    return outer_sums(a[None], g[None])


def diagonal_kronecker(rows: Rows) -> KroneckerFactors:
    """Diagonal metric of a vector parameter from its own rows (n, R, k, 1, 1)."""
    squares = rows.values.square().mean((0, 1), dtype=torch.float64).reshape(-1)
    mean = float(squares.mean())
    values = (squares / mean if mean > 0 else torch.ones_like(squares)).to(rows.values.dtype)[:, None]
    ones = torch.ones_like(values)
    return KroneckerFactors(ones, ones[..., None], values, ones[..., None], mean)


def _unit_mean_eigh(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues scaled to mean 1 over all groups (0 stays 0) and eigenvectors.

    Quick, because a metric need not be exact: the problem is solved exactly in whatever metric it is posed.
    """
    values, vectors = eigh(matrix, "a layer's metric", quick=True)
    values = values.clamp_min(0)
    mean = values.mean(dtype=torch.float64)
    return values / mean if mean > 0 else torch.ones_like(values), vectors


def whitening(
    factors: KroneckerFactors, power: float, kept: float | None = None, damping: float = FACTOR_DAMPING
) -> Whitening:
    """`M` as a left and a right matrix; scaled so that a row's mean square becomes `mean_square^(1-2p)`.

    Of matrices without groups each side keeps its leading directions up to a share `kept` (KEPT) of the mean square.
    For power 0, which has no metric, all stay.
    """
    kept = KEPT if kept is None else kept
    scale = _scale(factors, power)

    def matrix(values: Tensor, vectors: Tensor) -> Tensor:
        damped = values + damping
        turned = vectors * damped.pow(-power)[:, None, :]
        if power == 0 or kept >= 1 or len(values) > 1:
            return turned @ vectors.mT
        return turned[:, :, -_leading(values, power, kept, damping) :].contiguous()

    return Whitening(matrix(factors.g_values, factors.g_vectors) * scale, matrix(factors.a_values, factors.a_vectors))


def eigen_axes(factors: KroneckerFactors, power: float) -> Whitening:
    """The turn of rows into the eigenvectors that a power keeps; `in_power` then takes them to any power up to it."""

    def matrix(values: Tensor, vectors: Tensor) -> Tensor:
        return vectors if len(values) > 1 else vectors[:, :, -_leading(values, power) :].contiguous()

    return Whitening(matrix(factors.g_values, factors.g_vectors), matrix(factors.a_values, factors.a_vectors))


def in_power(turned: Entry, factors: KroneckerFactors, power: float) -> Entry:
    """Rows that have the inner products of metric rows, from rows in `eigen_axes`; cost: one product a number.

    Power 0 keeps whatever is there.
    """

    def along(values: Tensor, there: int) -> Tensor:
        wanted = there if power == 0 or len(values) > 1 else min(there, _leading(values, power))
        return (values[:, -wanted:] + FACTOR_DAMPING).pow(-power)

    outputs, inputs = (turned.g.shape[3], turned.a.shape[2]) if isinstance(turned, Pairs) else turned.values.shape[3:]
    left, right = along(factors.g_values, outputs) * _scale(factors, power), along(factors.a_values, inputs)
    few_outputs, few_inputs = left.shape[1], right.shape[1]
    if isinstance(turned, Pairs):
        return Pairs(turned.a[..., -few_inputs:] * right[0], turned.g[..., -few_outputs:] * left[0])
    return Rows(turned.values[..., -few_outputs:, -few_inputs:] * (left[:, :, None] * right[:, None, :]))


def _scale(factors: KroneckerFactors, power: float) -> float:
    return factors.mean_square ** (-power) if factors.mean_square > 0 else 1.0


def _leading(values: Tensor, power: float, kept: float | None = None, damping: float = FACTOR_DAMPING) -> int:
    """How many of the last eigenvalues (1, k), ascending, hold a share `kept` of the mean square in the metric.

    They hold the most in the metric too, for p <= 1/2. A higher power makes directions more alike and keeps more.
    """
    kept = KEPT if kept is None else kept
    shares = (values * (values + damping).pow(-2 * power))[0].flip(0).double().cumsum(0)
    return min(int((shares < kept * shares[-1]).sum()) + 1, values.shape[1])


def whiten(entry: Entry, metric: Whitening) -> Entry:
    """Apply the metric to every row; pairs stay pairs."""
    if isinstance(entry, Pairs):
        return Pairs(entry.a @ metric.right[0], entry.g @ metric.left[0])
    values = entry.values
    if values.shape[3:] == (1, 1):
        return Rows(values * (metric.left * metric.right))
    n, probes, groups, outputs, inputs = values.shape
    by_group = values.permute(2, 3, 0, 1, 4).reshape(groups, outputs, -1)
    by_group = (metric.left.mT @ by_group).reshape(groups, -1, inputs) @ metric.right
    return Rows(by_group.unflatten(1, (-1, n, probes)).permute(2, 3, 0, 1, 4))


def whiten_own(entry: Entry, metric: Whitening) -> Entry:
    """`whiten`, where nothing becomes smaller written over the entry.

    Memory that is freed a layer at a time is too scattered to be used again.
    """
    new = whiten(entry, metric)
    if new.width < entry.width:
        return new
    if isinstance(entry, Pairs) and isinstance(new, Pairs):
        return Pairs(entry.a.copy_(new.a), entry.g.copy_(new.g))
    assert isinstance(entry, Rows)
    return Rows(entry.values.copy_(new.explicit()))
