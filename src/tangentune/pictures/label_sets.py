"""Several labels a picture, or none: arrays (n,) of records, one truth value a label, that know the labels' names.

Such an array is cut, joined and compared as any labels are. Nothing else in the library gives pictures names and
truth values at once: a matrix alone would lose the names, lists of names those labels that no picture has.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tangentune.errors import InputError
from tangentune.pictures.names import composed, some

SEPARATOR = ";"  # between the names of one picture, where they are text
NAMED = 8  # names that a sentence lists


def is_sets(labels: NDArray[Any] | None) -> bool:
    """Whether labels are sets of names."""
    return labels is not None and labels.dtype.names is not None


def label_names(labels: NDArray[Any]) -> NDArray[Any]:
    """(L,) names, in the order of the columns of `label_matrix`."""
    return np.array(labels.dtype.names)


def label_matrix(labels: NDArray[Any]) -> NDArray[np.int64]:
    """(n, L) of 0 and 1."""
    return np.ascontiguousarray(labels).view(np.bool_).reshape(len(labels), -1).astype(np.int64)


def label_sets(matrix: NDArray[Any], names: Iterable[str]) -> NDArray[Any]:
    """Sets from a matrix (n, L) of 0 and 1 and L names.

    Raises:
        InputError: a name is empty or there twice, or an entry is something else.
    """
    listed = list(names)
    if twice := [name for name in listed if listed.count(name) > 1]:
        raise InputError(f"two labels are called {twice[0]!r}; give each a name of its own")
    if not listed or "" in listed or any("\0" in name for name in listed):
        raise InputError("a label has no name, or one with the character NUL; name every label")
    if not is_marks(matrix) or matrix.shape[1] != len(listed):
        raise InputError(f"labels must be a matrix of 0 and 1 with {len(listed)} columns, not {matrix.shape}")
    kind = np.dtype([(name, np.bool_) for name in listed])
    return np.ascontiguousarray(matrix.astype(np.bool_)).view(kind).reshape(len(matrix))


def is_marks(labels: NDArray[Any]) -> bool:
    """Whether this is a matrix (n, L) of 0 and 1."""
    return labels.ndim == 2 and labels.dtype.kind in "biuf" and bool(np.isin(labels, (0, 1)).all())


def sets_of_names(lists: Sequence[Iterable[str]], known: Iterable[str] | None = None) -> NDArray[Any]:
    """Sets from a list of names for each picture, which may be empty; `known` names and no others, or all there are.

    Raises:
        InputError: a name is no text, empty, or not known; or there is not one name.
    """
    rows, found = [list(one) for one in lists], dict[str, None]()
    for i, row in enumerate(rows):
        for name in row:
            if not isinstance(name, str) or not name:
                raise InputError(f"a label of picture {i} is {name!r}; labels of a picture are a list of names as text")
            found[str(name)] = None
    if known is None:
        if not found:
            raise InputError("no picture has a label; name at least one")
        return sets_of_names(rows, sorted(found))
    columns = {str(name): i for i, name in enumerate(known)}
    alike = {composed(name): name for name in columns}
    matrix = np.zeros((len(rows), len(columns)), np.bool_)
    for i, row in enumerate(rows):
        for name in row:
            column = columns.get(name, columns.get(alike.get(composed(name), "")))
            if column is None:
                raise InputError(unknown_label(name, list(columns)))
            matrix[i, column] = True
    return label_sets(matrix, columns)


def unknown_label(name: str, known: Sequence[str]) -> str:
    """What to say of a label that a model does not know."""
    near = difflib.get_close_matches(name, known, 1)
    hint = f"did you mean {near[0]!r}?" if near else f"the labels are {some(list(known), NAMED)}."
    reason = "a new label needs a new fit, for the model's own pictures were never asked about it"
    return f"there is no label {name!r}; {hint} {reason[0].upper()}{reason[1:]}"


def aligned(labels: NDArray[Any], known: NDArray[Any]) -> NDArray[Any]:
    """Sets with the columns of a model: what it knows and they lack is False."""
    names = known.tolist()
    if list(labels.dtype.names or ()) == names:
        return labels
    return sets_of_names(listed_names(labels), names)


def listed_names(labels: NDArray[Any]) -> list[tuple[str, ...]]:
    """The names of each picture, in the order of the columns."""
    names = label_names(labels)
    return [tuple(names[row].tolist()) for row in label_matrix(labels).astype(np.bool_)]


def label_texts(labels: NDArray[Any]) -> list[str]:
    """Labels of any kind as text for people and tables; those of one picture with a semicolon between."""
    if is_sets(labels):
        return [SEPARATOR.join(names) for names in listed_names(labels)]
    return [str(label) for label in labels.tolist()]


def rarest_label(labels: NDArray[Any]) -> NDArray[np.int64]:
    """(n,) column of the rarest label of each picture, L where it has none: what folds are dealt out by."""
    matrix = label_matrix(labels)
    order = np.argsort(matrix.sum(0), kind="stable")
    first = order[matrix[:, order].argmax(1)]
    return np.where(matrix.any(1), first, matrix.shape[1])


def plain_labels(labels: NDArray[Any]) -> list[Any]:
    """Labels as Python's own values, for messages and logs; sets as text."""
    return label_texts(labels) if is_sets(labels) else labels.tolist()


def split_texts(texts: Iterable[str], separator: str = SEPARATOR) -> list[list[str]]:
    """Names of each picture from text with a separator between; blank text is a picture without labels.

    Example:
        >>> split_texts(["cat; dog", ""])
        [['cat', 'dog'], []]
    """
    if not separator.strip():
        raise InputError(f"the label separator is {separator!r}; give a character such as ; or |")
    return [[name for part in text.split(separator) if (name := part.strip())] for text in texts]


def holds_names(labels: Any) -> bool:
    """Whether something is a list of lists of names, or of sets; lists of one name each are a column of classes."""
    if not isinstance(labels, list | tuple) or not labels:
        return False
    sets = [isinstance(entry, set | frozenset) for entry in labels]
    if not all(one or isinstance(entry, list | tuple) for one, entry in zip(sets, labels, strict=True)):
        return False
    texts = any(isinstance(name, str) for entry in labels for name in entry)
    return any(sets) or (texts and any(len(entry) != 1 for entry in labels))
