"""Selections as files: JSON or Parquet with one content, one schema and a digest over that content.

The document is a mapping as `manifest.schema.json` describes it. Both forms hold the same document and the same
digest. Neither holds a time or anything of the machine, so the same selection gives the same bytes.
"""

from __future__ import annotations

import hashlib
import json
import os
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

from tangentune._files import replaced_file
from tangentune.errors import MissingExtraError, StoreError
from tangentune.pictures.names import readable

FORMAT, VERSION = "tangentune-selection", 1
SUFFIXES = (".json", ".parquet")
_COLUMNS = ("id", "sha256", "class", "score", "weight", "target", "shares")
_ROWS_BY_SCHEMA = 2000  # .1 ms each; the digest covers every row anyhow


def content_digest(document: dict[str, Any]) -> str:
    """The sha256 of a document without its own "digest", as compact JSON with sorted keys.

    Example:
        >>> content_digest({"b": 1, "a": 2.5, "digest": "x"}) == content_digest({"a": 2.5, "b": 1})
        True
    """
    content = {key: value for key, value in document.items() if key != "digest"}
    return hashlib.sha256(_compact(content).encode("ascii")).hexdigest()


def check_manifest_path(path: str | os.PathLike[str]) -> Path:
    """Refuse, before the work, a path that no manifest could be written to.

    Raises:
        StoreError: the ending is neither .json nor .parquet, or the place cannot be written to.
        MissingExtraError: .parquet without pyarrow.
    """
    target = Path(path).expanduser()
    if target.suffix.lower() not in SUFFIXES:
        message = f"a manifest ends in .json or .parquet, which {readable(target)} does not"
        raise StoreError(message)
    if target.suffix.lower() == ".parquet":
        _pyarrow()
    check_place(target)
    return target


def check_place(target: Path) -> None:
    """Refuse, before the work, a path that no file could be written to.

    Raises:
        StoreError: it is a folder, or lies where nothing can be made.
    """
    if target.is_dir():
        message = f"cannot write {readable(target)}: it is a folder"
        raise StoreError(message)
    above = next(folder for folder in target.absolute().parents if folder.exists())
    if not above.is_dir() or not os.access(above, os.W_OK | os.X_OK):
        reason = "may not be written to" if above.is_dir() else "is no folder"
        message = f"cannot write {readable(target)}: {readable(above)} {reason}"
        raise StoreError(message)


def write_document(path: str | os.PathLike[str], document: dict[str, Any]) -> Path:
    """Write a document, whole or not at all, with its digest; the ending says in which form.

    Args:
        path: ends in .json or .parquet; folders above it are made.
        document: as the schema says, without "format", "format_version" and "digest".

    Raises:
        StoreError: the place cannot be used.
        MissingExtraError: .parquet without pyarrow.
    """
    target = check_manifest_path(path)
    content = {**document, "format": FORMAT, "format_version": VERSION}
    content["digest"] = content_digest(content)
    with replaced_file(target) as part:
        if target.suffix.lower() == ".parquet":
            _write_parquet(part, content)
        else:
            part.write_text(_lines(content), encoding="ascii", newline="\n")
    return target


