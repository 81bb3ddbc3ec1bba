"""Probabilities from scores: one temperature, fitted to the exact leave-one-out predictions."""

from __future__ import annotations

import math

import torch
from scipy.optimize import minimize_scalar
from torch import Tensor


def fit_temperature(scores: Tensor, classes: Tensor, weights: Tensor | None = None) -> float:
    """Temperature t that makes softmax(scores / t) most likely; scores must be held-out (leave-one-out).

    One imaginary mistake is added, so that perfect scores do not ask for infinite confidence.

    Args:
        scores: (n, C) leave-one-out predictions.
        classes: (n,) class positions.
        weights: (n,) sample weights; None means ones.

    Returns:
        A positive temperature; cost about 40 passes over the scores.
    """
    n, count = scores.shape
    smoothing = 1.0 / (n + 1)
    target = torch.full_like(scores, smoothing / count)
    target[torch.arange(n, device=scores.device), classes] += 1 - smoothing
    share = torch.full_like(scores[:, 0], 1 / n) if weights is None else weights / weights.sum()

    def loss(log_temperature: float) -> float:
        logits = torch.log_softmax(scores / math.exp(log_temperature), 1)
        return float(-(share[:, None] * target * logits).sum())

    spread = float(scores.std()) or 1.0
    low, high = math.log(spread * 1e-3), math.log(spread * 1e3)
    return math.exp(minimize_scalar(loss, bounds=(low, high), method="bounded", options={"xatol": 1e-4}).x)


def probabilities(scores: Tensor, temperature: float) -> Tensor:
    """softmax(scores / temperature), (n, C)."""
    return torch.softmax(scores / temperature, 1)
