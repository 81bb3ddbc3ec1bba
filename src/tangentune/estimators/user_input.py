"""What users give to fits and edits, read with care: options, pictures, labels, weights."""

from __future__ import annotations

import math
import numbers
import os
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.base import BaseEstimator
from sklearn.utils.validation import validate_data
from torch import Tensor

from tangentune.errors import InputError
from tangentune.kernels.choice import FixedChoices
from tangentune.kernels.stages import FitSettings
from tangentune.memory import default_budget, parse_bytes, resident_bytes
from tangentune.networks.backbone import Backbone
from tangentune.pictures.load import Pictures

CRITERIA = ("loo", "evidence")
POWERS = (0.0, 0.25, 0.5)


def read_settings(options: dict[str, Any], backbone: Backbone, seed: int) -> FitSettings:
    """The options of an estimator, all checked; an InputError names the option, its value and what it may be."""
    power = _choice(options, "metric_power", lambda v: _number(v) and float(v) in POWERS, "0, 0.25 or 0.5")
    scale = _choice(options, "body_scale", lambda v: _number(v) and 0 <= v < math.inf, "a number >= 0")
    damping = _choice(options, "damping", lambda v: _number(v) and 0 < v < math.inf, "a number > 0")
    normalize = _choice(options, "normalize", lambda v: isinstance(v, bool | np.bool_), "true or false")
    names = ("metric_power", "body_scale", "damping", "normalize")
    criteria = {options[name] for name in names if isinstance(options[name], str)}
    if len(criteria) > 1:
        message = "metric_power, body_scale, normalize and damping mix 'loo' and 'evidence'; use one of them throughout"
        raise InputError(message)
    _check(options, "probes", lambda v: _whole(v) and v >= 1, "a whole number >= 1")
    _check(options, "probe_space", lambda v: v in ("pca", "isotropic"), "'pca' or 'isotropic'")
    _check(options, "augment", lambda v: v in (None, "none", "flip"), "'flip' or None")
    _check(options, "batch_size", lambda v: isinstance(v, numbers.Integral) and int(v) >= 1, "a whole number >= 1")
    _check(options, "outer_steps", lambda v: v == "loo" or (_whole(v) and v >= 0), "a whole number >= 0 or 'loo'")
    budget = options["memory_budget"]
    return FitSettings(
        probes=int(options["probes"]),
        probe_space=options["probe_space"],
        power=None if power is None else float(power),
        fixed=FixedChoices(
            None if normalize is None else bool(normalize),
            None if scale is None else float(scale),
            None if damping is None else float(damping),
        ),
        criterion=criteria.pop() if criteria else "loo",
        mirrored=options["augment"] == "flip" and backbone.contract.input_size is not None,
        seed=seed,
        memory_budget=resident_bytes(backbone.device) + default_budget(backbone.device)
        if budget is None
        else parse_bytes(budget),
        verbose=int(options["verbose"]),
    )


def _number(value: Any) -> bool:
    return isinstance(value, numbers.Real) and not isinstance(value, bool) and not math.isnan(value)


def _whole(value: Any) -> bool:
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)


def _choice(options: dict[str, Any], name: str, fits: Callable[[Any], bool], what: str) -> Any:
    """The fixed value of an option, or None if it is left to a criterion."""
    if isinstance(options[name], str) and options[name] in CRITERIA:
        return None
    _check(options, name, lambda value: not isinstance(value, str) and fits(value), f"{what}, 'loo' or 'evidence'")
    return options[name]


def _check(options: dict[str, Any], name: str, fits: Callable[[Any], bool], what: str) -> None:
    if not fits(options[name]):
        message = f"{name} is {options[name]!r}; it must be {what}"
        raise InputError(message)


