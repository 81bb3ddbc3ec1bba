"""An edit as a person takes it, and the model that it makes: pictures by their numbers, labels as text."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal, final

import numpy as np
from numpy.typing import NDArray

from tangentune.errors import InputError
from tangentune.estimators import audit, edits
from tangentune.estimators.fitted import FittedModel
from tangentune.estimators.training_set import PictureReader
from tangentune.pictures.names import some
from tangentune.pictures.pictures import Pictures

Kind = Literal["relabel", "forget", "keep", "add"]
KINDS: tuple[Kind, ...] = ("relabel", "forget", "keep", "add")


@final
@dataclass(frozen=True)
class Edit:
    """One correction; of kind "keep" the label is right, and the picture leaves the suspects for good."""

    kind: Kind
    numbers: tuple[int, ...]  # of the pictures, which they bear for good
    label: str | None = None  # of "relabel" and "add": the class, as text
    new_class: bool = False  # whether the label may be a class that is not there; else a typing error would make one
    why: str = ""  # in a person's words; kept until the model is saved, and not in its log

    @property
    def words(self) -> str:
        """What it does, for people."""
        count = len(self.numbers)
        which = "1 picture" if count == 1 else f"{count} pictures"
        if self.label is None:
            return f"{self.kind} {which}"
        return f"{self.kind} {which} as {self.label}"


def checked(edit: Edit) -> Edit:
    """The edit, its numbers each once; an InputError where it cannot be one."""
    if edit.kind not in KINDS:
        raise InputError(f"an edit is one of {', '.join(KINDS)}, not {edit.kind!r}")
    if not edit.numbers:
        raise InputError(f"no picture is named to {edit.kind}; choose at least one")
    if (edit.label is not None) != (edit.kind in ("relabel", "add")):
        needed = "needs a label" if edit.label is None else "takes no label"
        raise InputError(f"{edit.kind} {needed}")
    return replace(edit, numbers=tuple(dict.fromkeys(map(int, edit.numbers))))


def places(fitted: FittedModel, numbers: tuple[int, ...]) -> NDArray[np.int64]:
    """(k,) positions of pictures by their numbers."""
    known = {number: i for i, number in enumerate(fitted.numbers.tolist())}
    if unknown := [str(number) for number in numbers if number not in known]:
        raise InputError(f"the model does not stand on a picture of the number {some(unknown)}; it may be forgotten")
    return np.array([known[number] for number in numbers], np.int64)


def own_label(classes: NDArray, label: str, whose: str = "") -> Any:
    """A class as the model has it, from text; a new one is of the same kind. `whose` goes into the message."""
    known = {str(name): name for name in classes.tolist()}
    if label in known or classes.dtype.kind == "U":
        return known.get(label, label)
    kind = type(classes.tolist()[0])
    try:
        if kind is not bool:
            return kind(label)
    except ValueError:
        pass
    raise InputError(f"the label {label!r}{whose} is of another kind than those of the model: {some(list(known), 8)}")


def edited(fitted: FittedModel, edit: Edit, reader: PictureReader, arrived: Pictures | None = None) -> FittedModel:
    """The model after an edit, a new record; `arrived` are the pictures of "add", without labels."""
    if edit.kind == "add":
        assert arrived is not None
        given = np.repeat(np.array([own_label(fitted.outcome.classes, str(edit.label))]), len(arrived))
        return edits.add(fitted, arrived.relabelled(given), None, reader, edit.new_class)
    where = places(fitted, edit.numbers)
    if edit.kind == "forget":
        return edits.forget(fitted, list(edit.numbers))
    if edit.kind == "relabel":
        label = own_label(fitted.outcome.classes, str(edit.label))
        return edits.relabel(fitted, list(edit.numbers), label, edit.new_class)
    return logged(fitted, "keep", where, numbers=list(edit.numbers))


def logged(fitted: FittedModel, what: str, where: NDArray | None, **facts: Any) -> FittedModel:
    """The model with a line more in its log, about pictures at some positions."""
    hashes = [] if where is None else digests(fitted, where)
    line = audit.entry(fitted.edits, what, hashes, **facts, n=len(fitted.active))
    return replace(fitted, edits=[*fitted.edits, line])


def digests(fitted: FittedModel, where: NDArray) -> list[str]:
    """Of the pixels of the pictures at some positions, as the log names them."""
    positions, known = fitted.active.positions[where], fitted.training.hashes
    return [known[i] for i in positions] if known else fitted.training.pictures.select(positions).digests


def kept_for_good(fitted: FittedModel) -> frozenset[int]:
    """Numbers of the pictures whose labels the log says were looked at and kept."""
    kept: set[int] = set()
    for line in fitted.edits:
        if line["edit"] == "keep" or line.get("redone") == "keep":
            kept |= set(line.get("numbers", ()))
        elif line.get("undone") == "keep":
            kept -= set(line.get("numbers", ()))
    return frozenset(kept & set(fitted.numbers.tolist()))
