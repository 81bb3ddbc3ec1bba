"""Leave-one-out of pictures that stay at home: each owner calculates its part, and only totals travel.

Leaving a picture out needs its row and the sums of all owners. So these go round once more: every owner judges its own
pictures by the fit without each, for a range of dampings and temperatures, and gives away what adds up.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor

from tangentune._files import read_tensors, write_tensors
from tangentune.errors import InputError, StoreError
from tangentune.solvers.sums import SumsFactor, TangentSums

KIND = "scores of pictures at home"
LOWEST, HIGHEST, DAMPINGS = -5.0, 3.0, 41  # powers of ten, relative dampings
COLDEST, HOTTEST, TEMPERATURES = -2.0, 0.5, 26  # powers of ten
_TENSORS = ("dampings", "temperatures", "errors", "right", "surprise")


@final
@dataclass(frozen=True, eq=False)
class HomeScores:
    """What leave-one-out says of some pictures, summed over them; those of several owners add."""

    judge: str  # digest of the sums that stand for all pictures
    pictures: int  # that were judged
    dampings: Tensor  # (k,) absolute
    temperatures: Tensor  # (t,), none of numbers
    errors: Tensor  # (k,) sum of squared errors of the pictures left out
    right: Tensor  # (k,) pictures whose class is named
    surprise: Tensor  # (k, t) sum of negative log-likelihoods

    def __add__(self, other: HomeScores) -> HomeScores:
        if self.judge != other.judge:
            raise InputError("these scores were made with different sums; score all owners with the same merged sums")
        return HomeScores(
            self.judge, self.pictures + other.pictures, self.dampings, self.temperatures, self.errors + other.errors,
            self.right + other.right, self.surprise + other.surprise,
        )  # fmt: skip

    @property
    def best(self) -> int:
        """Place of the damping with the least error."""
        return int(self.errors.argmin())

    @property
    def damping(self) -> float:
        """The damping with the least error."""
        return float(self.dampings[self.best])

    @property
    def temperature(self) -> float | None:
        """The temperature with the least surprise at that damping; None of numbers."""
        return float(self.temperatures[int(self.surprise[self.best].argmin())]) if len(self.temperatures) else None

    def summary(self) -> dict[str, Any]:
        """Means over the pictures, at the best damping and temperature."""
        found: dict[str, Any] = {"pictures": self.pictures, "error": float(self.errors[self.best]) / self.pictures}
        if len(self.temperatures):
            found["accuracy"] = float(self.right[self.best]) / self.pictures
            found["nll"] = float(self.surprise[self.best].min()) / self.pictures
        return found

    def save(self, path: str | os.PathLike[str]) -> None:
        """One safetensors file, in one move."""
        facts = {"judge": self.judge, "pictures": [self.pictures]}
        write_tensors(path, KIND, facts, {name: getattr(self, name) for name in _TENSORS})

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> HomeScores:
        """What `save` wrote; a StoreError if it is damaged or something else."""
        facts, tensors = read_tensors(path, KIND)
        try:
            (pictures,) = facts["pictures"]
            k, t = len(tensors["dampings"]), len(tensors["temperatures"])
            fits = [tuple(tensors[name].shape) for name in _TENSORS] == [(k,), (t,), (k,), (k,), (k, t)]
            fits = fits and k > 0 and type(pictures) is int and pictures > 0
            fits = fits and all(bool(torch.isfinite(tensor).all()) for tensor in tensors.values())
        except (KeyError, TypeError, ValueError):
            fits = False
        if not fits:
            raise StoreError(f"{os.fspath(path)} holds what no scores can be; make it again from its pictures")
        return cls(str(facts["judge"]), facts["pictures"][0], **{name: tensors[name] for name in _TENSORS})


@final
@dataclass(frozen=True, eq=False)
class Judge:
    """The sums of all owners, factored once, as what each judges its own pictures by."""

    digest: str  # of every number of the sums
    fingerprint: str
    classes: tuple[Any, ...]
    factor: SumsFactor

    @classmethod
    def of(cls, total: TangentSums) -> Judge:
        """D^3."""
        return cls(digest(total), total.fingerprint, total.classes, total.factor())

    def score(self, rows: Tensor, targets: Tensor, classes: Sequence[Any]) -> HomeScores:
        """Scores of rows (n, D) that are in the sums, with targets (n, C), one-hot of some classes; n D (D + k C).

        Exact: each is judged by the fit to all the others, those of other owners too.
        """
        if bool(classes) != bool(self.classes):
            raise InputError("some of these sums are of classes and some of numbers; add those of one kind")
        if strange := [name for name in classes if name not in self.classes]:
            raise InputError(f"the merged sums have no class {strange[0]!r}, so these pictures are not in them")
        rows, targets = rows.double(), targets.double()
        if classes:
            targets = targets @ targets.new_tensor([[float(own == name) for name in self.classes] for own in classes])
        dampings = self.factor.mean_eigenvalue * torch.logspace(LOWEST, HIGHEST, DAMPINGS, dtype=rows.dtype).to(rows)
        temperatures = torch.logspace(COLDEST, HOTTEST, TEMPERATURES if classes else 0, dtype=rows.dtype).to(rows)
        errors, right = torch.zeros_like(dampings), torch.zeros_like(dampings)
        surprise = dampings.new_zeros(len(dampings), len(temperatures))
        for i, found in enumerate(self.factor.left_out_along(rows, targets, dampings)):
            errors[i] = (found - targets).square().sum()
            if classes:
                right[i] = (found.argmax(1) == targets.argmax(1)).sum()
                log = torch.log_softmax(found / temperatures[:, None, None], 2)
                surprise[i] = -(log * targets).sum((1, 2))
        return HomeScores(self.digest, len(rows), dampings, temperatures, errors, right, surprise)


def digest(total: TangentSums) -> str:
    """Of every number of some sums, for scores to name what they were made with."""
    told = hashlib.sha256(repr((total.fingerprint, total.classes)).encode())
    for tensor in (total.weight, total.rows, total.squares, total.cross, total.targets, total.counts):
        told.update(tensor.cpu().contiguous().numpy().tobytes())
    return told.hexdigest()
