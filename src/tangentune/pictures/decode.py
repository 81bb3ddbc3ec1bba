"""One picture file (or Pillow picture) to one uint8 array; without torch, so that decoding workers start quickly."""

from __future__ import annotations

import math
import warnings
from typing import IO

import numpy as np
from numpy.typing import NDArray
from PIL import Image, TiffImagePlugin

from tangentune.errors import InputError
from tangentune.pictures.contract import INTERPOLATIONS, DataContract
from tangentune.pictures.cost import LimitedFile, limit_cost, without_text
from tangentune.pictures.encoded import Encoded, name_of
from tangentune.pictures.unreadable import UnusableError, allowed_formats, file_problem, reason

RESAMPLING = {name: Image.Resampling[name.upper()] for name in INTERPOLATIONS}
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
# Pixels of a picture on its way to the size of the network, which a strip much longer than wide exceeds by far.
MOST_PIXELS = 1 << 26
_BAND_PIXELS = 1 << 22
_FILTER_REACH = 3  # pixels to each side that the widest of the filters looks at
# By what the pixels of a PNG are multiplied when they are read.
_CLEAR_SCALES = {"1": 255.0, "L;2": 85.0, "L;4": 17.0, "RGB;16B": 1 / 256}


def picture_shape(contract: DataContract, files: bool = False) -> tuple[int, int, int]:
    """The contract's `(channels, height, width)`; an InputError if no pictures, or no `files`, can be brought to it."""
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
    clear = _clear_colour(image)
    image.load()
    turn = _TURNS.get(_orientation(image))
    if clear is not None:
        image = image.copy()
        image.info["transparency"] = clear
    image = _convert(image, "L" if channels == 1 else "RGB")
    if turn is not None:
        image = image.transpose(turn)
    pixels = np.array(_resize(image, contract)).reshape(rows, columns, channels)  # a copy: Pillow's is read-only
    return np.ascontiguousarray(pixels.transpose(2, 0, 1))


def _resize(image: Image.Image, contract: DataContract) -> Image.Image:
    """At the contract's size; no picture between takes more than `MOST_PIXELS`, or a strip would need gigabytes."""
    _, rows, columns = picture_shape(contract)
    by, (width, height) = RESAMPLING[contract.interpolation], image.size
    new_w, new_h, left, top = resize_plan(width, height, contract)
    if new_w * new_h > MOST_PIXELS:  # only the part that is kept
        across, first = _part(width, new_w, left, columns)
        down, upper = _part(height, new_h, top, rows)
        image = image.crop((first[0], upper[0], first[1], upper[1]))
        return image.resize((columns, rows), by, (across[0], down[0], across[1], down[1]))
    if new_w * height > MOST_PIXELS:  # Pillow scales rows first
        image = image.resize((width, new_h), by)
    return image.resize((new_w, new_h), by).crop((left, top, left + columns, top + rows))


def _part(size: int, new: int, start: int, count: int) -> tuple[tuple[float, float], tuple[int, int]]:
    """Of one side scaled to `new`, the source of the pixels that are kept: in a cut from it, and where to cut."""
    scale = size / new
    low, high = start * scale, (start + count) * scale
    reach = math.ceil(_FILTER_REACH * max(scale, 1)) + 1
    cut = max(0, math.floor(low) - reach), min(size, math.ceil(high) + reach)
    return (low - cut[0], high - cut[0]), cut


def try_decode(picture: Encoded, contract: DataContract) -> NDArray[np.uint8] | str:
    """One encoded picture as a `(channels, height, width)` uint8 array at the contract's size, or why there is none, as
    text.

    Of animated or many-page files the first frame is taken. Large JPEGs are decoded at a fraction of their size where
    that still leaves three times the pixels needed. A contract that is not one for pictures is an InputError.
    """
    problem = file_problem(picture)
    if problem is not None:
        return problem
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # odd EXIF and TIFF tags, which do not touch the pixels
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            try:
                return _decode(picture, LimitedFile(picture), contract)
            except InputError:
                raise  # the contract is wrong, not the file
            except ValueError:  # Pillow's limits for the texts in a PNG, which say nothing about the pixels
                if (rest := without_text(picture)) is None:
                    raise
                return _decode(picture, rest, contract)
    except InputError:
        raise
    except Exception as error:  # decoders raise nearly every type on damaged files
        return reason(picture, error)


