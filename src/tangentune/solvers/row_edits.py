"""Edits of problems on feature rows, exact and all at once: pictures leave, come, and get other weights and targets.

The normal equations M change by `- U^T U` for rows U that leave, scaled by the roots of their weights, and `+ U^T U`
for new ones. By Woodbury the inverse changes by `+- P^T P`, `P = L^-1 U M^-1`, `L L^T = I -+ U M^-1 U^T`, the solution
by `+- P^T L^-1 (U theta - Y)`, and of each picture the height by `+- |P x_i|^2` and the prediction by what the solution
does. So all that a picture needs is a few products with its row, which one pass over the rows finds for all edits, and
for problems of the same pictures at several dampings together: reading the rows is what costs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from tangentune.errors import SingularError
from tangentune.solvers.factorisation import cholesky
from tangentune.solvers.low_rank import CORE, FeatureInverse, FeatureKernel, bordered
from tangentune.solvers.shared_matrix import SharedMatrix
from tangentune.solvers.system import LEAST_SHARE, System, build_on_rows, check_weights, refresh, with_inverse

MANY = 2  # 1 / the share of D changed rows beyond which the problem is solved anew


@dataclass(frozen=True, eq=False)
class _Rows:
    """Rows that leave or come."""

    rows: Tensor  # (k, D+1), scaled by the roots of their weights
    targets: Tensor  # (k, C), scaled as well
    sign: float  # 1 of those that leave, -1 of those that come

    @classmethod
    def of(cls, rows: Tensor, weights: Tensor, targets: Tensor, sign: float) -> _Rows:
        """Scale rows (k, D)."""
        roots = weights.sqrt()[:, None]
        return cls(roots * bordered(rows), roots * targets, sign)


@dataclass(frozen=True, eq=False)
class _Edit:
    """What changes of the normal equations, whatever the damping, in the order in which it does."""

    basis: Tensor  # (D+1, k) directions that are lost
    moved: tuple[_Rows, ...]
    left: Tensor  # (D+1, r) and (r, C): their product is what changes of the right-hand side by other targets
    mix: Tensor

    def right(self, right: Tensor) -> Tensor:
        """The right-hand side (D+1, C) after it."""
        right = right - self.basis @ (self.basis.mT @ right)
        for some in self.moved:
            right = right - some.sign * (some.rows.mT @ some.targets)
        return right + self.left @ self.mix

    def gram(self, gram: SharedMatrix) -> SharedMatrix:
        """The sums of the rows after it; what is lost is taken out where they are used."""
        for some in self.moved:
            gram = gram.plus(some.rows, -some.sign)
        return gram


class _Path:
    """Inverse and solution on their way through an edit, and what the pictures have yet to be told of it."""

    def __init__(self, inverse: FeatureInverse, edit: _Edit):
        self.inverse, self.core, outputs = inverse, inverse.core, edit.mix.shape[1]
        self.same = inverse.coef.shape[1] == outputs
        self.coef = inverse.coef if self.same else inverse.coef.new_zeros(len(inverse.coef), outputs)
        self.columns = [edit.basis[:, :0]]  # (D+1, k) to be multiplied by the rows x
        self.signs = [edit.basis.new_zeros(0)]  # (k,) with which the squares of that are added to the heights
        self.mixes = [edit.mix[:0]]  # (k, C) with which it is added to the predictions
        if edit.basis.shape[1]:
            self.narrow(edit.basis)
        for some in edit.moved:
            self.move(some)
        if edit.left.shape[1]:
            self.retarget(edit.left, edit.mix)

    def narrow(self, basis: Tensor) -> None:
        """The solution must no longer use directions (D+1, k), along which the damping alone is left.

        The inverse of what M does to the others is `M^-1 - Q Q^T`, `Q = M^-1 B L^-T`, `L L^T = B^T M^-1 B`.
        """
        through = self.core @ basis
        factor = cholesky(basis.mT @ through, CORE, as_it_is=True)
        strip = torch.linalg.solve_triangular(factor, through.mT, upper=False)
        mix = -torch.linalg.solve_triangular(factor, basis.mT @ self.coef, upper=False)
        self._note(strip, -1.0, mix)
        self.core = self.core.plus(basis.mT / self.inverse.damping**0.5, 1.0)

    def move(self, some: _Rows) -> None:
        """Rows leave or come."""
        through = self.core @ some.rows.mT
        inner = -some.sign * (some.rows @ through)
        inner.diagonal().add_(1.0)
        factor = cholesky((inner + inner.mT) / 2, CORE, as_it_is=True)
        strip = torch.linalg.solve_triangular(factor, through.mT, upper=False)
        unmet = some.rows @ self.coef - some.targets
        self._note(strip, some.sign, some.sign * torch.linalg.solve_triangular(factor, unmet, upper=False))

    def retarget(self, left: Tensor, mix: Tensor) -> None:
        """The right-hand side moves by `left mix`, (D+1, k) and (k, C)."""
        through = self.core @ left
        self.coef = self.coef + through @ mix
        self.columns.append(through)
        self.signs.append(torch.zeros_like(through[0]))
        self.mixes.append(mix)

    def _note(self, strip: Tensor, sign: float, mix: Tensor) -> None:
        self.core, self.coef = self.core.plus(strip, sign), self.coef + strip.mT @ mix
        self.columns.append(strip.mT)
        self.signs.append(torch.full_like(strip[:, 0], sign))
        self.mixes.append(mix)

    def told(self, seen: Tensor, stays: Tensor, new: Tensor) -> tuple[Tensor, Tensor]:
        """Heights (n,) and predictions (n, C), from products (n_stays, k) with the columns, and new rows (D+1, m)."""
        heights, former = self.inverse.heights[stays], self.inverse.fitted[stays]
        if not self.same:
            former = former.new_zeros(len(stays), self.coef.shape[1])
        heights = heights + seen.square() @ torch.cat(self.signs)
        fitted = torch.addmm(former, seen, torch.cat(self.mixes))
        own = ((self.core @ new) * new).sum(0)
        return torch.cat([heights, own]), torch.cat([fitted, new.mT @ self.coef])


def edited(
    systems: Sequence[System], kernel: FeatureKernel, stays: Tensor, targets: Tensor, weights: Tensor
) -> list[System]:
    """Problems of the same pictures at several dampings, taken through an edit to others: one pass over the rows.

    Of the new kernel's rows the first are the old ones at `stays` (k,); it may have lost more directions than the old
    one. Targets (n, C), for any C, and weights (n,) are the new ones. Cost n D + D^2 a changed picture and damping, or
    n D^2 where very many change. A SingularError where the old inverse is no start.
    """
    check_weights(weights, 1)
    first, before = systems[0], systems[0].kernel
    assert isinstance(before, FeatureKernel)
    edit = _edit(first, before, kernel, stays, targets, weights)
    if edit is None:
        anew = build_on_rows(kernel, targets, first.damping, weights)
        return [anew, *(refresh(anew, damping=one.damping) for one in systems[1:])]
    inverses = [one.inverse for one in systems if isinstance(one.inverse, FeatureInverse)]
    paths = [_Path(one, edit) for one in inverses]
    columns = [edit.basis, *(torch.cat(path.columns, 1) for path in paths)]
    sizes, all_columns = [one.shape[1] for one in columns], torch.cat(columns, 1)
    seen = before.times_all(all_columns[1:]) + all_columns[0]
    kernel = replace(kernel, lengths=_lengths(before, kernel, seen[:, : sizes[0]])).measured()
    new = bordered(kernel.rows(torch.arange(len(stays), len(weights), device=stays.device))).mT
    right, gram, roots = edit.right(_right(inverses[0], edit)), edit.gram(inverses[0].gram), weights.sqrt()
    found: list[System] = []
    for system, path, part in zip(systems, paths, seen[before.places[stays]].split(sizes, 1)[1:], strict=True):
        heights, fitted = path.told(part, stays, new)
        own = FeatureInverse(kernel, roots, gram, right, path.core, heights, path.coef, fitted, system.damping)
        found.append(with_inverse(system, own, kernel=kernel, targets=targets, weights=weights))
    return found


def _edit(
    first: System, before: FeatureKernel, kernel: FeatureKernel, stays: Tensor, targets: Tensor, weights: Tensor
) -> _Edit | None:
    """What changes; None where to solve anew is cheaper, or safer. Arguments as of `edited`."""
    count, lost, old = len(stays), before.lost.shape[1], len(first.weights)
    if not torch.equal(kernel.lost[:, :lost], before.lost):
        raise SingularError("the landmarks are not independent")
    stands = torch.zeros(old, dtype=torch.bool, device=stays.device)
    stands[stays] = True
    same = first.weights[stays] == weights[:count]
    weighed = (~same).nonzero().flatten()
    out = torch.cat([(~stands).nonzero().flatten(), stays[weighed]])
    come = torch.cat([weighed, torch.arange(count, len(weights), device=stays.device)])
    if (len(out) + len(come)) * MANY > kernel.width:
        return None
    if first.weights[stays[same]].sum() < LEAST_SHARE * first.weights.sum():
        return None
    outputs = targets.shape[1]
    former = first.targets if first.targets.shape[1] == outputs else targets.new_zeros(old, outputs)
    aimed = torch.cat([former[stays], targets[count:]])
    narrowed = replace(before, lost=kernel.lost, lengths=None)
    leaving = _Rows.of(narrowed.rows(out), first.weights[out], former[out], 1.0)
    coming = _Rows.of(kernel.rows(come), weights[come], aimed[come], -1.0)
    changed = (targets != aimed).any(1).nonzero().flatten()
    shift = _shift(kernel, changed, weights[changed, None] * (targets[changed] - aimed[changed]))
    basis = torch.cat([torch.zeros_like(kernel.lost[:1, lost:]), kernel.lost[:, lost:]])
    return _Edit(basis, tuple(some for some in (leaving, coming) if len(some.rows)), *shift)


def _right(inverse: FeatureInverse, edit: _Edit) -> Tensor:
    """The right-hand side before it; of other outputs there is none."""
    outputs = edit.mix.shape[1]
    return inverse.right if inverse.right.shape[1] == outputs else inverse.right.new_zeros(len(inverse.right), outputs)


def _shift(kernel: FeatureKernel, changed: Tensor, moved: Tensor) -> tuple[Tensor, Tensor]:
    """`X^T moved` of targets that change (k, C), as a product (D+1, r) (r, C) of the fewest columns."""
    if len(changed) < moved.shape[1]:
        return bordered(kernel.rows(changed)).mT, moved
    spread = moved.new_zeros(len(kernel), moved.shape[1])
    spread[changed] = moved
    return torch.cat([moved.sum(0)[None], kernel.gathered(spread)]), torch.eye(moved.shape[1]).to(moved)


def _lengths(before: FeatureKernel, kernel: FeatureKernel, along: Tensor) -> Tensor | None:
    """(N,) of the new kernel's rows, from those before and their parts along what is lost; None if not to be had."""
    same = len(before.parts) <= len(kernel.parts) and all(map(Tensor.is_set_to, kernel.parts, before.parts))
    if before.lengths is None or not same:
        return None
    lengths = before.lengths - along.square().sum(1)
    if not (new := kernel.parts[len(before.parts) :]):
        return lengths
    more = replace(FeatureKernel.of(*new), lost=kernel.lost).measured().lengths
    assert more is not None
    return torch.cat([lengths, more])
