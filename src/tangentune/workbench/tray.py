"""New pictures on the tray: dropped on the page, read within the decoder's bounds, not yet part of the model."""

from __future__ import annotations

import os
import re
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import final

import torch

from tangentune.errors import InputError, PictureError, shown
from tangentune.pictures.contract import DataContract
from tangentune.pictures.decode import try_decode
from tangentune.pictures.names import PICTURE_SUFFIXES
from tangentune.pictures.pictures import Pictures

MOST = 200  # pictures on the tray at once
_LONGEST_NAME = 120


@final
@dataclass(frozen=True, eq=False)
class Arrived:
    """A picture on the tray, by a number of its own; `pictures` holds it alone, at the network's size."""

    number: int
    name: str
    path: Path
    pictures: Pictures


@final
@dataclass
class Tray:
    """The pictures that were dropped, until they are put away; their files go when the server ends.

    One that was added to the model is not shown, but comes back if that is undone.
    """

    folder: Path
    contract: DataContract
    _arrived: dict[int, Arrived] = field(default_factory=dict)
    _added: dict[int, int] = field(default_factory=dict)  # number in the model, by the number here
    _next: int = 0

    def put(self, name: str, content: bytes) -> Arrived:
        """Take a picture file in.

        Raises:
            PictureError: it is no picture, damaged, or beyond the decoder's bounds.
            InputError: the tray is full.
        """
        if len(self._arrived) - len(self._added) >= MOST:
            raise InputError(f"there are {MOST} new pictures here already; add some or put them away first")
        name, number = plain_name(name), self._next
        self._next += 1
        suffix = os.path.splitext(name)[1].lower()
        path = self.folder / f"{number}{suffix if suffix in PICTURE_SUFFIXES else ''}"
        try:
            path.write_bytes(content)
        except OSError as error:
            raise InputError(f"{name} cannot be kept: {error.strerror or error}") from error
        pixels = try_decode(path, self.contract)
        if isinstance(pixels, str):
            path.unlink(missing_ok=True)
            raise PictureError(f"{name} cannot be used: {pixels}")
        one = Arrived(number, name, path, Pictures(torch.from_numpy(pixels)[None], None, [name]))
        self._arrived[number] = one
        return one

    def waiting(self, numbers: Collection[int]) -> list[Arrived]:
        """What is not one of the model's pictures, which have these numbers; the latest first."""
        return [one for one in reversed(self._arrived.values()) if self._added.get(one.number, -1) not in numbers]

    def joined(self, number: int, new: int) -> None:
        """Note that one was added to the model, where it has a new number, perhaps that of one that was taken back."""
        self._added = {here: there for here, there in self._added.items() if there != new} | {number: new}

    def get(self, number: int) -> Arrived:
        """One of them; an InputError if it is not here."""
        if number not in self._arrived:
            raise InputError("this new picture is not here any more; drop it again")
        return self._arrived[number]

    def remove(self, number: int) -> None:
        """Put one away."""
        gone, _ = self._arrived.pop(number, None), self._added.pop(number, None)
        if gone is not None:
            gone.path.unlink(missing_ok=True)


def plain_name(given: str) -> str:
    r"""A file's name from a browser: its last part, printable, not too long.

    Example:
        >>> plain_name("..\\..\\photo\x00s/cat.png")
        'cat.png'
    """
    last = re.split(r"[\\/]", given)[-1].strip()
    name = shown(last.encode("utf-8", "replace").decode())[-_LONGEST_NAME:]
    return name if name.strip(". ") else "picture"
