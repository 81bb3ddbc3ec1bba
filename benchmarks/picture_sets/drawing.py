"""From all pictures of a set to fair draws: copies are left out, and what belongs together stays on one side."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

THUMBNAIL = 32  # copies are looked for at this size


def without_copies(pictures: NDArray[np.uint8], labels: NDArray[np.int64], limit: float) -> NDArray[np.int64]:
    """Rows to keep: of near copies under one label the first, of near copies under several labels none.

    Two pictures are copies where their thumbnails, or one and the mirror image of the other, have a mean squared
    difference of at most `limit` (values from 0 to 1). Costs n^2 products of 1,024 or 3,072 numbers.

    Example:
        >>> pictures = np.zeros((4, 8, 8), np.uint8)
        >>> pictures[1:, 0, 0], pictures[3, 0, 7] = 255, 255
        >>> without_copies(pictures, np.array([0, 1, 1, 1]), 1e-6).tolist()
        [0, 1, 3]
    """
    small = _thumbnails(pictures)
    mirrored, count = small.flip(-1).flatten(1), len(small)
    flat = small.flatten(1)
    norms, given, places = flat.square().sum(1), torch.from_numpy(labels), torch.arange(count)
    kept = torch.ones(count, dtype=torch.bool)
    for rows in places.split(500):
        copies = torch.zeros(len(rows), count, dtype=torch.bool)
        for other in (flat, mirrored):
            apart = norms[rows, None] + norms - 2 * flat[rows] @ other.T
            copies |= apart <= limit * flat.shape[1] + 1e-5 * norms[rows, None]  # room for rounding
        copies[torch.arange(len(rows)), rows] = False
        earlier = (copies & (places < rows[:, None])).any(1)
        clash = (copies & (given != given[rows, None])).any(1)
        kept[rows] = ~(earlier | clash)
    return torch.nonzero(kept).ravel().numpy()


def drawn_rows(
    labels: NDArray[np.int64], groups: NDArray[np.int64], per_class: int, seed: int, tests: int = 1000
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """`per_class` training rows of every class, and up to `tests // classes` other rows of every class for the test.

    Half of the groups of two pictures or more can be drawn for training, the other half for the test.

    Raises:
        ValueError: a class is too small to leave something for the test.

    Example:
        >>> train, test = drawn_rows(np.array([0, 0, 0, 1, 1, 1]), np.arange(6), 2, seed=0)
        >>> len(train), len(test), len({*train, *test})
        (4, 2, 6)
    """
    rng, (_, own, sizes) = np.random.default_rng(seed), np.unique(groups, return_inverse=True, return_counts=True)
    alone, half = sizes[own] == 1, rng.permutation(len(sizes))[own] % 2 == 0
    order, classes = rng.permutation(len(labels)), np.unique(labels)
    front = order[(alone | half)[order]]
    train = np.concatenate([front[labels[front] == label][:per_class] for label in classes])
    rest = order[(alone | ~half)[order] & ~np.isin(order, train)]
    test = np.concatenate([rest[labels[rest] == label][: tests // len(classes)] for label in classes])
    for label in classes:
        if (labels[train] == label).sum() < per_class or not (labels[test] == label).any():
            message = f"class {label} has {(labels == label).sum()} pictures: too few for {per_class} and a test"
            raise ValueError(message)
    return train, test


def _thumbnails(pictures: NDArray[np.uint8]) -> torch.Tensor:
    """(n, 1 or 3, h, w) in single precision, at most `THUMBNAIL` on a side."""
    size, parts = min(THUMBNAIL, pictures.shape[1]), []
    for start in range(0, len(pictures), 1000):
        block = torch.from_numpy(pictures[start : start + 1000]).float() / 255
        block = block[:, None] if block.ndim == 3 else block.movedim(-1, 1)
        parts.append(torch.nn.functional.adaptive_avg_pool2d(block, size))
    return torch.cat(parts)
