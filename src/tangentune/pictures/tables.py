"""Tables of pictures: a CSV file or a data frame, with a column of pictures and perhaps one of labels."""

from __future__ import annotations

import csv
import io
import os
import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tangentune.errors import InputError, PictureError
from tangentune.pictures.label_sets import SEPARATOR, label_sets, sets_of_names, split_texts
from tangentune.pictures.names import readable

_PATHS = ("image", "img", "picture", "file", "filename", "filepath", "imagepath", "imgpath", "imagefile")
# Under which names people keep them; the first goes before the others.
_KNOWN = {
    "path": ("path", *_PATHS),
    "label": ("label", "class", "target", "category", "classname", "labelname", "labels"),
    "id": ("id", "path", *_PATHS),
}
Row = tuple[int, list[str]]
# The table of labels that a model exports, which is read back as pictures and their current labels.
LABELS = ("id", "original", "current", "when", "why")
_MARKS = {"0": False, "1": True, "0.0": False, "1.0": True, "false": False, "true": True}
_FORMULA = re.compile(r"'*[=+\-@\t\r]")  # what a spreadsheet would calculate, or one quoted before


@dataclass(frozen=True)
class Columns:
    """Which columns of a table hold the pictures and their labels; None: those of a usual name."""

    path: str | None = None
    label: str | None = None
    separator: str | None = None  # between several labels in one cell; None where there is one
    marks: tuple[str, ...] = ()  # columns of 0 and 1, each of which is a label

    def __post_init__(self) -> None:
        if self.marks and (self.label or self.separator):
            raise InputError("label_columns are labels by themselves; leave out label_column and label_separator")


USUAL = Columns()


def read_table(
    path: Path, need_labels: bool, columns: Columns
) -> tuple[list[str], list[str], list[str] | NDArray[Any] | None]:
    """The pictures of a table, relative to its folder: `(file names, ids as written, labels as text, sets or None)`."""
    name = readable(path)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise PictureError(f"{name} is not UTF-8 text (see byte {error.start}); save it as CSV UTF-8.") from error
    except OSError as error:
        raise PictureError(f"{name} cannot be read as a table: {error}.") from error
    ids, labels = read_columns(text, name, need_labels, columns)
    paths = [_resolve(path.parent, one) for one in ids]
    if not need_labels or not (columns.marks or columns.separator):
        return paths, ids, labels if all(labels) else None
    if columns.marks:
        return paths, ids, _read_marks(text, name, columns.marks)
    return paths, ids, sets_of_names(split_texts(labels, columns.separator or SEPARATOR))


def read_columns(
    text: str, name: str, need_labels: bool = True, columns: Columns = USUAL, key: str = "path"
) -> tuple[list[str], list[str]]:
    """Two columns of a table: the pictures, by "path" or "id", and their labels, empty where they are not needed."""
    rows = _split_rows(text, name)
    header = [cell.strip() for cell in rows[0][1]] if rows else []
    ours = tuple(header) == LABELS and (columns.path, columns.label, columns.marks) == (None, None, ())
    where = f"The first line of {name}"
    one_label = need_labels and not columns.marks
    first, second = (0, 2) if ours else _find(header, where, columns, one_label, key)
    needed = 2 if one_label and not columns.separator else 1  # several labels may be none
    ids, labels = [], []
    for line, cells in rows[1:]:
        padded = [unquoted(cell.strip()) if ours else cell.strip() for cell in cells] + [""] * len(header)
        given = (key, padded[first]), ("label", "" if second is None else padded[second])
        for what, found in given[:needed]:
            if not found:
                raise PictureError(f"Line {line} of {name} has no {what}.")
        ids.append(given[0][1])
        labels.append(given[1][1])
    if not ids:
        raise PictureError(f"{name} lists no picture below its first line.")
    return ids, labels


def _read_marks(text: str, name: str, wanted: Sequence[str]) -> NDArray[Any]:
    """Columns of 0 and 1, each of them a label that is called as its column."""
    (_, first), *rows = _split_rows(text, name)
    header, where = [cell.strip() for cell in first], f"The first line of {name}"
    places = [_named_column(header, one, where) for one in wanted]
    matrix = np.zeros((len(rows), len(places)), np.bool_)
    for i, (line, cells) in enumerate(rows):
        for j, place in enumerate(places):
            cell = cells[place].strip() if place < len(cells) else ""
            if cell.lower() not in _MARKS:
                raise PictureError(
                    f"Line {line} of {name} has {cell!r} under {header[place]}; a label is 0 or 1 there."
                )
            matrix[i, j] = _MARKS[cell.lower()]
    return label_sets(matrix, [header[place] for place in places])


def _named_column(header: Sequence[str], name: str, where: str) -> int:
    """Position of the one column of a name."""
    found = [i for i, cell in enumerate(header) if cell == name.strip()]
    if len(found) != 1:
        problem = f"names no column {name}" if not found else f"names the column {name} {len(found)} times"
        raise PictureError(f"{where} {problem}; it names {', '.join(header) or 'nothing'}.")
    return found[0]


def quoted(cell: str) -> str:
    """A cell that no spreadsheet takes for a formula: an apostrophe before what begins like one, numbers as they are.

    Example:
        >>> quoted("=1+1"), quoted("-0.5"), unquoted(quoted("=1+1"))
        ("'=1+1", '-0.5', '=1+1')
    """
    return f"'{cell}" if _FORMULA.match(cell) and not re.fullmatch(r"[-+]?[\d.]+(?:e[-+]?\d+)?", cell) else cell


def unquoted(cell: str) -> str:
    """What `quoted` was given."""
    return cell[1:] if cell[:1] == "'" and _FORMULA.match(cell) else cell


