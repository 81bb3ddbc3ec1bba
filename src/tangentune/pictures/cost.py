"""What one picture may cost to decode, whatever its file promises: bytes, seconds, and Pillow's own limits.

All grows with `PIL.Image.MAX_IMAGE_PIXELS`, the one limit that people raise for pictures they trust; None lifts all.
"""

from __future__ import annotations

import io
import math
import re
import struct
import time
from typing import Any

from PIL import Image, ImageFile, PngImagePlugin

from tangentune.pictures.encoded import Encoded, byte_count, opened, raw
from tangentune.pictures.unreadable import UnusableError

_USUAL_PIXELS = 89_478_485  # Pillow's own limit
_BYTES_ALLOWED = 12  # for each pixel of the limit: 1 GiB in all
_SECONDS_ALLOWED = 30.0  # at the usual limit
_VISITS_ALLOWED = 24  # of each pixel, by the scans of a progressive JPEG; encoders write about ten scans
# What some decoders hold for each pixel at their worst moment, measured; all others hold less than is allowed.
_BYTES_TAKEN = {"WEBP": 16, "JPEG2000": 20}
_SCAN = re.compile(rb"\xff\xda\0[\x06\x08\x0a\x0c][\x01-\x04]")
_PIECE = 1 << 16
_PNG = b"\x89PNG\r\n\x1a\n"
_TEXT_CHUNKS = (b"tEXt", b"zTXt", b"iTXt", b"iCCP")
# Settings of Pillow that hold for a whole process and change what can be read.
_SETTINGS: tuple[tuple[Any, str], ...] = (
    (Image, "MAX_IMAGE_PIXELS"),
    (ImageFile, "LOAD_TRUNCATED_IMAGES"),
    (PngImagePlugin, "MAX_TEXT_CHUNK"),
    (PngImagePlugin, "MAX_TEXT_MEMORY"),
)


def pillow_settings() -> tuple[Any, ...]:
    """Settings of this process, for `use_settings` in a worker."""
    return tuple(getattr(module, name) for module, name in _SETTINGS)


def use_settings(values: tuple[Any, ...]) -> None:
    """Make the settings of the process that asked this one's."""
    for (module, name), value in zip(_SETTINGS, values, strict=True):
        setattr(module, name, value)


class LimitedFile(io.BufferedReader):
    """A picture open for reading that stops its decoder, when it asks for more, once that has taken too long."""

    def __init__(self, picture: Encoded) -> None:
        super().__init__(raw(picture))
        allowed = _SECONDS_ALLOWED * (Image.MAX_IMAGE_PIXELS or math.inf) / _USUAL_PIXELS
        self._end = time.thread_time() + max(allowed, _SECONDS_ALLOWED)  # work of others does not count

    def read(self, size: int | None = -1, /) -> bytes:
        """As any file."""
        if time.thread_time() > self._end:
            raise UnusableError(
                f"decoding it takes more than {_SECONDS_ALLOWED:g} seconds; save it smaller or in another format"
            )
        return super().read(size)


def limit_cost(image: Image.Image, picture: Encoded, need: int) -> None:
    """Refuse a picture, opened but not decoded, that costs far more than its pixels.

    JPEG 2000 is read at a half, a quarter, ... of its size if it must, its shorter side staying at least `need`.
    """
    if Image.MAX_IMAGE_PIXELS is None:
        return
    pixels = image.width * image.height
    taken, allowed = pixels * _BYTES_TAKEN.get(image.format or "", 4), _BYTES_ALLOWED * Image.MAX_IMAGE_PIXELS
    halvings = 0
    if image.format == "JPEG2000":
        while taken > allowed and min(image.size) >> (halvings + 1) >= need:
            taken, halvings = taken / 4, halvings + 1
        image.reduce = halvings  # pyright: ignore[reportAttributeAccessIssue]
    scans = _scans(picture) if image.info.get("progressive") else 0
    if taken > allowed:
        problem = f"decoding its {pixels:,} pixels of {image.format} takes {taken / 2**30:.1f} GiB"
    elif scans * pixels > _VISITS_ALLOWED * Image.MAX_IMAGE_PIXELS:
        problem = f"it is a JPEG of {scans:,} scans of {pixels:,} pixels"
    else:
        # In small pieces, so that a decoder to which little says much comes back to be stopped.
        image.decodermaxblock = min(_PIECE, max(1024, byte_count(picture) // 64))  # pyright: ignore
        return
    raise UnusableError(f"{problem}; save it smaller, or raise PIL.Image.MAX_IMAGE_PIXELS if you trust it")


def _scans(picture: Encoded) -> int:
    with opened(picture) as file:
        return len(_SCAN.findall(file.read()))


def without_text(picture: Encoded) -> io.BytesIO | None:
    """A PNG file without its texts and its colour profile; None if the file is of another kind."""
    kept = io.BytesIO()
    with opened(picture) as file:
        kept.write(file.read(len(_PNG)))
        if kept.getvalue() != _PNG:
            return None
        while len(head := file.read(8)) == 8:
            length, kind = struct.unpack(">I4s", head)
            body = file.read(length + 4)
            if kind not in _TEXT_CHUNKS:
                kept.write(head + body)
    kept.seek(0)
    return kept
