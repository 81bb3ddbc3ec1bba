"""Values of any common type as JSON, and back with their types: what a saved model keeps of an estimator's options."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tangentune.errors import InputError

_KINDS: dict[str, Callable[[Any], Any]] = {
    "float": float, "dict": dict, "tuple": tuple, "device": torch.device, "path": Path,
}  # fmt: skip
KIND = "tangentune"  # the key that says of what type a value is, where JSON has no such type


def pack(value: Any, where: str) -> Any:
    """What JSON can hold, from plain values, numpy's, paths, devices, and tuples, lists and dicts of them.

    Plain values and mappings from text stay as they are; numbers of numpy become Python's, which are equal to them.
    Another type is an InputError that calls the value `where`.

    Example:
        >>> pack({0: 1.0, 1: np.float64(2.0)}, "class_weight")
        {'tangentune': 'dict', 'value': [[0, 1.0], [1, 2.0]]}
        >>> unpack(pack({0: (1.0, None)}, "any"))
        {0: (1.0, None)}
    """
    value = value.item() if isinstance(value, np.generic) else value
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else {KIND: "float", "value": repr(value)}
    if isinstance(value, Mapping):
        pairs = [[pack(key, where), pack(one, where)] for key, one in value.items()]
        plain = all(isinstance(key, str) for key, _ in pairs) and KIND not in value
        return dict(pairs) if plain else {KIND: "dict", "value": pairs}
    if isinstance(value, list):
        return [pack(one, where) for one in value]
    if isinstance(value, tuple):
        return {KIND: "tuple", "value": [pack(one, where) for one in value]}
    if isinstance(value, torch.device):
        return {KIND: "device", "value": str(value)}
    if isinstance(value, os.PathLike):
        return {KIND: "path", "value": os.fspath(value)}
    raise InputError(
        f"{where} holds a {type(value).__name__}, which no saved model can hold; give plain numbers, text or dicts"
    )


def unpack(value: Any) -> Any:
    """What `pack` was given; anything else is a ValueError."""
    if isinstance(value, list):
        return [unpack(one) for one in value]
    if not isinstance(value, dict):
        return value
    if KIND not in value:
        return {key: unpack(one) for key, one in value.items()}
    try:
        return _KINDS[value[KIND]](unpack(value["value"]))
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"{str(value)[:60]} is no value of a known kind") from error


def check_savable(options: Mapping[str, Any]) -> None:
    """Refuse, before the work, options of an estimator that its model could not be saved with."""
    for name, value in options.items():
        if name not in ("backbone", "random_state"):  # a network has its own way, a state gives way to its seed
            pack(value, name)
