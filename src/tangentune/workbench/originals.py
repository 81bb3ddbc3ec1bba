"""Picture files as a browser shows them: those of the folder of originals, at their own resolution, and dropped ones.

A file is found by the name that the model keeps of it, and only inside the folder that the person named: the model may
come from anybody, and its names must not lead to other files of this machine.
"""

from __future__ import annotations

import io
import os
from dataclasses import dataclass
from pathlib import Path
from typing import final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tangentune.errors import PictureError
from tangentune.pictures.contract import DataContract
from tangentune.pictures.decode import try_decode
from tangentune.pictures.names import file_inside
from tangentune.pictures.unreadable import allowed_formats, file_problem, reason
from tangentune.workbench.security import MOST_BYTES

# What every browser draws, inside its own walls, with the type that it is told.
_SHOWN = {"JPEG": "image/jpeg", "PNG": "image/png", "WEBP": "image/webp", "GIF": "image/gif"}
LONGEST_SIDE = 2048  # pixels of a picture that is converted to be shown


@final
@dataclass(frozen=True)
class Original:
    """A picture file: bytes as a browser takes them."""

    content: bytes
    kind: str  # its media type


@final
@dataclass(frozen=True)
class Originals:
    """The folder in which the pictures lie that the model was fitted on; None where nobody named one.

    Example:
        >>> Originals(None).path("cat/1.png") is None
        True
    """

    folder: Path | None

    def path(self, name: str) -> Path | None:
        """Where the file of that name lies, if it is there and inside the folder; links that lead out count as out."""
        return None if self.folder is None else file_inside(self.folder, name)


def picture_size(path: Path) -> tuple[int, int] | None:
    """Width and height by the head of a file; None where it has none."""
    try:
        with Image.open(path, formats=allowed_formats(os.fspath(path))) as image:
            return image.size
    except Exception:  # decoders raise nearly every type on damaged files
        return None


def read_original(path: Path) -> Original:
    """A picture file for a browser: its own bytes where browsers draw that format, else converted to PNG.

    Raises:
        PictureError: the file is gone, no picture, or beyond the decoder's bounds.
    """
    name = path.name
    if (problem := file_problem(path)) is not None:
        raise PictureError(f"{name} cannot be shown: {problem}")
    try:
        with Image.open(path, formats=allowed_formats(os.fspath(path))) as image:
            kind, size = _SHOWN.get(image.format or ""), image.size
        if kind is not None and path.stat().st_size <= MOST_BYTES:
            return Original(path.read_bytes(), kind)
    except Exception as error:
        raise PictureError(f"{name} cannot be shown: {reason(path, error)}") from error
    return Original(png(_converted(path, size)), "image/png")


def _converted(path: Path, size: tuple[int, int]) -> NDArray[np.uint8]:
    """(H, W, 3) of a file that browsers do not draw, by the decoder of the fits and within its bounds."""
    shrink = min(1.0, LONGEST_SIDE / max(size))
    width, height = (max(1, round(side * shrink)) for side in size)
    pixels = try_decode(path, DataContract(input_size=(3, height, width)))
    if isinstance(pixels, str):
        raise PictureError(f"{path.name} cannot be shown: {pixels}")
    return pixels.transpose(1, 2, 0)


def png(pixels: NDArray[np.uint8]) -> bytes:
    """(H, W, 3) uint8 as a PNG file."""
    stream = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(stream, "PNG", compress_level=1)
    return stream.getvalue()
