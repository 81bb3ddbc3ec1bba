"""Regression targets of classes, and the one loss convention of the library.

Every least-squares problem here is `1/2 sum_i ||y_i - f(x_i)||^2 + 1/2 damping ||u||^2`: a sum over pictures and over
outputs, 1/2 in front of both terms, never a mean. The damping then means the same whatever the batch, and twice the
pictures count twice as much against the same penalty. Codes that train on a mean use other numbers for the same
problem; `damping_from_mean_loss` turns theirs into ours.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from tangentune.errors import InputError


def one_hot_targets(positions: Tensor, outputs: int, *, alpha: float = 1.0, centred: bool = False) -> Tensor:
    """Scaled one-hot targets `alpha e_y`, (n, C) in float64.

    Args:
        positions: (n,) classes as whole numbers in 0..C-1.
        outputs: C, the number of classes.
        alpha: value at the picture's own class. The ridge solution is affine in it: with an unpenalised intercept and
            no network output f0 to correct, alpha only scales the scores; with f0 it sets how far they must move.
        centred: subtract alpha / C, so that each row sums to zero over the classes. Balancing classes is not done here.

    Raises:
        InputError: positions are not whole numbers in range, or alpha is not a positive number.

    Example:
        >>> one_hot_targets(torch.tensor([1, 0]), 2, alpha=4.0, centred=True).tolist()
        [[-2.0, 2.0], [2.0, -2.0]]
    """
    if not 0 < alpha < math.inf:
        message = f"alpha is {alpha}; targets need a positive, finite scale"
        raise InputError(message)
    whole = positions.dim() == 1 and not (positions.is_floating_point() or positions.is_complex())
    if not whole or positions.dtype == torch.bool:
        message = f"classes must be (n,) whole numbers, not {tuple(positions.shape)} of {positions.dtype}"
        raise InputError(message)
    low, high = (int(positions.min()), int(positions.max())) if len(positions) else (0, 0)
    if low < 0 or high >= outputs:
        message = f"classes run from {low} to {high}, outside 0..{outputs - 1}; number the sorted labels from 0"
        raise InputError(message)
    targets = alpha * F.one_hot(positions.long(), outputs).double()
    return targets - alpha / outputs if centred else targets


def damping_from_mean_loss(
    weight_decay: float, pictures: int, outputs: int, *, over_outputs: bool, halved: bool
) -> float:
    """The damping here that gives the solution of a code whose error is a mean and whose penalty is 1/2 wd ||u||^2.

    | their error term                                  | over_outputs | halved | damping       |
    |---------------------------------------------------|--------------|--------|---------------|
    | mean over pictures of 1/2 ||e||^2                 | False        | True   | n wd          |
    | mean over pictures of ||e||^2                     | False        | False  | n wd / 2      |
    | mean over pictures and outputs (`F.mse_loss`)     | True         | False  | n C wd / 2    |
    | half of that                                      | True         | True   | n C wd        |

    An optimiser's `weight_decay` is this penalty only if it pulls towards the linearisation point (u towards 0), is
    not decoupled (AdamW's is) and training runs to convergence.

    Args:
        weight_decay: wd, their factor; give twice the factor of a penalty written without 1/2.
        pictures: n, pictures the mean is taken over: all of them, not a batch.
        outputs: C.
        over_outputs: whether their mean runs over the outputs too.
        halved: whether their error carries 1/2.

    Raises:
        InputError: the counts are not positive or the factor is negative.

    Example:
        >>> damping_from_mean_loss(1e-5, 1000, 10, over_outputs=True, halved=False)
        0.05
    """
    if pictures < 1 or outputs < 1 or not 0 <= weight_decay < math.inf:
        message = (
            f"weight_decay={weight_decay}, pictures={pictures}, outputs={outputs}: the first must be a number of at "
            "least 0, the counts at least 1"
        )
        raise InputError(message)
    terms = pictures * (outputs if over_outputs else 1)
    return weight_decay * terms * (1.0 if halved else 0.5)
