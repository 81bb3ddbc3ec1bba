"""One picture file (or Pillow picture) to one uint8 array; without torch, so that decoding workers start quickly."""

from __future__ import annotations

import errno
import math
import os
import stat
import warnings
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tangentune.errors import InputError
from tangentune.pictures.contract import INTERPOLATIONS, DataContract

RESAMPLING = {name: Image.Resampling[name.upper()] for name in INTERPOLATIONS}
# Picture formats only: Pillow also opens PostScript (by running Ghostscript), video and science containers.
_FORMATS = ["JPEG", "MPO", "PNG", "GIF", "BMP", "DIB", "TIFF", "WEBP", "AVIF", "HEIF", "JPEG2000", "PPM", "PCX", "QOI"]
_HEIF_BRANDS = (b"heic", b"heix", b"hevc", b"heim", b"heis", b"mif1", b"msf1")
_ORIENTATION_TAG = 0x0112
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# A JPEG may be decoded at 1/2, 1/4 or 1/8 as long as it stays this many times larger than needed.
_DRAFT_GAP = 3


def picture_shape(contract: DataContract, files: bool = False) -> tuple[int, int, int]:
    """The contract's `(channels, height, width)`, checked to be one that pictures can be brought to.

    Raises:
        InputError: the network takes vectors, or the interpolation or crop is not a known one; with `files`, also when
            it takes neither 1 nor 3 channels.
    """
    size = contract.input_size
    if size is None or len(size) != 3 or min(size) < 1:
        problem = (
            f"This backbone's input_size is {size}, so it takes no pictures; "
            "make it with Backbone(module, input_size=(3, height, width), ...)."
        )
    elif contract.interpolation not in RESAMPLING:
        problem = f"Unknown interpolation {contract.interpolation!r}; use one of {', '.join(RESAMPLING)}."
    elif contract.crop is not None and not 0 < contract.crop <= 1:
        problem = f"The contract's crop is {contract.crop}; it must be None or a share in (0, 1]."
    elif files and size[0] not in (1, 3):
        problem = f"The backbone takes {size[0]} channels, but picture files have 1 or 3; pass arrays."
    else:
        return size[0], size[1], size[2]
    raise InputError(problem)


def resize_plan(width: int, height: int, contract: DataContract) -> tuple[int, int, int, int]:
    """How a picture comes to the contract's size: `(new width, new height, left, top)` of resize, then cut.

    With `crop=None` the picture is squashed. With a share `c` it is scaled, keeping its shape, until it just covers
    size / c (rounded down, as timm does), and the centre is taken.
    """
    _, rows, columns = picture_shape(contract)
    if contract.crop is None:
        return columns, rows, 0, 0
    need_w, need_h = (math.floor(side / contract.crop + 1e-6) for side in (columns, rows))
    if need_w * height >= need_h * width:
        new_w, new_h = need_w, max(need_h, need_w * height // width)
    else:
        new_w, new_h = max(need_w, need_h * width // height), need_h
    return new_w, new_h, round((new_w - columns) / 2), round((new_h - rows) / 2)


def prepare_picture(image: Image.Image, contract: DataContract) -> NDArray[np.uint8]:
    """A Pillow picture of any mode as a `(channels, height, width)` uint8 array at the contract's size.

    Turned by its EXIF orientation, transparency laid on white, 16-bit grey scaled to 8 bits, grey repeated over three
    channels or colour reduced to luma as the network needs. Colour profiles are not applied.
    """
    channels, rows, columns = picture_shape(contract, files=True)
    image.load()
    turn = _TURNS.get(_orientation(image))
    image = _convert(image, "L" if channels == 1 else "RGB")
    if turn is not None:
        image = image.transpose(turn)
    new_w, new_h, left, top = resize_plan(image.width, image.height, contract)
    image = image.resize((new_w, new_h), RESAMPLING[contract.interpolation])
    image = image.crop((left, top, left + columns, top + rows))
    pixels = np.array(image).reshape(rows, columns, channels)  # a copy: Pillow's own may not be written to
    return np.ascontiguousarray(pixels.transpose(2, 0, 1))


def try_decode(path: str | os.PathLike[str], contract: DataContract) -> NDArray[np.uint8] | str:
    """One picture file as a `(channels, height, width)` uint8 array at the contract's size, or why there is none.

    The reason is text: it is missing, empty, truncated, over-large or no picture. Of animated or many-page files the
    first frame is taken. Large JPEGs are decoded at a fraction of their size where that still leaves three times the
    pixels needed.

    Raises:
        InputError: the contract is not one for pictures.
    """
    problem = file_problem(path)
    if problem is not None:
        return problem
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # odd EXIF and TIFF tags, which do not touch the pixels
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path, formats=_allowed_formats(os.fspath(path))) as image:
                _draft(image, contract)
                return prepare_picture(image, contract)
    except InputError:
        raise  # the contract is wrong, not the file
    except Exception as error:  # decoders raise nearly every type on damaged files
        return _reason(path, error)


def file_problem(path: str | os.PathLike[str]) -> str | None:
    """Why a path cannot be a picture file, found without opening it; None when it may be one."""
    try:
        info = os.stat(path)
    except FileNotFoundError:
        broken = os.path.islink(path)
        return "it is a symbolic link to a file that does not exist" if broken else "the file does not exist"
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


def _draft(image: Image.Image, contract: DataContract) -> None:
    """Let a JPEG decoder shrink a large picture; does nothing for other formats."""
    if getattr(image, "format", None) not in ("JPEG", "MPO"):
        return
    _, rows, columns = picture_shape(contract)
    # The longer side both ways, because the EXIF orientation may still swap them.
    need = math.ceil(_DRAFT_GAP * max(rows, columns) / (contract.crop or 1))
    image.draft(None, (need, need))


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(_ORIENTATION_TAG, 1))
    except Exception:  # a damaged EXIF block says nothing about the pixels
        return 1


