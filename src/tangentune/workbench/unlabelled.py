"""Label next on the page: a folder of pictures without labels, and the batch of them that is worth labelling now.

A batch is asked for by hand and stays as it is while its pictures are labelled one by one: to choose takes the rows of
all unlabelled pictures, which is seconds, where a label is milliseconds.
"""

from __future__ import annotations

import warnings
from collections.abc import Collection
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, final

from tangentune.errors import InputError
from tangentune.pictures.contract import DataContract
from tangentune.pictures.load import load_pictures
from tangentune.pictures.pictures import Pictures
from tangentune.workbench.originals import Originals
from tangentune.workbench.session import Session
from tangentune.workbench.suggest import Suggestion, Suggestions, reason, suggest_next

BATCH = 12


@final
@dataclass
class Unlabelled:
    """The folder, read when it is first looked at; pictures are named by their position in it."""

    folder: Path
    contract: DataContract
    batch: Suggestions | None = None  # what was suggested last
    skipped: set[int] = field(default_factory=set)
    # Number in the model of each picture that was labelled, by its position; undone, it is open again.
    labelled: dict[int, int] = field(default_factory=dict)
    _pictures: Pictures | None = None

    @property
    def pictures(self) -> Pictures:
        """All of them; those that cannot be read are left out."""
        if self._pictures is None:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # the page says what was left out
                read = load_pictures(self.folder, contract=self.contract, on_error="skip", need_labels=False)
            self._pictures = read
        return self._pictures

    def ask(self, session: Session) -> None:
        """Another batch, by the model as it stands."""
        left = [i for i in range(len(self.pictures)) if self._waits(i, session.numbers)]
        if not left:
            raise InputError("every picture of the folder was labelled or skipped")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that there are fewer than asked for is seen on the page
            found = suggest_next(session.estimator, self.pictures.select(left), min(BATCH, len(left)))
        self.batch = _at(found, left)

    def one(self, position: int) -> Pictures:
        """A picture by itself; an InputError if it is not there."""
        if not 0 <= position < len(self.pictures):
            raise InputError(f"there is no unlabelled picture {position}")
        return self.pictures.select([position])

    def path(self, position: int) -> Path | None:
        """Its file, if that is still there."""
        return Originals(self.folder).path(self.one(position).ids[0])

    def joined(self, position: int, new: int) -> None:
        """Note that one was added to the model, where it has a new number, perhaps that of one that was taken back."""
        self.labelled = {here: there for here, there in self.labelled.items() if there != new} | {position: new}

    def _waits(self, position: int, numbers: Collection[int]) -> bool:
        """Whether a picture is neither skipped nor one of the model's."""
        return position not in self.skipped and self.labelled.get(position, -1) not in numbers

    def open(self, numbers: Collection[int]) -> list[Suggestion]:
        """What is left of the batch, by the numbers of the pictures that the model stands on."""
        return [] if self.batch is None else [one for one in self.batch.pictures if self._waits(one.position, numbers)]

    def shown(self, chosen: int, numbers: Collection[int]) -> dict[str, Any]:
        """For the page: the picture to label now, `chosen` or else the first, and the others."""
        left = self.open(numbers)
        current = next((one for one in left if one.position == chosen), left[0] if left else None)
        return {
            "asked": self.batch is not None,
            "why": "" if self.batch is None else reason(self.batch),
            "current": current,
            "rest": [one for one in left if one is not current],
            "unread": [] if self._pictures is None else self._pictures.skipped,
            "considered": 0 if self.batch is None else self.batch.unlabelled,
        }


def _at(found: Suggestions, places: list[int]) -> Suggestions:
    """Suggestions among some pictures, by the positions of these in the folder."""
    moved = tuple(replace(one, position=places[one.position]) for one in found.pictures)
    return replace(found, pictures=moved)
