"""Data sets of other libraries, known by what they have: Hugging Face `datasets`, torchvision, a `Subset` of either.

Where such a set only points to encoded pictures, they are decoded here, with the same result and the same limits as
files; the names of the classes become the labels. Nothing of these libraries is imported.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, TypeGuard, cast, final, overload

import numpy as np

from tangentune.errors import InputError, PictureError
from tangentune.pictures.encoded import Encoded, Listing, from_cell
from tangentune.pictures.names import readable, some
from tangentune.pictures.tables import Columns, find_column


class Table(Protocol):
    """What is used of a Hugging Face `Dataset`."""

    column_names: list[str]
    features: Mapping[str, Any]
    format: Mapping[str, Any]

    def __len__(self) -> int: ...
    def __getitem__(self, key: Any) -> Any: ...
    def select_columns(self, names: list[str]) -> Table: ...  # noqa: D102
    def cast_column(self, name: str, feature: Any) -> Table: ...  # noqa: D102
    def with_format(self, kind: None) -> Table: ...  # noqa: D102


@final
class _Encoded(Sequence[Encoded]):
    """A column of encoded pictures, each read when it is asked for."""

    def __init__(self, table: Table, column: str) -> None:
        self._table, self._column = table, column

    def __len__(self) -> int:
        return len(self._table)

    @overload
    def __getitem__(self, index: int) -> Encoded: ...
    @overload
    def __getitem__(self, index: slice) -> list[Encoded]: ...
    def __getitem__(self, index: int | slice) -> Encoded | list[Encoded]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        return from_cell(self._table[index][self._column])


def is_hugging_face(source: Any) -> TypeGuard[Table]:
    """Whether this is a Hugging Face `Dataset`; several splits of one are refused."""
    if isinstance(source, Mapping) and source and all(is_hugging_face(one) for one in source.values()):
        raise InputError(
            f"This holds the splits {some(list(source))}; give one of them, such as dataset[{next(iter(source))!r}]."
        )
    found = hasattr(source, "features") and hasattr(source, "column_names") and hasattr(source, "cast_column")
    if found and not hasattr(source, "__len__"):
        raise InputError("This Dataset is a stream of unknown length; load it as a whole, not streaming.")
    return found


def read_hugging_face(source: Table, need_labels: bool, columns: Columns) -> Listing | None:
    """Pictures of a Hugging Face `Dataset`, and labels: the names of the classes where the numbers have names.

    None where a transform of the user's own makes them, so that they are items of a data set.
    """
    if source.format["type"] == "custom":
        return None
    names, kinds = list(source.column_names), {name: type(source.features[name]).__name__ for name in source.features}
    first = _column(names, kinds, "Image", "path", columns.path)
    second = _column(names, kinds, "ClassLabel", "label", columns.label) if need_labels else None
    for what, found in (("path", first), ("label", second)):
        if found is None and (need_labels or what == "path"):
            raise PictureError(
                f"The Dataset must have the column {what}; it has {some(names)}. "
                f"Name another with load_pictures(..., {what}_column=...)."
            )
    assert first is not None
    plain = source.with_format(None).select_columns([first])
    if kinds[first] == "Image":  # as bytes, so that our decoders read them
        plain = plain.cast_column(first, type(source.features[first])(decode=False))
    elif kinds[first] != "Value":
        raise PictureError(f"The column {first} of the Dataset holds {kinds[first]}, which is no picture.")
    labels = None if second is None else _named(source, second)
    return Listing(_Encoded(plain, first), [str(i) for i in range(len(plain))], labels)


def _column(names: list[str], kinds: Mapping[str, str], kind: str, what: str, wanted: str | None) -> str | None:
    """The only column of its kind, unless another is wanted; else the one that bears a usual name."""
    typed = [name for name in names if kinds[name] == kind]
    if wanted is None and len(typed) == 1:
        return typed[0]
    position = find_column(names, what, "The Dataset", wanted)
    return None if position is None else names[position]


def _named(source: Table, column: str) -> list[Any]:
    """The labels, by name where the numbers have names."""
    values, names = list(source.with_format(None)[column]), getattr(source.features[column], "names", None)
    if names is None:
        return values
    if bad := [i for i, value in enumerate(values) if value is None or not 0 <= value < len(names)]:
        raise PictureError(f"Row {bad[0]} of the Dataset has no {column}; give every picture a label.")
    return [names[value] for value in values]


def read_image_folder(source: Any) -> Listing | None:
    """The files of torchvision's `ImageFolder`, if it changes nothing about its pictures; of other things None."""
    chosen, indices = _unwrapped(source)
    samples, classes = getattr(chosen, "samples", None), _classes(chosen)
    changed = any(getattr(chosen, name, None) is not None for name in ("transform", "target_transform", "transforms"))
    loader = getattr(getattr(chosen, "loader", None), "__name__", "default_loader")
    if not isinstance(samples, list) or not classes or changed or loader not in ("default_loader", "pil_loader"):
        return None
    if not samples or not isinstance(samples[0], tuple) or not isinstance(samples[0][0], str | os.PathLike):
        return None
    root, rows = str(getattr(chosen, "root", "")), [samples[i] for i in indices]
    paths = [os.fspath(path) for path, _ in rows]
    inside = bool(root) and all(path.startswith(os.path.join(root, "")) for path in paths)
    ids = [readable(os.path.relpath(path, root) if inside else path) for path in paths]
    return Listing(paths, ids, [classes[label] for _, label in rows])


def class_names(source: Any, labels: list[Any]) -> list[Any]:
    """Labels that the items of a torchvision data set brought, by the names of its classes; others as they are."""
    chosen, _ = _unwrapped(source)
    classes = _classes(chosen)
    if not classes or not hasattr(chosen, "targets") or getattr(chosen, "target_transform", None) is not None:
        return labels
    whole = [int(one) if isinstance(one, int | np.integer) and not isinstance(one, bool) else -1 for one in labels]
    return [classes[one] for one in whole] if all(0 <= one < len(classes) for one in whole) else labels


def _classes(source: Any) -> list[str]:
    classes = getattr(source, "classes", None)
    texts = isinstance(classes, list | tuple) and all(isinstance(name, str) for name in classes)
    return list(cast("Sequence[str]", classes)) if texts else []


def _unwrapped(source: Any) -> tuple[Any, Sequence[int]]:
    """What a `Subset`, perhaps of another one, was taken from, and the positions there."""
    try:
        indices: Sequence[int] = range(len(source))
    except TypeError:
        return source, []
    while hasattr(source, "dataset") and hasattr(source, "indices"):
        own = list(source.indices)
        indices, source = [own[i] for i in indices], source.dataset
    return source, indices
