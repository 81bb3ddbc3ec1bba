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
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, final

import torch
from torch import Tensor

from tangentune._files import read_tensors, write_tensors
from tangentune.errors import InputError, StoreError
from tangentune.solvers.factorisation import eigh

KIND = "sums of feature rows"
_TENSORS = ("weight", "rows", "squares", "cross", "targets", "target_squares", "counts")
LEFT_OVER = 1e-9  # share of the weight that may be left where all is taken away: rounding


@final
@dataclass(frozen=True, eq=False)
class TangentSums:
    """Sums over the weighted feature rows and targets of some pictures, in float64.

    `+` joins two sets of pictures, `-` takes one out of a larger one: exactly, up to rounding. Classes are aligned by
    their names: either may lack some, and a class whose pictures have all been taken out is gone.

    Attributes:
        fingerprint: of the feature map; sums of different maps are refused.
        classes: names of the classes, sorted, whose one-hot targets these are; empty for numbers.
        weight: () sum of the weights.
        rows: (D,) weighted sum of the rows; `squares` (D, D) of their outer products.
        cross: (D, C) weighted sum of row times target.
        targets: (C,) weighted sum of the targets; `target_squares` (C, C) of their outer products.
        counts: (C,) pictures of each class, whatever their weight; without classes all pictures in every place.

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
    classes: tuple[Any, ...] = ()

    @classmethod
    def of(
        cls,
        rows: Tensor,
        targets: Tensor,
        fingerprint: str,
        weights: Tensor | None = None,
        *,
        classes: Sequence[Any] = (),
    ) -> TangentSums:
        """Sums of rows (n, D) with targets (n, C), one-hot of some classes, and weights (n,), ones if None."""
        rows, targets = rows.double(), targets.double()
        weights = torch.ones_like(rows[:, 0]) if weights is None else weights.to(rows)
        if len(rows) != len(targets) or weights.shape != rows.shape[:1]:
            given = f"{len(rows)} rows, {len(targets)} targets, {tuple(weights.shape)} weights"
            raise InputError(f"every row needs a target and a weight, not {given}")
        if not all(bool(torch.isfinite(part).all()) for part in (rows, targets, weights)) or bool((weights < 0).any()):
            raise InputError("rows, targets and weights must be finite, no weight negative; look for broken pictures")
        if classes and (len(classes) != targets.shape[1] or list(classes) != _sorted(classes)):
            raise InputError(f"{len(classes)} names for {targets.shape[1]} classes, or not sorted; give one for each")
        weighted, aimed = weights[:, None] * rows, weights[:, None] * targets
        counts = (targets == 1).sum(0) if classes else torch.full_like(targets[0], len(targets))
        return cls(
            fingerprint, weights.sum(), weighted.sum(0), rows.T @ weighted, weighted.T @ targets, aimed.sum(0),
            aimed.T @ targets, counts.double(), tuple(classes),
        )  # fmt: skip

    @property
    def pictures(self) -> int:
        """How many pictures were added, less those taken out."""
        return int(self.counts.sum()) if self.classes else int(self.counts[0])

    def __add__(self, other: TangentSums) -> TangentSums:
        return self._with(other, 1.0)

    def __sub__(self, other: TangentSums) -> TangentSums:
        taken = self._with(other, -1.0)
        if float(taken.weight) < -LEFT_OVER * float(self.weight) or bool((taken.counts < 0).any()):
            raise InputError("more is taken away than these sums hold; subtract only what was added")
        return taken.aligned([name for name, count in zip(taken.classes, taken.counts.tolist(), strict=False) if count])

    def _with(self, other: TangentSums, sign: float) -> TangentSums:
        if self.fingerprint != other.fingerprint:
            maps = f"{self.fingerprint[:12]} and {other.fingerprint[:12]}"
            raise InputError(f"these sums are of different feature maps ({maps}); make both with the same saved map")
        if bool(self.classes) != bool(other.classes):
            raise InputError("some of these sums are of classes and some of numbers; add those of one kind")
        if self.classes != other.classes:
            names = _sorted({*self.classes, *other.classes})
            return self.aligned(names)._with(other.aligned(names), sign)
        if self.cross.shape != other.cross.shape:
            shapes = f"{tuple(self.cross.shape)} and {tuple(other.cross.shape)}"
            raise InputError(f"these sums have other rows or targets (rows by targets: {shapes})")
        return replace(self, **{name: getattr(self, name) + sign * getattr(other, name) for name in _TENSORS})

    def noised(self, scale: float, seed: int | None = None) -> TangentSums:
        """The same sums with normal noise of this standard deviation on every number but weights and counts.

        One picture moves a number by its row's entries, at most by its row's squared length: say 1.5 for a normalised
        map with a body scale of .5. Noise hides single pictures better the larger it is, and costs accuracy; what it
        is worth is not accounted for here, and nothing about it is a proof.

        Args:
            scale: in the unit of the sums.
            seed: None takes one from the system that nobody knows; a known seed can be taken out again.

        Source: Dwork, McSherry, Nissim, Smith (2006); Wang (2018), "Revisiting differentially private linear
        regression", for noise on these sums.
        """
        generator = torch.Generator()
        generator.seed() if seed is None else generator.manual_seed(seed)

        def drawn(of: Tensor) -> Tensor:
            return scale * torch.randn(of.shape, generator=generator, dtype=torch.float64).to(of)

        upper = drawn(self.squares).triu()
        squares = self.squares + upper + upper.triu(1).T
        return replace(self, rows=self.rows + drawn(self.rows), squares=squares, cross=self.cross + drawn(self.cross))

    def aligned(self, classes: Sequence[Any]) -> TangentSums:
        """The same sums in other columns: of these classes, those that are not there being zero; others are dropped."""
        if tuple(classes) == self.classes:
            return self
        same = [[float(own == name) for name in classes] for own in self.classes]
        place = self.targets.new_tensor(same).reshape(len(self.classes), len(classes))
        cross, targets, counts = self.cross @ place, self.targets @ place, self.counts @ place
        squares = place.T @ self.target_squares @ place
        return replace(
            self, cross=cross, targets=targets, target_squares=squares, counts=counts, classes=tuple(classes)
        )

    def save(self, path: str | os.PathLike[str]) -> None:
        """One safetensors file, in one move."""
        facts = {"fingerprint": self.fingerprint, "classes": list(self.classes)}
        write_tensors(path, KIND, facts, {name: getattr(self, name) for name in _TENSORS})

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> TangentSums:
        """What `save` wrote; a damaged or foreign file is a StoreError."""
        facts, tensors = read_tensors(path, KIND)
        _check_file(facts, tensors, os.fspath(path))
        return cls(facts["fingerprint"], **tensors, classes=tuple(facts["classes"]))

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
        spread = self.target_squares.diagonal() - self.targets.square() / self.weight
        return SumsFactor(
            values.clamp_min(0), vectors, vectors.T @ cross, mean, aim, self.weight, spread.clamp_min(0), self.pictures
        )

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
    spread: Tensor  # (C,) weighted sum of squares of the targets about their mean
    pictures: int

    def fit(self, damping: float) -> SumsFit:
        """The solution at one damping; D^2 C."""
        _check_damping(damping)
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
        targets = targets.double()
        weights = torch.ones_like(targets[:, 0]) if weights is None else weights.to(targets)
        found = self.left_out_along(rows, targets, dampings, weights)
        errors = [weights @ (one - targets).square().sum(1) / weights.sum() for one in found]
        return torch.stack(errors)

    def left_out_along(
        self, rows: Tensor, targets: Tensor, dampings: Tensor, weights: Tensor | None = None
    ) -> Iterator[Tensor]:
        """(n, C) leave-one-out predictions for one damping after the other; n D^2, and n D C each."""
        turned = self._turned(rows)
        for damping in dampings.tolist():
            yield self._left_out(turned, targets, damping, weights)

    def _turned(self, rows: Tensor) -> Tensor:
        """(n, D) centred rows along the eigenvectors."""
        return (rows.double() - self.mean) @ self.vectors

    def _left_out(self, turned: Tensor, targets: Tensor, damping: float, weights: Tensor | None) -> Tensor:
        _check_damping(damping)
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


def _check_damping(damping: float) -> None:
    if not 0 < damping < math.inf:
        raise InputError(f"the damping is {damping!r}; it must be a number > 0")


def _sorted(names: Any) -> list[Any]:
    try:
        return sorted(names)
    except TypeError:
        odd = ", ".join(sorted({type(name).__name__ for name in names}))
        raise InputError(
            f"the classes have names of several types ({odd}); give all as text, or all as numbers"
        ) from None


def _check_file(facts: dict[str, Any], tensors: dict[str, Tensor], file: str) -> None:
    """Refuse what no sums can be."""
    names = facts.get("classes")
    fits = isinstance(facts.get("fingerprint"), str) and isinstance(names, list) and tensors.keys() == {*_TENSORS}
    if fits:
        width, count = tensors["rows"].numel(), len(names or tensors["targets"])
        shapes = ((), (width,), (width, width), (width, count), (count,), (count, count), (count,))
        fits = width > 0 and all(tensors[name].shape == shape for name, shape in zip(_TENSORS, shapes, strict=True))
        fits = fits and all(t.dtype == torch.float64 and bool(torch.isfinite(t).all()) for t in tensors.values())
    if not fits:
        raise StoreError(f"{file} holds what no sums of feature rows can be; make it again from its pictures")


assert {field.name for field in fields(TangentSums)} == {"fingerprint", "classes", *_TENSORS}
