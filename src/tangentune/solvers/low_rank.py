"""The kernel of feature rows, and the inverse of its problem: D numbers a picture instead of n.

Where the kernel is `K = Phi Phi^T` for rows of D features, everything that a solved problem is asked (`system.py`) has
a form in D. With `x_i = [1, phi_i]`, `X~ = D^1/2 X` (n, D+1) and `M = X~^T X~ + damping diag(0, 1, ..., 1)`, the normal
equations of the same least-squares problem, the inverse of its matrix `W` is

    W^-1 = [[(I - X~ M^-1 X~^T) / damping,  X~ m], [m^T X~^T,  -damping m_1]],    m = M^-1 e_1,

by Woodbury's identity, the intercept being a feature that is not penalised: multiplying by W gives the identity, since
`X~^T X~ = M - damping diag(0, 1, ..., 1)`. Pictures that leave or come change M by as many terms `a x x^T`. The two
classes stand for (n, n) matrices that are never written out: rows of them, diagonals and products are.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import final

import torch
from torch import Tensor

from tangentune.solvers.factorisation import cholesky
from tangentune.solvers.sums import TangentSums

CHUNK = 1 << 18  # numbers of the rows that are in float64 at once: they stay cached
NAME = "the rows of this problem"  # a fingerprint: its sums are met by no others
CORE = "the normal equations"


@final
@dataclass(frozen=True, eq=False)
class FeatureKernel:
    """`Phi Phi^T` of some of N kept rows, which may lie in a file; it is indexed and multiplied as a matrix (n, n).

    `lost` (D, k) is an orthonormal basis of directions that do not count any more: `Phi = R (I - lost lost^T)` of the
    rows R that are kept, which thus need not be written anew.
    """

    parts: tuple[Tensor, ...]  # (N_p, D) float32 or float64, one after the other
    places: Tensor  # (n,) among the N rows
    lost: Tensor  # (D, k) float64

    @classmethod
    def of(cls, *parts: Tensor) -> FeatureKernel:
        """The kernel of all rows."""
        first = parts[0]
        places = torch.arange(sum(map(len, parts)), device=first.device)
        return cls(parts, places, first.new_zeros(first.shape[1], 0, dtype=torch.float64))

    def __len__(self) -> int:
        return len(self.places)

    @property
    def width(self) -> int:
        """D."""
        return self.parts[0].shape[1]

    def select(self, index: Tensor) -> FeatureKernel:
        """The kernel of some pictures, on the same rows."""
        return replace(self, places=self.places[index])

    def joined(self, rows: Tensor) -> FeatureKernel:
        """With rows (k, D) behind."""
        count = sum(map(len, self.parts))
        places = torch.cat([self.places, torch.arange(count, count + len(rows), device=self.places.device)])
        return replace(self, parts=(*self.parts, rows.to(self.parts[0])), places=places)

    def compacted(self) -> FeatureKernel:
        """On rows of its own, with no others beside them."""
        dtype = self.parts[0].dtype
        index = torch.arange(len(self), device=self.places.device).split(max(1, 16 * CHUNK // self.width))
        return FeatureKernel.of(torch.cat([self.rows(some).to(dtype) for some in index]))

    def rows(self, index: Tensor | int | slice) -> Tensor:
        """(k, D) float64 rows of some pictures, or (D,) of one."""
        places = torch.atleast_1d(self.places[index])
        out = self.parts[0].new_empty(len(places), self.width, dtype=torch.float64)
        start = 0
        for part in self.parts:
            own = (places >= start) & (places < start + len(part))
            out[own] = part[places[own] - start].double()
            start += len(part)
        out = self.left(out.mT).mT
        return out[0] if isinstance(index, int) else out

    def left(self, columns: Tensor) -> Tensor:
        """Vectors (D, k) without what is lost."""
        return columns - self.lost @ (self.lost.mT @ columns) if self.lost.shape[1] else columns

    def __getitem__(self, index: Tensor | int | slice) -> Tensor:
        """Rows (k, n) of the kernel, or (n,) of one picture: k n D."""
        rows = self.rows(index)
        return self.times(rows.mT).mT if rows.dim() == 2 else self.times(rows[:, None])[:, 0]

    def diagonal(self) -> Tensor:
        """(n,): n D."""
        whole = torch.cat([chunk.square().sum(1) - (chunk @ self.lost).square().sum(1) for chunk in self._chunks()])
        return whole[self.places]

    def __matmul__(self, right: Tensor) -> Tensor:
        """(n, k) of (n, k), or (n,) of (n,): 2 n D k."""
        if right.dim() == 1:
            return (self @ right[:, None])[:, 0]
        return self.times(self.gathered(right))

    def times(self, right: Tensor) -> Tensor:
        """`Phi right`, (n, k) of (D, k)."""
        right = self.left(right)
        return torch.cat([chunk @ right for chunk in self._chunks()])[self.places]

    def gathered(self, left: Tensor) -> Tensor:
        """`Phi^T left`, (D, k) of (n, k)."""
        spread = left.new_zeros(sum(map(len, self.parts)), left.shape[1]).index_add_(0, self.places, left)
        out, start = left.new_zeros(self.width, left.shape[1]), 0
        for chunk in self._chunks():
            out.addmm_(chunk.mT, spread[start : start + len(chunk)])
            start += len(chunk)
        return self.left(out)

    def _chunks(self) -> Iterator[Tensor]:
        """All kept rows in float64, a few at a time."""
        for part in self.parts:
            for chunk in part.split(max(1, CHUNK // self.width)):
                yield chunk.double()


@final
@dataclass(frozen=True, eq=False)
class FeatureInverse:
    """`W^-1` of a problem on feature rows; it is indexed and multiplied as a symmetric matrix (n+1, n+1)."""

    kernel: FeatureKernel
    roots: Tensor  # (n,) of the weights
    sums: TangentSums  # over the pictures
    core: Tensor  # (D+1, D+1), M^-1
    heights: Tensor  # (n,) x_i^T M^-1 x_i
    damping: float

    @classmethod
    def of(cls, kernel: FeatureKernel, weights: Tensor, sums: TangentSums, damping: float) -> FeatureInverse:
        """From the rows, and sums over them, or over more rows than are asked about: n D^2 + D^3."""
        core = torch.cholesky_inverse(cholesky(_normal(sums, damping), CORE, as_it_is=True))
        return cls(kernel, weights.sqrt(), sums, core, _heights(kernel, core), damping)

    def __len__(self) -> int:
        return len(self.roots) + 1

    @property
    def nbytes(self) -> int:
        """Bytes held beside the rows."""
        return self.core.nbytes + self.sums.squares.nbytes + self.heights.nbytes

    def data_ptr(self) -> int:
        """What tells it from others."""
        return self.core.data_ptr()

    @cached_property
    def coef(self) -> Tensor:
        """(D+1, C) solution, the intercept first: D^2 C."""
        return self.core @ torch.cat([self.sums.targets[None], self.sums.cross])

    def fitted(self, coef: Tensor | None = None) -> Tensor:
        """`X coef`, (n, C): predictions at the pictures; n D C."""
        return _affine(self.kernel, self.coef if coef is None else coef)

    def __getitem__(self, index: Tensor | int) -> Tensor:
        """Rows (k, n+1), or (n+1,), of pictures by position: k n D."""
        places = torch.atleast_1d(torch.as_tensor(index, device=self.roots.device))
        if places.dtype == torch.bool:
            places = places.nonzero().flatten()
        scaled = self.roots[places, None] * _bordered(self.kernel.rows(places))
        through = scaled @ self.core
        top = -(self.roots[:, None] * self.fitted(through.mT)).mT / self.damping
        top[torch.arange(len(places)), places] += 1 / self.damping
        out = torch.cat([top, through[:, :1]], 1)
        return out[0] if isinstance(index, int) else out

    def diagonal(self) -> Tensor:
        """(n+1,)."""
        own = (1 - self.roots.square() * self.heights) / self.damping
        return torch.cat([own, -self.damping * self.core[:1, 0]])

    def squared_diagonal(self) -> Tensor:
        """(n,) diagonal of the square of the (n, n) part: n D^2.

        `I - X~ M^-1 X~^T` squared is `I - 2 X~ M^-1 X~^T + X~ M^-1 (X~^T X~) M^-1 X~^T`.
        """
        inner = self.core @ (_normal(self.sums, 0.0) @ self.core)
        weights = self.roots.square()
        return (1 - weights * (2 * self.heights - _heights(self.kernel, inner))) / self.damping**2

    def __matmul__(self, right: Tensor) -> Tensor:
        """(n+1, k) of (n+1, k): 2 n D k."""
        top, last = right[:-1], right[-1:]
        met = self.roots[:, None] * top
        seen = torch.cat([met.sum(0)[None], self.kernel.gathered(met)])
        theta = self.core @ seen - self.damping * self.core[:, :1] * last
        out = (top - self.roots[:, None] * self.fitted(theta)) / self.damping
        return torch.cat([out, theta[:1]])

    def __rmatmul__(self, left: Tensor) -> Tensor:
        return (self @ left.mT).mT

    def posterior(self, right: Tensor) -> Tensor:
        """`Q right`, `Q = X M^-1 X^T` the posterior covariance over the damping, (n, k) of (n, k): 2 n D k."""
        return self.fitted(self.core @ torch.cat([right.sum(0)[None], self.kernel.gathered(right)]))

    def posterior_rows(self, index: Tensor) -> Tensor:
        """(k, n) rows of Q: k n D."""
        return self.fitted(self.core @ _bordered(self.kernel.rows(index)).mT).mT

    def at(self, damping: float) -> FeatureInverse:
        """The same pictures at another damping: n D^2 + D^3."""
        return FeatureInverse.of(self.kernel, self.roots.square(), self.sums, damping)

    def retargeted(self, targets: Tensor) -> FeatureInverse:
        """The same pictures with other targets (n, C), for any C: n D C."""
        weighted = self.roots.square()[:, None] * targets
        cross, total, counts = self.kernel.gathered(weighted), weighted.sum(0), (targets == 1).sum(0).double()
        sums = replace(self.sums, cross=cross, targets=total, target_squares=weighted.mT @ targets, counts=counts)
        return replace(self, sums=sums)

    def error(self, *, check_inverse: bool = True) -> tuple[float, Tensor]:
        """Relative error of the inverse, on a fixed random vector, and of the solution; what that leaves. D^2 C."""
        right, tiny = torch.cat([self.sums.targets[None], self.sums.cross]), torch.finfo(torch.float64).tiny
        generator = torch.Generator().manual_seed(0)
        z = torch.randn(len(self.core), 1, generator=generator, dtype=torch.float64).to(self.core)
        left = _normal(self.sums, self.damping) @ torch.cat([self.coef, self.core @ z], 1) - torch.cat([right, z], 1)
        unmet, missed = left[:, :-1], left[:, -1]
        error = float(unmet.norm() / right.norm().clamp_min(tiny))
        return (max(error, float(missed.norm() / z.norm())) if check_inverse else error), unmet

    def refinement(self, left: Tensor) -> float:
        """Relative size of one step of iterative refinement of the solution, by what it leaves."""
        largest = self.coef.abs().max().clamp_min(torch.finfo(torch.float64).tiny)
        return float((self.core @ left).abs().max() / largest)

    def narrowed(self, kernel: FeatureKernel) -> FeatureInverse:
        """The same pictures on a kernel that has lost more directions B (D, k), its last ones: (n D + D^2) k.

        The solution must not use them: the inverse of what M does to the others is `M^-1 - Q Q^T`, `Q = M^-1 B L^-T`,
        `L L^T = B^T M^-1 B`, and along B itself there is the damping alone.
        """
        basis = kernel.lost[:, self.kernel.lost.shape[1] :]
        wide = torch.cat([torch.zeros_like(basis[:1]), basis])
        through = self.core @ wide
        factor = cholesky(wide.mT @ through, CORE, as_it_is=True)
        strip = torch.linalg.solve_triangular(factor, through.mT, upper=False)
        core = self.core - strip.mT @ strip + wide @ wide.mT / self.damping
        heights = self.heights - self.fitted(strip.mT).square().sum(1)
        squares, rows = kernel.left(kernel.left(self.sums.squares).mT), kernel.left(self.sums.rows[:, None])[:, 0]
        sums = replace(self.sums, squares=squares, rows=rows, cross=kernel.left(self.sums.cross))
        return replace(self, kernel=kernel, core=core, heights=heights, sums=sums)

    def changed(
        self, kernel: FeatureKernel, weights: Tensor, stays: Tensor, gone: WeightedRows, new: WeightedRows
    ) -> FeatureInverse:
        """Rows taken out of the sums and others put in; of the new kernel's rows the first are the old ones at `stays`.

        With `U` the rows, scaled by the roots of their weights, M loses or gains `U^T U`, and by Woodbury its inverse
        `+- P P^T`, `P = M^-1 U^T L^-T`, `L L^T = I -+ U M^-1 U^T`. Cost (n D + D^2) a row.
        """
        core, sums, heights = self.core, self.sums, self.heights[stays]
        before = kernel.select(torch.arange(len(stays), device=stays.device))
        for some, sign in ((gone, 1.0), (new, -1.0)):
            if not len(some.rows):
                continue
            scaled = some.weights.sqrt()[:, None] * _bordered(some.rows)
            through = scaled @ core
            inner = -sign * (through @ scaled.mT)
            inner.diagonal().add_(1.0)
            factor = cholesky((inner + inner.mT) / 2, CORE, as_it_is=True)
            strip = torch.linalg.solve_triangular(factor, through, upper=False)
            core = torch.addmm(core, strip.mT, strip, alpha=sign)
            heights = heights + sign * _affine(before, strip.mT).square().sum(1)
            part = TangentSums.of(some.rows, some.targets, sums.fingerprint, some.weights)
            sums = sums - part if sign > 0 else sums + part
        if len(stays) < len(kernel):
            last = kernel.select(torch.arange(len(stays), len(kernel), device=stays.device))
            heights = torch.cat([heights, _heights(last, core)])
        return FeatureInverse(kernel, weights.sqrt(), sums, core, heights, self.damping)


@final
@dataclass(frozen=True, eq=False)
class WeightedRows:
    """Rows (k, D) in float64 with weights (k,) and targets (k, C)."""

    rows: Tensor
    weights: Tensor
    targets: Tensor


def sums_of(kernel: FeatureKernel, targets: Tensor, weights: Tensor) -> TangentSums:
    """Over the pictures of a kernel, some at a time: n D^2."""
    total: TangentSums | None = None
    for index in torch.arange(len(kernel), device=targets.device).split(max(1, 16 * CHUNK // kernel.width)):
        part = TangentSums.of(kernel.rows(index), targets[index], NAME, weights[index])
        total = part if total is None else total + part
    assert total is not None
    return total


def _normal(sums: TangentSums, damping: float) -> Tensor:
    """M."""
    top = torch.cat([sums.weight[None], sums.rows])
    out = torch.cat([top[None], torch.cat([sums.rows[:, None], sums.squares], 1)])
    out.diagonal()[1:].add_(damping)
    return out


def _affine(kernel: FeatureKernel, coef: Tensor) -> Tensor:
    """`X coef`, (n, k) of (D+1, k)."""
    return kernel.times(coef[1:]) + coef[:1]


def _bordered(rows: Tensor) -> Tensor:
    return torch.cat([torch.ones_like(rows[:, :1]), rows], 1)


def _heights(kernel: FeatureKernel, core: Tensor) -> Tensor:
    """(n,) `x^T M^-1 x`: n D^2."""
    index = torch.arange(len(kernel), device=core.device).split(max(1, 16 * CHUNK // kernel.width))
    found = [((rows := _bordered(kernel.rows(some))) @ core * rows).sum(1) for some in index]
    return torch.cat(found) if found else core.new_zeros(0)
