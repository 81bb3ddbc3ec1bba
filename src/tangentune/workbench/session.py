"""A workbench session: a classifier, the edits that a person takes, and every figure after each of them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import wraps
from pathlib import Path
from typing import Any, Literal, Self, TypeVar, final

import numpy as np
from numpy.typing import NDArray

from tangentune._torch import usual_torch
from tangentune.errors import InputError, StaleError, StoreError
from tangentune.estimators.classifier import TangentClassifier
from tangentune.estimators.fitted import FittedModel, solved
from tangentune.estimators.training_set import PictureReader
from tangentune.estimators.user_input import load_inputs
from tangentune.networks.backbone import AnyBackbone
from tangentune.pictures.pictures import Pictures
from tangentune.reports.explanation import explain
from tangentune.workbench import answers, figures, groups, layout, states, suspects
from tangentune.workbench.answers import Answer, NewAnswer
from tangentune.workbench.edits import Edit, checked, edited, places
from tangentune.workbench.figures import ClassFigures, Figures
from tangentune.workbench.groups import GroupFigures
from tangentune.workbench.journal import Entry, Journal, Unfinished
from tangentune.workbench.layout import Components, Point
from tangentune.workbench.states import State
from tangentune.workbench.suspects import SuspectRow
from tangentune.workbench.timeline import Step, Timeline, now

Method = TypeVar("Method", bound=Callable[..., Any])


@final
@dataclass(frozen=True)
class Pending:
    """Edits of an earlier session that were not saved; `usable` unless the model has changed since."""

    edits: int
    since: str
    usable: bool
    sentence: str


def _one_at_a_time(method: Method) -> Method:
    """A method that no other thread disturbs."""

    @wraps(method)
    def alone(self: Session, *arguments: Any, **options: Any) -> Any:
        with self._lock:
            return method(self, *arguments, **options)

    return alone  # type: ignore[return-value]


@final
@usual_torch
class Session:
    """The engine of the workbench. Nothing is written to the model until `save`; the journal loses no edit.

    Args:
        estimator: a fitted classifier; the session edits it in place.
        directory: where the model is saved; None works in memory, without a journal.

    Attributes:
        version: rises with each edit, undo and redo; an edit that names another one is refused.
        opening: figures at the opening.
        notice: a sentence where the model was saved without its pictures, so that nothing can be edited; else None.

    Raises:
        InputError: the estimator is no classifier.
        StoreError: another session is open on the directory.

    Example:
        >>> from torch import nn
        >>> from tangentune import Backbone
        >>> net = nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 8))
        >>> x = np.random.default_rng(0).normal(size=(40, 4)).astype("float32")
        >>> session = Session(TangentClassifier(Backbone(net)).fit(x, np.where(x[:, 0] > 0, "up", "down")))
        >>> figures = session.take(Edit("relabel", (3,), "up"), version=session.version)
        >>> figures.n, session.version
        (40, 1)
    """

    def __init__(self, estimator: TangentClassifier, directory: Path | None = None):
        if not isinstance(estimator, TangentClassifier):
            raise InputError("the workbench corrects class labels; this model predicts numbers and has none")
        self.estimator, self.directory, self.version = estimator, directory, 0
        self._lock = threading.RLock()
        self._journal = None if directory is None else Journal(directory)
        self._timeline = Timeline(states.first(estimator.fitted_))
        self._tried: tuple[int, Edit, State] | None = None
        self._components: Components | None = None
        self._unfinished = self._found()
        self.opening = self._state.figures

    @classmethod
    def open(cls, directory: Path, *, backbone: AnyBackbone | None = None, device: Any = None) -> Session:
        """The session of a saved model; arguments as of `from_pretrained`."""
        return cls(TangentClassifier.from_pretrained(directory, backbone=backbone, device=device), Path(directory))

    def close(self) -> None:
        """Let others open a workbench on the model; edits that were not saved stay in the journal."""
        if self._journal is not None:
            self._journal.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # -- what is shown ------------------------------------------------------------------------------------------------

    @property
    def notice(self) -> str | None:
        """Why nothing can be edited, if so."""
        try:
            self._fitted.check_pictures()
        except InputError as error:
            return str(error)
        return None

    @property
    def classes(self) -> list[str]:
        """Names, in the order of the columns."""
        return [str(name) for name in self._fitted.outcome.classes.tolist()]

    @property
    def numbers(self) -> list[int]:
        """Of all pictures, in the order of the model."""
        return self._fitted.numbers.tolist()

    @property
    def unsaved(self) -> int:
        """How many edits a save would write."""
        return self._timeline.at

    @property
    def can_redo(self) -> int:
        """How many undone edits could be done again."""
        return self._timeline.undone

    def figures(self) -> Figures:
        """Of the whole model as it stands."""
        return self._state.figures

    def class_figures(self) -> list[ClassFigures]:
        """One entry a class, in the order of `classes`."""
        return figures.of_classes(self._fitted)

    @_one_at_a_time
    def suspects(
        self, k: int = 24, *, label: str | None = None, suggestion: str | None = None, text: str = ""
    ) -> list[SuspectRow]:
        """The k labels that look most like mistakes, worst first; kept ones are left out.

        Of one given label, one suggestion, or ids that hold a text only. The first call costs n^3.
        """
        self._be(states.with_wary(self._state))
        state = self._state
        chosen = {"without": state.kept, "label": label, "suggestion": suggestion, "text": text}
        return suspects.worst(state.fitted, state.doubts, k, **chosen)

    def confusion(self) -> NDArray[np.int64]:
        """(C, C) counts: row = the label given, column = what the other pictures say."""
        return figures.confusion(self._fitted)

    def members(self, label: str, predicted: str | None = None) -> list[int]:
        """Numbers of the pictures of a label, or of one cell of the confusion."""
        names = self.classes
        for name in (label, *([] if predicted is None else [predicted])):
            if name not in names:
                raise InputError(f"there is no class {name!r}; the classes are: {', '.join(names)}")
        chosen = figures.positions_of(self._fitted) == names.index(label)
        if predicted is not None:
            chosen &= self._fitted.outcome.proba.argmax(1) == names.index(predicted)
        return self._fitted.numbers[chosen].tolist()

    @_one_at_a_time
    def layout(self) -> list[Point]:
        """Every picture in the plane of two components of the kernel, which stay as the first call finds them."""
        if self._components is None:
            self._components = layout.components(self._fitted)
        return layout.points(self._fitted, self._components)

    def picture(self, number: int) -> NDArray[np.uint8]:
        """A stored picture as the network sees it, (H, W, 3); an InputError where there is none."""
        place = int(places(self._fitted, (number,))[0])
        self._fitted.check_pictures()
        position = int(self._fitted.active.positions[place])
        image = self._fitted.training.pictures.thumbnail(position)
        if image is None:
            raise InputError("this model was fitted to vectors, which cannot be shown")
        return np.asarray(image.convert("RGB"))

    @_one_at_a_time
    def answer(self, number: int, top: int = 8) -> Answer:
        """What the model says of one of its pictures, with it and without it, why, and what was done to it."""
        place = int(places(self._fitted, (number,))[0])
        self._solve()
        digest = self._fitted.training.digests[self._fitted.active.positions[place]]
        return answers.of_training(self._fitted, place, top, self._timeline.history(number, digest))

    @_one_at_a_time
    def answer_new(self, pictures: Any, top: int = 8) -> list[NewAnswer]:
        """What the model says of new pictures, given as for `predict`, why, and how unlike all others they are."""
        loaded = self._load(pictures)
        same = self._fitted.copies_of(loaded)
        self._solve()
        found = explain(self.estimator, loaded, top)
        self._be(replace(self._state, fitted=self.estimator.fitted_))  # its rows may be in memory now
        return [answers.of_new(self._fitted, one, copies) for one, copies in zip(found, same, strict=True)]

    @_one_at_a_time
    def groups(
        self, pattern: str | None = None, *, table: Path | Mapping[str, str] | None = None, column: str = "group"
    ) -> list[GroupFigures]:
        """Figures of each group when it is left out whole, the largest group first.

        Groups come from a regular expression on the ids, or from a table: id to group, or a CSV file with a `column`.
        """
        if (pattern is None) == (table is None):
            raise InputError("groups come from a pattern or from a table; give one of them")
        named = groups.table(table, column) if isinstance(table, Path) else table
        by = pattern if pattern is not None else named
        assert by is not None
        self._solve()
        return groups.figures(self._fitted, groups.named_by(self._fitted.ids, by))

    @_one_at_a_time
    def timeline(self) -> list[Step]:
        """Every edit since the opening, oldest first, undone ones at the end."""
        return self._timeline.steps()

    # -- edits --------------------------------------------------------------------------------------------------------

    @_one_at_a_time
    def preview(self, edit: Edit) -> Figures:
        """The figures that an edit would lead to; nothing is taken. Taken next, it costs nothing more."""
        return self._try(checked(edit)).figures

    @_one_at_a_time
    def take(self, edit: Edit, version: int | None = None) -> Figures:
        """Take an edit; the figures are then those of a fit to the changed set.

        Raises:
            StaleError: `version` is not the session's.
            InputError: a picture or class is unknown, or too little would be left; nothing has changed.
            StoreError: the journal cannot be written; nothing has changed.
        """
        self._check(version)
        edit = checked(edit)
        return self._take(edit, None, self._try(edit))

    @_one_at_a_time
    def add(
        self, pictures: Any, label: str, *, new_class: bool = False, version: int | None = None, why: str = ""
    ) -> Figures:
        """Add pictures, given as for `predict`, all of one class; raises as `take`."""
        self._check(version)
        loaded = self._load(pictures)
        start = self._fitted.next_number
        edit = checked(Edit("add", tuple(range(start, start + len(loaded))), label, new_class, why))
        return self._take(edit, loaded, self._made(edit, loaded))

    @_one_at_a_time
    def undo(self, version: int | None = None) -> Figures:
        """Take the last edit back."""
        self._check(version)
        return self._go("undo", self._timeline.at > 0)

    @_one_at_a_time
    def redo(self, version: int | None = None) -> Figures:
        """Do the last undone edit again."""
        self._check(version)
        return self._go("redo", self.can_redo > 0)

    @_one_at_a_time
    def save(self, directory: Path | None = None) -> None:
        """Write the model, whole or not at all; its edits can no longer be undone, and the journal goes.

        A session that was opened on a directory saves there, and elsewhere only as a copy.
        """
        target = self.directory if directory is None else directory
        if target is None:
            raise InputError("this session has no directory; say where the model is to be saved")
        ours = target == self.directory
        if ours and self._unfinished is not None:
            raise InputError(self._pending(self._unfinished).sentence)
        if ours and self._journal is not None and self._fitted.edits:
            self._journal.about_to_save(self._fitted.edits[-1]["seal"])
        self.estimator.save_pretrained(target)
        if self._journal is not None and ours:
            self._journal.remove()
        fitted = self.estimator.fitted_ if ours else replace(self.estimator.fitted_, version=self._fitted.version)
        self._be(replace(self._state, fitted=fitted))
        if ours or self.directory is None:
            self._timeline.cut()

    # -- edits of an earlier session ----------------------------------------------------------------------------------

    def pending(self) -> Pending | None:
        """Edits of an earlier session that were neither saved nor discarded; they go before any other edit."""
        return None if self._unfinished is None else self._pending(self._unfinished)

    @_one_at_a_time
    def replay(self) -> Figures:
        """Take them all again; they can be undone as any others. A StoreError where they do not fit the model."""
        found = self._unfinished
        if found is None:
            raise InputError("there are no unfinished edits to replay")
        if not self._pending(found).usable:
            raise StoreError(self._pending(found).sentence)
        try:
            for entry in found.entries:
                self._replay(entry)
        except InputError as error:
            self._timeline.restart()
            self._be(self._state)
            raise StoreError(f"the unfinished edits cannot be replayed ({error}); discard them") from error
        self._unfinished = None
        return self._state.figures

    @_one_at_a_time
    def discard(self) -> None:
        """Forget them for good."""
        if self._journal is not None:
            self._journal.remove()
        self._unfinished = None

    # -- inside -------------------------------------------------------------------------------------------------------

    @property
    def _state(self) -> State:
        return self._timeline.state

    @property
    def _fitted(self) -> FittedModel:
        return self._state.fitted

    def _be(self, state: State) -> None:
        """The same edits, another record of where they led."""
        self._timeline.be(state)
        self.estimator.fitted_ = state.fitted

    def _solve(self) -> None:
        if self._fitted.solution is None:
            self._be(replace(self._state, fitted=replace(self._fitted, solution=solved(self._fitted))))

    def _load(self, pictures: Any) -> Pictures:
        loaded = load_inputs(self.estimator, pictures, None, self._fitted.backbone, labelled=False, reset=False)
        return loaded.relabelled(None)

    def _check(self, version: int | None) -> None:
        if self._unfinished is not None:
            raise InputError(self._pending(self._unfinished).sentence)
        if version is not None and version != self.version:
            raise StaleError("the model has changed since this was shown; look at it again and repeat the edit")

    def _try(self, edit: Edit) -> State:
        """The state that an edit would lead to; remembered until another is tried."""
        if edit.kind == "add":
            raise InputError("pictures are added with their pixels; use add")
        if self._tried is None or self._tried[:2] != (self.version, edit):
            self._tried = self.version, edit, self._made(edit, None)
        return self._tried[2]

    def _made(self, edit: Edit, arrived: Pictures | None) -> State:
        self._be(states.with_wary(self._state))
        size, flip = self.estimator.batch_size, self._fitted.feature_map.mirrored
        reader = PictureReader(self._fitted.backbone, size, flip, 0)
        return states.after(self._state, edited(self._fitted, edit, reader, arrived), edit)

    def _take(self, edit: Edit, arrived: Pictures | None, state: State, when: str | None = None) -> Figures:
        if when is None:
            when = now()
            self._note(Entry("take", when, edit, arrived))
        self._timeline.take(edit, state, when)
        return self._arrive()

    def _go(self, way: Literal["undo", "redo"], possible: bool) -> Figures:
        if possible:  # else the time line says what is wrong
            self._note(Entry(way, now()))
        getattr(self._timeline, way)()
        return self._arrive()

    def _arrive(self) -> Figures:
        self._tried = None
        self.version += 1
        self.estimator.fitted_ = self._fitted
        return self._state.figures

    def _note(self, entry: Entry) -> None:
        """Put an edit into the journal before it is taken."""
        if self._journal is not None:
            version = self._fitted.version
            self._journal.append("" if version is None else version.seal, entry)

    def _found(self) -> Unfinished | None:
        """The journal of an earlier session, unless it is in the model already or holds nothing."""
        found = None if self._journal is None else self._journal.read()
        if found is None or self._journal is None:
            return None
        seals = {line["seal"] for line in self._fitted.edits}
        if not found.entries or found.saving in seals:
            self._journal.remove()
            return None
        return found

    def _pending(self, found: Unfinished) -> Pending:
        version = self._fitted.version
        usable = version is not None and version.seal == found.version
        count, since = len(found.entries), found.entries[0].when
        sentence = (
            f"{count} unsaved {'edit' if count == 1 else 'edits'} of {since} {'is' if count == 1 else 'are'} there; "
        )
        more = "replay or discard them first"
        if not usable:
            more = "the model was changed since by something else, so they no longer fit; discard them first"
        return Pending(count, since, usable, sentence + more)

    def _replay(self, entry: Entry) -> None:
        if entry.action == "take":
            assert entry.edit is not None
            state = self._made(entry.edit, entry.arrived)
            self._take(entry.edit, entry.arrived, state, entry.when)
        elif entry.action == "undo":
            self._timeline.undo()
        else:
            self._timeline.redo()