def _convert(image: Image.Image, mode: str) -> Image.Image:
    """Any Pillow mode to "RGB" or "L"."""
    if image.mode.startswith("I") or image.mode == "F":
        return _deep_to_eight_bit(image).convert(mode)
    if image.mode == "La":
        image = image.convert("LA")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB").convert(mode) if image.mode not in ("1", "L") else image.convert(mode)


def _deep_to_eight_bit(image: Image.Image) -> Image.Image:
    """16-bit and floating-point grey to 8-bit grey by full scale, never by the picture's own range."""
    pixels = np.asarray(image)
    low, high = pixels.min(), pixels.max()
    full = 1.0 if image.mode == "F" else 65535.0
    if not (low >= 0 and high <= full):  # written so that NaN is refused too
        kind = "floating-point" if image.mode == "F" else "32-bit"
        message = f"its {kind} pixels go from {low:g} to {high:g}, not 0 to {full:g}; rescale them first"
        raise _UnusableError(message)
    return Image.fromarray(np.rint(pixels * (255.0 / full)).astype(np.uint8))


class _UnusableError(Exception):
    """A picture that was read but cannot be used; the text is the reason."""


@lru_cache(maxsize=1)
def _known_formats() -> tuple[str, ...]:
    try:
        import pillow_heif  # pyright: ignore[reportMissingImports]

        pillow_heif.register_heif_opener()
    except ImportError:
        pass  # HEIC pictures then get a message that names the package
    Image.init()
    return tuple(name for name in _FORMATS if name in Image.OPEN)


def _allowed_formats(path: str) -> tuple[str, ...]:
    # TGA has no signature: nearly any bytes would pass for one, so only its own ending admits it.
    return (*_known_formats(), "TGA") if path.lower().endswith(".tga") else _known_formats()


def _reason(path: str | os.PathLike[str], error: Exception) -> str:
    """Why decoding failed, in words that say what to do."""
    text = str(error).strip().rstrip(".")
    if isinstance(error, (Image.DecompressionBombError, Image.DecompressionBombWarning)):
        pixels = "".join(c for c in text.split("exceeds")[0] if c.isdigit())
        limit = f"PIL.Image.MAX_IMAGE_PIXELS = {Image.MAX_IMAGE_PIXELS}"
        return f"it is over-large ({pixels} pixels, {limit}; raise that limit if you trust the file)"
    if isinstance(error, Image.UnidentifiedImageError):
        return _what_it_is(path)
    if isinstance(error, _UnusableError):
        return text
    if "truncated" in text.lower() or isinstance(error, EOFError):
        return "the file is truncated"
    if isinstance(error, PermissionError):
        return "permission denied"
    if isinstance(error, MemoryError):
        return "there is not enough memory to decode it"
    detail = f": {text}" if text else ""
    return f"it is damaged ({type(error).__name__}{detail})"


def _what_it_is(path: str | os.PathLike[str]) -> str:
    """Say more of a file that Pillow does not know: damaged, or an impostor of a frequent kind."""
    with open(path, "rb") as file:
        head = file.read(64)
    unknown = "it is not a picture in a known format"
    if head[4:8] == b"ftyp" and head[8:12] in _HEIF_BRANDS:
        return f"{unknown} (it is HEIC, which needs one more package: pip install pillow-heif)"
    if head.startswith(b"version https://git-lfs"):
        return f"{unknown} (it is a Git LFS pointer; fetch the picture with `git lfs pull`)"
    if head.lstrip().startswith(b"<"):
        return f"{unknown} (it begins like a web page or SVG; was the download refused?)"
    for name in _known_formats():
        accept = Image.OPEN[name][1]
        if accept is not None and accept(head[:16]) is True:
            return f"it is damaged or truncated (it begins like {name}, but cannot be opened)"
    return unknown
