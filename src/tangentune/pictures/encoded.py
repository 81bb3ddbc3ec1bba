"""A picture before it is decoded: a file, a part of a file, or bytes in memory; read in the same way."""

from __future__ import annotations

import io
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, BinaryIO, final

from numpy.typing import NDArray


@final
@dataclass(frozen=True)
class Part:
    """A picture that lies within another file, such as an archive: only its own bytes are ever read.

    Example:
        >>> with open("both.bin", "wb") as file: _ = file.write(b"head, picture, tail")
        >>> with opened(Part("both.bin", 6, 7)) as part: part.read()
        b'picture'
    """

    file: str
    start: int
    size: int


Encoded = str | os.PathLike[str] | bytes | Part


@dataclass(frozen=True)
class Listing:
    """Encoded pictures in their fixed order, found but not yet read."""

    pictures: Sequence[Encoded]
    ids: list[str]  # printable names
    labels: list[Any] | None = None  # one for each
    notes: list[str] = field(default_factory=list)  # sentences that the user should see
    lost: list[tuple[str, str]] = field(default_factory=list)  # what could not even be listed: id and reason
    sets: NDArray[Any] | None = None  # several labels a picture instead, as `label_sets`

    def __len__(self) -> int:
        return len(self.ids)


def is_cell(entry: Any) -> bool:
    """Whether a cell of a table holds an encoded picture in memory: bytes, or `{"bytes": ..., "path": ...}`."""
    return isinstance(entry, bytes | bytearray) or (isinstance(entry, Mapping) and {"bytes", "path"} <= set(entry))


def from_cell(entry: Any) -> Encoded:
    """The encoded picture of a cell, which may hold a path as well; a cell without one is an empty picture."""
    if isinstance(entry, Mapping):
        entry = entry.get("bytes") or entry.get("path")
    if isinstance(entry, bytearray):
        return bytes(entry)
    return entry if isinstance(entry, bytes | str | os.PathLike) else b""


def opened(picture: Encoded) -> BinaryIO:
    """The encoded picture, open for reading."""
    return io.BufferedReader(raw(picture))


def raw(picture: Encoded) -> io.RawIOBase:
    """The same without a buffer of its own."""
    if isinstance(picture, Part):
        return _Within(picture, io.FileIO(picture.file))
    if isinstance(picture, bytes):
        return _Within(Part("", 0, len(picture)), io.BytesIO(picture))
    return io.FileIO(picture)


def byte_count(picture: Encoded) -> int:
    """How many bytes an encoded picture has."""
    if isinstance(picture, Part):
        return picture.size
    return len(picture) if isinstance(picture, bytes) else os.stat(picture).st_size


def name_of(picture: Encoded) -> str:
    """The name of its file, where it has one of its own."""
    return "" if isinstance(picture, bytes | Part) else os.fspath(picture)


@final
class _Within(io.RawIOBase):
    """Some bytes of a file as if they were all of it."""

    def __init__(self, part: Part, file: io.RawIOBase | io.BytesIO) -> None:
        self._part, self._file, self._at = part, file, 0

    def readinto(self, room: Any, /) -> int:
        wanted = memoryview(room)[: max(0, self._part.size - self._at)]
        self._file.seek(self._part.start + self._at)
        count = self._file.readinto(wanted) or 0
        self._at += count
        return count

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        self._at = max(0, offset + (0, self._at, self._part.size)[whence])
        return self._at

    def tell(self) -> int:
        return self._at

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def close(self) -> None:
        self._file.close()
        super().close()
