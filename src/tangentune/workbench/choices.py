"""What can be done about one picture or several, by which button and key, and what it would do to the whole model.

What an edit would do is said before it is taken: each button holds the leave-one-out accuracy before and after.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, final

from tangentune.errors import InputError
from tangentune.workbench.answers import Answer
from tangentune.workbench.edits import Edit
from tangentune.workbench.session import Session

_KEYS = 9  # classes that have one


@final
@dataclass(frozen=True)
class Choice:
    """One button."""

    id: str
    key: str  # what presses it, as JavaScript names it in small letters; "" for none
    words: str  # what it says
    values: dict[str, Any]  # what it sends
    edit: Edit | None = None  # what it would do, to be tried beforehand; None where there is nothing to try
    preview: str = ""  # what that would do to the leave-one-out accuracy, in words; "" until it is tried
    address: str = "edit"  # where it sends its values
    strong: bool = False  # the one that is suggested
    half: bool = False  # takes half a line only

    @property
    def shown(self) -> str:
        """The key as it is printed."""
        return self.key.capitalize() if len(self.key) > 1 else self.key.upper()


def choices_of(one: Answer, suggestion: str, names: list[str]) -> list[Choice]:
    """The choices about a training picture: the suggestion first, then other classes, then what leaves the label alone.

    With nine classes or fewer each has its key for good; with more the keys are of the nine likeliest for this picture.
    """
    number = one.number

    def relabel(name: str, key: str, button: str, strong: bool = False) -> Choice:
        values = {"kind": "relabel", "numbers": str(number), "to": name}
        return Choice(button, key, name, values, Edit("relabel", (number,), name), strong=strong)

    keyed = names if len(names) <= _KEYS else [name for name, _ in one.without_label[:_KEYS]]
    classes = [relabel(name, str(i), f"class-{i}") for i, name in enumerate(keyed, 1) if name != one.label]
    gone = Choice(
        "forget", "x", "Forget the picture", {"kind": "forget", "numbers": str(number)}, Edit("forget", (number,))
    )
    keep = Choice("keep", "k", "Label is right", {"kind": "keep", "numbers": str(number)}, half=True)
    skip = Choice("skip", "s", "Skip", {"number": str(number)}, address="skip", half=True)
    return [relabel(suggestion, "enter", "suggestion", strong=True), *classes, gone, keep, skip]


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
