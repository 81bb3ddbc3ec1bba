"""What the page shows, from a session: every part of it as plain values for the templates.

All of it is calculated on the session's thread, and each answer of the server holds every part, so that no two parts
ever show different versions of the model.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Self, final

from tangentune.errors import InputError
from tangentune.reports.explanation import EDGE
from tangentune.workbench.choices import Choice, choices_of
from tangentune.workbench.corrections import label_rows, labels_table
from tangentune.workbench.desk import Desk
from tangentune.workbench.edits import Edit
from tangentune.workbench.figures import Figures
from tangentune.workbench.originals import picture_size
from tangentune.workbench.session import Session
from tangentune.workbench.suspects import SuspectRow

SHOWN = 24  # suspects
_LONGEST = 500  # characters of a field
_MOST_TILES = 120  # of a cell of the confusion
_ODDS = 5
_DEPTHS = 10  # shades of the confusion
TABS = {"suspects": "Suspects", "map": "Map", "confusion": "Confusion", "groups": "Groups", "new": "New pictures"}
_HINTS = {
    "map": "Draw around pictures to relabel or forget them together.",
    "groups": "Choose a group to relabel or forget it whole.",
}
# Name, what it means, whether more of it is better (None: neither), how it is written.
_TILES = {
    "accuracy": ("Leave-one-out accuracy", "The share of pictures that the model calls by their label when it is "
                 "fitted without them. In brackets the range in which it lies with 95 % certainty.", True),
    "calibration_error": ("Calibration error", "How far the probabilities are from the share of answers that are "
                          "right, on average.", False),
    "log_loss": ("Log-loss", "The mean surprise at a label, in nats; lower is better.", False),
    "n": ("Pictures", "", None),
}  # fmt: skip


@final
@dataclass(frozen=True)
class View:
    """What a person is looking at; it travels with every request, so that the server need not remember it.

    Example:
        >>> View.of({"tab": "map", "number": "3", "set_text": "cam1"}).text
        'cam1'
    """

    tab: str = "suspects"
    label: str = ""  # only pictures of this label
    suggestion: str = ""  # only pictures that the others call so
    text: str = ""  # only pictures with this in the name
    number: int = -1  # the chosen picture
    cell: str = ""  # of the confusion: row and column
    pattern: str = ""  # of groups

    @classmethod
    def of(cls, given: Mapping[str, str]) -> Self:
        """From the fields of a request; a filter that a person sets goes before the former one."""

        def text(name: str) -> str:
            return given.get(f"set_{name}", given.get(name, ""))[:_LONGEST]

        try:
            number = int(text("number") or -1)
        except ValueError:
            raise InputError("a picture is named by its number") from None
        tab = text("tab") or "suspects"
        if tab not in TABS:
            raise InputError(f"there is no view {tab!r}")
        return cls(tab, text("label"), text("suggestion"), text("text"), number, text("cell"), text("pattern"))


def whole(desk: Desk, session: Session, view: View, said: str = "") -> dict[str, Any]:
    """Every part of the page."""
    names = session.classes
    view = _standing(session, view, names)
    rows = suspects(desk, session, view)
    if view.tab == "suspects" and view.number < 0 and rows:
        view = replace(view, number=rows[0].number)
    now, steps = session.figures(), session.timeline()
    taken = [step for step in steps if step.done]
    shown = {
        "name": desk.name,
        "said": said,
        "view": view,
        "state": {"version": session.version, **asdict(view)},
        "tabs": TABS.items(),
        "names": names,
        "now": now,
        "opening": session.opening,
        "tiles": [_tile(key, now, session.opening) for key in _TILES],
        "classes": session.class_figures(),
        "timeline": [
            {"words": step.words, "when": step.when, "accuracy": step.figures.accuracy, "undone": not step.done,
             "now": bool(taken) and step is taken[-1], "saved": step.saved}
            for step in steps
        ],
        "unsaved": session.unsaved,
        "undoable": session.unsaved > 0,
        "redoable": session.can_redo > 0,
        "pending": session.pending(),
        "notice": session.notice,
        "skipped": len(desk.skipped),
        "suspects": rows,
        "edge": EDGE,
        "bulk": bulk(session, (), "", _HINTS.get(view.tab, "")),
    }  # fmt: skip
    if view.tab == "confusion":
        shown |= _confusion(session, view, names)
    if view.tab == "groups":
        shown["groups"] = session.groups(view.pattern) if view.pattern else []
    return shown | picture(desk, session, view, rows)


def _standing(session: Session, view: View, names: list[str]) -> View:
    """The view without what is not there any more, after edits or of an old page."""
    label, suggestion = (name if name in names else "" for name in (view.label, view.suggestion))
    number = view.number if view.number in session.numbers else -1
    return replace(view, label=label, suggestion=suggestion, number=number)


def suspects(desk: Desk, session: Session, view: View) -> list[SuspectRow]:
    """The worst labels that the view's filters let through, skipped ones left out."""
    chosen = {"label": view.label or None, "suggestion": view.suggestion or None, "text": view.text}
    found = session.suspects(SHOWN + len(desk.skipped), **chosen)
    return [row for row in found if row.number not in desk.skipped][:SHOWN]


