"""Tangents as vectors, one tensor a parameter by name: sums, inner products, and end to end as solvers want them."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

TangentVector = dict[str, Tensor]


def dot(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> float:
    """Inner product over all parameters, in float64.

    Example:
        >>> dot({"w": torch.tensor([1.0, 2.0])}, {"w": torch.tensor([3.0, 4.0])})
        11.0
    """
    return float(sum((x.double() * b[name].double()).sum() for name, x in a.items()))


def combine(a: float, x: Mapping[str, Tensor], b: float, y: Mapping[str, Tensor]) -> TangentVector:
    """`a x + b y`, in the parameters' dtype.

    Example:
        >>> combine(2, {"w": torch.ones(2)}, -1, {"w": torch.tensor([0.0, 1.0])})
        {'w': tensor([2., 1.])}
    """
    return {name: torch.add(a * value, y[name], alpha=b) for name, value in x.items()}


def flatten(v: Mapping[str, Tensor]) -> Tensor:
    """All tensors end to end, (p,)."""
    return torch.cat([tensor.reshape(-1) for tensor in v.values()])


def unflatten(v: Tensor, shapes: Mapping[str, torch.Size]) -> dict[str, Tensor]:
    """The inverse of `flatten`: views of v."""
    parts = v.split([shape.numel() for shape in shapes.values()])
    return {name: part.reshape(shape) for part, (name, shape) in zip(parts, shapes.items(), strict=True)}
