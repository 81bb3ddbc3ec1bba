"""What users give to fits and edits, read with care: which pictures, which labels, which weights."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.base import BaseEstimator
from sklearn.utils.validation import validate_data
from torch import Tensor

from tangentune.errors import InputError
from tangentune.pictures.load import Pictures


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
    """Positions of the pictures that each id means, in the order of the ids.

    Args:
        ids: one or several: numbers, or names, which pictures may share.
        names: of all pictures.
        numbers: (n,) of all pictures.

    Raises:
        InputError: there is no id, or one that means no picture.

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
    found: list[list[int]] = []
    for one in given:
        whole = isinstance(one, int | np.integer) and not isinstance(one, bool)
        places = (numbered.get(int(one)) if whole else None) or named.get(str(one))
        if not places:
            message = (
                f"the model does not stand on a picture {one!r}; its {len(names)} pictures are in ids_, the first is "
                f"{names[0]!r}"
            )
            raise InputError(message)
        found.append(places)
    return found


def join_labels(old: NDArray, new: NDArray) -> NDArray:
    """Labels one after the other, of the old ones' type where it holds the new ones.

    Raises:
        InputError: the new ones are of another kind (text, numbers, truth values), or of another width.

    Example:
        >>> join_labels(np.array(["a", "b"]), np.array(["long"])).tolist()
        ['a', 'b', 'long']
    """
    if new.size == len(new) and old.size == len(old):  # (n,) and (n, 1) hold the same
        new = new.reshape(len(new), *old.shape[1:])
    if new.shape[1:] != old.shape[1:]:
        message = f"new labels are {new.shape[1:] or (1,)} for each picture, those of the model {old.shape[1:] or (1,)}"
        raise InputError(message)
    if _kind(old) != _kind(new):
        message = (
            f"the new label {new.tolist()[0]!r} is of another kind ({_kind(new)}) than those of the model "
            f"({_kind(old)}), such as {old.tolist()[0]!r}"
        )
        raise InputError(message)
    if _kind(old) == "numbers":
        with np.errstate(invalid="ignore"):
            same = new.astype(old.dtype)
        new = same if (same == new).all() else new
    return np.concatenate([old, new])


def _kind(labels: NDArray) -> str:
    return {"b": "truth values", "i": "numbers", "u": "numbers", "f": "numbers"}.get(labels.dtype.kind, "text")


def read_weights(given: Any, count: int) -> NDArray[np.float64]:
    """(count,) finite sample weights; None means ones.

    Raises:
        InputError: they are not as many, no numbers, or not finite.

    Example:
        >>> read_weights([2, 0.5], 2).tolist()
        [2.0, 0.5]
    """
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