def _decode(picture: Encoded, file: IO[bytes], contract: DataContract) -> NDArray[np.uint8]:
    _, rows, columns = picture_shape(contract)
    # The longer side both ways, because the EXIF orientation may still swap them.
    need = math.ceil(_DRAFT_GAP * max(rows, columns) / (contract.crop or 1))
    with file, Image.open(file, formats=allowed_formats(name_of(picture))) as image:
        limit_cost(image, picture, need)
        if image.format in ("JPEG", "MPO"):  # its decoder may shrink a large picture
            image.draft(None, (need, need))
        return prepare_picture(image, contract)


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(_ORIENTATION_TAG, 1))
    except Exception:  # a damaged EXIF block says nothing about the pixels
        return 1


def _convert(image: Image.Image, mode: str) -> Image.Image:
    """Any Pillow mode to "RGB" or "L"; a large picture in bands, because what stands between takes much more room."""
    if image.mode == mode and not image.has_transparency_data:
        return image
    depth, rows = _depth(image), max(1, _BAND_PIXELS // image.width)
    if rows >= image.height:
        return _convert_band(image, mode, depth)
    whole = Image.new(mode, image.size)
    for top in range(0, image.height, rows):
        box = 0, top, image.width, min(top + rows, image.height)
        whole.paste(_convert_band(image.crop(box), mode, depth), box)
    return whole


def _convert_band(image: Image.Image, mode: str, depth: tuple[float, bool]) -> Image.Image:
    if image.mode.startswith("I") or image.mode == "F":
        return _deep_to_eight_bit(image, *depth).convert(mode)
    if image.mode == "La":
        image = image.convert("LA")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB").convert(mode) if image.mode not in ("1", "L") else image.convert(mode)


def _clear_colour(image: Image.Image) -> int | tuple[int, ...] | None:
    """The colour of a PNG, not yet decoded, that stands for transparent, where Pillow leaves it at the file's depth."""
    tiles, colour = getattr(image, "tile", None), image.info.get("transparency")
    if image.format != "PNG" or not tiles or colour is None:
        return None
    scale = _CLEAR_SCALES.get(tiles[0][3])
    if scale is None or isinstance(colour, bytes):
        return None
    return int(colour * scale) if isinstance(colour, int) else tuple(int(part * scale) for part in colour)


def _depth(image: Image.Image) -> tuple[float, bool]:
    """The value of full light of deep grey, and whether light is counted from white (some TIFF files)."""
    tags = getattr(image, "tag_v2", {})
    bits = tags.get(TiffImagePlugin.BITSPERSAMPLE, (16,))[0]
    full = 1.0 if image.mode == "F" else 4095.0 if bits == 12 else 65535.0
    return full, tags.get(TiffImagePlugin.PHOTOMETRIC_INTERPRETATION) == 0


def _deep_to_eight_bit(image: Image.Image, full: float, inverted: bool) -> Image.Image:
    """16-bit and floating-point grey to 8-bit grey by full scale, never by the picture's own range."""
    pixels, clear = np.asarray(image), image.info.get("transparency")
    low, high = pixels.min(), pixels.max()
    if not (low >= 0 and high <= full):  # written so that NaN is refused too
        kind = "floating-point" if image.mode == "F" else "32-bit"
        raise UnusableError(f"its {kind} pixels go from {low:g} to {high:g}, not 0 to {full:g}; rescale them first")
    grey = np.rint((full - pixels if inverted else pixels) * (255.0 / full)).astype(np.uint8)
    return Image.fromarray(grey if clear is None else np.where(pixels == clear, np.uint8(255), grey))
