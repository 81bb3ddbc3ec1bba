"""How the gradient rows of one parameter are held: explicit, or as position pairs.

A row is the gradient of one probe output with respect to one parameter, for one picture. Seen as a stack of matrices it
has `groups` blocks of `outputs x inputs`; biases and affine vectors are `groups` blocks of 1 x 1.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Rows:
    """Explicit rows: `values` (n, R, groups, outputs, inputs) for R probes."""

    values: Tensor

    def __len__(self) -> int:
        return len(self.values)

    @property
    def probes(self) -> int:
        """Number of probes R."""
        return self.values.shape[1]

    @property
    def dtype(self) -> torch.dtype:
        """Precision of the rows."""
        return self.values.dtype

    @property
    def width(self) -> int:
        """Numbers in one picture's row, all probes."""
        return self.values[0].numel()

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return self.values.numel() * self.values.element_size()

    def select(self, index: slice | Tensor) -> Rows:
        """The rows of some pictures."""
        return Rows(self.values[index])

    def explicit(self) -> Tensor:
        """Rows as (n, R, groups, outputs, inputs); here they already are."""
        return self.values

    def squared_norms(self) -> Tensor:
        """Squared length of each picture's row, probes summed: (n,), float64."""
        flat = self.values.flatten(1)
        return torch.linalg.vector_norm(flat, dim=1).double().square()


@dataclass(frozen=True)
class Pairs:
    """Rows as sums over positions, `row = sum_t outer(g_t, a_t)`: `a` (n, T, i), `g` (n, T, R, o).

    Far smaller than the row wherever there are few positions (late layers); never expanded for the whole set at once.
    """

    a: Tensor
    g: Tensor

    def __len__(self) -> int:
        return len(self.a)

    @property
    def probes(self) -> int:
        """Number of probes R."""
        return self.g.shape[2]

    @property
    def dtype(self) -> torch.dtype:
        """Precision of the rows."""
        return self.a.dtype

    @property
    def width(self) -> int:
        """Numbers in one picture's row, all probes."""
        return self.g.shape[2] * self.g.shape[3] * self.a.shape[2]

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return (self.a.numel() + self.g.numel()) * self.a.element_size()

    def select(self, index: slice | Tensor) -> Pairs:
        """The pairs of some pictures."""
        return Pairs(self.a[index], self.g[index])

    def explicit(self) -> Tensor:
        """Rows as (n, R, 1, outputs, inputs); cost n T R o i multiply-adds."""
        n, _, probes, outputs = self.g.shape
        rows = torch.bmm(self.g.flatten(2).transpose(1, 2), self.a)
        return rows.reshape(n, probes, 1, outputs, self.a.shape[2])

    def squared_norms(self) -> Tensor:
        """Squared length of each picture's row, probes summed: (n,), float64; cost n T^2 (i + R o)."""
        flat = self.g.flatten(2)
        inner = torch.bmm(self.a, self.a.transpose(1, 2)) * torch.bmm(flat, flat.transpose(1, 2))
        return inner.sum((1, 2), dtype=torch.float64)


Entry = Rows | Pairs


def average_views(entry: Entry, views: int) -> Entry:
    """Mean row over `views` stacked copies of the pictures, view by view; of pairs the views are further positions."""
    if views == 1:
        return entry
    if isinstance(entry, Rows):
        return Rows(entry.values.unflatten(0, (views, -1)).mean(0))
    a = entry.a.unflatten(0, (views, -1)).transpose(0, 1).flatten(1, 2)
    g = entry.g.unflatten(0, (views, -1)).transpose(0, 1).flatten(1, 2) / views
    return Pairs(a.contiguous(), g.contiguous())


def add_uses(first: Entry, second: Entry) -> Entry:
    """Row of a parameter used twice: rows add; pairs queue up as further positions."""
    if isinstance(first, Pairs) and isinstance(second, Pairs):
        return Pairs(torch.cat([first.a, second.a], 1), torch.cat([first.g, second.g], 1))
    left, right = first.explicit(), second.explicit()
    if left.shape != right.shape:  # a table that is looked up (number by number) and also multiplies (a matrix)
        left, right = (rows.reshape(*rows.shape[:2], -1, 1, 1) for rows in (left, right))
    return Rows(left + right)


def stack_probes(entries: list[Entry]) -> Entry:
    """One entry for R probes from the entries of each probe (same inputs `a`)."""
    if len(entries) == 1:
        return entries[0]
    if isinstance(entries[0], Pairs):
        return Pairs(entries[0].a, torch.cat([e.g for e in entries if isinstance(e, Pairs)], 2))
    return Rows(torch.cat([e.explicit() for e in entries], 1))


def join_entries(entries: list[Entry]) -> Entry:
    """One parameter's rows of several sets of pictures as those of one, in order."""
    pairs = [entry for entry in entries if isinstance(entry, Pairs)]
    if len(pairs) == len(entries) and len({entry.a.shape[1] for entry in pairs}) == 1:
        return Pairs(torch.cat([entry.a for entry in pairs]), torch.cat([entry.g for entry in pairs]))
    return Rows(torch.cat([entry.explicit() for entry in entries]))
