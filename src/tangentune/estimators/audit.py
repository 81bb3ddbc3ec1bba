"""The log of what was changed in a model after its fit: one JSON line an edit, sealed with a hash of the one before.

A line names pictures by the SHA-256 of their pixels only, so that it proves what was done without keeping what was
forgotten. The chain shows when a line was changed, taken out or put in later.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from tangentune._files import from_json
from tangentune.errors import StoreError

FIRST = "0" * 64


def entry(previous: Sequence[dict[str, Any]], edit: str, pictures: Iterable[str], **facts: Any) -> dict[str, Any]:
    """The next line of a log: the edit's name, the SHA-256 of every picture concerned, and facts JSON can hold."""
    line: dict[str, Any] = {
        "edit": edit,
        "when": datetime.now(UTC).isoformat(timespec="milliseconds"),
        "pictures": list(pictures),
        **facts,
        "previous": previous[-1]["seal"] if previous else FIRST,
    }
    return line | {"seal": seal(line)}


def seal(record: Mapping[str, Any], key: str = "seal") -> str:
    """SHA-256 of a record without its own seal (what stands under `key`), whatever the order of its keys."""
    rest = {name: value for name, value in record.items() if name != key}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def former(picture: str, label: Any) -> str:
    """Seal of the label that a picture had, given the SHA-256 of its pixels: who knows both can tell, and nobody else.

    So a correction can name the label it corrected without keeping the name of a class that is forgotten later.
    """
    return hashlib.sha256(f"{picture} {label}".encode("utf-8", "backslashreplace")).hexdigest()


def standing(lines: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """The edits of a log that are not taken back, in their order; a line "redo" brings the last one that was back."""
    left: list[dict[str, Any]] = []
    undone: list[dict[str, Any]] = []
    for line in lines:
        if line["edit"] == "undo":
            undone += [left.pop()] if left else []
        elif line["edit"] == "redo":
            left += [undone.pop()] if undone else []
        else:
            left.append(line)
            undone.clear()
    return left


def dump(lines: Iterable[dict[str, Any]]) -> str:
    """A log as text, one JSON document a line."""
    return "".join(json.dumps(line, ensure_ascii=False, allow_nan=False) + "\n" for line in lines)


def parse(text: str, where: str) -> list[dict[str, Any]]:
    """A log read back; a line that is no JSON or was changed, or a broken chain, is a StoreError naming `where`."""
    lines: list[dict[str, Any]] = []
    previous = FIRST
    rows = text.removesuffix("\n").split("\n") if text else []  # JSON escapes this one line break only
    for number, row in enumerate(rows, 1):
        line: dict[str, Any] = {}
        try:
            line = from_json(row)
            whole = line["seal"] == seal(line) and line["previous"] == previous
        except (ValueError, KeyError, TypeError):
            whole = False
        if not whole:
            raise StoreError(f"line {number} of {where} was changed or damaged, or the line before it is gone")
        previous = line["seal"]
        lines.append(line)
    return lines
