"""Every error a user can cause, each with a sentence that says what to do; and foreign text put into words."""

from __future__ import annotations

import unicodedata
from importlib.metadata import version

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
