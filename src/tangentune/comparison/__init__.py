"""Methods side by side on the same pictures: accuracy, calibration, time and memory."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tangentune.comparison.run import compare
    from tangentune.comparison.store import Comparison
    from tangentune.comparison.summary import Cell, Row

__all__ = ["Cell", "Comparison", "Row", "compare"]

_HOMES = {"Cell": "summary", "Comparison": "store", "Row": "summary", "compare": "run"}


def __getattr__(name: str) -> Any:
    """Import on first use: the command line reads the names of the methods here, and must not wait for torch."""
    if name in _HOMES:
        return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