def _tile(key: str, now: Figures, then: Figures) -> dict[str, str]:
    """One figure, and how far it has come since the opening."""
    name, what, more = _TILES[key]
    value, before = getattr(now, key), getattr(then, key)
    moved = value - before
    if key == "n":
        shown, change = f"{value:,}", f"{moved:+,}"
    elif key == "log_loss":
        shown, change = f"{value:.3f}", f"{moved:+.3f}"
    else:
        shown, change = f"{100 * value:.1f} %", f"{100 * moved:+.1f}"
    still = not change.strip("+-0.")
    kind = "" if still or more is None else "better" if (moved > 0) == more else "worse"
    spread = "{:.1f} to {:.1f}".format(*(100 * end for end in now.interval)) if key == "accuracy" else ""
    told = "±0" if still else change.replace("-", "−")
    return {"key": key, "name": name, "what": what, "value": shown, "range": spread, "change": told, "kind": kind}


def _confusion(session: Session, view: View, names: list[str]) -> dict[str, Any]:
    """The table, and the pictures of the chosen cell."""
    table, shown = session.confusion(), dict[str, Any]()
    rows = []
    for i, line in enumerate(table.tolist()):
        total = max(sum(line), 1)
        cells = [
            {"count": count, "right": i == j, "name": names[j], "deep": max(1, round(_DEPTHS * count / total)),
             "chosen": view.cell == f"{i}-{j}"}
            for j, count in enumerate(line)
        ]  # fmt: skip
        rows.append({"name": names[i], "index": i, "cells": cells})
    shown["confusion"], shown["members"] = rows, None
    row, _, column = view.cell.partition("-")
    if row.isdecimal() and column.isdecimal() and max(int(row), int(column)) < len(names):
        label, predicted = names[int(row)], names[int(column)]
        numbers = session.members(label, predicted)
        if numbers:
            tiles = [{"number": one, "id": name, "label": label} for one, name in _ids(session, numbers[:_MOST_TILES])]
            shown["members"] = {"label": label, "predicted": predicted, "pictures": tiles}
            shown["bulk"] = bulk(session, numbers[:_MOST_TILES], predicted)
    return shown


def _ids(session: Session, numbers: Iterable[int]) -> list[tuple[int, str]]:
    """Numbers with the names of their pictures."""
    names = dict(zip(session.numbers, session.estimator.ids_, strict=True))
    return [(number, names[number]) for number in numbers]


def bulk(session: Session, numbers: Iterable[int], label: str, hint: str = "") -> dict[str, Any]:
    """Several pictures chosen together, and what it would do to relabel or to forget them."""
    known, names = set(session.numbers), session.classes
    chosen = tuple(number for number in dict.fromkeys(numbers) if number in known)
    label = label if label in names else names[0]
    shown: dict[str, Any] = {"numbers": chosen, "label": label, "hint": hint}
    if chosen:
        shown["relabel"] = previewed(session, Edit("relabel", chosen, label))
        shown["forget"] = previewed(session, Edit("forget", chosen))
    return shown


