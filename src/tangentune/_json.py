"""Plain JSON values from the numbers, arrays and paths that Python code holds."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from tangentune.errors import InputError


def plain(value: Any, where: str = "value") -> Any:
    """JSON's own types from common Python and numpy ones; anything else is refused by its place.

    Args:
        value: nested mappings, lists, tuples, arrays, numpy numbers, paths, str, int, float, bool, None.
        where: name of the value, for the error.

    Raises:
        InputError: a key is no string, a number is not finite, or a type has no JSON form.

    Example:
        >>> plain({"shape": (2, 3), "scale": np.float32(0.5)})
        {'shape': [2, 3], 'scale': 0.5}
    """
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str):
                message = f"{where} has the key {key!r}, but JSON keys are strings"
                raise InputError(message)
        return {k: plain(v, f"{where}.{k}") for k, v in value.items()}
    if isinstance(value, np.ndarray | np.generic):
        return plain(value.tolist(), where)
    if isinstance(value, list | tuple):
        return [plain(v, f"{where}[{i}]") for i, v in enumerate(value)]
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, float) and not np.isfinite(value):
        message = f"{where} is {value}, which JSON cannot hold; use None instead"
        raise InputError(message)
    if value is None or isinstance(value, bool | int | float | str):
        return value
    message = f"{where} is of type {type(value).__name__}, which JSON cannot hold"
    raise InputError(message)
