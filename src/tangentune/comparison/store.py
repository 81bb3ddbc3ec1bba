"""A comparison and its file: what was compared and every cell so far; written anew, in one move, after each cell.

One process at a time may work on a file.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, final

from tangentune._files import from_json, plain, replaced_file
from tangentune.comparison.summary import Cell, Row
from tangentune.errors import StoreError, first_line
from tangentune.pictures.names import some

FILE = "comparison.json"
FORMAT, VERSION = "tangentune comparison", 1


@final
@dataclass(frozen=True)
class Comparison:
    """The result of `compare`.

    Attributes:
        settings: what all cells have in common: backbone, pictures, test part, machine.
        cells: every measurement, in the order in which they were made.
        rows: means over seeds, one row a method and number of pictures a class.
    """

    settings: dict[str, Any]
    cells: tuple[Cell, ...]
    rows: tuple[Row, ...]

    def document(self) -> dict[str, Any]:
        """All of it in plain numbers, text, lists and dicts, as its file holds it."""
        rows, cells = ([asdict(one) for one in part] for part in (self.rows, self.cells))
        head = {"format": FORMAT, "format_version": VERSION}
        return plain(head | {"settings": self.settings, "rows": rows, "cells": cells})


def prepare_folder(out: str | os.PathLike[str]) -> Path:
    """Make the folder, before any work is done; a StoreError where it cannot be made or written to."""
    folder = Path(out)
    if folder.exists() and not folder.is_dir():
        raise StoreError(f"{folder} is a file; name a directory for the comparison")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StoreError(f"cannot make the directory {folder}: {error.strerror or first_line(error)}") from error
    if not os.access(folder, os.W_OK | os.X_OK):
        raise StoreError(f"cannot write to the directory {folder}: permission denied")
    return folder


def write_comparison(folder: Path, comparison: Comparison) -> None:
    """Write the whole file in one move: a reader, or a crash, meets the old one or the new one."""
    text = json.dumps(comparison.document(), indent=1, allow_nan=False)
    with replaced_file(folder / FILE) as part:
        part.write_text(text + "\n", encoding="utf-8")


def read_cells(folder: Path, settings: dict[str, Any]) -> list[Cell]:
    """The cells measured so far; none where there is no file yet.

    A StoreError where the file is damaged, foreign, newer, or of other settings: rows of these could not be compared.
    """
    path = folder / FILE
    try:
        document = from_json(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return []
    except (OSError, ValueError) as error:
        raise StoreError(f"{path} cannot be read ({first_line(error)}); remove it or give another --out") from error
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        raise StoreError(f"{path} is not the file of a comparison; remove it or give another --out")
    if document.get("format_version") != VERSION:
        raise StoreError(f"{path} was written by a newer tangentune; use that one or give another --out")
    rows, needed = document.get("cells"), {field.name for field in fields(Cell)}
    if not isinstance(rows, list) or not all(isinstance(row, dict) and set(row) == needed for row in rows):
        raise StoreError(f"{path} is damaged: its cells are not as they were written; remove it or give another --out")
    _refuse_other_settings(path, document.get("settings"), plain(settings))
    return [Cell(**row) for row in rows]


_DIGESTS = {  # whose values say nothing to people
    "train_digest": "the training pictures or their labels",
    "test_digest": "the test pictures or their labels",
    "backbone_digest": "the network's weights",
}


def _refuse_other_settings(path: Path, then: Any, now: dict[str, Any]) -> None:
    then = then if isinstance(then, dict) else {}
    changed = [name for name in {**then, **now} if then.get(name) != now.get(name)]
    if not changed:
        return
    values = {name: f"{name} ({_short(then.get(name))} there, {_short(now.get(name))} now)" for name in changed}
    named = some([_DIGESTS.get(name, words) for name, words in values.items()], 3)
    why = f"was measured with other settings, so its rows cannot be compared with new ones: {named}"
    raise StoreError(f"{path} {why}; use the same settings, another --out, or remove it")


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 40 else f"{text[:12]}..."
