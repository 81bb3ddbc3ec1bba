"""The best rows of a stream, and the best for each target, ties by position: the same however the stream is cut."""

from __future__ import annotations

from collections.abc import Callable
from typing import final

import torch
from torch import Tensor

_CHUNK = 1 << 16


def top_rows(count: int, scores_of: Callable[[Tensor], Tensor], k: int) -> tuple[Tensor, Tensor]:
    """The best k of `count` rows whose scores need no features (random ones, counts), in memory for k.

    Args:
        count: of rows.
        scores_of: from positions (m,) int64 to scores (m,).
        k: rows to keep.

    Returns:
        (k,) positions and (k,) scores, highest first, of equal ones the first row.

    Example:
        >>> [part.tolist() for part in top_rows(5, lambda rows: -rows.float(), 2)]
        [[0, 1], [-0.0, -1.0]]
    """
    top = TopRows(min(k, count))
    for first in range(0, count, _CHUNK):
        top.add(first, scores_of(torch.arange(first, min(first + _CHUNK, count))))
    return top.best()


@final
class TopRows:
    """The k rows with the highest scores; of equal scores the first row.

    Rows must come in ascending order: a later row of a score that is already there k times cannot enter, so that one
    comparison a row is all most rows cost. Memory: at most 2 k rows and one chunk.

    Args:
        k: rows to keep.
        scores: (m,) of rows already kept, as `best` gave them.
        indices: (m,) their positions.

    Example:
        >>> top = TopRows(2)
        >>> top.add(0, torch.tensor([1.0, 3.0, 1.0]))
        >>> top.add(3, torch.tensor([3.0, 2.0]))
        >>> [part.tolist() for part in top.best()]
        [[1, 3], [3.0, 3.0]]
    """

    def __init__(self, k: int, indices: Tensor | None = None, scores: Tensor | None = None) -> None:
        self._k, self._size = k, 0
        self._parts: list[tuple[Tensor, Tensor]] = []
        self._least: Tensor | None = None  # score of the k-th best so far
        if indices is not None and scores is not None:
            self._take(indices, scores)

    def add(self, first: int, scores: Tensor) -> None:
        """Offer the rows `first`, `first + 1`, ... with their scores (m,)."""
        entering = torch.arange(len(scores)) if self._least is None else (scores > self._least).nonzero().flatten()
        if len(entering):
            self._take(entering + first, scores[entering])

    def best(self) -> tuple[Tensor, Tensor]:
        """Positions and scores of the k best, highest first."""
        if not self._parts:
            return torch.empty(0, dtype=torch.int64), torch.empty(0)
        indices, scores = (torch.cat(part) for part in zip(*self._parts, strict=True))
        order = torch.sort(scores, descending=True, stable=True).indices[: self._k]  # parts lie in ascending order
        indices, scores = indices[order], scores[order]
        # Kept rows go in front of all later ones, highest first and equal ones in order, so a stable sort stays right.
        self._parts, self._size = [(indices, scores)], len(indices)
        self._least = scores[-1] if len(scores) == self._k else None
        return indices, scores

    def _take(self, indices: Tensor, scores: Tensor) -> None:
        self._parts.append((indices, scores))
        self._size += len(indices)
        if self._size >= 2 * self._k or (self._least is None and self._size >= self._k):
            self.best()


@final
class TopPerTarget:
    """For each of K targets the q rows with the highest values; of equal values the first row.

    Memory: about 2 K q entries. Rows must come in ascending order.

    Args:
        targets: number K.
        q: rows to keep of each.
        state: as `state` gave it.

    Example:
        >>> top = TopPerTarget(2, 1)
        >>> top.add(0, torch.tensor([[1.0, 5.0], [2.0, 5.0]]))
        >>> top.best().tolist()
        [[1], [0]]
    """

    def __init__(self, targets: int, q: int, state: tuple[Tensor, Tensor, Tensor] | None = None) -> None:
        self._targets, self._q = targets, q
        empty = torch.empty(0, dtype=torch.int64)
        self._kept = [(empty, torch.empty(0), empty)] if state is None else [state]
        self._least: Tensor | None = None
        if state is not None:
            self._cut()

    def add(self, first: int, values: Tensor) -> None:
        """Offer the rows `first`, `first + 1`, ... with their values (m, K)."""
        if self._least is None or bool(torch.isinf(self._least).any()):
            # Nothing to beat yet: a row must at least be among the best of its own chunk.
            least = values.topk(min(self._q, len(values)), dim=0).values[-1]
            entering = values >= (least if self._least is None else torch.maximum(least, self._least))
        else:
            entering = values > self._least
        rows, targets = entering.nonzero(as_tuple=True)
        if len(rows):
            self._kept.append((targets, values[rows, targets], rows + first))
            if sum(len(part[0]) for part in self._kept) >= 2 * self._targets * self._q or self._least is None:
                self._cut()

    def best(self) -> Tensor:
        """Positions (K, q) of the best rows of each target, highest first; fewer columns if there are fewer rows."""
        self._cut()
        targets, _, rows = self._kept[0]
        return rows.reshape(self._targets, len(targets) // self._targets)

    def state(self) -> tuple[Tensor, Tensor, Tensor]:
        """Targets, values and positions of what is kept."""
        self._cut()
        return self._kept[0]

    def _cut(self) -> None:
        targets, values, rows = (torch.cat(part) for part in zip(*self._kept, strict=True))
        order = torch.argsort(rows, stable=True)
        order = order[torch.argsort(values[order], descending=True, stable=True)]
        order = order[torch.argsort(targets[order], stable=True)]
        targets, values, rows = targets[order], values[order], rows[order]
        sizes = torch.bincount(targets, minlength=self._targets)
        begins = sizes.cumsum(0) - sizes
        keep = torch.arange(len(targets)) - begins[targets] < self._q
        targets, values, rows = targets[keep], values[keep], rows[keep]
        self._kept = [(targets, values, rows)]
        self._least = torch.full((self._targets,), -torch.inf, dtype=values.dtype)
        sizes = sizes.clamp(max=self._q)
        full = sizes == self._q
        self._least[full] = values[(sizes.cumsum(0) - 1)[full]]
