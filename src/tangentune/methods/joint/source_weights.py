"""How much each source picture matters."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from tangentune.errors import InputError


def checked_weights(weights: NDArray[Any] | None, count: int) -> NDArray[np.float64]:
    """Weights (n,) float64 of mean 1 over the pictures that count; None is even.

    Raises:
        InputError: they are not one finite number of at least 0 a picture, or all are 0.

    Example:
        >>> checked_weights(np.array([0.0, 3.0, 1.0]), 3).tolist()
        [0.0, 1.5, 0.5]
    """
    if weights is None:
        return np.ones(count)
    given = np.asarray(weights)
    if given.dtype.kind not in "iufb":
        message = f"source_weights are of type {given.dtype}; give one number a source picture"
        raise InputError(message)
    if given.shape != (count,):
        message = (
            f"source_weights have the shape {given.shape}; give one number for each of the {count} source pictures"
        )
        raise InputError(message)
    wrong = np.flatnonzero(~(np.isfinite(given) & (given >= 0)))
    if len(wrong):
        message = f"source weight {wrong[0]} is {given[wrong[0]]}; weights must be finite and at least 0"
        raise InputError(message)
    if not given.any():
        message = "all source weights are 0; give at least one source picture a weight, or use fine_tune without any"
        raise InputError(message)
    scaled = given / given.max()  # first, so that no sum overflows
    return scaled / scaled[scaled > 0].mean()
