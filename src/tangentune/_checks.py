"""Checks of settings that users fill in: one sentence names the setting, its value and what it may be."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from numbers import Integral, Real
from typing import Any, get_args, get_type_hints

from tangentune.errors import InputError


def check_words(settings: Any) -> None:
    """Every field of a `Literal` of words holds one of them, every `bool` field a bool; else an InputError names it."""
    for name, annotation in get_type_hints(type(settings)).items():
        value, choices = getattr(settings, name), get_args(annotation)
        if any(isinstance(choice, str) for choice in choices) and value not in choices:
            raise InputError(f"{name} is {value!r}; use one of {', '.join(map(repr, choices))}")
        if annotation is bool and not isinstance(value, bool):
            raise InputError(f"{name} is {value!r}; it is True or False")


def check_counts(settings: Any, lowest: Mapping[str, int]) -> None:
    """Fields that are whole numbers of at least the given ones; an InputError names the first that is not."""
    for name, low in lowest.items():
        value = getattr(settings, name)
        if isinstance(value, bool) or not isinstance(value, Integral) or value < low:
            raise InputError(f"{name} is {value!r}; it must be a whole number of at least {low}")


def check_numbers(settings: Any, names: Iterable[str], fits: Callable[[float], bool], what: str) -> None:
    """Fields that are finite numbers and pass a test; `what` ends the InputError's sentence "it must be ..."."""
    for name in names:
        value = getattr(settings, name)
        if not is_number(value) or not math.isfinite(value) or not fits(value):
            raise InputError(f"{name} is {value!r}; it must be {what}")


def check_positive(settings: Any, *names: str) -> None:
    """Fields that are numbers above 0; an InputError names the first that is not."""
    check_numbers(settings, names, lambda value: value > 0, "a number above 0")


def check_shares(settings: Any, *names: str) -> None:
    """Fields in [0, 1); an InputError names the first that is not."""
    check_numbers(settings, names, lambda value: 0 <= value < 1, "at least 0 and below 1")


def is_number(value: object) -> bool:
    """Whether this is a real number, also of numpy, and no bool."""
    return isinstance(value, Real) and not isinstance(value, bool)


def number(value: Any) -> float | int | None:
    """The number that a value is, be it numpy's or a tensor's; None for whatever is none, truth values included.

    Example:
        >>> number(True), number("2"), number(2.5)
        (None, None, 2.5)
    """
    if getattr(value, "ndim", None) == 0 and hasattr(value, "item"):
        value = value.item()
    if isinstance(value, bool) or not isinstance(value, float | Integral):
        return None
    return value if isinstance(value, float) else int(value)


def listed(value: Any) -> list[Any] | None:
    """The entries of a list, tuple, array or tensor; None for one thing alone, text included."""
    value = value.tolist() if hasattr(value, "tolist") else value
    return list(value) if isinstance(value, Iterable) and not isinstance(value, str | bytes | Mapping) else None


def whole(value: Any) -> int | None:
    """The whole number that a value is, 20.0 included; None for whatever is none.

    Example:
        >>> whole(20.0), whole(20.5), whole(True)
        (20, None, None)
    """
    found = number(value)
    if isinstance(found, float):
        return int(found) if found.is_integer() else None
    return found
