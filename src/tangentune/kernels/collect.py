"""Collect the tangent rows of a whole picture set, in one pass or in as many as memory demands."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import final

import torch
from torch import Tensor

from tangentune.errors import BudgetError
from tangentune.jacobian.kfac_factors import FactorSums
from tangentune.jacobian.layers import Entry, Pairs, Rows
from tangentune.jacobian.rows import RowPlan, RowSet, Ways, batch_rows, memory_groups
from tangentune.kernels.batches import Batches
from tangentune.kernels.metric import KroneckerFactors, diagonal_kronecker, matrix_kronecker, pairs_sample

FACTOR_POSITIONS = 16
FACTOR_PICTURES = 256
ROUNDING = 32  # rows below so many roundings of the largest layer's are noise


@final
@dataclass(frozen=True)
class Begun:
    """Rows of some pictures of a set, at ascending `places`, that need not be taken again."""

    rows: RowSet
    places: Tensor

    def others(self, count: int) -> Tensor:
        """Places of the pictures that are left, of so many in all."""
        left = torch.ones(count, dtype=torch.bool)
        left[self.places] = False
        return left.nonzero()[:, 0]

    def spread(self, count: int) -> RowSet:
        """Room for the rows of all pictures, with these in it; they are let go, entry by entry, for they are large."""
        phi, entries = self.rows.phi.new_empty(count, self.rows.phi.shape[1]), {}
        phi[self.places] = self.rows.phi
        for name in list(self.rows.entries):
            entry = self.rows.entries.pop(name)
            entries[name] = _allocate(entry, count)
            _fill(entries[name], entry, self.places)
        return RowSet(phi, entries, dict(self.rows.factors))


def views_of(x: Tensor, mirrored: bool) -> list[Tensor]:
    """The ways a batch is seen: plain, and left-right mirrored if asked."""
    return [x, x.flip(-1)] if mirrored else [x]


def collect(
    tangent: RowPlan, batches: Batches, count: int, probes: Tensor, mirrored: bool, *, factors: bool = True,
    begun: Begun | None = None,
) -> RowSet:  # fmt: skip
    """Rows of `count` pictures, kept in memory, averaged with those of the mirrored ones if asked; probes (R, d).

    `factors` also sums what K-FAC needs. Of a set that was `begun` the batches are of the others.
    """
    found = None if begun is None else begun.spread(count)
    places = None if begun is None else begun.others(count).to(begun.rows.phi.device)
    # K-FAC sums need not see every picture; an even spread of batches does.
    stride = -(-count // FACTOR_PICTURES)
    for number, portion in enumerate(batches()):
        positions = FACTOR_POSITIONS if factors and number % stride == 0 else 0
        part = batch_rows(tangent.at(portion.point), views_of(portion.x, mirrored), probes, positions)
        if found is None:
            entries = {name: _allocate(entry, count) for name, entry in part.entries.items()}
            found = RowSet(part.phi.new_empty(count, part.phi.shape[1]), entries, {})
        here = portion.rows if places is None else places[portion.rows]
        found.phi[here] = part.phi
        for name, entry in part.entries.items():
            _fill(found.entries[name], entry, here)
        for name, sample in part.factors.items():
            found.factors[name] = found.factors[name] + sample if name in found.factors else sample
    assert found is not None
    return found


def kronecker_factors(rows: RowSet) -> dict[str, KroneckerFactors]:
    """K-FAC factors of every parameter from a collected set; cost `sum groups (i^3 + o^3)`."""
    out = {}
    for name, entry in rows.entries.items():
        sample = pairs_sample(entry) if isinstance(entry, Pairs) else rows.factors.get(name)
        if isinstance(entry, Rows) and (sample is None or not _fits(sample, entry)):
            out[name] = diagonal_kronecker(entry)
        elif sample is not None:
            # its scale need not see every picture either
            few = entry.select(slice(None, None, -(-len(entry) // FACTOR_PICTURES)))
            mean_square = float(few.squared_norms().mean()) / entry.width
            out[name] = matrix_kronecker(sample, mean_square)
    # A gradient that is zero but for rounding (a bias before a norm, a key's bias) must not be blown up to unit size.
    eps = max((torch.finfo(entry.dtype).eps for entry in rows.entries.values()), default=0.0)
    floor = (ROUNDING * eps) ** 2 * max((own.mean_square for own in out.values()), default=0.0)
    return {name: own if own.mean_square > floor else replace(own, mean_square=0.0) for name, own in out.items()}


def _fits(sample: FactorSums, entry: Rows) -> bool:
    """False for a matrix whose other use as a looked-up table made its rows a vector."""
    a, g = sample.both
    return (g.shape[-1], a.shape[-1]) == tuple(entry.values.shape[3:])


def plan_passes(sizes: dict[str, int], count: int, budget: int) -> list[list[str]]:
    """Split parameters, last layers first, into groups whose rows fit the budget; one pass over the pictures each.

    Working room is two further copies of the largest entry (its metric version and a tile).
    """
    for name, size in reversed(sizes.items()):
        if 3 * size * count > budget:
            raise BudgetError(
                f"the rows of {name} need {3 * size * count / 2**20:.0f} MiB for {count} pictures, more than the "
                f"{budget / 2**20:.0f} MiB left of the memory budget; raise memory_budget, lower the input size or "
                "leave early layers out with subset='last:K'"
            )
    return memory_groups(sizes, count, budget, spare=2)


def restrict(tangent: RowPlan, names: Iterable[str]) -> RowPlan:
    """The same linearisation with fewer parameters moving."""
    ways = Ways(tangent.ruled, tangent.generic).restrict(names)
    return replace(tangent, ruled=ways.ruled, generic=ways.generic)


def _allocate(entry: Entry, count: int) -> Entry:
    if isinstance(entry, Pairs):
        return Pairs(entry.a.new_empty(count, *entry.a.shape[1:]), entry.g.new_empty(count, *entry.g.shape[1:]))
    return Rows(entry.values.new_empty(count, *entry.values.shape[1:]))


def _fill(target: Entry, part: Entry, rows: Tensor) -> None:
    if isinstance(target, Pairs) and isinstance(part, Pairs):
        target.a[rows], target.g[rows] = part.a, part.g
    elif isinstance(target, Rows):
        target.values[rows] = part.explicit()
