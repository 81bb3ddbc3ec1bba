"""Questions asked of labels and pixels before fitting: classes, labels, duplicates, digests."""

from __future__ import annotations

import hashlib
import unicodedata
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from tangentune.errors import InputError, shown
from tangentune.pictures.label_sets import holds_names, is_marks, is_sets, label_matrix, label_sets, sets_of_names
from tangentune.pictures.names import some


def label_array(labels: Any) -> NDArray[Any]:
    """Labels (n,) or (n, k) as one numpy array of text, integers, booleans or floats, checked to have no gap.

    Takes lists, arrays, tensors (also a list of 0-d tensors) and pandas columns; lists of names and frames whose
    columns are labels of 0 and 1 become `label_sets`. A label that is missing (None, NaN, "") or infinite, or holds a
    NUL, and a mixture of text and numbers, is an InputError.
    """
    if (sets := named_sets(labels)) is not None:
        return sets
    refuse_nul(labels)
    if isinstance(labels, Tensor):
        labels = labels.detach().cpu().numpy()
    elif isinstance(labels, (list, tuple)):
        labels = [entry.item() if isinstance(entry, Tensor) and entry.ndim == 0 else entry for entry in labels]
    # Text must not pass through numpy's own conversion, which turns a number beside it into text.
    mixed = isinstance(labels, (list, tuple)) and any(entry is None or isinstance(entry, str) for entry in labels)
    try:
        array = np.asarray(labels, dtype=object if mixed else None)
    except ValueError as error:  # rows of different length
        raise InputError(
            "labels cannot be read as one array: some are lists; give one label for each picture, or a list of names."
        ) from error
    if array.dtype == object:
        array = _from_objects(array)
    if array.dtype.kind == "T":  # numpy's text of variable length
        array = array.astype(str)
    if array.ndim not in (1, 2):
        raise InputError(f"labels has shape {array.shape}; one label (or one row of targets) per picture is needed.")
    if array.dtype.kind == "U":
        bad = array == ""
    elif array.dtype.kind == "f":
        bad = ~np.isfinite(array)
    elif array.dtype.kind in "iub":
        return array
    else:
        raise InputError(f"labels have the type {array.dtype}; use text, integers or floats.")
    if bad.any():
        first = int(np.argmax(bad.reshape(len(array), -1).any(axis=1)))
        value = array[first].tolist()
        raise InputError(f"Label {first} is {value!r} (empty, NaN or inf); give every picture a label.")
    return array


def named_sets(labels: Any) -> NDArray[Any] | None:
    """Several labels a picture that come with names; None for all others."""
    if isinstance(labels, np.ndarray):
        if is_sets(labels):
            return labels
        labels = labels.tolist() if labels.dtype == object and labels.ndim == 1 else None
    elif len(getattr(labels, "shape", ())) == 2 and hasattr(labels, "columns"):  # a data frame
        try:  # columns of several types come as objects
            marks = np.asarray(labels, np.float64)
        except (TypeError, ValueError):
            return None
        names = list(map(str, labels.columns))
        return label_sets(marks, names) if len(names) > 1 and is_marks(marks) else None
    elif str(getattr(labels, "dtype", "")) == "object" and hasattr(labels, "tolist"):
        labels = labels.tolist()
    return sets_of_names(labels) if holds_names(labels) else None


def refuse_nul(labels: Any) -> None:
    """Refuse text with a NUL, which numpy drops from the end of text, so that two classes would become one."""
    texts = isinstance(labels, (list, tuple)) or str(getattr(labels, "dtype", "")) == "object"
    for position, label in enumerate(labels if texts else ()):
        if isinstance(label, str) and "\0" in label:
            raise InputError(f"Label {position} is {label!r}; a label cannot hold the character NUL.")


def _from_objects(array: NDArray[Any]) -> NDArray[Any]:
    entries = array.ravel().tolist()
    for position, entry in enumerate(entries):
        if entry is None or type(entry).__name__ == "NAType" or (isinstance(entry, float) and entry != entry):
            raise InputError(f"Label {position} is missing ({entry}); give every picture a label.")
    texts = sum(isinstance(entry, str) for entry in entries)
    if 0 < texts < len(entries):
        odd = next(i for i, entry in enumerate(entries) if isinstance(entry, str) == (texts * 2 < len(entries)))
        raise InputError(f"labels mix text and numbers (label {odd} is {entries[odd]!r}); use one kind.")
    try:
        plain = np.array(entries)
    except ValueError as error:
        raise InputError(f"labels cannot be read as one array: {error}.") from error
    if plain.dtype == object or plain.ndim != 1:
        odd = next((i for i, e in enumerate(entries) if not isinstance(e, (str, int, float))), 0)
        raise InputError(f"Label {odd} is of type {type(entries[odd]).__name__}; use text, integers or floats.")
    return plain.reshape(array.shape)


