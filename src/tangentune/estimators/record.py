"""Typed records in JSON: every entry with its type and range, checked before anything is made of it.

A checksum only says that nobody changed a file by accident; whoever writes a file writes its checksum too.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from tangentune.errors import is_number

Check = Callable[[Any, str], None]  # of a value and of where it stands
_LARGEST = 1e300  # JSON holds numbers that no float does


class Misfit(ValueError):
    """An entry that is missing, unknown, of another type, or out of its range."""


def is_a(what: str, fits: Callable[[Any], bool]) -> Check:
    """Values that pass a test; `what` ends the Misfit's sentence "it must be ..."."""

    def check(value: Any, where: str) -> None:
        if not fits(value):
            shown = repr(value)
            raise Misfit(f"{where} is {shown if len(shown) < 60 else f'{shown[:57]}...'}; it must be {what}")

    return check


def number(low: float = -_LARGEST, high: float = _LARGEST) -> Check:
    """A finite number in a range."""
    return is_a(f"a number from {low:g} to {high:g}", lambda v: is_number(v) and low <= v <= high)


def whole(low: int, high: int) -> Check:
    """A whole number in a range."""
    return is_a(f"a whole number from {low} to {high}", lambda v: type(v) is int and low <= v <= high)


def one_of(*known: Any) -> Check:
    """One of some values."""
    return is_a(" or ".join(map(repr, known)), lambda v: any(type(v) is type(one) and v == one for one in known))


def maybe(check: Check) -> Check:
    """None, or what passes a check."""
    return lambda value, where: None if value is None else check(value, where)


def each(check: Check, low: int = 0, high: int = 2**40) -> Check:
    """A list of so many values that pass a check."""
    of_length = is_a(f"a list of {low} to {high} entries", lambda v: isinstance(v, list) and low <= len(v) <= high)

    def every(value: Any, where: str) -> None:
        of_length(value, where)
        for i, one in enumerate(value):
            check(one, f"{where}[{i}]")

    return every


def by_name(check: Check) -> Check:
    """An object whose values pass a check, by any names."""

    def every(value: Any, where: str) -> None:
        AN_OBJECT(value, where)
        for name, one in value.items():
            check(one, f"{where}.{name}")

    return every


def fields(required: Mapping[str, Check], optional: Mapping[str, Check] | None = None, *, more: bool = False) -> Check:
    """An object with these entries; with others only if there may be `more`."""
    known = {**required, **(optional or {})}

    def check(value: Any, where: str) -> None:
        AN_OBJECT(value, where or "it")
        inside = f"{where}." if where else ""
        missing, unknown = required.keys() - value.keys(), value.keys() - known.keys()
        if missing or (unknown and not more):
            raise Misfit(f"{inside}{min(missing or unknown)} is {'missing' if missing else 'unknown'}")
        for name in known.keys() & value.keys():
            known[name](value[name], inside + name)

    return check


def anything(value: Any, where: str) -> None:
    """For entries that are checked where they are used."""


AN_OBJECT = is_a("an object", lambda v: isinstance(v, dict))
TEXT = is_a("text", lambda v: isinstance(v, str))
FLAG = is_a("true or false", lambda v: isinstance(v, bool))
PLAIN = is_a("a number, a truth value, text or null", lambda v: v is None or isinstance(v, bool | int | float | str))
DIGEST = is_a("a sha256", lambda v: isinstance(v, str) and re.fullmatch("[0-9a-f]{64}", v) is not None)
NUMBER, POSITIVE, LEAST0, COUNT = number(), number(1e-300), number(0), whole(0, 2**60)
