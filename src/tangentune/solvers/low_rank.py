"""The kernel of feature rows, and the inverse of its problem: D numbers a picture instead of n.

Where the kernel is `K = Phi Phi^T` for rows of D features, everything that a solved problem is asked (`system.py`) has
a form in D. With `x_i = [1, phi_i]`, `X~ = D^1/2 X` (n, D+1) and `M = X~^T X~ + damping diag(0, 1, ..., 1)`, the normal
equations of the same least-squares problem, the inverse of its matrix `W` is

    W^-1 = [[(I - X~ M^-1 X~^T) / damping,  X~ m], [m^T X~^T,  -damping m_1]],    m = M^-1 e_1,

by Woodbury's identity, the intercept being a feature that is not penalised: multiplying by W gives the identity, since
`X~^T X~ = M - damping diag(0, 1, ..., 1)`. The two classes stand for (n, n) matrices that are never written out: rows
of them, diagonals and products are. Edits change M by a term a picture, and are in `row_edits.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import final

import torch
from torch import Tensor

from tangentune.solvers.factorisation import cholesky
from tangentune.solvers.shared_matrix import SharedMatrix
from tangentune.solvers.sums import TangentSums

CHUNK = 1 << 18  # numbers of the rows that are in float64 at once: they stay cached
TILE = 512  # columns of a symmetric product that are calculated from the diagonal on
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
    lengths: Tensor | None = None  # (N,) squared ones of the rows of Phi, where they are known

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
        lengths = None if self.lengths is None else torch.cat([self.lengths, self.left(rows.mT).square().sum(0)])
        return replace(self, parts=(*self.parts, rows.to(self.parts[0])), places=places, lengths=lengths)

    def measured(self) -> FeatureKernel:
        """The same that knows the lengths of its rows: N D, once."""
        if self.lengths is not None:
            return self
        found = [chunk.square().sum(1) - (chunk @ self.lost).square().sum(1) for chunk in self._chunks()]
        return replace(self, lengths=torch.cat(found))

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
        """(n,): n D, or nothing where lengths are known."""
        lengths = self.measured().lengths
        assert lengths is not None
        return lengths[self.places]

    def __matmul__(self, right: Tensor) -> Tensor:
        """(n, k) of (n, k), or (n,) of (n,): 2 n D k."""
        if right.dim() == 1:
            return (self @ right[:, None])[:, 0]
        return self.times(self.gathered(right))

    def times(self, right: Tensor) -> Tensor:
        """`Phi right`, (n, k) of (D, k)."""
        return self.times_all(right)[self.places]

    def times_all(self, right: Tensor) -> Tensor:
        """The same of all kept rows, (N, k)."""
        columns, start = self.left(right).mT.contiguous(), 0
        out = columns.new_empty(len(columns), sum(map(len, self.parts)))
        if not len(columns):
            return out.mT
        for chunk in self._chunks():  # as `product`
            torch.mm(columns, chunk.mT, out=out[:, start : start + len(chunk)])
            start += len(chunk)
        return out.mT

    def gathered(self, left: Tensor) -> Tensor:
        """`Phi^T left`, (D, k) of (n, k)."""
        spread = left.new_zeros(left.shape[1], sum(map(len, self.parts))).index_add_(1, self.places, left.mT)
        out, start = left.new_zeros(left.shape[1], self.width), 0
        for chunk in self._chunks():
            out.addmm_(spread[:, start : start + len(chunk)], chunk)
            start += len(chunk)
        return self.left(out.mT)

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
    gram: SharedMatrix  # (D+1, D+1) `X~^T X~`, of all rows that were summed, what the kernel has lost in it
    right: Tensor  # (D+1, C) `X~^T D^1/2 Y`, without what is lost
    core: SharedMatrix  # (D+1, D+1) `M^-1`
    heights: Tensor  # (n,) `x_i^T M^-1 x_i`
    coef: Tensor  # (D+1, C) solution `M^-1 right`, the intercept first
    fitted: Tensor  # (n, C) predictions at the pictures, `X coef`
    damping: float  # absolute

    @classmethod
    def of(cls, kernel: FeatureKernel, weights: Tensor, sums: TangentSums, damping: float) -> FeatureInverse:
        """From the rows, and sums over them, or over more rows than are asked about: n D^2 / 2 + D^3."""
        top = torch.cat([sums.weight[None], sums.rows])
        gram = torch.cat([top[None], torch.cat([sums.rows[:, None], sums.squares], 1)])
        right = torch.cat([sums.targets[None], sums.cross])
        return cls._solved(kernel, weights.sqrt(), SharedMatrix(gram), right, damping)

    @classmethod
    def _solved(
        cls, kernel: FeatureKernel, roots: Tensor, gram: SharedMatrix, right: Tensor, damping: float
    ) -> FeatureInverse:
        normal = _without(kernel, _without(kernel, gram.whole()).mT).clone()
        normal.diagonal()[1:].add_(damping)
        factor = cholesky(normal, CORE, as_it_is=True)
        core = torch.cholesky_inverse(factor)
        coef = core @ right

        def heights(rows: Tensor) -> Tensor:
            return torch.linalg.solve_triangular(factor, rows.mT, upper=False).square().sum(0)

        found = _by_rows(kernel, heights), coef, affine(kernel, coef)
        return cls(kernel, roots, gram, right, SharedMatrix(core), *found, damping)

    def __len__(self) -> int:
        return len(self.roots) + 1

    @property
    def tensors(self) -> list[Tensor]:
        """All that it holds beside the rows."""
        return [*self.gram.tensors, *self.core.tensors, self.right, self.heights, self.coef, self.fitted]

    def __getitem__(self, index: Tensor | int) -> Tensor:
        """Rows (k, n+1), or (n+1,), of pictures by position: k n D."""
        places = torch.atleast_1d(torch.as_tensor(index, device=self.roots.device))
        if places.dtype == torch.bool:
            places = places.nonzero().flatten()
        through = self._through(places)
        out = self._rows(places, through, affine(self.kernel, through))
        return out[0] if isinstance(index, int) else out

    def with_kernel(self, index: int) -> tuple[Tensor, Tensor]:
        """The row (n+1,) of a picture, and that of the kernel, (n,): n D, the rows being read once."""
        place = torch.tensor([index], device=self.roots.device)
        through, own = self._through(place), self.kernel.rows(index)
        seen = self.kernel.times(torch.stack([through[1:, 0], own], 1))
        return self._rows(place, through, seen[:, :1] + through[0])[0], seen[:, 1]

    def _through(self, places: Tensor) -> Tensor:
        """`M^-1 X~^T`, (D+1, k), of some pictures."""
        return self.core @ (self.roots[places, None] * bordered(self.kernel.rows(places))).mT

    def _rows(self, places: Tensor, through: Tensor, seen: Tensor) -> Tensor:
        """Rows (k, n+1), from what `_through` gives and `X` times that."""
        top = -(self.roots[:, None] * seen).mT / self.damping
        top[torch.arange(len(places)), places] += 1 / self.damping
        return torch.cat([top, through[:1].mT], 1)

    def diagonal(self) -> Tensor:
        """(n+1,)."""
        own = (1 - self.roots.square() * self.heights) / self.damping
        return torch.cat([own, -self.damping * self.core.diagonal()[:1]])

    def squared_diagonal(self) -> Tensor:
        """(n,) diagonal of the square of the (n, n) part: n D^2.

        `I - X~ M^-1 X~^T` squared is `I - 2 X~ M^-1 X~^T + X~ M^-1 (X~^T X~) M^-1 X~^T`.
        """
        core = self.core.whole()
        inner = core @ _without(self.kernel, self.gram.whole() @ _without(self.kernel, core))
        lengths = _by_rows(self.kernel, lambda rows: (rows @ inner * rows).sum(1))
        return (1 - self.roots.square() * (2 * self.heights - lengths)) / self.damping**2

    def __matmul__(self, right: Tensor) -> Tensor:
        """(n+1, k) of (n+1, k): 2 n D k."""
        top, last = right[:-1], right[-1:]
        met = self.roots[:, None] * top
        seen = torch.cat([met.sum(0)[None], self.kernel.gathered(met)])
        theta = self.core @ seen
        theta -= self.damping * self._first * last
        out = (top - self.roots[:, None] * affine(self.kernel, theta)) / self.damping
        return torch.cat([out, theta[:1]])

    def __rmatmul__(self, left: Tensor) -> Tensor:
        return (self @ left.mT).mT

    @property
    def _first(self) -> Tensor:
        """(D+1, 1) of the core."""
        unit = torch.zeros_like(self.right[:, :1])
        unit[0] = 1.0
        return self.core @ unit

    def posterior(self, right: Tensor) -> Tensor:
        """`Q right`, `Q = X M^-1 X^T` the posterior covariance over the damping, (n, k) of (n, k): 2 n D k."""
        return affine(self.kernel, self.core @ torch.cat([right.sum(0)[None], self.kernel.gathered(right)]))

    def posterior_rows(self, index: Tensor) -> Tensor:
        """(k, n) rows of Q: k n D."""
        return affine(self.kernel, self.core @ bordered(self.kernel.rows(index)).mT).mT

    def at(self, damping: float) -> FeatureInverse:
        """The same pictures at another damping: n D^2 / 2 + D^3."""
        return FeatureInverse._solved(self.kernel, self.roots, self.gram, self.right, damping)

    def on(self, kernel: FeatureKernel) -> FeatureInverse:
        """The same on other rows, equal to its kernel's; nothing is left in it of pictures that are gone: D^2."""
        gram = _without(self.kernel, _without(self.kernel, self.gram.whole()).mT)
        return replace(self, kernel=kernel, gram=SharedMatrix(gram), core=SharedMatrix(self.core.whole()))

    def normal(self, columns: Tensor) -> Tensor:
        """`M columns`, (D+1, k)."""
        out = _without(self.kernel, self.gram @ _without(self.kernel, columns))
        out[1:] += self.damping * columns[1:]
        return out

    def error(self, *, check_inverse: bool = True) -> tuple[float, Tensor]:
        """Relative error of the inverse and the solution, and what that leaves of the normal equations, (D+1, 1).

        A mixture of all outputs is met, and a fixed random vector: 2 D^2. What edits carry on for each picture is held
        against two identities, `sum a_i h_i = D + 1 - damping trace(M^-1)`, the intercept's part of the trace not
        counted, and that residuals sum to zero: n C.
        """
        mixture, z, weights = _mixture(self.right), self.core.probe, self.roots.square()
        wanted = self.right @ mixture
        unmet = self.normal(self.coef @ mixture) - wanted
        errors = [(unmet, wanted), (weights @ self.fitted - self.right[0], weights @ self.fitted.abs())]
        if check_inverse:
            freedom = len(self.core) - self.damping * self.core.diagonal()[1:].sum()
            heights = weights * self.heights
            errors += [(self.normal(self.core.probed()) - z, z), (heights.sum() - freedom, heights.new_tensor(len(z)))]
        tiny = torch.finfo(torch.float64).tiny
        return max(float(one.norm() / whole.norm().clamp_min(tiny)) for one, whole in errors), unmet

    def refinement(self, left: Tensor) -> float:
        """Relative size of one step of iterative refinement of the solution, by what it leaves."""
        largest = (self.coef @ _mixture(self.right)).abs().max().clamp_min(torch.finfo(torch.float64).tiny)
        return float((self.core @ left).abs().max() / largest)


