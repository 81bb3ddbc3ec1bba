"""Draw the rooms of the code from the code itself: `python docs/make_architecture.py` writes images/architecture.svg.

Rows and their order come from `.importlinter`, the words from each room's docstring, the dots from the imports: a
dot in a row says that this room uses the room of that column. All of them lie on one side of the diagonal.
"""

from __future__ import annotations

import ast
import configparser
from html import escape
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "tangentune"
TARGET = ROOT / "docs" / "images" / "architecture.svg"
GROUND = "ground"
ROW, NAME, WORDS, CELL, TOP = 40, 118, 560, 30, 92
INK, MUTED, LINE, DOT, SHADE = "#1f2933", "#616e7c", "#d9dee4", "#2f6f8f", "#f4f6f8"


def rooms() -> list[str]:
    """Packages from the top layer down; the files below them are one row."""
    contracts = configparser.ConfigParser()
    contracts.read(ROOT / ".importlinter", encoding="utf-8")
    layers = contracts["importlinter:contract:rooms"]["layers"].replace("|", " ").replace(":", " ").split()
    return [*(name for name in layers if (PACKAGE / name).is_dir()), GROUND]


def sentence(room: str) -> str:
    """What a room says of itself: the first sentence of its docstring."""
    if room == GROUND:
        return "errors.py, memory.py, _files.py: what every room may use."
    text = ast.get_docstring(ast.parse((PACKAGE / room / "__init__.py").read_text(encoding="utf-8"))) or ""
    return " ".join(text.split("\n\n")[0].split())


def uses(room: str, known: list[str]) -> set[str]:
    """Rooms that the files of a room import."""
    found: set[str] = set()
    for path in (PACKAGE / room).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("tangentune"):
                parts = (node.module or "").split(".")[1:]
                names = parts[:1] or [alias.name for alias in node.names]
                found |= {name if name in known else GROUND for name in names}
    return found - {room}


def wrapped(text: str, width: int = 92) -> list[str]:
    """At most two lines of so many letters."""
    if len(text) <= width:
        return [text]
    cut = text.rfind(" ", 0, width)
    return [text[:cut], text[cut + 1 :]]


def drawing() -> str:
    """The whole picture."""
    known = rooms()
    left = NAME + WORDS
    width, height = left + CELL * len(known) + 24, TOP + ROW * len(known) + 16
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="DejaVu Sans, Helvetica, '
        f'Arial, sans-serif" role="img" aria-label="The rooms of tangentune and which of them use which">',
        f'<rect width="{width}" height="{height}" rx="8" fill="#ffffff" stroke="{LINE}"/>',
        f'<text x="16" y="{TOP - 14}" font-size="11" fill="{MUTED}">a room uses only rooms below it</text>',
    ]
    for column, name in enumerate(known):
        where = f"translate({left + CELL * column + CELL / 2 + 4},{TOP - 10}) rotate(-50)"
        out.append(f'<text transform="{where}" font-size="11" fill="{MUTED}">{name}</text>')
    for row, room in enumerate(known):
        y = TOP + ROW * row
        if row % 2 == 0:
            out.append(f'<rect x="8" y="{y}" width="{width - 16}" height="{ROW}" rx="4" fill="{SHADE}"/>')
        out.append(f'<text x="16" y="{y + 24}" font-size="14" font-weight="bold" fill="{INK}">{room}</text>')
        parts = wrapped(sentence(room))
        for i, part in enumerate(parts):
            line = y + (24 if len(parts) == 1 else 18 + 14 * i)
            out.append(f'<text x="{NAME}" y="{line}" font-size="11" fill="{INK}">{escape(part)}</text>')
        used = uses(room, known) if room != GROUND else set()
        for column, name in enumerate(known):
            x, middle = left + CELL * column + CELL / 2, y + ROW / 2
            if name == room:
                out.append(f'<rect x="{x - 4}" y="{middle - 4}" width="8" height="8" rx="2" fill="{LINE}"/>')
            elif name in used:
                out.append(f'<circle cx="{x}" cy="{middle}" r="5" fill="{DOT}"/>')
    return "\n".join([*out, "</svg>", ""])


if __name__ == "__main__":
    TARGET.write_text(drawing(), encoding="utf-8")