def load_vectors(estimator: BaseEstimator, X: Any, y: Any, labelled: bool, reset: bool) -> Pictures:
    """Vectors (n, k) checked as scikit-learn does, for a backbone without input size."""
    if isinstance(X, Pictures):
        X, y = X.pixels, X.labels if y is None else y
    X = X.numpy() if isinstance(X, Tensor) else X
    if labelled:
        rules: dict[str, Any] = {"multi_output": True, "y_numeric": False, "ensure_min_samples": 2 if reset else 1}
        X, y = validate_data(estimator, X, y, dtype="numeric", reset=reset, **rules)
    else:
        X, y = validate_data(estimator, X, dtype="numeric", reset=reset), None
    X = X if X.dtype.kind == "f" else X.astype(np.float64)
    X = np.require(X, requirements=["C", "W"])  # a copy if the array is read-only, which torch does not take
    return Pictures(torch.from_numpy(X), y, [str(i) for i in range(len(X))])


def check_weights(weights: NDArray, ids: list[str]) -> None:
    """Refuse negative weights, and fewer than two pictures that count."""
    if not (weights >= 0).all():
        message = f"picture {ids[int(np.argmin(weights))]} has a negative weight; weights must be 0 or more"
        raise InputError(message)
    count = int((weights > 0).sum())
    if count < 2:
        message = f"n_samples={count} with positive weight is not enough; least squares needs at least 2 pictures"
        raise InputError(message)


def find_pictures(ids: Any, names: Sequence[str], numbers: NDArray[np.int64]) -> list[list[int]]:
    """Positions of the pictures that each id means, in the order of the ids: numbers, or names, which may be shared.

    Example:
        >>> find_pictures(["b.png", 7], ["a.png", "b.png", "b.png"], np.array([7, 8, 9]))
        [[1, 2], [0]]
    """
    ids = ids.tolist() if hasattr(ids, "tolist") else ids  # arrays, tensors and their numbers
    given = list(ids) if isinstance(ids, Iterable) and not isinstance(ids, str | bytes | os.PathLike) else [ids]
    if not given:
        message = "no id is given; name at least one picture, as in ids_"
        raise InputError(message)
    numbered = {int(number): [i] for i, number in enumerate(numbers)}
    named: dict[str, list[int]] = {}
    for i, name in enumerate(names):
        named.setdefault(name, []).append(i)
    found = []
    for one in given:
        whole = isinstance(one, int | np.integer) and not isinstance(one, bool)
        places = (numbered.get(int(one)) if whole else None) or named.get(str(one))
        if not places:
            known = f"its {len(names)} pictures are in ids_, the first is {names[0]!r}"
            message = f"the model does not stand on a picture {one!r}; {known}"
            raise InputError(message)
        found.append(places)
    return found


def join_labels(old: NDArray, new: NDArray) -> NDArray:
    """Labels one after the other, of the old ones' type where it holds the new; another kind or width is refused."""
    if new.size == len(new) and old.size == len(old):  # (n,) and (n, 1) hold the same
        new = new.reshape(len(new), *old.shape[1:])
    if new.shape[1:] != old.shape[1:]:
        message = f"new labels are {new.shape[1:] or (1,)} for each picture, those of the model {old.shape[1:] or (1,)}"
        raise InputError(message)
    if _kind(old) != _kind(new):
        first = f"the new label {new.tolist()[0]!r} is of another kind ({_kind(new)})"
        message = f"{first} than those of the model ({_kind(old)}), such as {old.tolist()[0]!r}"
        raise InputError(message)
    if _kind(old) == "numbers":
        with np.errstate(invalid="ignore"):
            same = new.astype(old.dtype)
        new = same if (same == new).all() else new
    return np.concatenate([old, new])


def _kind(labels: NDArray) -> str:
    return {"b": "truth values", "i": "numbers", "u": "numbers", "f": "numbers"}.get(labels.dtype.kind, "text")


def read_weights(given: Any, count: int) -> NDArray[np.float64]:
    """(count,) finite sample weights; None means ones."""
    try:
        weights = np.ones(count) if given is None else np.array(given, np.float64)
    except (TypeError, ValueError) as error:
        message = f"sample weights must be {count} numbers ({error})"
        raise InputError(message) from error
    if weights.shape != (count,):
        message = f"sample weights are {weights.shape} for {count} pictures; give one number for each"
        raise InputError(message)
    if not np.isfinite(weights).all():
        position = int(np.argmax(~np.isfinite(weights)))
        message = f"sample weight {position} is {weights[position]}; weights must be finite numbers, 0 or more"
        raise InputError(message)
    return weights