def sums_of(kernel: FeatureKernel, targets: Tensor, weights: Tensor) -> TangentSums:
    """Over the pictures of a kernel, some at a time: n D^2 / 2."""
    width, outputs = kernel.width, targets.shape[1]
    rows, squares, cross = (targets.new_zeros(width, count) for count in (1, width, outputs))
    for index in _portions(kernel, targets):
        own = kernel.rows(index)
        weighted = weights[index, None] * own
        rows += weighted.sum(0)[:, None]
        cross += weighted.mT @ targets[index]
        for low in range(0, width, TILE):  # from the diagonal down
            squares[low:, low : low + TILE].addmm_(weighted[:, low:].mT, own[:, low : low + TILE])
    for low in range(0, width, TILE):
        squares[low : low + TILE, low + TILE :] = squares[low + TILE :, low : low + TILE].mT
    aimed, counts = weights[:, None] * targets, torch.full_like(targets[0], len(targets))
    return TangentSums(
        NAME, weights.sum(), rows[:, 0], squares, cross, aimed.sum(0), aimed.mT @ targets, counts
    )  # fmt: skip


def affine(kernel: FeatureKernel, coef: Tensor) -> Tensor:
    """`X coef`, (n, k) of (D+1, k)."""
    return kernel.times(coef[1:]) + coef[:1]


