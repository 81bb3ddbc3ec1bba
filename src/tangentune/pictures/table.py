"""A CSV table of picture paths and labels."""

from __future__ import annotations

import csv
import io
import os
from pathlib import Path

from tangentune.errors import PictureError
from tangentune.pictures.names import readable


def read_table(path: Path, need_labels: bool) -> tuple[list[str], list[str], list[str] | None]:
    """Read columns `path` and `label` of a table: `(file names, ids, labels or None)`.

    Paths are relative to the table's folder; ids are the paths as written. Comma, semicolon or tab may
    separate; further columns are ignored; labels stay text.

    Raises:
        PictureError: not a readable table, a column is missing, or a line has no path or label.
    """
    name, rows = readable(path), _rows(path)
    header = [cell.strip().lower() for cell in rows[0][1]] if rows else []
    wanted = ("path", "label") if need_labels else ("path",)
    missing = [column for column in wanted if column not in header]
    if missing:
        found = ", ".join(header) or "nothing"
        message = f"The first line of {name} must name the column {' and '.join(missing)}; it names {found}."
        raise PictureError(message)
    ids, labels = [], []
    for line, cells in rows[1:]:
        row = dict(zip(header, (cell.strip() for cell in cells), strict=False))
        for column in wanted:
            if not row.get(column):
                message = f"Line {line} of {name} has no {column}."
                raise PictureError(message)
        ids.append(row["path"])
        labels.append(row.get("label", ""))
    if not ids:
        message = f"{name} lists no picture."
        raise PictureError(message)
    return [_resolve(path.parent, text) for text in ids], ids, labels if all(labels) else None


def _rows(path: Path) -> list[tuple[int, list[str]]]:
    """Line number and cells of every line that is not blank."""
    name = readable(path)
    try:
        text = path.read_text(encoding="utf-8-sig")
        delimiter = max(",;\t", key=text.partition("\n")[0].count)
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
        return [(reader.line_num, cells) for cells in reader if any(cell.strip() for cell in cells)]
    except UnicodeDecodeError as error:
        message = f"{name} is not UTF-8 text (see byte {error.start}); save it as CSV UTF-8."
        raise PictureError(message) from error
    except (OSError, csv.Error) as error:
        message = f"{name} cannot be read as a table: {error}."
        raise PictureError(message) from error


def _resolve(folder: Path, text: str) -> str:
    """The file a table entry means; backslashes of a table written on Windows are understood."""
    path = os.path.join(folder, os.path.expanduser(text))
    if "\\" in text and not os.path.exists(path):
        return os.path.join(folder, text.replace("\\", "/"))
    return path
