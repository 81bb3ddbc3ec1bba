"""Pictures of a page in lists: the first with thumbnails of their own, all others on one sheet, up to two thousand.

A page of two thousand thumbnails would have ten megabytes. One sheet has a fraction of that: small squares, compressed
together, of which every tile shows its own.
"""

from __future__ import annotations

import base64
import io
import math
import os
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final
from urllib.parse import quote

from PIL import Image

from tangentune.pictures.names import file_inside, looks_like_picture
from tangentune.pictures.pictures import Pictures
from tangentune.reports.pages import thumbnail

FIRST, MOST = 24, 2000  # tiles with a thumbnail of their own, and in all
_ROOM = 700  # bytes a picture of the sheet; the whole page has room for 1,500
_TRIES = ((64, 80), (48, 75), (32, 75), (32, 50))  # side of a square in pixels, and quality, until it fits
_GROUND = (128, 128, 128)

Link = Callable[[str], str | None]  # from the name of a picture to the address of its file


@final
@dataclass(frozen=True)
class Sheet:
    """Many pictures in one, `columns` of them in a row and as many rows."""

    uri: str
    columns: int


@final
@dataclass(frozen=True)
class Gallery:
    """Tiles of a list, the first ones to be seen at once; each has an "image" and a "link", or None for them."""

    first: list[dict[str, Any]]
    rest: list[dict[str, Any]]
    sheet: Sheet | None
    labels: list[tuple[str, int]]  # to choose from, with the number of their tiles

    def __len__(self) -> int:
        return len(self.first) + len(self.rest)


def gallery(pictures: Pictures, tiles: list[dict[str, Any]], link: Link | None = None) -> Gallery:
    """The list of tiles, each about the picture at its "position"; what has a "label" can be chosen by it."""
    first, rest = tiles[:FIRST], tiles[FIRST:]
    place = {position: i for i, position in enumerate(dict.fromkeys(tile["position"] for tile in rest))}
    sheet = _sheet(pictures, list(place))
    for tile in tiles:
        tile["link"] = link and link(pictures.ids[tile["position"]])
    for tile in first:
        tile["image"] = thumbnail(pictures, tile["position"])
    for tile in rest:
        tile["image"] = sheet and {"cell": _cell(sheet, place[tile["position"]])}
    labels = Counter(str(tile["label"]) for tile in tiles if "label" in tile)
    return Gallery(first, rest, sheet, sorted(labels.items()))


def _cell(sheet: Sheet, number: int) -> str:
    """Where a picture lies on its sheet, as CSS places a background."""
    last = max(sheet.columns - 1, 1)
    row, column = divmod(number, sheet.columns)
    return f"{100 * column / last:.4g}% {100 * row / last:.4g}%"


def _sheet(pictures: Pictures, positions: list[int]) -> Sheet | None:
    """Pictures in one, as large as there is room for; None of vectors."""
    if not positions or pictures.thumbnail(positions[0]) is None:
        return None
    columns = math.isqrt(len(positions) - 1) + 1
    content, longest = b"", max(pictures.pixels.shape[-2:])
    for side, quality in _TRIES:
        side = min(side, 16 * math.ceil(longest / 16))  # whole blocks of the compression, so that none has two pictures
        content = _pasted(pictures, positions, columns, side, quality)
        if len(content) <= _ROOM * len(positions):
            break
    return Sheet(f"data:image/jpeg;base64,{base64.b64encode(content).decode()}", columns)


def _pasted(pictures: Pictures, positions: list[int], columns: int, side: int, quality: int) -> bytes:
    sheet = Image.new("RGB", (columns * side, columns * side), _GROUND)
    for number, position in enumerate(positions):
        image = pictures.thumbnail(position)
        assert image is not None
        image = image.convert("RGB")
        scale = side / max(image.size)
        image = image.resize([max(1, round(scale * length)) for length in image.size], Image.Resampling.BOX)
        row, column = divmod(number, columns)
        sheet.paste(image, (column * side + (side - image.width) // 2, row * side + (side - image.height) // 2))
    stream = io.BytesIO()
    sheet.save(stream, "JPEG", quality=quality, optimize=True)
    return stream.getvalue()


def links(folder: str | os.PathLike[str] | None, page: str | os.PathLike[str]) -> Link | None:
    """Addresses of the files in a folder of originals, as seen from a page; a name that leads out of it has none."""
    if folder is None or not os.path.isdir(folder):
        return None
    start = Path(os.path.realpath(page)).parent

    def link(name: str) -> str | None:
        file = file_inside(folder, name)
        if file is None or not looks_like_picture(file):  # a page with a script would run where it lies
            return None
        try:
            return quote(os.path.relpath(file, start).replace(os.sep, "/").encode("utf-8", "surrogateescape"))
        except ValueError:  # on another drive
            return file.as_uri()

    return link
