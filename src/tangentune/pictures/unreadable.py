"""Why a picture file cannot be read, in words that say what to do; no file, however damaged, makes this fail."""

from __future__ import annotations

import errno
import os
import stat
from contextlib import suppress
from functools import lru_cache

from PIL import Image, TiffImagePlugin

from tangentune.errors import shown
from tangentune.pictures.encoded import Encoded, Part, byte_count, opened

# Picture formats only: Pillow also opens PostScript (by running Ghostscript), video and science containers.
_FORMATS = ["JPEG", "MPO", "PNG", "GIF", "BMP", "DIB", "TIFF", "WEBP", "AVIF", "HEIF", "JPEG2000", "PPM", "PCX", "QOI"]
_HEIF_BRANDS = (b"heic", b"heix", b"hevc", b"heim", b"heis", b"mif1", b"msf1")
_TIFF_HEADS = (b"II*\0", b"MM\0*")
_TIFF_KINDS = {2: "signed ", 3: "floating-point ", 5: "complex ", 6: "complex "}
ABSENT = "the file does not exist"


class UnusableError(Exception):
    """A picture that can be read but not used; the text is the reason."""


def file_problem(path: Encoded) -> str | None:
    """Why a path cannot be a picture file, found without opening it; None when it may be one."""
    if isinstance(path, bytes | Part):
        return None if byte_count(path) else "the file is empty (0 bytes)"
    try:
        info = os.stat(path)
    except FileNotFoundError:
        broken = os.path.islink(path)
        return "it is a symbolic link to a file that does not exist" if broken else ABSENT
    except OSError as error:
        if error.errno == errno.ELOOP:
            return "it is a symbolic link that leads back to itself"
        return error.strerror or str(error)
    except ValueError:  # a NUL in the name
        return "its name is not a possible file name"
    if stat.S_ISDIR(info.st_mode):
        return "it is a folder, not a picture"
    if not stat.S_ISREG(info.st_mode):
        return "it is not a regular file"
    return "the file is empty (0 bytes)" if info.st_size == 0 else None


@lru_cache(maxsize=1)
def known_formats() -> tuple[str, ...]:
    """Names of the formats that this machine can read, whatever the file's name."""
    try:
        import pillow_heif  # pyright: ignore[reportMissingImports]

        pillow_heif.register_heif_opener()
    except ImportError:
        pass  # HEIC pictures then get a message that names the package
    Image.init()
    return tuple(name for name in _FORMATS if name in Image.OPEN)


def allowed_formats(path: str) -> tuple[str, ...]:
    """Names of the formats that a file may have."""
    # TGA has no signature: nearly any bytes would pass for one, so only its own ending admits it.
    return (*known_formats(), "TGA") if path.lower().endswith(".tga") else known_formats()


def reason(path: Encoded, error: Exception) -> str:
    """Why decoding failed, in words that say what to do."""
    try:
        return shown(_reason(path, error))
    except Exception:  # the file may be gone by now, or make a decoder's own questions fail
        return f"it is damaged ({type(error).__name__})"


def _reason(path: Encoded, error: Exception) -> str:
    text = str(error).strip().rstrip(".")
    if isinstance(error, (Image.DecompressionBombError, Image.DecompressionBombWarning)):
        pixels = "".join(c for c in text.split("exceeds")[0] if c.isdigit())
        limit = f"PIL.Image.MAX_IMAGE_PIXELS = {Image.MAX_IMAGE_PIXELS}"
        return f"it is over-large ({pixels} pixels, {limit}; raise that limit if you trust the file)"
    if isinstance(error, Image.UnidentifiedImageError):
        return _what_it_is(path)
    if isinstance(error, UnusableError):
        return text
    if "truncated" in text.lower() or isinstance(error, EOFError):
        return "the file is truncated"
    if isinstance(error, PermissionError):
        return "permission denied"
    if isinstance(error, MemoryError):
        return "there is not enough memory to decode it"
    detail = f": {text}" if text else ""
    return f"it is damaged ({type(error).__name__}{detail})"


def _what_it_is(path: Encoded) -> str:
    """Say more of a file that Pillow does not know: damaged, or an impostor of a frequent kind."""
    with opened(path) as file:
        head = file.read(64)
    unknown = "it is not a picture in a known format"
    if head[4:8] == b"ftyp" and head[8:12] in _HEIF_BRANDS:
        return f"{unknown} (it is HEIC, which needs one more package: pip install pillow-heif)"
    if head.startswith(b"version https://git-lfs"):
        return f"{unknown} (it is a Git LFS pointer; fetch the picture with `git lfs pull`)"
    if head.lstrip().startswith(b"<"):
        return f"{unknown} (it begins like a web page or SVG; was the download refused?)"
    if head[:4] in _TIFF_HEADS:
        with suppress(Exception):  # whatever damage may raise
            kind = _tiff_kind(path)
            return f"it is a TIFF {kind}, which cannot be read; save it as 8-bit colour or as 8- or 16-bit grey"
    for name in known_formats():
        if _begins_like(name, head[:16]):
            return f"it is damaged or truncated (it begins like {name}, but cannot be opened)"
    return unknown


def _begins_like(name: str, head: bytes) -> bool:
    accept = Image.OPEN[name][1]
    try:
        return accept is not None and accept(head) is True
    except Exception:  # some look for bytes that a short file does not have
        return False


def _tiff_kind(path: Encoded) -> str:
    """What the pixels of a TIFF are, such as "of 5 channels of 8-bit numbers"."""
    with opened(path) as file:
        tags = TiffImagePlugin.ImageFileDirectory_v2(file.read(8))
        file.seek(tags.next)
        tags.load(file)
    bits, channels = tags[TiffImagePlugin.BITSPERSAMPLE][0], tags.get(TiffImagePlugin.SAMPLESPERPIXEL, 1)
    number = _TIFF_KINDS.get(tags.get(TiffImagePlugin.SAMPLEFORMAT, (1,))[0], "")
    return f"of {channels} channel{'s' if channels > 1 else ''} of {bits}-bit {number}numbers"