def one_class_each(labels: NDArray[Any], whose: str = "the") -> NDArray[Any]:
    """Labels (n,), or a column of them flattened; a wider matrix is refused as what it seems to be, and whose."""
    if is_sets(labels):
        names = some(list(labels.dtype.names or ()), 8)
        raise InputError(f"{whose} pictures have several labels each ({names}), where one class for each is needed")
    if labels.ndim == 1 or labels.shape[1] == 1:
        return labels.reshape(len(labels))
    numbers, rows = labels.dtype.kind in "biuf", f"{len(labels)} x {labels.shape[1]}"
    sums = labels.sum(1) if numbers else np.zeros(len(labels))
    if numbers and np.isin(labels, (0, 1)).all():
        if (sums == 1).all():
            problem = f"labels are one-hot ({rows}); give the class of each picture, y.argmax(1)"
        else:
            odd = int(np.argmax(sums != 1))
            seen = f"labels mark {sums[odd]:g} classes of picture {odd} ({rows})"
            problem = f"{seen}, where one class for each is needed; take one column, y[:, k]"
    elif numbers and (labels >= 0).all() and np.allclose(sums, 1, atol=1e-3):
        problem = f"labels are probabilities ({rows}); give the likeliest, y.argmax(1), or fit a regressor to them"
    else:
        seen = f"pictures have {labels.shape[1]} labels each"
        problem = f"{seen}; a classifier takes one, or lists of names, a regressor also rows of numbers"
    raise InputError(f"{whose} {problem}")


def numeric_labels(labels: NDArray[Any], ids: Sequence[str]) -> NDArray[np.float64]:
    """Labels as float64 for regression, from text as well; one that is no finite number is an InputError."""
    if is_sets(labels):
        return label_matrix(labels).astype(np.float64)
    if labels.dtype.kind != "U":
        return labels.astype(np.float64)
    values = np.empty(labels.size)
    for i, text in enumerate(labels.ravel().tolist()):
        try:
            values[i] = float(text)
        except ValueError:
            values[i] = np.nan
        if not np.isfinite(values[i]):
            name = ids[i * len(labels) // labels.size]
            raise InputError(f"The label {text!r} of {name} is not a number; regression needs numbers as labels.")
    return values.reshape(labels.shape)


def check_classes(labels: NDArray[Any], ids: Sequence[str]) -> list[str]:
    """Refuse labels (n,) of a single class, or none; return one sentence per thing the user should know."""
    values = labels.tolist()
    counts = Counter(values)
    if not counts:
        raise InputError("There are no pictures to learn from.")
    if len(counts) == 1:
        many = f"All {len(values)} pictures have" if len(values) > 1 else "The only picture has"
        same = f"{many} the label {values[0]!r}"
        raise InputError(f"{same}; a classifier needs pictures of at least two classes.")
    sentences = look_alikes(labels)
    lonely = [i for i, label in enumerate(values) if counts[label] == 1] if 1 in counts.values() else []
    if not lonely:
        return sentences
    if len(lonely) == 1:
        which = f"Class {values[lonely[0]]!r} has only one picture ({shown(ids[lonely[0]])})"
        return [*sentences, f"{which}, so its leave-one-out prediction cannot be right."]
    named = some([f"{values[i]!r}: {ids[i]}" for i in lonely])
    which = f"{len(lonely)} classes have only one picture each ({named})"
    return [*sentences, f"{which}, so the leave-one-out predictions of these pictures cannot be right."]


def look_alikes(labels: NDArray[Any] | None) -> list[str]:
    """A sentence on class names that people cannot tell apart: other spaces, or letters put together otherwise."""
    groups: dict[str, list[str]] = {}
    for name in {} if labels is None else dict.fromkeys(labels.tolist()):
        if not isinstance(name, str):
            continue
        visible = "".join(c for c in unicodedata.normalize("NFC", name) if unicodedata.category(c) != "Cf")
        groups.setdefault(" ".join(visible.split()), []).append(name)
    twins = [" = ".join(map(ascii, group)) for group in groups.values() if len(group) > 1]
    return [f"Classes have names that look alike: {some(twins)}; if they are one class, give it one name."] * bool(
        twins
    )


def pictures_digest(pixels: Tensor) -> list[str]:
    """The sha256 of every picture's pixels, type and shape, as hexadecimal text, for audit logs; about 1 GB/s."""
    head = f"{pixels.dtype} {tuple(pixels.shape[1:])} ".encode()
    digests = []
    for row in pixels:
        digest = hashlib.sha256(head)
        digest.update(row.contiguous().numpy().data)
        digests.append(digest.hexdigest())
    return digests