def table_text(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A CSV table, no cell of it a formula."""
    out = io.StringIO(newline="")
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(header)
    writer.writerows([quoted(cell) for cell in row] for row in rows)
    return out.getvalue()


def label_cells(path: Path, columns: Columns) -> tuple[list[str], list[list[str]], int, str]:
    """A whole table that can be read: header, cells of every picture, position of the label column, and separator."""
    text, name = path.read_text(encoding="utf-8-sig"), readable(path)
    (_, header), *rows = _split_rows(text, name)
    if tuple(header) == LABELS and columns == USUAL:
        return header, [cells for _, cells in rows], 2, _separator(text)
    second = _find([cell.strip() for cell in header], f"The first line of {name}", columns, True)[1]
    assert second is not None
    return header, [cells for _, cells in rows], second, _separator(text)


def is_frame(source: Any) -> bool:
    """Whether this is a data frame: of pandas, polars or another package that has columns with names."""
    return hasattr(source, "columns") and len(getattr(source, "shape", ())) == 2 and hasattr(source, "__getitem__")


def read_frame(frame: Any, need_labels: bool, columns: Columns) -> tuple[list[Any], Any]:
    """The column of pictures (paths, or pictures themselves) of a data frame, and that of their labels or None."""
    keys = list(getattr(frame, "column_names", None) or frame.columns)  # the former of a table of Arrow's
    one_label = need_labels and not columns.marks
    first, second = _find([str(key).strip() for key in keys], "The data frame", columns, one_label)
    entries = np.asarray(frame[keys[first]], dtype=object).tolist()
    for row, entry in enumerate(entries):
        if (
            entry is None
            or isinstance(entry, float)
            or type(entry).__name__ == "NAType"
            or (isinstance(entry, str) and not entry.strip())
        ):
            raise PictureError(f"Row {row} of the data frame has no {str(keys[first]).strip()}.")
    if not entries:
        raise PictureError("The data frame lists no picture.")
    if not need_labels:
        return entries, None
    if columns.marks:
        names = [str(key).strip() for key in keys]
        return entries, frame[[keys[_named_column(names, one, "The data frame")] for one in columns.marks]]
    assert second is not None
    if columns.separator:
        return entries, split_texts(map(str, frame[keys[second]]), columns.separator)
    return entries, frame[keys[second]]


def _find(
    header: Sequence[str], where: str, columns: Columns, need_labels: bool, key: str = "path"
) -> tuple[int, int | None]:
    """Positions of the pictures and, if there is one, of the labels; what is needed and not there is an error."""
    first, second = find_column(header, key, where, columns.path), None
    if need_labels or columns.label is not None or [_spelled(name) for name in header].count("label") == 1:
        second = find_column(header, "label", where, columns.label)
    if first is None or (need_labels and second is None):
        missing = [key] * (first is None) + ["label"] * (need_labels and second is None)
        wanted = f"column{'s' * (len(missing) > 1)} {' and '.join(missing)}"
        message = f"{where} must name the {wanted}; it names {', '.join(header) or 'nothing'}."
        others = ", ".join(f"{what}_column=..." for what in missing)
        named = header and key == "path"  # those of other tables have no option
        raise PictureError(f"{message} Name others with load_pictures(..., {others})." if named else message)
    return first, second


def find_column(header: Sequence[str], what: str, where: str, given: str | None = None) -> int | None:
    """Position of the column "path", "label" or "id": the one that is named, or else bears a usual name; or None.

    Case does not count, nor how words are joined. A named one that is not there, or several, is a PictureError.
    """
    spelled = [_spelled(cell) for cell in header]
    if given is None:
        usual = _KNOWN[what]
        found = [i for i, name in enumerate(spelled) if name == usual[0]]
        found = found or [i for i, name in enumerate(spelled) if name in usual]
    else:
        found = [i for i, cell in enumerate(header) if cell == given.strip()]
        found = found or [i for i, name in enumerate(spelled) if name == _spelled(given)]
        if not found:
            raise PictureError(f"{where} names no column {given}; it names {', '.join(header) or 'nothing'}.")
    if len(found) > 1:
        named = ", ".join(header[i] for i in found)
        message = f"{where} names {len(found)} columns that may be the {what}: {named}; "
        message += (
            "keep one." if what == "id" else f'say which with load_pictures(..., {what}_column="{header[found[0]]}").'
        )
        if len({spelled[i] for i in found}) == 1:
            message = f"{where} names the column {header[found[0]].lower()} {len(found)} times; keep one."
        raise PictureError(message)
    return found[0] if found else None


def _spelled(name: str) -> str:
    return name.lower().translate(dict.fromkeys(map(ord, " _-")))


def _split_rows(text: str, name: str) -> list[Row]:
    """Line number and cells of every line of a table that is not blank: comma, semicolon or tab may separate."""
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=_separator(text), strict=True)
    try:
        return [(reader.line_num, cells) for cells in reader if any(cell.strip() for cell in cells)]
    except csv.Error as error:
        raise PictureError(f"{name} cannot be read as a table: {error}.") from error


def _separator(text: str) -> str:
    return max(",;\t", key=text.partition("\n")[0].count)


def _resolve(folder: Path, text: str) -> str:
    """The file that a table entry means: also one written on Windows, or with accents put together otherwise."""
    forms = [text, text.replace("\\", "/")]
    forms += [unicodedata.normalize(form, forms[-1]) for form in ("NFC", "NFD")]
    paths = [os.path.join(folder, os.path.expanduser(form)) for form in dict.fromkeys(forms)]
    there = (path for path in paths if len(paths) == 1 or os.path.exists(path))
    return next(there, paths["\\" in text])