def read_document(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read a document back, after checking version, digest and schema.

    Raises:
        StoreError: the file is missing, damaged, edited, of a newer version, or no manifest at all.
        MissingExtraError: .parquet without pyarrow.
    """
    target = Path(path).expanduser()
    name = readable(target)
    if not target.is_file():
        what = "it is a folder" if target.is_dir() else "there is no such file"
        message = f"cannot read the manifest {name}: {what}"
        raise StoreError(message)
    parquet = target.suffix.lower() == ".parquet"
    try:
        document = _read_parquet(target) if parquet else json.loads(target.read_bytes())
    except (OSError, ValueError, TypeError, AttributeError, NotImplementedError) as error:
        if isinstance(error, OSError) and error.strerror:  # pyarrow's own, of damaged files, have none
            message = f"cannot read the manifest {name}: {error.strerror}"
        else:
            message = f"{name} is damaged or no manifest: it cannot be read as {'Parquet' if parquet else 'JSON'}"
        raise StoreError(message) from error
    _check(document, name)
    return document


def _check(document: Any, name: str) -> None:
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        message = f"{name} is no manifest of tangentune; `tangentune select` writes them"
        raise StoreError(message)
    version = document.get("format_version")
    if isinstance(version, int) and version > VERSION:
        message = (
            f"{name} has format version {version}, but this tangentune reads up to {VERSION}; "
            "update it with: pip install --upgrade tangentune"
        )
        raise StoreError(message)
    if document.get("digest") != content_digest(document):
        message = f"{name} is damaged or was edited by hand: it does not match its own digest; select again"
        raise StoreError(message)
    problem = _schema_problem(document)
    if problem:
        message = f"{name} is no valid manifest: {problem}"
        raise StoreError(message)


def _schema_problem(document: dict[str, Any]) -> str:
    """The first thing that the schema does not allow, with its place; empty when there is none."""
    from jsonschema.exceptions import best_match

    rows = document.get("pictures")
    shown = {**document, "pictures": rows[:_ROWS_BY_SCHEMA]} if isinstance(rows, list) else document
    error = best_match(_validator().iter_errors(shown))
    if error is None:
        return ""
    place = error.json_path.removeprefix("$").removeprefix(".")
    text = error.message if len(error.message) < 200 else f"it breaks the rule {error.validator!r}"
    return f"{place}: {text}" if place else text


@cache
def _validator() -> Any:
    from jsonschema import Draft202012Validator

    text = (Path(__file__).parent / "manifest.schema.json").read_text(encoding="utf-8")
    return Draft202012Validator(json.loads(text))


def _compact(value: Any) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def _lines(content: dict[str, Any]) -> str:
    """JSON with one line a picture, so that two selections can be compared line by line."""
    head = {key: value for key, value in content.items() if key != "pictures"}
    text = json.dumps(head, sort_keys=True, indent=2, allow_nan=False)
    rows = ",\n".join(f"    {_compact(row)}" for row in content["pictures"])
    return f'{text.removesuffix(chr(10) + "}")},\n  "pictures": [\n{rows}\n  ]\n}}\n'


def _pyarrow() -> ModuleType:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        message = 'Parquet needs pyarrow, which is not installed; run: pip install "tangentune[parquet]", or use .json'
        raise MissingExtraError(message) from error
    return pyarrow


def _write_parquet(path: Path, content: dict[str, Any]) -> None:
    """One row a picture, shares as a list in the order of the target's classes; the rest as metadata."""
    arrow, rows = _pyarrow(), content["pictures"]
    names = content["target"]["classes"]
    columns: dict[str, Any] = {key: [row[key] for row in rows] for key in _COLUMNS}
    columns["shares"] = [[row["shares"].get(name, 0.0) for name in names] for row in rows]
    words, number = arrow.string(), arrow.float64()
    kinds = (words, words, words, number, number, words, arrow.list_(number))
    head = {key: value for key, value in content.items() if key != "pictures"}
    schema = arrow.schema(list(zip(_COLUMNS, kinds, strict=True)), metadata={FORMAT: _compact(head)})
    arrow.parquet.write_table(arrow.table(columns, schema=schema), path, compression="zstd")


def _read_parquet(path: Path) -> Any:
    arrow = _pyarrow()
    table = arrow.parquet.read_table(path, use_threads=False)
    known = (table.schema.metadata or {}).get(FORMAT.encode())
    if known is None:
        return None
    head = json.loads(known)
    if tuple(table.column_names) != _COLUMNS or not isinstance(head, dict):
        message = "columns missing"
        raise ValueError(message)
    names, rows = head.get("target", {}).get("classes", []), table.to_pylist()
    for row in rows:
        pairs = zip(names, row["shares"] or (), strict=True)
        row["shares"] = {name: share for name, share in pairs if share != 0}
    return {**head, "pictures": rows}
