"""An endless reshuffled stream of source pictures."""

from __future__ import annotations

from typing import Literal, final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tangentune.pictures.pictures import Pictures


@final
class Stream:
    """Positions 0..n-1 in passes without end, each shuffled anew.

    A pass is n draws in which position i comes up n w_i / sum(w) times, rounded up or down at random so that the
    mean is exact (systematic sampling of a shuffled order; Madow 1949, Ann. Math. Statist. 20). With even weights
    that is every position once.

    Args:
        shares: (n,) positive weights.
        generator: a processor's.

    Example:
        >>> stream = Stream(np.ones(3), torch.Generator().manual_seed(0))
        >>> sorted(stream.take(3).tolist()), len(stream.take(7))
        ([0, 1, 2], 7)
    """

    def __init__(self, shares: NDArray[np.float64], generator: torch.Generator) -> None:
        self.shares = torch.from_numpy(np.asarray(shares, dtype=np.float64))
        self.even = bool((self.shares == self.shares[0]).all())
        self.generator = generator
        self.waiting = torch.empty(0, dtype=torch.int64)

    def take(self, count: int) -> Tensor:
        """The next `count` positions."""
        while len(self.waiting) < count:
            self.waiting = torch.cat([self.waiting, self._one_pass()])
        taken, self.waiting = self.waiting[:count], self.waiting[count:]
        return taken

    def _one_pass(self) -> Tensor:
        n = len(self.shares)
        order = torch.randperm(n, generator=self.generator)
        if self.even:
            return order
        ends = self.shares[order].cumsum(0)
        start = torch.rand(1, generator=self.generator, dtype=torch.float64)
        places = (torch.arange(n) + start) * (ends[-1] / n)
        drawn = torch.searchsorted(ends, places, right=True).clamp_max(n - 1)  # rounding may lead past the end
        return order[drawn][torch.randperm(n, generator=self.generator)]


@final
class SourceDraws:
    """Source pictures with weight, drawn without end.

    Args:
        pictures: all source pictures.
        weights: (n,) of mean 1 over those that are not 0.
        weighting: "sampling" draws in proportion to them, "loss" puts them into the factors.
        seed: of a generator of its own, which also makes the views: target pictures come in the same order and
            in the same views whatever the source is.

    Attributes:
        pictures: as given.
        rows: (k,) those with weight, ascending.
        generator: of order and views.
    """

    def __init__(
        self,
        pictures: Pictures,
        weights: NDArray[np.float64],
        weighting: Literal["sampling", "loss"],
        seed: int,
    ) -> None:
        self.pictures, self.rows = pictures, np.flatnonzero(weights)
        self.generator = torch.Generator().manual_seed(other_seed(seed))
        even, kept = np.ones(len(self.rows)), weights[self.rows]
        shares, factors = (kept, even) if weighting == "sampling" else (even, kept)
        self._stream, self._factors = Stream(shares, self.generator), torch.from_numpy(factors)

    def take(self, count: int) -> tuple[Tensor, Tensor]:
        """Rows of the next pictures, and the float64 factors of their losses."""
        drawn = self._stream.take(count)
        return torch.from_numpy(self.rows)[drawn], self._factors[drawn]


def other_seed(seed: int) -> int:
    """A seed for draws that must have nothing to do with those of `seed` itself.

    Example:
        >>> other_seed(0) == other_seed(0), other_seed(0) == other_seed(1)
        (True, False)
    """
    return int(torch.randint(2**62, (1,), generator=torch.Generator().manual_seed(seed)))
