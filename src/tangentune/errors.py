"""Errors a user can cause, each with a sentence that says what to do; checks of settings; foreign text in words."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Callable, Iterable, Mapping
from importlib.metadata import version
from numbers import Integral, Real
from typing import Any, get_args, get_type_hints

_JOINERS = "\u200c\u200d"  # invisible, but parts of words and emoji


def shown(text: str) -> str:
    r"""Foreign text as it may stand on a terminal: control characters, direction overrides and surrogates escaped.

    Example:
        >>> shown("a\x1b[31m\u202e.png")
        'a\\x1b[31m\\u202e.png'
    """
    if text.isprintable():
        return text
    unsafe = ("Cc", "Cf", "Cs", "Zl", "Zp")
    escape = {c: ascii(c)[1:-1] for c in set(text) if unicodedata.category(c) in unsafe and c not in _JOINERS}
    return text.translate(str.maketrans(escape))


class TangentuneError(Exception):
    """Base of all errors raised on purpose by tangentune."""

    def __str__(self) -> str:
        """The sentence; names in it may come from anywhere, so nothing in it steers a terminal."""
        return "\n".join(map(shown, super().__str__().split("\n")))


class InputError(TangentuneError, ValueError):
    """The caller's argument or data cannot be used as given."""


class PictureError(InputError):
    """A picture, folder or label list cannot be read; the message names the file."""


class BackboneError(InputError):
    """A network cannot serve as a backbone (unknown, damaged, random in its output)."""


class LayerError(InputError):
    """A parameter's per-sample gradient cannot be computed correctly; the message names it."""


class SingularError(InputError):
    """A matrix is singular beyond what float64 resolves; more damping is the usual cure."""


class DivergedError(InputError):
    """Training ended in NaN or infinity; a lower rate is the usual cure."""


class StaleError(InputError):
    """An edit was meant for a model that has changed since; look again and repeat it."""


class BudgetError(TangentuneError, MemoryError):
    """The work cannot be done inside the memory budget, whatever the tiling."""


class StoreError(TangentuneError, ValueError):
    """A saved model directory is missing, damaged or of a newer version."""


class MissingExtraError(TangentuneError, ImportError):
    """An optional package is absent; the message holds the command that installs it."""


def diverged(epoch: int) -> DivergedError:
    """What to raise when fine-tuning diverges in an epoch, counted from 1."""
    return DivergedError(f"fine-tuning diverged in epoch {epoch}; lower the learning rate")


def cannot_import(package: str, error: BaseException, command: str) -> MissingExtraError:
    """What to raise when an optional package, which `command` installs, is absent, or broken beside its neighbours."""
    if isinstance(error, ModuleNotFoundError):
        missing = "is not installed" if error.name == package else f"needs {error.name}"
        return MissingExtraError(f"{package} {missing}; run: {command}")
    again = command.replace("install", "install --force-reinstall --no-deps", 1)  # leaves torch alone
    broken = f"{package} is installed but cannot be imported beside torch {version('torch')} ({first_line(error)})"
    return MissingExtraError(f"{broken}; run: {again}")


def first_line(error: BaseException) -> str:
    """What an error, also one of somebody else's, says in its first line; its type where it says nothing."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


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


def nice_number(value: float, digits: int = 3, sign: bool = False) -> str:
    """A number as people write it: so many digits at least, no power of ten between 1e-4 and 1e15.

    Example:
        >>> nice_number(220.4, 2), nice_number(0.012345), nice_number(-3.0, sign=True), nice_number(2e-7)
        ('220', '0.0123', '-3', '2e-07')
    """
    size = abs(float(f"{value:.{digits}g}"))  # rounded first: 9.99 may be 10.0
    plus = "+" if sign else ""
    if not 1e-4 <= size < 1e15:
        return f"{value:{plus}.{digits}g}"
    decimals = max(0, digits - 1 - math.floor(math.log10(size)))
    text = f"{value:{plus}.{decimals}f}"
    return text.rstrip("0").rstrip(".") if decimals else text


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
