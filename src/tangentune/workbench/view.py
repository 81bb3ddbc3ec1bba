"""What a person is looking at: the view, and the filters, the chosen picture and the cell that travel with it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self, final

from tangentune.errors import InputError

TABS = {"suspects": "Suspects", "map": "Map", "confusion": "Confusion", "groups": "Groups", "new": "New pictures"}
NEXT = "next"  # of unlabelled pictures, where a folder of them was named
_LONGEST = 500  # characters of a field


@final
@dataclass(frozen=True)
class View:
    """What a person is looking at; it travels with every request, so that the server need not remember it."""

    tab: str = "suspects"
    label: str = ""  # only pictures of this label
    suggestion: str = ""  # only pictures that the others call so
    text: str = ""  # only pictures with this in the name
    number: int = -1  # the chosen picture
    cell: str = ""  # of the confusion: row and column
    pattern: str = ""  # of groups
    pool: int = -1  # the unlabelled picture that is looked at

    @classmethod
    def of(cls, given: Mapping[str, str]) -> Self:
        """From the fields of a request; a filter that a person sets goes before the former one."""

        def text(name: str) -> str:
            return given.get(f"set_{name}", given.get(name, ""))[:_LONGEST]

        try:
            number, pool = (int(text(name) or -1) for name in ("number", "pool"))
        except ValueError:
            raise InputError("a picture is named by its number") from None
        tab = text("tab") or "suspects"
        if tab not in (*TABS, NEXT):
            raise InputError(f"there is no view {tab!r}")
        return cls(tab, text("label"), text("suggestion"), text("text"), number, text("cell"), text("pattern"), pool)
