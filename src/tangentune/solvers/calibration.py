"""Probabilities from held-out scores: one temperature, or with it an offset for every class and a share of the doubt.

`fit_temperature` is for least squares: the order of the classes stays. `fit_calibration` is for other likelihoods, and
for scores that are too low for rare classes: an offset for each class mends that, for probabilities and decisions
alike. Offsets have a standard normal prior in log odds, so that few pictures, or classes of equal size, leave them near
zero. Averaging over the scores' posterior adds doubt where pictures are unlike those seen; how much of the variance to
believe is fitted too.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, final

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize
from torch import Tensor
from torch.nn import functional as F

from tangentune.solvers.softmax import check_classes, softmax_gaussian

REACH = 1e3  # how far the temperature may be from the scores' own size
PRIOR = 0.3, 1.0  # of the temperature: most likely value, and pictures it weighs; docs/results/temperature.md
JUDGES = 500  # pictures that decide about the softness
PART = 2000  # pictures that are looked at first
SOFTNESSES = (0.3, 0.15)  # of scores, a whole label being 1: about what stands for nothing (decision 41)
NEWTON, EXACT = 100, 1e-7  # steps at most, and their relative size at the end, whose square is left of the error
DOUBT = 0.3  # mean variance in log odds that the search for the spread starts from


def log_odds(scores: Tensor, softness: float | None) -> Tensor:
    """Scores of least squares, near one-hot targets, as logits: `log softplus(scores / softness)`; None: as they are.

    Such scores estimate probabilities themselves, which a softmax of them forgets: from 0 to .3 says more than from .7
    to 1. `softmax(log_odds / t)` is their soft positive part to the power 1 / t, brought to a sum of 1. Order stays.
    """
    if softness is None:
        return scores
    units = scores / softness
    return torch.where(units < -30, units, F.softplus(units).log())  # below, the softplus is the exponential


def fit_probabilities(scores: Tensor, classes: Tensor, weights: Tensor | None = None) -> tuple[float, float | None]:
    """Temperature and softness that make classes most likely, from leave-one-out scores; see `fit_temperature`.

    A softness only where the labels become likelier by more than one nat: it is one parameter more (Akaike 1974). Of
    many pictures 500 decide, so that an edit of thousands waits for one temperature and not for three.
    """
    step = max(1, len(scores) // JUDGES)
    some, own, weight = scores[::step], classes[::step], None if weights is None else weights[::step]
    target = _smoothed_labels(some, own, weight)

    def tried(softness: float | None) -> tuple[float, float, float | None]:
        logits = log_odds(some, softness)
        temperature = fit_temperature(logits, own, weight)
        return -float((target * (logits / temperature).log_softmax(1)).sum()) * len(scores), temperature, softness

    plain, soft = tried(None), min(map(tried, SOFTNESSES), key=lambda found: found[0])
    _, temperature, softness = soft if soft[0] < plain[0] - 1 else plain
    return temperature if step == 1 else fit_temperature(log_odds(scores, softness), classes, weights), softness


def fit_temperature(
    scores: Tensor, classes: Tensor, weights: Tensor | None = None, *, prior: tuple[float, float] | None = PRIOR
) -> float:
    """Temperature t > 0 that makes softmax(scores / t) most likely; scores (n, C) must be held-out (leave-one-out).

    For classes (n,) and sample weights (n,), None being ones. `prior` (inverse gamma): the most likely temperature, in
    standard deviations of the scores, and how many pictures it weighs; it holds back great confidence more than little.
    Cost about 10 passes over the scores. Guo et al. (2017).
    """
    return _best_temperature(scores, _smoothed_labels(scores, classes, weights), prior)


def probabilities(scores: Tensor, temperature: float, softness: float | None = None) -> Tensor:
    """softmax(log_odds(scores, softness) / temperature), (n, C)."""
    return torch.softmax(log_odds(scores, softness) / temperature, 1)


@final
@dataclass(frozen=True, eq=False)
class Calibration:
    """`softmax(scores / temperature + offsets)`, averaged over `spread` times the scores' covariance."""

    temperature: float
    offsets: Tensor  # (C,) in log odds
    spread: float  # 0 where no covariance was given or none helped
    loss: float  # what was minimised: held-out log-loss with one imaginary mistake, plus the offsets' prior


def fit_calibration(
    scores: Tensor, classes: Tensor, weights: Tensor | None = None, covariance: Tensor | None = None
) -> Calibration:
    """The calibration that makes held-out labels most likely, from leave-one-out scores (n, C) and classes (n,).

    `covariance` (n, C, C) of the same predictions, or (n, C) variances of independent ones, in any unit. Cost about 60
    passes over the scores, with a covariance 60 of `softmax_gaussian`. Guo et al. (2017): temperature and bias of
    "vector scaling".
    """
    scores = scores.double()
    n, count = scores.shape
    check_classes(n, classes, count)
    target = _smoothed_labels(scores, classes, weights)
    temperature = _best_temperature(scores, target, None)

    def loss(point: NDArray) -> tuple[float, NDArray]:
        leaf = torch.from_numpy(point).to(scores.device).requires_grad_()
        logs = torch.log_softmax(scores * (leaf[0].exp() / temperature) + leaf[1:], 1)
        value = -(target * logs).sum() + leaf[1:].square().sum() / (2 * n)
        (gradient,) = torch.autograd.grad(value, leaf)
        return float(value.detach()), gradient.cpu().numpy()

    bounds = [(-math.log(REACH), math.log(REACH))] + [(None, None)] * count
    found: Any = minimize(loss, np.zeros(count + 1), jac=True, method="L-BFGS-B", bounds=bounds)
    offsets = torch.from_numpy(np.array(found.x[1:])).to(scores)
    plain = Calibration(temperature * math.exp(-found.x[0]), offsets, 0.0, float(found.fun))
    return plain if covariance is None else _spread(plain, scores, covariance.double(), target)


