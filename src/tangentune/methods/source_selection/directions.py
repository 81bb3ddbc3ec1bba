"""Directions of prototypes: unit rows, their widths, and the cost of moving from one to another."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import normalize

from tangentune.errors import InputError
from tangentune.methods.source_selection.sinkhorn import Array, as_tensor


def cosine_cost(source: Tensor, target: Tensor, cost_scale: float) -> Tensor:
    """`(1 - cosine) / cost_scale` between unit rows, (n, K) in float64.

    Raises:
        InputError: a scale that is not positive.

    Example:
        >>> cosine_cost(torch.eye(2), torch.eye(2)[:1], 0.5).flatten().tolist()
        [0.0, 2.0]
    """
    check_scale("cost_scale", cost_scale)
    return (1 - source.double() @ target.double().mT) / cost_scale


def check_same_width(source: Tensor, target: Tensor) -> None:
    """Refuse features of two backbones.

    Raises:
        InputError: naming both widths.
    """
    if source.shape[1] != target.shape[1]:
        message = (
            f"source features have {source.shape[1]} numbers and target features {target.shape[1]}; "
            "take both from one backbone"
        )
        raise InputError(message)


def unit_rows(prototypes: Array, whose: str) -> Tensor:
    """Rows of length 1, float32 or float64; `whose` ("source", "target") is named in errors.

    Raises:
        InputError: not (number, width), empty, or a row that is not finite or all zeros.

    Example:
        >>> unit_rows(torch.tensor([[3.0, 0.0]]), "source").tolist()
        [[1.0, 0.0]]
    """
    rows = as_tensor(prototypes)
    rows = rows if rows.dtype == torch.float32 else rows.double()
    if rows.dim() != 2 or not rows.numel():
        message = f"{whose} prototypes must be (number, width) and not empty, not {tuple(rows.shape)}"
        raise InputError(message)
    lengths = rows.norm(dim=1)
    broken = ~(torch.isfinite(lengths) & (lengths > 0))
    if bool(broken.any()):
        message = (
            f"{whose} prototype {int(broken.nonzero()[0])} is not finite or all zeros ({int(broken.sum())} are); "
            "look for broken features"
        )
        raise InputError(message)
    return normalize(rows, dim=1)


def check_scale(name: str, value: float) -> None:
    """Refuse what is not positive and finite.

    Raises:
        InputError: naming it.
    """
    if not (value > 0 and math.isfinite(value)):
        message = f"{name} is {value}; it must be positive and finite"
        raise InputError(message)
