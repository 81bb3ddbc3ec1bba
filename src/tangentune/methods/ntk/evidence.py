"""Noise and prior variance at the highest marginal likelihood, from one eigendecomposition."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, final

import torch
from scipy.optimize import minimize_scalar
from torch import Tensor

from tangentune.errors import InputError
from tangentune.solvers.factorisation import complement, eigh

Scale = float | Literal["evidence"]
GRID, LOWEST, HIGHEST = 81, 1e-12, 1e8  # of noise over prior variance, in units of the largest eigenvalue


@final
@dataclass(frozen=True, eq=False)
class Spectrum:
    """Data in the kernel's eigenbasis, independent under `N(0, v K + noise I)` and of variance `v values + noise`."""

    values: Tensor  # (k,) distinct eigenvalues, not negative
    squares: Tensor  # (k,) sums of the squared data at each
    counts: Tensor  # (k,) how many data each stands for

    def log_likelihood(self, noise: float, prior_variance: float) -> float:
        """Log density of the data."""
        variance = prior_variance * self.values + noise
        terms = self.counts * (2 * math.pi * variance).log() + self.squares / variance
        return -0.5 * float(terms.sum())


def kernel_spectrum(kernel: Tensor, basis: Tensor, targets: Tensor) -> Spectrum:
    """Spectrum of (B, N, N) kernels for (B, N, columns) targets, the span of (B, N, q) basis projected out; N^3."""
    if basis.shape[2]:
        free = complement(basis, "the basis of the mean")
        kernel, targets = free.mT @ kernel @ free, free.mT @ targets
    values, vectors = eigh(kernel, "the kernel")
    squares = (vectors.mT @ targets).square().sum(2)
    counts = torch.full_like(values, targets.shape[2])
    return Spectrum(values.clamp_min(0).reshape(-1), squares.reshape(-1), counts.reshape(-1))


def maximise_evidence(spectrum: Spectrum, noise: Scale, prior_variance: Scale, smallest: float) -> tuple[float, float]:
    """Noise variance and prior variance: numbers stay, "evidence" is replaced by the maximiser.

    Of both, the common scale is known in closed form and the ratio is searched for. The least noise, in units of the
    prior variance times the largest eigenvalue, is what the network's precision still resolves.
    """
    if noise != "evidence" and prior_variance != "evidence":
        return float(noise), float(prior_variance)
    top = float(spectrum.values.max()) if len(spectrum.values) else 0.0
    if not top > 0 or not float(spectrum.squares.sum()) > 0:
        raise InputError(
            "noise or prior variance by evidence needs data that differ from the mean; give both as numbers"
        )
    scale = float(spectrum.squares.sum() / spectrum.counts.sum())  # mean square of the data
    low, high = math.log(max(LOWEST, smallest)), math.log(HIGHEST)
    if noise == "evidence" and prior_variance == "evidence":
        ratio = top * math.exp(_maximise(lambda z: _profile(spectrum, top * math.exp(z)), low, high))
        common = common_scale(spectrum, ratio)
        return ratio * common, common
    if noise == "evidence":
        fixed = float(prior_variance)
        low, high = math.log(fixed * top) + low, math.log(max(fixed * top, scale)) + math.log(1e3)
        return math.exp(_maximise(lambda z: spectrum.log_likelihood(math.exp(z), fixed), low, high)), fixed
    given = float(noise)
    high = min(math.log(given / top) - low, math.log(max(scale, given) / top) + math.log(HIGHEST))
    low = math.log(min(scale, given) / top) + math.log(LOWEST)
    return given, math.exp(_maximise(lambda z: spectrum.log_likelihood(given, math.exp(z)), low, high))


def _profile(spectrum: Spectrum, ratio: float) -> float:
    """Log density at noise `t ratio` and prior variance t, t at its best."""
    total, common = float(spectrum.counts.sum()), common_scale(spectrum, ratio)
    logdet = float((spectrum.counts * (spectrum.values + ratio).log()).sum())
    return -0.5 * (total * (1 + math.log(2 * math.pi * common)) + logdet)


def common_scale(spectrum: Spectrum, ratio: float) -> float:
    """Prior variance v of the highest density at noise `ratio v`, in closed form."""
    return float((spectrum.squares / (spectrum.values + ratio)).sum() / spectrum.counts.sum())


def _maximise(f: Callable[[float], float], low: float, high: float) -> float:
    """Highest point of a smooth function: the best of a grid, then Brent's method around it."""
    step = (high - low) / (GRID - 1)
    best = max((low + i * step for i in range(GRID)), key=f)
    bounds = (max(low, best - step), min(high, best + step))
    found: Any = minimize_scalar(lambda z: -f(z), bounds=bounds, method="bounded", options={"xatol": 1e-9})
    return max(float(found.x), best, key=f)