def bordered(rows: Tensor) -> Tensor:
    """`[1, phi]`, (k, D+1)."""
    return torch.cat([torch.ones_like(rows[:, :1]), rows], 1)


def _portions(kernel: FeatureKernel, like: Tensor) -> tuple[Tensor, ...]:
    """Positions of all pictures, some at a time."""
    return torch.arange(len(kernel), device=like.device).split(max(1, 16 * CHUNK // kernel.width))


def _by_rows(kernel: FeatureKernel, function: Callable[[Tensor], Tensor]) -> Tensor:
    """(n,) of what a function finds of bordered rows (k, D+1)."""
    return torch.cat([function(bordered(kernel.rows(index))) for index in _portions(kernel, kernel.lost)])


def _without(kernel: FeatureKernel, columns: Tensor) -> Tensor:
    """Columns (D+1, k) without what the kernel has lost."""
    return torch.cat([columns[:1], kernel.left(columns[1:])]) if kernel.lost.shape[1] else columns


def _mixture(right: Tensor) -> Tensor:
    """(C, 1) how outputs are mixed where all are checked at once: it hides none of them, nor their differences."""
    generator = torch.Generator().manual_seed(0)
    signs = torch.randint(2, (right.shape[1], 1), generator=generator, dtype=torch.float64) * 2 - 1
    return (signs * (1 + torch.rand(len(signs), 1, generator=generator, dtype=torch.float64))).to(right)
