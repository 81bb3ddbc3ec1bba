"""Which files are pictures, by name or by their first bytes, and how to write names so that anyone can print them."""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Sequence
from pathlib import Path

from tangentune.errors import shown

PICTURE_SUFFIXES = frozenset([
    ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".gif", ".bmp", ".dib", ".tif", ".tiff", ".webp", ".avif",
    ".heic", ".heif", ".hif", ".jp2", ".j2k", ".jpf", ".jpx", ".pbm", ".pgm", ".ppm", ".pnm", ".tga", ".pcx", ".qoi",
    ".mpo",
])  # fmt: skip

# What lies beside pictures and is none, and so is neither opened nor told.
_SIDE_SUFFIXES = frozenset([
    ".txt", ".json", ".jsonl", ".csv", ".tsv", ".xml", ".yaml", ".yml", ".toml", ".ini", ".cfg", ".md", ".rst", ".html",
    ".htm", ".log", ".db", ".sqlite", ".zip", ".tar", ".gz", ".tgz", ".7z", ".rar", ".npy", ".npz", ".pkl", ".pt",
    ".pth", ".safetensors", ".parquet", ".h5", ".py", ".ipynb", ".sh", ".pdf", ".doc", ".docx", ".xls", ".xlsx", ".xmp",
    ".aae", ".mp4", ".mov", ".avi", ".mkv", ".wav", ".mp3", ".lnk", ".part", ".tmp", ".sha256", ".md5",
])  # fmt: skip
# Pictures, but not such as are read here.
_OTHER_PICTURES = frozenset([
    ".jxl", ".dng", ".cr2", ".cr3", ".nef", ".arw", ".orf", ".rw2", ".raf", ".pef", ".srw", ".svg", ".psd", ".exr",
    ".hdr", ".dcm", ".ico", ".icns", ".jxr", ".fits", ".svs", ".ndpi", ".eps",
])  # fmt: skip
_SIGNATURES = re.compile(
    rb"\xff\xd8\xff|\x89PNG\r\n\x1a\n|GIF8[79]a|II\*\0|MM\0\*|II\+\0|MM\0\+|RIFF....WEBP|qoif|P[1-7]\s|8BPS\0\x01|\xff\x0a"
    rb"|\0\0\0\x0c(?:jP  |JXL )|....ftyp(?:avif|avis|hei[cxms]|hevc|mif1|msf1)|BM....\0\0\0\0",
    re.DOTALL,
)


def looks_like_picture(path: str | os.PathLike[str]) -> bool:
    """Whether a file of whatever name begins like a picture; False for what cannot be opened."""
    try:
        if not os.path.isfile(path):  # opening a pipe would wait for ever
            return False
        with open(path, "rb") as file:
            return _SIGNATURES.match(file.read(16)) is not None
    except (OSError, ValueError):
        return False


def may_be_picture(path: str) -> bool:
    """Whether a file without a picture's ending may be one all the same; it is opened unless its name says enough."""
    suffix = os.path.splitext(path)[1].lower()
    return suffix in _OTHER_PICTURES or (suffix not in _SIDE_SUFFIXES and looks_like_picture(path))


def readable(path: str | os.PathLike[str]) -> str:
    r"""A file name as text that can be printed and saved as UTF-8, with `/` between its parts.

    Bytes of the name that are not UTF-8 (Python keeps them as lone surrogates) become `\xNN`; what would steer a
    terminal is escaped too (`shown`).

    Example:
        >>> readable("caf\udce9/1.jpg")
        'caf\\xe9/1.jpg'
    """
    text = os.fspath(path).replace(os.sep, "/")
    # False with surrogates that stand for no byte of a file name (possible on Windows).
    bytes_only = all(not "\ud800" <= c <= "\udfff" or "\udc80" <= c <= "\udcff" for c in text)
    data = text.encode("utf-8", "surrogateescape" if bytes_only else "surrogatepass")
    return shown(data.decode("utf-8", "backslashreplace"))


def composed(text: str) -> str:
    """A name with its accents put together as people type them (NFC); macOS keeps letters and accents apart."""
    return unicodedata.normalize("NFC", text)


def is_picture_name(name: str) -> bool:
    """True when the name ends like a picture (any case) and is not hidden."""
    return not name.startswith(".") and os.path.splitext(name)[1].lower() in PICTURE_SUFFIXES


def some(names: Sequence[str], most: int = 5) -> str:
    """The first few names, and how many more there are, such as "a, b and 1 more"."""
    rest = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(map(shown, names[:most])) + rest


def file_inside(folder: str | os.PathLike[str], name: str) -> Path | None:
    """The file of that name in a folder, if it is there; links that lead out of the folder count as out.

    Names of a model's pictures may come from anybody, and must not lead to other files of this machine.

    Example:
        >>> file_inside(".", "../somewhere/else.png") is None
        True
    """
    try:
        root = Path(os.path.realpath(folder))
        found = Path(os.path.realpath(root / name))
        return found if found.is_relative_to(root) and found.is_file() else None
    except (OSError, ValueError):  # a name that cannot be one of a file
        return None
