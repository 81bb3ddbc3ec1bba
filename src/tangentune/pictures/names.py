"""File names: which are pictures, and how to write them so that anyone can print them."""

from __future__ import annotations

import os
from collections.abc import Sequence

PICTURE_SUFFIXES = frozenset([
    ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".gif", ".bmp", ".dib", ".tif", ".tiff", ".webp", ".avif",
    ".heic", ".heif", ".hif", ".jp2", ".j2k", ".jpf", ".jpx", ".pbm", ".pgm", ".ppm", ".pnm", ".tga", ".pcx", ".qoi",
    ".mpo",
])  # fmt: skip


def readable(path: str | os.PathLike[str]) -> str:
    r"""A file name as text that can be printed and saved as UTF-8, with `/` between its parts.

    Bytes of the name that are not UTF-8 (Python keeps them as lone surrogates) become `\xNN`.

    Example:
        >>> readable("caf\udce9/1.jpg")
        'caf\\xe9/1.jpg'
    """
    text = os.fspath(path).replace(os.sep, "/")
    data = text.encode("utf-8", "surrogateescape" if _escapes_only(text) else "surrogatepass")
    return data.decode("utf-8", "backslashreplace")


def _escapes_only(text: str) -> bool:
    """False when there are surrogates that stand for no byte of a file name (possible on Windows)."""
    return all(not "\ud800" <= c <= "\udfff" or "\udc80" <= c <= "\udcff" for c in text)


def is_picture_name(name: str) -> bool:
    """True when the name ends like a picture (any case) and is not hidden."""
    return not name.startswith(".") and os.path.splitext(name)[1].lower() in PICTURE_SUFFIXES


def some(names: Sequence[str], most: int = 5) -> str:
    """The first few names, and how many more there are, such as "a, b and 1 more"."""
    rest = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + rest
