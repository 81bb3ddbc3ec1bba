"""A large symmetric matrix that edits change by a few terms each: the states before and after share the large part.

A copy of (m, m) numbers an edit would take longer than all else of it, and a few dozen former states more memory than
there is. So the terms are kept beside the matrix, and added up once they are many.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import final

import torch
from torch import Tensor

MOST = 8  # 1 / the share of m terms beyond which they are added up: products with them take a quarter longer


@final
@dataclass(frozen=True, eq=False)
class SharedMatrix:
    """`base + sum_j sign_j u_j u_j^T`, symmetric (m, m); nothing of it is ever changed in place.

    Attributes:
        base: (m, m), shared by the states that came from it.
        terms: blocks of rows u (k, m) with signs (k,), each block longer than the next one, so that there are about
            log k of them, and a state shares most with the one before.
    """

    base: Tensor
    terms: tuple[tuple[Tensor, Tensor], ...] = ()
    _probed: list[Tensor] = field(default_factory=list)  # the base times `probe`, once it was asked for; shared as well

    def __len__(self) -> int:
        return len(self.base)

    def __matmul__(self, right: Tensor) -> Tensor:
        """(m, k) of (m, k): m (m + the number of terms) k."""
        return self._and_terms(product(self.base, right), right)

    def _and_terms(self, out: Tensor, right: Tensor) -> Tensor:
        for rows, signs in self.terms:
            out += product(rows.mT, signs[:, None] * product(rows, right))
        return out

    @property
    def probe(self) -> Tensor:
        """(m, 1) random numbers, the same ones always."""
        drawn = torch.randn(len(self), 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        return drawn.to(self.base)

    def probed(self) -> Tensor:
        """(m, 1) the product with `probe`, that of the base being known after the first time."""
        probe = self.probe
        if not self._probed:
            self._probed.append(product(self.base, probe))
        return self._and_terms(self._probed[0].clone(), probe)

    def plus(self, rows: Tensor, sign: float) -> SharedMatrix:
        """With `sign rows^T rows` added, (k, m); where the terms get many, as one matrix."""
        if not len(rows):
            return self
        last, terms = (rows, torch.full_like(rows[:, 0], sign)), list(self.terms)
        while terms and len(terms[-1][0]) <= len(last[0]):
            before = terms.pop()
            last = torch.cat([before[0], last[0]]), torch.cat([before[1], last[1]])
        found = SharedMatrix(self.base, (*terms, last), self._probed)
        return SharedMatrix(found.whole()) if found.count * MOST > len(self) else found

    @property
    def count(self) -> int:
        """How many terms there are beside the base."""
        return sum(len(signs) for _, signs in self.terms)

    def diagonal(self) -> Tensor:
        """(m,)."""
        out = self.base.diagonal().clone()
        for rows, signs in self.terms:
            out += signs @ rows.square()
        return out

    def whole(self) -> Tensor:
        """(m, m), written out: a copy, and m^2 a term."""
        out = self.base.clone() if self.terms else self.base
        for rows, signs in self.terms:
            out.addmm_(rows.mT, signs[:, None] * rows)
        return out

    @property
    def tensors(self) -> list[Tensor]:
        """All that it holds."""
        return [self.base, *(part for rows, signs in self.terms for part in (rows, signs))]


def product(left: Tensor, right: Tensor) -> Tensor:
    """`left right`, (n, k) of (n, m) and (m, k), k small; its columns lie in one piece each.

    As `right^T left^T`: columns that are not in one piece would be rearranged for every block of rows, which takes
    two to five times as long.
    """
    return (right.mT.contiguous() @ left.mT).mT
