"""How the files of each package become labelled pictures: one function a set.

Each takes the folders of the set's unpacked archives and gives (picture, class, group) for every picture: pictures of
one size as PIL images or arrays, and a group that must stay together, "" for a picture on its own.
"""

from __future__ import annotations

import gzip
import io
import pickle
import re
import sqlite3
import zipfile
from collections.abc import Iterable
from contextlib import closing
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageChops, ImageDraw, ImageFont, ImageOps

Found = list[tuple[Any, str, str]]


def _square(image: Image.Image, size: int) -> Image.Image:
    """On white, cut to what is drawn, scaled, and padded to a square: many drawings are small in a corner of a page."""
    image = image.convert("RGBA")
    page = Image.new("RGBA", image.size, "white")
    page.alpha_composite(image)
    drawing = page.convert("RGB")
    box = ImageChops.difference(drawing, Image.new("RGB", drawing.size, "white")).getbbox()
    drawing = drawing.crop(box) if box else drawing
    drawing = ImageOps.contain(drawing, (size - 8, size - 8), Image.Resampling.LANCZOS)
    square = Image.new("RGB", (size, size), "white")
    square.paste(drawing, ((size - drawing.width) // 2, (size - drawing.height) // 2))
    return square


class ArraysOnly(pickle.Unpickler):
    """A pickle of arrays, and of nothing else: any other class is refused."""

    def find_class(self, module: str, name: str) -> Any:
        """What the pickle names, where it is part of an array."""
        allowed = {"ndarray": np.ndarray, "dtype": np.dtype, "_reconstruct": np.zeros(1).__reduce__()[0]}
        if module.split(".")[0] != "numpy" or name not in allowed:
            raise pickle.UnpicklingError(f"the file holds {module}.{name}, where only arrays were expected")
        return allowed[name]


def animals(folder: Path) -> Found:
    """1,000 silhouettes of each of ten animals, 28 px; the order of the classes is the package's description's."""
    names = ("bear", "bird", "cat", "cow", "dog", "elephant", "giraffe", "horse", "sheep", "zebra")
    parts = folder / "animal_mnist" / "data" / "Animal_MNIST"
    with gzip.open(parts / "animal_data_version_3.gz") as file:
        pictures = ArraysOnly(file).load()
    with gzip.open(parts / "animal_label_version_3.gz") as file:
        labels = ArraysOnly(file).load()
    return [(picture, names[label], "") for picture, label in zip(pictures, labels, strict=True)]


def clip_art(folder: Path) -> Found:
    """Drawings by folder, without two folders of signs, which look alike whatever they show."""
    root, places = folder / "usr" / "share" / "openclipart" / "png", {"flags": "signs_and_symbols/flags"}
    found: Found = []
    for label in ("animals", "flags", "food", "geography", "office", "people", "tools", "transportation"):
        paths = sorted((root / places.get(label, label)).rglob("*.png"))
        shown = [path for path in paths if not {"aiga-symbols", "roadsigns"} & set(path.parts)]
        found += [(_square(Image.open(path), 128), label, "") for path in shown]
    return found


def deep_sky(pictures: Path, catalogue: Path) -> Found:
    """Photographs named by object, and what kind of object each is, from OpenNGC; one picture of an object."""
    kinds = {
        "G": "galaxy",
        "GPair": "galaxy",
        "GCl": "globular cluster",
        "OCl": "open cluster",
        "PN": "planetary nebula",
    }
    kinds |= dict.fromkeys(("Cl+N", "HII", "Neb", "RfN", "EmN", "SNR"), "other nebula")
    folder, found = pictures / "usr" / "share" / "stellarium" / "nebulae" / "default", {}
    with closing(sqlite3.connect(f"file:{catalogue / 'pyongc' / 'ongc.db'}?mode=ro", uri=True)) as table:
        for path in sorted(folder.glob("*.png")):
            if (named := re.match(r"(n|m|ic)(\d+)", path.stem)) is None:
                continue
            number, column = int(named[2]), "messier" if named[1] == "m" else "name"
            key = {"n": f"NGC{number:04d}", "ic": f"IC{number:04d}", "m": f"{number:03d}"}[named[1]]
            row = table.execute(f"SELECT name, type FROM objects WHERE {column} = ?", (key,)).fetchone()
            if row is not None and row[1] in kinds and row[0] not in found:
                picture = Image.open(path).convert("RGB").resize((128, 128), Image.Resampling.LANCZOS)
                found[row[0]] = (picture, kinds[row[1]], "")
    return list(found.values())


def digits(folder: Path) -> Found:
    """A sheet of 50 rows of 100 digits of 20 px; five rows a digit."""
    sheet = np.asarray(Image.open(folder / "usr/share/doc/opencv-doc/examples/data/digits.png").convert("L"))
    pictures = sheet.reshape(50, 20, 100, 20).swapaxes(1, 2).reshape(-1, 20, 20)
    return [(picture, str(i // 500), "") for i, picture in enumerate(pictures)]


def furniture(folder: Path) -> Found:
    """Icons of the catalogues of 3D models, by the category that each catalogue states; doors are all too alike."""
    left_out, found = {"Doors and windows", "Miscellaneous", "Vehicles", "Staircases"}, []
    for path in sorted((folder / "usr" / "share" / "sweethome3d" / "furniture").glob("*.sh3f")):
        with zipfile.ZipFile(path) as catalogue:
            text = catalogue.read("PluginFurnitureCatalog.properties").decode("latin1")
            category, icon = (dict(re.findall(rf"(?m)^{word}#(\d+)=(.*?)\s*$", text)) for word in ("category", "icon"))
            for key in sorted(category.keys() & icon.keys(), key=int):
                if category[key] not in left_out:
                    image = Image.open(io.BytesIO(catalogue.read(icon[key].lstrip("/"))))
                    found.append((_square(image, 128), category[key].lower(), ""))
    return found


def letters(folder: Path) -> Found:
    """A to J in 465 fonts, 64 px; fonts whose names begin with the same four letters are taken for one family."""
    return [
        (glyph, letter, path.stem.lower()[:4])
        for path in sorted(folder.rglob("*.ttf"))
        for letter, glyph in _glyphs(ImageFont.truetype(str(path), 96), "ABCDEFGHIJ", 64)
    ]


def _glyphs(font: ImageFont.FreeTypeFont, letters: str, size: int) -> Iterable[tuple[str, Image.Image]]:
    for letter in letters:
        left, top, right, bottom = (round(edge) for edge in font.getbbox(letter))
        side = max(right - left, bottom - top) + 16
        if min(right - left, bottom - top) > 3:  # not an empty place in the font
            page = Image.new("L", (side, side))
            place = ((side - left - right) / 2, (side - top - bottom) / 2)
            ImageDraw.Draw(page).text(place, letter, fill=255, font=font)
            yield letter, page.resize((size, size), Image.Resampling.LANCZOS)


def solar_cells(folder: Path) -> Found:
    """Cells that the experts were sure of: probability of a defect 0 or 1; the 401 in between are left out.

    The files stand in the order of the 44 modules they were cut from, about 60 cells each, which nothing names: 60
    files in turn, of one type of cell, are taken for a module. Their borders may be some cells off.
    """
    root, found, module = folder / "elpv_dataset" / "data", [], 0
    rows = [line.split() for line in (root / "labels.csv").read_text().splitlines()]
    for _, run in groupby(rows, key=itemgetter(2)):
        for i, (name, share, _) in enumerate(run):
            module += i % 60 == 0
            if (label := {0.0: "functional", 1.0: "defective"}.get(float(share))) is not None:
                picture = Image.open(root / name).convert("L").resize((128, 128), Image.Resampling.LANCZOS)
                found.append((picture, label, f"module {module}"))
    return found


def stamps(folder: Path) -> Found:
    """Things to put into a drawing, most of them photographs that were cut out, by the topmost folder."""
    root = folder / "usr" / "share" / "tuxpaint" / "stamps"
    return [
        (_square(Image.open(path), 128), label, "")
        for label in ("animals", "food", "household", "plants", "town", "vehicles")
        for path in sorted((root / label).rglob("*.png"))
    ]
