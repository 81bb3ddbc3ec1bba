"""Estimator options as users give them, checked and turned into `FitSettings`."""

from __future__ import annotations

import math
import numbers
from typing import Any

import numpy as np

from tangentune.errors import InputError
from tangentune.kernels.choice import FixedChoices
from tangentune.kernels.stages import FitSettings
from tangentune.memory import parse_bytes

CRITERIA = ("loo", "evidence")
POWERS = (0.0, 0.25, 0.5)


def read_options(options: dict[str, Any], seed: int, default_budget: int, pictures: bool) -> FitSettings:
    """Check every option of an estimator.

    Args:
        options: the estimator's parameters by name.
        seed: of the probes.
        default_budget: bytes to use when `memory_budget` is None.
        pictures: False for vectors, which have no mirror image.

    Raises:
        InputError: naming the option, its value and what it may be.
    """
    power = _choice(options, "metric_power", lambda v: _number(v) and float(v) in POWERS, "0, 0.25 or 0.5")
    scale = _choice(options, "body_scale", lambda v: _number(v) and 0 <= v < math.inf, "a number >= 0")
    damping = _choice(options, "damping", lambda v: _number(v) and 0 < v < math.inf, "a number > 0")
    normalize = _choice(options, "normalize", lambda v: isinstance(v, bool | np.bool_), "true or false")
    names = ("metric_power", "body_scale", "damping", "normalize")
    criteria = {options[name] for name in names if isinstance(options[name], str)}
    if len(criteria) > 1:
        message = "metric_power, body_scale, normalize and damping mix 'loo' and 'evidence'; use one of them throughout"
        raise InputError(message)
    probes, space, augment = options["probes"], options["probe_space"], options["augment"]
    if not isinstance(probes, numbers.Integral) or isinstance(probes, bool) or probes < 1:
        _refuse("probes", probes, "a whole number >= 1")
    if space not in ("pca", "isotropic"):
        _refuse("probe_space", space, "'pca' or 'isotropic'")
    if augment not in (None, "none", "flip"):
        _refuse("augment", augment, "'flip' or None")
    if not isinstance(options["batch_size"], numbers.Integral) or options["batch_size"] < 1:
        _refuse("batch_size", options["batch_size"], "a whole number >= 1")
    steps = options["outer_steps"]
    if steps != "loo" and (not isinstance(steps, numbers.Integral) or isinstance(steps, bool) or steps < 0):
        _refuse("outer_steps", steps, "a whole number >= 0 or 'loo'")
    budget = options["memory_budget"]
    return FitSettings(
        probes=int(probes),
        probe_space=space,
        power=None if power is None else float(power),
        fixed=FixedChoices(
            None if normalize is None else bool(normalize),
            None if scale is None else float(scale),
            None if damping is None else float(damping),
        ),
        criterion=criteria.pop() if criteria else "loo",
        mirrored=augment == "flip" and pictures,
        seed=seed,
        memory_budget=default_budget if budget is None else parse_bytes(budget),
        verbose=int(options["verbose"]),
    )


def _number(value: Any) -> bool:
    return isinstance(value, numbers.Real) and not isinstance(value, bool) and not math.isnan(value)


def _choice(options: dict[str, Any], name: str, fits: Any, what: str) -> Any:
    """The fixed value of an option, or None if it is left to a criterion."""
    value = options[name]
    if isinstance(value, str) and value in CRITERIA:
        return None
    if isinstance(value, str) or not fits(value):
        _refuse(name, value, f"{what}, 'loo' or 'evidence'")
    return value


def _refuse(name: str, value: Any, what: str) -> None:
    message = f"{name} is {value!r}; it must be {what}"
    raise InputError(message)
