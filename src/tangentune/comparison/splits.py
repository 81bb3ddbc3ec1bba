"""Which pictures are for the test and which are for training: fixed draws, class by class."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from tangentune._checks import number
from tangentune.errors import InputError

TEST_SEED = 12345
IntArray = NDArray[np.int64]


def split_test(labels: NDArray[Any], share: float) -> tuple[IntArray, IntArray]:
    """Sorted positions `(train, test)`: of every class (n,) a rounded share, at least one picture of two, never all."""
    if number(share) is None or not 0 < share < 1:
        message = f"the test share is {share!r}; it must be between 0 and 1"
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
    """Sorted positions of `shots` (None: all) random pictures of every class (n,); those of one seed are nested."""
    rng = np.random.default_rng(seed)
    chosen = [rng.permutation(np.flatnonzero(labels == label))[:shots] for label in np.unique(labels)]
    return np.sort(np.concatenate(chosen)).astype(np.int64)
