"""Kronecker factors of one parameter's block of `J^T J`: their sums over data, and their eigendecomposition.

A block is a stack of `groups` matrices `S (x) A / count`, on the parameter seen as (groups, outputs, inputs).
Vectors have S alone, depthwise filters A alone (then the block is exact), and what has no rule a single number.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from tangentune.solvers.factorisation import eigh

KINDS = ("kfac", "ekfac", "block_diagonal")


@final
@dataclass(frozen=True, eq=False)
class FactorSums:
    """Sums over data; two shards' sums add up to those of all data: the block is `S (x) A / count`."""

    a: Tensor | None  # (groups, inputs, inputs) of `a a^T` over samples and positions; None: no such factor
    s: Tensor | None  # (groups, outputs, outputs) of `g g^T` over samples, positions and outputs, likewise
    count: float  # positions of all samples; 0 for one factor

    @property
    def both(self) -> tuple[Tensor, Tensor]:
        """A and S of a matrix, which has the two."""
        assert self.a is not None
        assert self.s is not None
        return self.a, self.s

    def __add__(self, other: FactorSums) -> FactorSums:
        return FactorSums(_added(self.a, other.a), _added(self.s, other.s), self.count + other.count)


def outer_sums(a: Tensor, g: Tensor) -> FactorSums:
    """Sums over (groups, positions, inputs) and (groups, positions, outputs), in their own precision."""
    return FactorSums(a.mT @ a, g.mT @ g, a.shape[1])


@final
@dataclass(frozen=True, eq=False)
class EigenBlock:
    """One block as `Q_S (x) Q_A diag(values) Q_S^T (x) Q_A^T`; None for the identity."""

    left: Tensor | None  # (groups, o, o) eigenvectors of S
    right: Tensor | None  # (groups, i, i) of A
    values: Tensor  # not negative; broadcast over the layout
    layout: tuple[int, int, int]  # (groups, o, i): the parameter as a stack of matrices

    def rotate(self, v: Tensor) -> Tensor:
        """Coordinates (..., groups, o, i) in the eigenbasis."""
        v = v if self.left is None else self.left.mT @ v
        return v if self.right is None else v @ self.right

    def rotate_back(self, v: Tensor) -> Tensor:
        """From the eigenbasis."""
        v = v if self.left is None else self.left @ v
        return v if self.right is None else v @ self.right.mT

    def apply(self, v: Tensor, change: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        """`change(coordinates, eigenvalues)` in the eigenbasis, for v in the parameter's own shape."""
        stack = v.to(self.values).reshape(self.layout)
        return self.rotate_back(change(self.rotate(stack), self.values)).reshape(v.shape).to(v)

    def quad(self, v: Tensor) -> float:
        """`v^T block v`, summed in float64."""
        rotated = self.rotate(v.to(self.values).reshape(self.layout))
        return float((rotated.double().square() * self.values.double()).sum())

    def with_values(self, values: Tensor) -> EigenBlock:
        """The same eigenvectors with other eigenvalues."""
        return EigenBlock(self.left, self.right, values.clamp_min(0).to(self.values), self.layout)


def decompose(sums: FactorSums, kind: str, layout: tuple[int, int, int], dtype: torch.dtype) -> EigenBlock:
    """Eigendecompose the factors in float64, once; cost `groups (o^3 + i^3)`.

    "block_diagonal" keeps the diagonal of S only; "ekfac" starts as "kfac". `dtype` is the result's.
    """
    left, s_values = _eigh(sums.s, diagonal=kind == "block_diagonal")
    right, a_values = _eigh(sums.a)
    if s_values is not None and a_values is not None:
        values = s_values[:, :, None] * a_values[:, None, :] / max(sums.count, 1)
    elif s_values is not None:
        values = s_values[:, :, None]
    else:
        assert a_values is not None
        values = a_values[:, None, :]
    cast = [None if vectors is None else vectors.to(dtype) for vectors in (left, right)]
    return EigenBlock(cast[0], cast[1], values.to(dtype), layout)


def second_moments_between(blocks: Sequence[EigenBlock], target: EigenBlock) -> Tensor:
    """Diagonal, in target's eigenbasis, of the sum of blocks; exact where they share that basis."""
    total = torch.zeros(target.values.shape, dtype=torch.float64, device=target.values.device)
    for block in blocks:
        values = block.values.double()
        if target.left is not None and block.left is not None:
            values = (target.left.double().mT @ block.left.double()).square() @ values
        if target.right is not None and block.right is not None:
            values = values @ (target.right.double().mT @ block.right.double()).square().mT
        total += values
    return total


def _eigh(matrix: Tensor | None, diagonal: bool = False) -> tuple[Tensor | None, Tensor | None]:
    """Eigenvectors (None: the identity) and eigenvalues (None: no such factor)."""
    if matrix is None:
        return None, None
    if diagonal or matrix.shape[1] == 1:
        return None, matrix.diagonal(dim1=1, dim2=2).clamp_min(0)
    values, vectors = eigh(matrix, "a Kronecker factor")
    return vectors.contiguous(), values.clamp_min(0)  # row by row, as they are when loaded


def _added(first: Tensor | None, second: Tensor | None) -> Tensor | None:
    return None if first is None or second is None else first + second
