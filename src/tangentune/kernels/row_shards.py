"""Rows of very many pictures in shards on the disk, so that a fit that was stopped goes on where it was.

    WORK/rows-1f3a9c02-00000004096.safetensors     rows of the pictures from position 4096 on

A shard is written whole or not at all, and named by the map and the pictures that it is of: what another map, or other
pictures, left in the same directory is not taken, nor is a damaged file.
"""

from __future__ import annotations

import hashlib
import os
import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import final

import numpy as np
from torch import Tensor

from tangentune._files import read_tensors, write_tensors
from tangentune.errors import StoreError
from tangentune.kernels.landmark_map import LandmarkMap
from tangentune.pictures.ranks import Shared

KIND = "rows of a landmark map"
SHARD = 1024  # pictures


@final
@dataclass(frozen=True, eq=False)
class RowShards:
    """A directory for the shards of one fit; `names` (n,) tell its pictures from others, as their digests do."""

    folder: Path
    names: Sequence[str]
    shared: Shared | None = None  # with the other ranks, which make the same map

    @classmethod
    def of(cls, work: str | os.PathLike[str] | Shared, names: Sequence[str]) -> RowShards:
        """In a directory, which is made if it is not there; a StoreError where it cannot be."""
        shared = work if isinstance(work, Shared) else None
        place = work.folder if isinstance(work, Shared) else Path(work)
        try:
            place.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StoreError(f"{place} cannot be a working directory: {error.strerror}") from error
        return cls(place, names, shared)

    def share(self, made: LandmarkMap, spans: Sequence[tuple[int, int]], make: Callable[[int, int], Tensor]) -> None:
        """Make them all together with the other ranks; ShareDone for those that do not lead."""
        if self.shared is None:
            return
        paths = [self._path(made, *span) for span in spans]

        def write(number: int, path: Path) -> None:
            write_tensors(path, KIND, {}, {"rows": make(*spans[number])})

        self.shared.run([path.name for path in paths], write)
        self.shared.lead()
        if set(self.folder.glob("rows-*.safetensors")) - set(paths):
            words = "another process came to another map, as unlike machines do by rounding: its rows were of no use"
            warnings.warn(words, stacklevel=2)

    def kept(self, made: LandmarkMap, start: int, stop: int, make: Callable[[], Tensor]) -> Tensor:
        """Rows of the pictures from `start` to `stop`: read, or made and written."""
        path = self._path(made, start, stop)
        with suppress(StoreError):
            rows = read_tensors(path, KIND)[1]["rows"]
            if rows.shape == (stop - start, made.width):
                return rows
        rows = make()
        write_tensors(path, KIND, {}, {"rows": rows})
        return rows

    def clear(self) -> None:
        """Once the fit is done: its shards, and the directory if nothing else is in it; ranks leave a shared one."""
        if self.shared is not None:
            return
        for path in self.folder.glob("rows-*.safetensors"):
            path.unlink(missing_ok=True)
        with suppress(OSError):
            self.folder.rmdir()

    def _path(self, made: LandmarkMap, start: int, stop: int) -> Path:
        told = hashlib.sha256()
        for tensor in (made.root, made.landmarks.phi, made.feature_map.probes):
            told.update(np.ascontiguousarray(tensor.cpu().numpy()).tobytes())
        told.update(repr((made.feature_map.body_scale, self.names[start:stop])).encode())
        return self.folder / f"rows-{told.hexdigest()[:16]}-{start:011d}.safetensors"
