"""The least-squares problem of any number of pictures from sums over their feature rows, which add and subtract.

With rows `phi_i` (D,) of a frozen map, weights `a_i` and targets `y_i`, all that the solution needs is

    sum a_i, sum a_i phi_i, sum a_i phi_i phi_i^T, sum a_i phi_i y_i^T, sum a_i y_i, sum a_i y_i y_i^T,

so shards, processes and owners add theirs, and a withdrawn picture or owner is subtracted. With `z_i = phi_i - mean`,
`S = sum a_i z_i z_i^T` and `T = sum a_i z_i (y_i - ybar)^T`, means by weight, the solution is

    theta = (S + lambda I)^-1 T,   f(x) = ybar + (phi(x) - mean)^T theta,

that of `ridge` for the kernel `phi phi^T`, found in D^3 instead of n^3.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass, fields, replace
from typing import final

import torch
from torch import Tensor

from tangentune._files import read_tensors, write_tensors
from tangentune.errors import InputError
from tangentune.solvers.factorisation import eigh

KIND = "sums of feature rows"
_TENSORS = ("weight", "rows", "squares", "cross", "targets", "target_squares", "counts")
LEFT_OVER = 1e-9  # share of the weight that may be left where all is taken away: rounding


@final
@dataclass(frozen=True, eq=False)
class TangentSums:
    """Sums over the weighted feature rows and targets of some pictures, in float64.

    `+` joins two sets of pictures, `-` takes one out of a larger one: exactly, up to rounding.

    Attributes:
        fingerprint: of the feature map; sums of different maps are refused.
        weight: () sum of the weights.
        rows: (D,) weighted sum of the rows; `squares` (D, D) of their outer products.
        cross: (D, C) weighted sum of row times target.
        targets: (C,) weighted sum of the targets; `target_squares` (C, C) of their outer products.
        counts: (C,) pictures of each class, whatever their weight; of numbers, of all pictures.

    Cost: D^2 n to make, D^2 to add; memory 8 D^2 bytes.

    Source: design.md section 7.

    Example:
        >>> rows, y = torch.eye(4), torch.eye(2)[[0, 0, 1, 1]]
        >>> first, second = (TangentSums.of(rows[i], y[i], "a map") for i in ([0, 1, 2], [3]))
        >>> (first + second).fit(0.5).predict(rows).argmax(1).tolist()
        [0, 0, 1, 1]
    """

    fingerprint: str
    weight: Tensor
    rows: Tensor
    squares: Tensor
    cross: Tensor
    targets: Tensor
    target_squares: Tensor
    counts: Tensor

    @classmethod
    def of(cls, rows: Tensor, targets: Tensor, fingerprint: str, weights: Tensor | None = None) -> TangentSums:
        """Sums of rows (n, D) with targets (n, C), one-hot of classes, and weights (n,), ones if None."""
        rows, targets = rows.double(), targets.double()
        weights = torch.ones_like(rows[:, 0]) if weights is None else weights.to(rows)
        if len(rows) != len(targets) or weights.shape != rows.shape[:1]:
            given = f"{len(rows)} rows, {len(targets)} targets, {tuple(weights.shape)} weights"
            raise InputError(f"every row needs a target and a weight, not {given}")
        if not all(bool(torch.isfinite(part).all()) for part in (rows, targets, weights)) or bool((weights < 0).any()):
            raise InputError("rows, targets and weights must be finite, no weight negative; look for broken pictures")
        weighted, aimed = weights[:, None] * rows, weights[:, None] * targets
        return cls(
            fingerprint, weights.sum(), weighted.sum(0), rows.T @ weighted, weighted.T @ targets, aimed.sum(0),
            aimed.T @ targets, (targets == 1).sum(0).double(),
        )  # fmt: skip

    def __add__(self, other: TangentSums) -> TangentSums:
        return self._with(other, 1.0)

    def __sub__(self, other: TangentSums) -> TangentSums:
        taken = self._with(other, -1.0)
        if float(taken.weight) < -LEFT_OVER * float(self.weight) or bool((taken.counts < 0).any()):
            raise InputError("more is taken away than these sums hold; subtract only what was added")
        return taken

    def _with(self, other: TangentSums, sign: float) -> TangentSums:
        if self.fingerprint != other.fingerprint:
            maps = f"{self.fingerprint[:12]} and {other.fingerprint[:12]}"
            raise InputError(f"these sums are of different feature maps ({maps}); make both with the same saved map")
        if self.cross.shape != other.cross.shape:
            shapes = f"{tuple(self.cross.shape)} and {tuple(other.cross.shape)}"
            raise InputError(f"these sums have other rows or classes (rows by targets: {shapes}); use the same classes")
        return replace(self, **{name: getattr(self, name) + sign * getattr(other, name) for name in _TENSORS})

    def save(self, path: str | os.PathLike[str]) -> None:
        """One safetensors file, in one move."""
        write_tensors(path, KIND, {"fingerprint": self.fingerprint}, {name: getattr(self, name) for name in _TENSORS})

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> TangentSums:
        """What `save` wrote; a damaged or foreign file is a StoreError."""
        facts, tensors = read_tensors(path, KIND)
        return cls(facts["fingerprint"], **{name: tensors[name] for name in _TENSORS})

    def centred(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """`S` (D, D), `T` (D, C), the mean row (D,) and the mean target (C,)."""
        if not float(self.weight) > 0:
            raise InputError("these sums hold no picture of positive weight; add some")
        mean, aim = self.rows / self.weight, self.targets / self.weight
        return self.squares - torch.outer(self.rows, mean), self.cross - torch.outer(self.rows, aim), mean, aim

    def factor(self) -> SumsFactor:
        """Factor once for every damping: D^3."""
        squares, cross, mean, aim = self.centred()
        values, vectors = eigh(squares, "the sums of feature rows")
        return SumsFactor(values.clamp_min(0), vectors, vectors.T @ cross, mean, aim, self.weight)

    def fit(self, damping: float) -> SumsFit:
        """The solution at one damping."""
        return self.factor().fit(damping)


@final
@dataclass(frozen=True, eq=False)
class SumsFit:
    """`f(x) = intercept + phi(x) coef`."""

    coef: Tensor  # (D, C)
    intercept: Tensor  # (C,)
    damping: float

    def predict(self, rows: Tensor) -> Tensor:
        """(n, C) scores of feature rows (n, D)."""
        return rows.double() @ self.coef + self.intercept


@final
@dataclass(frozen=True, eq=False)
class SumsFactor:
    """`S = V diag(values) V^T`, and what else of the sums a solution needs."""

    values: Tensor  # (D,) ascending, not negative
    vectors: Tensor  # (D, D)
    turned: Tensor  # (D, C), V^T T
    mean: Tensor  # (D,)
    aim: Tensor  # (C,)
    weight: Tensor  # ()

    def fit(self, damping: float) -> SumsFit:
        """The solution at one damping; D^2 C."""
        _check(damping)
        coef = self.vectors @ (self.turned / (self.values + damping)[:, None])
        return SumsFit(coef, self.aim - self.mean @ coef, damping)

    def leave_one_out(self, rows: Tensor, targets: Tensor, damping: float, weights: Tensor | None = None) -> Tensor:
        """(n, C) exact predictions of pictures in the sums by the fit without each; n D^2.

        Leaving a row out is a change of rank one, of `S` and of the means at once, so the residual is the plain one
        over `1 - h_i` with the leverage `h_i = a_i / sum a + a_i z_i^T (S + lambda I)^-1 z_i` (Sherman and Morrison
        1950). A picture of weight 0 is answered by the fit, which never saw it.
        """
        return self._left_out(self._turned(rows), targets, damping, weights)

    def loo_errors(self, rows: Tensor, targets: Tensor, dampings: Tensor, weights: Tensor | None = None) -> Tensor:
        """(k,) weighted mean squared leave-one-out error along dampings: of the rows of a shard, to be averaged."""
        turned, targets = self._turned(rows), targets.double()
        weights = torch.ones_like(turned[:, 0]) if weights is None else weights.to(turned)
        found = (self._left_out(turned, targets, damping, weights) for damping in dampings.tolist())
        errors = [weights @ (one - targets).square().sum(1) / weights.sum() for one in found]
        return torch.stack(errors)

    def _turned(self, rows: Tensor) -> Tensor:
        """(n, D) centred rows along the eigenvectors."""
        return (rows.double() - self.mean) @ self.vectors

    def _left_out(self, turned: Tensor, targets: Tensor, damping: float, weights: Tensor | None) -> Tensor:
        _check(damping)
        targets = targets.double()
        weights = torch.ones_like(turned[:, 0]) if weights is None else weights.to(turned)
        shrunk = 1 / (self.values + damping)
        residual = targets - self.aim - turned @ (shrunk[:, None] * self.turned)
        lever = weights * (1 / self.weight + turned.square() @ shrunk)
        return targets - residual / (1 - lever)[:, None]

    @property
    def mean_eigenvalue(self) -> float:
        """The unit of relative damping."""
        return float(self.values.mean())


def _check(damping: float) -> None:
    if not 0 < damping < math.inf:
        raise InputError(f"the damping is {damping!r}; it must be a number > 0")


assert {field.name for field in fields(TangentSums)} == {"fingerprint", *_TENSORS}
