"""What the views in the middle show beside the suspects: map, confusion, groups, new pictures."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from tangentune.errors import InputError
from tangentune.estimators.summary import nice_bytes
from tangentune.pictures.tables import Columns, read_columns
from tangentune.reports.tables import most_confused
from tangentune.workbench.choices import bulk
from tangentune.workbench.desk import Desk
from tangentune.workbench.session import Session
from tangentune.workbench.view import View

_MOST_TILES = 120  # of a cell of the confusion
_DEPTHS = 10  # shades of the confusion
_MOST_CLASSES, _OF_MANY = 30, 20  # of more classes than the first, so many are shown: the most confused


def points(session: Session, view: View) -> dict[str, Any]:
    """The map for the canvas: plain numbers only, classes by their position; `out` is what the filters hold back."""
    names = session.classes
    columns, called = {name: i for i, name in enumerate(names)}, set(session.numbers)
    if view.suggestion in columns:
        called = {number for name in names for number in session.members(name, view.suggestion)}
    wanted = view.text.casefold()
    return {
        "points": [
            {
                "number": one.number,
                "x": one.x,
                "y": one.y,
                "label": columns[one.label],
                "margin": one.margin,
                "error": one.error / 2,
                "wrong": one.margin < 0,
                "out": one.number not in called or view.label not in ("", one.label) or wanted not in one.id.casefold(),
            }
            for one in session.layout()
        ]
    }


def confusion(session: Session, view: View) -> dict[str, Any]:
    """The table, of many classes the most confused, and the pictures of the chosen cell."""
    table, names = session.confusion(), session.classes
    columns = most_confused(table, _MOST_CLASSES, _OF_MANY)
    rows = []
    for i in columns:
        total = max(int(table[i].sum()), 1)
        cells = [
            {
                "count": int(table[i, j]),
                "right": i == j,
                "name": names[j],
                "column": j,
                "deep": max(1, round(_DEPTHS * int(table[i, j]) / total)),
                "chosen": view.cell == f"{i}-{j}",
            }
            for j in columns
        ]
        rows.append({"name": names[i], "index": i, "cells": cells})
    shown: dict[str, Any] = {"confusion": rows, "left_out": len(names) - len(columns), "members": None}
    row, _, column = view.cell.partition("-")
    if row.isdecimal() and column.isdecimal() and max(int(row), int(column)) < len(names):
        label, predicted = names[int(row)], names[int(column)]
        numbers = session.members(label, predicted)[:_MOST_TILES]
        if numbers:
            tiles = [{"number": one, "id": name, "label": label} for one, name in _ids(session, numbers)]
            shown["members"] = {"label": label, "predicted": predicted, "pictures": tiles}
            shown["bulk"] = bulk(session, numbers, predicted)
    return shown


def _ids(session: Session, numbers: Iterable[int]) -> list[tuple[int, str]]:
    """Numbers with the names of their pictures."""
    names = dict(zip(session.numbers, session.estimator.ids_, strict=True))
    return [(number, names[number]) for number in numbers]


def groups(desk: Desk, session: Session, view: View) -> dict[str, Any]:
    """Groups by a pattern in the names, or by the table that was given; a sentence where they cannot be made."""
    try:
        if view.pattern:
            return {"groups": session.groups(view.pattern), "group_problem": ""}
        if desk.table:
            return {"groups": session.groups(table=desk.table), "group_problem": ""}
    except InputError as error:
        return {"groups": [], "group_problem": str(error)}
    return {"groups": [], "group_problem": ""}


def group_table(text: str, name: str, column: str) -> dict[str, str]:
    r"""Groups by the names of pictures, from a CSV table with a column for each.

    Example:
        >>> group_table("id,camera\na.png,north\n", "cameras.csv", "camera")
        {'a.png': 'north'}
    """
    return dict(zip(*read_columns(text, name, columns=Columns(label=column), key="id"), strict=True))


def arrived(desk: Desk, session: Session) -> dict[str, Any]:
    """The new pictures with what the model says of each; asked again only after an edit."""
    shown = []
    for one in desk.tray.waiting(session.numbers):
        known = desk.said.get(one.number)
        if known is None or known[0] != session.version:
            known = desk.said[one.number] = session.version, session.answer_new(one.pictures)[0]
        shown.append({"number": one.number, "name": one.name, "answer": known[1]})
    job, offered = desk.rows, session.notice is None and session.rows_help
    return {
        "arrived": shown,
        "working": job if job.running else None,
        "rows": nice_bytes(session.rows_bytes()) if offered and not job.running else "",
    }
