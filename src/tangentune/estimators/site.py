"""The sums of an owner's picture files, shard by shard: by one process or by several, killed and gone on with."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import numpy as np
from tqdm.auto import tqdm

from tangentune.errors import InputError
from tangentune.estimators.features import TangentFeatures
from tangentune.estimators.shards import PATIENCE, Rank, run_shards
from tangentune.pictures.checks import numeric_labels
from tangentune.pictures.files import FileList
from tangentune.pictures.load import load_pictures
from tangentune.pictures.names import some
from tangentune.solvers.sums import TangentSums

SHARD = 256  # pictures
MINIMUM = 20  # pictures of a site, fewer of whom are refused


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
    shard: int = SHARD

    def __len__(self) -> int:
        return -(-len(self.files.paths) // self.shard)

    def folder(self, out: Path) -> Path:
        """Where the shards of this very job lie until `out` is written, beside it: other pictures, another folder."""
        told = hashlib.sha256(repr((self.features.fingerprint_, self.features.batch_size, self.shard)).encode())
        told.update(repr((self.numbers, self.on_error, self.files.labels)).encode())
        for path in self.files.paths:
            try:
                found = os.stat(path)
                told.update(repr((path, found.st_size, found.st_mtime_ns)).encode())
            except OSError:  # it is named when it is read
                told.update(repr(path).encode("utf-8", "backslashreplace"))
        return out.parent / f".{out.name}.{told.hexdigest()[:12]}.parts"

    def make(self, number: int, file: Path) -> None:
        """The file of one shard."""
        here = slice(number * self.shard, (number + 1) * self.shard)
        assert self.files.labels is not None
        paths, labels = self.files.paths[here], np.array(self.files.labels[here])
        labels = numeric_labels(labels, self.files.ids[here]) if self.numbers else labels
        reading: dict[str, Any] = {"on_error": self.on_error, "n_jobs": self.n_jobs}
        contract = self.features.frozen_.backbone.contract
        self.features.sums(load_pictures(paths, labels, contract=contract, **reading)).save(file)

    def run(self, folder: Path, rank: Rank, patience: float = PATIENCE) -> TangentSums | None:
        """The sums, for the rank that leads; None for others, whose work is done: `leave` follows.

        Cost: a forward and a backward pass over the pictures, shared among the ranks; memory of one shard and the sums.
        """
        if not self.files.paths:
            raise InputError("there are no pictures to add up")
        label: dict[str, Any] = {"desc": "shards of pictures", "unit": "shard", "delay": 1.0}
        with tqdm(total=len(self), disable=not (self.verbose and rank.leads), **label) as bar:

            def make(number: int, file: Path) -> None:
                self.make(number, file)
                bar.update()

            files = run_shards(folder, len(self), make, rank, patience)
        if not rank.leads:
            return None
        total = TangentSums.load(files[0])
        for file in files[1:]:
            total = total + TangentSums.load(file)
        return total


def check_site(found: TangentSums, minimum: int, name: str) -> str:
    """Refuse sums of fewer pictures than a minimum; a sentence on classes so small that their sums tell much, or ""."""
    if found.pictures < minimum:
        raise InputError(
            f"{name} has {found.pictures} pictures, and minimum={minimum} asks for more, because sums over few "
            "pictures tell much of each; add pictures, or agree on less"
        )
    few = [f"{own} ({n:.0f})" for own, n in zip(found.classes, found.counts.tolist(), strict=False) if 0 < n < 5]
    return f"{name}: classes of very few pictures, whose sums tell much of each: {some(few)}" if few else ""
