"""What the page shows, from a session: every part of it as plain values for the templates.

All of it is calculated on the session's thread, and each answer of the server holds every part, so that no two parts
ever show different versions of the model.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, replace
from typing import Any

from tangentune.errors import InputError
from tangentune.reports.explanation import EDGE
from tangentune.reports.glossary import TERMS
from tangentune.workbench import tabs
from tangentune.workbench.choices import bulk, choices_of
from tangentune.workbench.corrections import label_rows, labels_table
from tangentune.workbench.desk import Desk
from tangentune.workbench.figures import Figures
from tangentune.workbench.originals import picture_size
from tangentune.workbench.session import Session
from tangentune.workbench.suspects import SuspectRow
from tangentune.workbench.view import NEXT, TABS, View

SHOWN = 24  # suspects
_ODDS = 5
_HINTS = {
    "map": "Draw around pictures to relabel or forget them together.",
    "groups": "Choose a group to relabel or forget it whole.",
}
# Name, what it means, whether more of it is better (None: neither).
_TILES = {
    "accuracy": ("Leave-one-out accuracy", "The share of pictures that the model calls by their label when it is "
                 "fitted without them. Beside it the range in which it lies with 95 % certainty.", True),
    "calibration_error": ("Calibration error", TERMS["calibration error"], False),
    "log_loss": ("Log-loss", TERMS["log-loss"], False),
    "n": ("Pictures", "", None),
}  # fmt: skip


def whole(desk: Desk, session: Session, view: View, said: str = "") -> dict[str, Any]:
    """Every part of the page."""
    names = session.classes
    view = _standing(desk, session, view, names)
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
        "tabs": [*TABS.items(), *([] if desk.unlabelled is None else [(NEXT, "Label next")])],
        "keyed": view.tab not in ("new", NEXT),
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
        shown |= tabs.confusion(session, view)
    if view.tab == "groups":
        shown |= tabs.groups(desk, session, view)
    if view.tab == NEXT and desk.unlabelled is not None:
        shown["next"] = desk.unlabelled.shown(view.pool, session.numbers)
    if view.tab == "new":
        shown |= tabs.arrived(desk, session)
    return shown | picture(desk, session, view, rows)


def _standing(desk: Desk, session: Session, view: View, names: list[str]) -> View:
    """The view without what is not there any more, after edits or of an old page."""
    label, suggestion = (name if name in names else "" for name in (view.label, view.suggestion))
    number = view.number if view.number in session.numbers else -1
    tab = "suspects" if view.tab == NEXT and desk.unlabelled is None else view.tab
    return replace(view, tab=tab, label=label, suggestion=suggestion, number=number)


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
    shown = {"edge": EDGE, "notice": session.notice, "pending": session.pending()}
    shown |= {"names": session.classes, "keyed": True}
    return shown | picture(desk, session, view, suspects(desk, session, view))


def choosing(session: Session, number: int, suggestion: str) -> dict[str, Any]:
    """What can be done about one picture, not tried yet."""
    one, names = session.answer(number, 1), session.classes
    if suggestion not in names or suggestion == one.label:
        suggestion = next(name for name, _ in one.without_label if name != one.label)
    return {"one": one, "suggestion": suggestion, "names": names, "choices": choices_of(one, suggestion, names)}


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
    reasons = {
        number: step.edit.why
        for step in session.timeline()
        for number in step.edit.numbers
        if step.done and step.edit.why
    }
    return labels_table(label_rows(session.estimator.fitted_, reasons))


def following(before: list[int], edited: Iterable[int], after: list[int]) -> int:
    """Which picture of a list comes next after some were edited: the first behind them that is still there."""
    gone = set(edited)
    at = max((i for i, number in enumerate(before) if number in gone), default=-1)
    left = set(after) - gone
    onward = [number for number in [*before[at + 1 :], *reversed(before[: max(at, 0)])] if number in left]
    return (onward or [number for number in after if number in left] or [-1])[0]