def calibrated(calibration: Calibration, scores: Tensor, covariance: Tensor | None = None) -> Tensor:
    """Probabilities (m, C) of new scores (m, C); their covariance, as in the fit, is needed if the spread is not 0."""
    logits = scores.double() / calibration.temperature + calibration.offsets
    if calibration.spread == 0:
        return torch.softmax(logits, 1)
    assert covariance is not None, "this calibration was fitted with a covariance"
    return softmax_gaussian(logits, covariance.double() * (calibration.spread / calibration.temperature**2))


def _smoothed_labels(scores: Tensor, classes: Tensor, weights: Tensor | None) -> Tensor:
    """(n, C) one-hot labels, each row times its picture's share of the weight, with one imaginary mistake in all.

    Without it perfect scores would ask for infinite confidence.
    """
    n, count = scores.shape
    smoothing = 1 / (n + 1)
    target = torch.full_like(scores, smoothing / count)
    target[torch.arange(n, device=scores.device), classes.long()] += 1 - smoothing
    share = torch.full_like(scores[:, 0], 1 / n) if weights is None else weights.to(scores) / weights.sum()
    return share[:, None] * target


def _best_temperature(scores: Tensor, target: Tensor, prior: tuple[float, float] | None) -> float:
    """What makes labels (n, C), times shares of the weight, most likely: to rounding.

    The loss is convex in the inverse temperature, and so is the prior: Newton's method between bounds that close in.
    """
    unit = float(scores.std()) or 1.0
    scores = scores - scores.mean(1, keepdim=True)  # which no softmax sees
    shares, met = target.sum(1), float((target * scores).sum())
    weight, usual = (0.0, 1.0) if prior is None else (prior[1] / len(scores), prior[0] * unit)

    def slopes(inverse: float) -> tuple[float, float]:
        """First and second derivative by the inverse temperature."""
        proba = torch.softmax(scores * inverse, 1)
        mean = (proba * scores).sum(1)
        spread = (proba * scores.square()).sum(1) - mean.square()
        first = float(shares @ mean) - met + weight * (usual - 1 / inverse)
        return first, float(shares @ spread) + weight / inverse**2

    low, high = 1 / (unit * REACH), REACH / unit
    inverse = 1 / usual if prior else 1 / unit
    if (step := len(scores) // PART) > 1:  # a part of the pictures tells about where it is
        part = target[::step] * (len(target) / len(target[::step]))
        inverse = 1 / _best_temperature(scores[::step], part, None)
    for _ in range(NEWTON):
        first, second = slopes(inverse)
        low, high = (inverse, high) if first < 0 else (low, inverse)
        step = inverse - first / second if second > 0 else high
        inverse, former = step if low < step < high else math.sqrt(low * high), inverse
        if abs(inverse - former) <= EXACT * inverse:
            break
    return 1 / inverse


def _spread(plain: Calibration, scores: Tensor, covariance: Tensor, target: Tensor) -> Calibration:
    """Spread and confidence together, logits and offsets growing alike; no spread unless it helps."""
    diagonal = covariance.diagonal(dim1=1, dim2=2) if covariance.dim() == 3 else covariance
    unit = float(diagonal.mean())
    if not unit > 0:
        return plain

    def place(point: NDArray) -> Calibration:
        doubt = math.exp(point[1])  # mean variance in log odds
        growth = math.exp(point[0]) * math.sqrt(1 + math.pi / 8 * doubt)  # MacKay (1992): about what doubt takes away
        temperature = plain.temperature / growth
        return Calibration(temperature, growth * plain.offsets, doubt * temperature**2 / unit, 0.0)

    def loss(point: NDArray) -> float:
        tried = place(point)
        logs = calibrated(tried, scores, covariance).clamp_min(1e-300).log()
        return float(-(target * logs).sum() + tried.offsets.square().sum() / (2 * len(scores)))

    start = np.array([0.0, math.log(DOUBT)])
    simplex = start + np.array([[0, 0], [0.2, 0], [0, 1]])
    options = {"initial_simplex": simplex, "xatol": 0.02, "fatol": 1e-5, "maxfev": 60}
    found: Any = minimize(loss, start, method="Nelder-Mead", options=options)
    if not found.fun < plain.loss:
        return plain
    best = place(found.x)
    return Calibration(best.temperature, best.offsets, best.spread, float(found.fun))
