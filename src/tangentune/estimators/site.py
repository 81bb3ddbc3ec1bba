"""The sums of an owner's picture files, shard by shard: by one process or by several, killed and gone on with."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import Any, TypeVar, final

import numpy as np

from tangentune.errors import InputError
from tangentune.estimators.features import TangentFeatures
from tangentune.memory import progress
from tangentune.pictures.checks import numeric_labels
from tangentune.pictures.files import FileList
from tangentune.pictures.load import load_pictures
from tangentune.pictures.names import some
from tangentune.pictures.ranks import PATIENCE, Rank, job_digest, parts_folder, run_shards
from tangentune.solvers.home_scores import HomeScores, Judge
from tangentune.solvers.sums import TangentSums

SHARD, MOST = 256, 64  # pictures of a shard at least; shards at most, each of which leaves a file of D^2 numbers
T = TypeVar("T", TangentSums, HomeScores)


@final
@dataclass(frozen=True)
class SiteJob:
    """Sums to make: of which files, in which map, how they are read."""

    features: TangentFeatures
    files: FileList
    numbers: bool  # labels are numbers to predict
    on_error: str = "raise"
    n_jobs: int | None = None
    verbose: int = 0
    size: int | None = None  # of a shard; None: `SHARD` pictures, or more, so that there are at most `MOST` shards
    judge: Judge | None = None  # by which the pictures are left out; None where they are added up

    @property
    def shard(self) -> int:
        """Pictures of a shard."""
        return max(SHARD, -(-len(self.files.pictures) // MOST)) if self.size is None else self.size

    def __len__(self) -> int:
        return -(-len(self.files.pictures) // self.shard)

    def folder(self, out: Path) -> Path:
        """Where the shards of this very job lie until `out` is written, beside it: other pictures, another folder."""
        facts = (self.features.fingerprint_, self.features.batch_size, self.shard, self.numbers, self.on_error)
        digest = job_digest((*facts, self.files.labels, self.judge and self.judge.digest), self.files.pictures)
        return parts_folder(out, digest)

    def make(self, number: int, file: Path) -> None:
        """The file of one shard."""
        here = slice(number * self.shard, (number + 1) * self.shard)
        assert self.files.labels is not None
        paths, labels = self.files.pictures[here], np.array(self.files.labels[here])
        labels = numeric_labels(labels, self.files.ids[here]) if self.numbers else labels
        reading: dict[str, Any] = {"on_error": self.on_error, "n_jobs": self.n_jobs}
        contract = self.features.frozen_.backbone.contract
        pictures = load_pictures(paths, labels, contract=contract, **reading)
        if self.judge is None:
            self.features.sums(pictures).save(file)
        else:
            self.features.score_at_home(pictures, None, self.judge).save(file)

    def sums(self, folder: Path, rank: Rank, patience: float = PATIENCE) -> TangentSums | None:
        """The sums, for the rank that leads; None for others, whose work is done: `leave` follows.

        Cost: a forward and a backward pass over the pictures, shared among the ranks; memory of one shard and the sums.
        """
        files = self._files(folder, rank, patience)
        return added(map(TangentSums.load, files)) if rank.leads else None

    def scores(self, folder: Path, rank: Rank, patience: float = PATIENCE) -> HomeScores | None:
        """Scores instead of sums."""
        files = self._files(folder, rank, patience)
        return added(map(HomeScores.load, files)) if rank.leads else None

    def _files(self, folder: Path, rank: Rank, patience: float) -> list[Path]:
        if not self.files.pictures:
            raise InputError("there are no pictures to add up")
        told = self.verbose if rank.leads else 0
        with progress(label="shards of pictures", total=len(self), unit="shard", verbose=told) as bar:

            def make(number: int, file: Path) -> None:
                self.make(number, file)
                bar.update()

            return run_shards(folder, len(self), make, rank, patience)


def added(parts: Iterable[T]) -> T:
    """The sum of sums, or of scores, in their order."""
    return reduce(lambda one, other: one + other, parts)


def check_site(found: TangentSums, minimum: int, name: str) -> str:
    """Refuse sums of fewer pictures than a minimum; a sentence on classes so small that their sums tell much, or ""."""
    if found.pictures < minimum:
        raise InputError(
            f"{name} has {found.pictures} pictures, and minimum={minimum} asks for more, because sums over few "
            "pictures tell much of each; add pictures, or agree on less"
        )
    few = [f"{own} ({n:.0f})" for own, n in zip(found.classes, found.counts.tolist(), strict=False) if 0 < n < 5]
    return f"{name}: classes of very few pictures, whose sums tell much of each: {some(few)}" if few else ""
