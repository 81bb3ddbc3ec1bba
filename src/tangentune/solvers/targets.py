"""Regression targets of classes, and the one loss convention of the library.

Every least-squares problem here is `1/2 sum_i ||y_i - f(x_i)||^2 + 1/2 damping ||u||^2`: a sum over pictures and over
outputs, 1/2 in front of both terms, never a mean. The damping then means the same whatever the batch, and twice the
pictures count twice as much against the same penalty. A code that trains on the mean over n pictures and C outputs of
the squared error (`F.mse_loss`) with the penalty `1/2 wd ||u||^2` solves the same problem with damping n C wd / 2; if
its mean runs over pictures alone n wd / 2, and twice as much where its error carries 1/2.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from tangentune.errors import InputError


def one_hot_targets(positions: Tensor, outputs: int, *, alpha: float = 1.0, centred: bool = False) -> Tensor:
    """Scaled one-hot targets `alpha e_y`, (n, C) in float64, of positions (n,), whole numbers in 0..C-1.

    The ridge solution is affine in `alpha`: with an unpenalised intercept and no network output f0 to correct, it only
    scales the scores; with f0 it sets how far they must move. `centred` takes alpha / C off, so that rows sum to zero.

    Example:
        >>> one_hot_targets(torch.tensor([1, 0]), 2, alpha=4.0, centred=True).tolist()
        [[-2.0, 2.0], [2.0, -2.0]]
    """
    if not 0 < alpha < math.inf:
        raise InputError(f"alpha is {alpha}; targets need a positive, finite scale")
    whole = positions.dim() == 1 and not (positions.is_floating_point() or positions.is_complex())
    if not whole or positions.dtype == torch.bool:
        raise InputError(f"classes must be (n,) whole numbers, not {tuple(positions.shape)} of {positions.dtype}")
    low, high = (int(positions.min()), int(positions.max())) if len(positions) else (0, 0)
    if low < 0 or high >= outputs:
        raise InputError(f"classes run from {low} to {high}, outside 0..{outputs - 1}; number the sorted labels from 0")
    targets = alpha * F.one_hot(positions.long(), outputs).double()
    return targets - alpha / outputs if centred else targets
