"""Probabilities and decisions of several labels a picture, each label by itself, from held-out scores.

A label's score is a least-squares fit of 0 and 1; of a rare label it hardly ever reaches one half. So each label has a
sigmoid of its own (Platt 1999), and is given where its probability is at least its threshold, the one of the largest
expected F1. The expectation is over the probabilities and not the labels: with a handful of positives the threshold of
the largest counted F1 is mostly luck, and did worse on new pictures at every size (docs/decisions/0029).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

STEEPNESS = 2.0, 0.5  # prior of a slope in standard deviations of the scores: median, and width in natural logarithms
LEAST = 0.2  # probability below which no label is given: of what says nothing the largest F1 is to give it to everybody
EVEN = 1e-9  # standard deviation of scores that are all the same but for rounding
NEWTON, EXACT = 60, 1e-12  # steps at most, and the size of the last one


@final
@dataclass(frozen=True, eq=False)
class LabelCalibration:
    """`sigmoid(slopes * scores + offsets)` for L labels, and where each is said to be there."""

    slopes: Tensor  # (L,) positive
    offsets: Tensor  # (L,)
    thresholds: Tensor  # (L,) of the probabilities

    def probabilities(self, scores: Tensor) -> Tensor:
        """(..., L) of scores (..., L)."""
        return torch.sigmoid(scores.double() * self.slopes.to(scores.device) + self.offsets.to(scores.device))

    def decide(self, proba: Tensor) -> Tensor:
        """(..., L) of 0 and 1."""
        return (proba >= self.thresholds.to(proba.device)).long()


def fit_label_calibration(scores: Tensor, targets: Tensor, weights: Tensor | None = None) -> LabelCalibration:
    """The calibration of held-out (leave-one-out) scores (n, L) for targets (n, L) of 0 and 1, weights (n,) or ones.

    Cost a few dozen passes over the scores, and a sort of each label.
    """
    share = torch.ones(len(scores)) if weights is None else weights
    share = share.to(scores) * len(scores) / share.sum()
    found = [_sigmoid(scores[:, k], targets[:, k].to(scores), share) for k in range(scores.shape[1])]
    slopes, offsets = (scores.new_tensor(part) for part in zip(*found, strict=True))
    blank = LabelCalibration(slopes, offsets, torch.zeros_like(slopes))
    thresholds = best_thresholds(blank.probabilities(scores), share)
    return LabelCalibration(slopes, offsets, thresholds)


def best_thresholds(proba: Tensor, weights: Tensor) -> Tensor:
    """(L,) thresholds of the largest expected F1 of probabilities (n, L), at least `LEAST`. Lipton et al. (2014).

    With q(t) the weight of what is given at t, p(t) that of its probabilities and s of all of them, F1 = 2 p / (q + s).
    One more picture of probability x raises it as long as 2 x > F1; so the best threshold is F1 / 2.
    """
    order = proba.sort(0, descending=True)
    share = weights.to(proba)[order.indices]
    met = (share * order.values).cumsum(0)
    return (met / (share.cumsum(0) + met[-1])).amax(0).clamp_min(LEAST)


def _sigmoid(scores: Tensor, targets: Tensor, weights: Tensor) -> tuple[float, float]:
    """Slope and offset of one label: most likely given the targets and a prior of the slope that weighs one picture.

    Targets are Platt's, (n+ + 1) / (n+ + 2) and 1 / (n- + 2), so that perfect scores ask for no infinite slope. In the
    logarithm of the slope the loss need not be convex; Newton's steps, damped (Levenberg), then go downhill all the
    same.
    """
    unit, middle = float(scores.std(correction=0)), float(scores.mean())
    unit = unit if unit > EVEN else 1.0
    x = (scores - middle) / unit
    positive, all_ = float(weights @ targets), float(weights.sum())
    wanted = torch.where(targets > 0, (positive + 1) / (positive + 2), 1 / (all_ - positive + 2))
    log_slope, width = math.log(STEEPNESS[0]), STEEPNESS[1]
    start = math.log((positive + 0.5) / (all_ - positive + 0.5))
    point = torch.tensor([log_slope, start], dtype=torch.float64)

    def loss(at: Tensor) -> float:
        logits = at[0].exp() * x + at[1]
        fit = weights @ (torch.nn.functional.softplus(logits) - wanted * logits)
        return float(fit + (at[0] - log_slope).square() / (2 * width**2))

    value, damping = loss(point), 1e-3
    for _ in range(NEWTON):
        steep = point[0].exp() * x
        proba = torch.sigmoid(steep + point[1])
        left, curve = weights * (proba - wanted), weights * proba * (1 - proba)
        pull = (point[0] - log_slope) / width**2
        gradient = torch.stack([left @ steep + pull, left.sum()])
        # The Gauss-Newton part of the curvature is positive definite; the rest is left to the damping.
        a, b, c = curve @ steep.square() + 1 / width**2, curve @ steep, curve.sum().clamp_min(1e-12)
        while True:
            p, q = a * (1 + damping), c * (1 + damping)
            step = torch.stack([q * gradient[0] - b * gradient[1], p * gradient[1] - b * gradient[0]]) / (p * q - b * b)
            lower = loss(point - step)
            if lower <= value or damping > 1e12:
                break
            damping *= 10
        point, value, damping = (point - step, lower, damping / 10) if lower <= value else (point, value, damping)
        if float(step.abs().max()) < EXACT or damping > 1e12:
            break
    slope = float(point[0].exp()) / unit
    return slope, float(point[1]) - slope * middle
