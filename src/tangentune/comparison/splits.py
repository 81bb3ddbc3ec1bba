"""Which pictures are for the test and which are for training: fixed draws, class by class."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from tangentune.errors import InputError

TEST_SEED = 12345
IntArray = NDArray[np.int64]


def split_test(labels: NDArray[Any], share: float) -> tuple[IntArray, IntArray]:
    """Positions `(train, test)`: of every class the given share, always the same, is kept for the test.

    Args:
        labels: (n,) class labels.
        share: of each class, in (0, 1), rounded; at least one picture where a class has two, and never all.

    Returns:
        Both parts, sorted.

    Raises:
        InputError: the share is out of range, or no class has two pictures.

    Example:
        >>> train, test = split_test(np.array(["a"] * 4 + ["b"] * 8), 0.25)
        >>> len(train), sum(test < 4).item(), sum(test >= 4).item()
        (9, 1, 2)
    """
    if not 0 < share < 1:
        message = f"the test share is {share}; it must be between 0 and 1"
        raise InputError(message)
    rng = np.random.default_rng(TEST_SEED)
    test = []
    for label in np.unique(labels):
        members = rng.permutation(np.flatnonzero(labels == label))
        test.append(members[: min(max(1, round(share * len(members))), len(members) - 1)])
    chosen = np.sort(np.concatenate(test)).astype(np.int64)
    if len(chosen) == 0:
        message = "no class has two pictures, so none can be kept for the test; give test pictures of their own"
        raise InputError(message)
    return np.setdiff1d(np.arange(len(labels)), chosen), chosen


def draw(labels: NDArray[Any], shots: int | None, seed: int) -> IntArray:
    """Positions of `shots` random pictures of every class; a class with fewer gives all it has.

    Draws of the same seed are nested: the 5 are among the 10.

    Args:
        labels: (n,) class labels.
        shots: pictures a class; None takes every picture.
        seed: of the draw.

    Returns:
        Sorted positions.

    Example:
        >>> labels = np.array(["a"] * 6 + ["b"] * 2)
        >>> set(draw(labels, 1, seed=0)) < set(draw(labels, 3, seed=0)), len(draw(labels, 3, seed=0))
        (True, 5)
    """
    rng = np.random.default_rng(seed)
    chosen = [rng.permutation(np.flatnonzero(labels == label))[:shots] for label in np.unique(labels)]
    return np.sort(np.concatenate(chosen)).astype(np.int64)