def previewed(session: Session, edit: Edit) -> str:
    """What an edit would do to the leave-one-out accuracy; of one that is impossible, that."""
    try:
        after = session.preview(edit)
    except InputError as error:
        return str(error)
    before = session.figures()
    return f"{100 * before.accuracy:.1f} → {100 * after.accuracy:.1f} %"


def picture(desk: Desk, session: Session, view: View, rows: list[SuspectRow]) -> dict[str, Any]:
    """The chosen picture: how it looks, what is said of it, and what can be done."""
    if view.number not in session.numbers:
        return {"one": None}
    one = session.answer(view.number)
    likeliest = next(name for name, _ in one.without_label if name != one.label)
    suggestion = next((row.suggestion for row in rows if row.number == one.number), likeliest)
    with_it = dict(one.with_label or ())
    odds = [{"name": name, "without": share, "with_it": with_it.get(name, 0.0)} for name, share in one.without_label]
    own = [row for row in odds[_ODDS:] if row["name"] == one.label]
    return {
        "one": one,
        "image": _image(desk, session, one.number, one.id),
        "odds": [*odds[:_ODDS], *own],
        "suggestion": suggestion,
        "previewed": False,
        "choices": choices_of(one, suggestion, session.classes),
    }


def alone(desk: Desk, session: Session, view: View) -> dict[str, Any]:
    """The chosen picture without the rest of the page."""
    shown = {"edge": EDGE, "notice": session.notice, "pending": session.pending(), "names": session.classes}
    return shown | picture(desk, session, view, suspects(desk, session, view))


def with_previews(session: Session, number: int, suggestion: str) -> dict[str, Any]:
    """The choices about one picture, each with what it would do."""
    one, names = session.answer(number, 1), session.classes
    if suggestion not in names or suggestion == one.label:
        suggestion = next(name for name, _ in one.without_label if name != one.label)

    def tried(choice: Choice) -> Choice:
        return choice if choice.edit is None else replace(choice, preview=previewed(session, choice.edit))

    found = [tried(choice) for choice in choices_of(one, suggestion, names)]
    return {"one": one, "suggestion": suggestion, "names": names, "choices": found, "previewed": True}


def _image(desk: Desk, session: Session, number: int, name: str) -> dict[str, Any]:
    """Where the picture is shown from, and in words at which size."""
    path = desk.originals.path(name)
    if path is not None and (size := picture_size(path)) is not None:
        return {"address": f"original/{number}", "tiny": max(size) < 200, "words": f"{size[0]} × {size[1]} pixels"}
    try:
        height, width = session.picture(number).shape[:2]
    except InputError as error:
        return {"address": f"picture/{number}.png", "tiny": True, "words": str(error)}
    words = f"{width} × {height} pixels, as the model sees it"
    if desk.originals.folder is None:
        words += "; start with --originals DIR to see the original"
    else:
        words += "; the original is not in its folder any more, or cannot be read"
    return {"address": f"picture/{number}.png", "tiny": True, "words": words}


def corrections(session: Session) -> str:
    """Every label as it is now, as a CSV table."""
    return labels_table(label_rows(session.estimator.fitted_))


def arrived(desk: Desk, session: Session) -> dict[str, Any]:
    """The new pictures with what the model says of each; asked again only after an edit."""
    shown = []
    for one in desk.tray.all():
        known = desk.said.get(one.number)
        if known is None or known[0] != session.version:
            known = desk.said[one.number] = session.version, session.answer_new(one.pictures)[0]
        shown.append({"number": one.number, "name": one.name, "answer": known[1]})
    return {"arrived": shown}


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


def following(before: list[int], edited: Iterable[int], after: list[int]) -> int:
    """Which picture of a list comes next after some were edited: the first behind them that is still there."""
    gone = set(edited)
    at = max((i for i, number in enumerate(before) if number in gone), default=-1)
    left = set(after) - gone
    onward = [number for number in [*before[at + 1 :], *reversed(before[: max(at, 0)])] if number in left]
    return (onward or [number for number in after if number in left] or [-1])[0]
