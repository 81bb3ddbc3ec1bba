"""A workbench session: the edits that a person takes, back and forth, on the disk at once, and saved in the end."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, Self, final

import torch

from tangentune._torch import usual_torch
from tangentune.errors import InputError, StaleError, StoreError
from tangentune.estimators.classifier import TangentClassifier
from tangentune.estimators.fitted import FittedModel, with_rows
from tangentune.estimators.model_directory import ROWS
from tangentune.estimators.row_file import rows_bytes, write_rows
from tangentune.networks.backbone import AnyBackbone
from tangentune.pictures.pictures import Pictures
from tangentune.workbench import states
from tangentune.workbench.edits import Edit, checked, edited
from tangentune.workbench.figures import Figures
from tangentune.workbench.journal import Entry, Journal, Pending
from tangentune.workbench.shown import Shown, one_at_a_time
from tangentune.workbench.states import State
from tangentune.workbench.timeline import now


@final
@usual_torch
class Session(Shown):
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
        >>> import numpy as np
        >>> from torch import nn
        >>> from tangentune import Backbone
        >>> net = nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 8))
        >>> x = np.random.default_rng(0).normal(size=(40, 4)).astype("float32")
        >>> session = Session(TangentClassifier(Backbone(net)).fit(x, np.where(x[:, 0] > 0, "up", "down")))
        >>> figures = session.take(Edit("relabel", (3,), "up"), version=session.version)
        >>> figures.n, session.version
        (40, 1)
    """

    def __init__(self, estimator: TangentClassifier, directory: str | os.PathLike[str] | None = None):
        super().__init__(estimator)
        self.directory, self.version = None if directory is None else Path(directory), 0
        self._journal = None if self.directory is None else Journal(self.directory)
        self._tried: tuple[int, Edit, State] | None = None
        seals = {line["seal"] for line in estimator.fitted_.edits}
        self._unfinished = None if self._journal is None else self._journal.unfinished(seals)
        self.opening = self._state.figures

    @classmethod
    def open(
        cls, directory: str | os.PathLike[str], *, backbone: AnyBackbone | None = None, device: Any = None
    ) -> Session:
        """The session of a saved model; arguments as of `from_pretrained`."""
        return cls(TangentClassifier.from_pretrained(directory, backbone=backbone, device=device), directory)

    def close(self) -> None:
        """Let others open a workbench on the model; edits that were not saved stay in the journal."""
        if self._journal is not None:
            self._journal.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def unsaved(self) -> int:
        """How many edits a save would write."""
        return self._timeline.at

    @property
    def can_redo(self) -> int:
        """How many undone edits could be done again."""
        return self._timeline.undone

    # -- edits --------------------------------------------------------------------------------------------------------

    @one_at_a_time
    def preview(self, edit: Edit) -> Figures:
        """The figures that an edit would lead to; nothing is taken. Taken next, it costs nothing more."""
        return self._try(checked(edit)).figures

    @one_at_a_time
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

    @one_at_a_time
    def add(
        self, pictures: Any, label: str, *, new_class: bool = False, version: int | None = None, why: str = ""
    ) -> Figures:
        """Add pictures, given as for `predict`, all of one class; raises as `take`."""
        self._check(version)
        loaded = self._load(pictures)
        start = self._fitted.next_number
        edit = checked(Edit("add", tuple(range(start, start + len(loaded))), label, new_class, why))
        return self._take(edit, loaded, self._made(edit, loaded))

    @one_at_a_time
    def undo(self, version: int | None = None) -> Figures:
        """Take the last edit back."""
        self._check(version)
        return self._go("undo", self._timeline.at > 0)

    @one_at_a_time
    def redo(self, version: int | None = None) -> Figures:
        """Do the last undone edit again."""
        self._check(version)
        return self._go("redo", self.can_redo > 0)

    @one_at_a_time
    def save(self, directory: str | os.PathLike[str] | None = None) -> None:
        """Write the model, whole or not at all; its edits can no longer be undone, and the journal goes.

        To another directory than the session's own a copy goes, and nothing else changes.
        """
        target = self.directory if directory is None else Path(directory)
        if target is None:
            raise InputError("this session has no directory; say where the model is to be saved")
        ours = target == self.directory
        if ours:
            self._check(None)
        if not ours:
            version = self._fitted.version
            self.estimator.save_pretrained(target)
            fitted = self.estimator.fitted_
            self._be(replace(self._state, fitted=fitted if version is None else replace(fitted, version=version)))
            return
        assert self._journal is not None
        rows = self.rows_kept
        if self._fitted.edits:
            self._journal.about_to_save(self._fitted.edits[-1]["seal"])
        self.estimator.save_pretrained(target)
        self._journal.remove()
        self._be(replace(self._state, fitted=self.estimator.fitted_))
        if rows:
            self._write_rows(self._fitted, None)
        if len(self._fitted.active) < len(self._fitted.training):
            self._components = None  # it knows forgotten pictures
        self._be(states.saved(self._state, rows))
        self._timeline.cut()

    # -- rows in a file -----------------------------------------------------------------------------------------------

    @property
    def rows_kept(self) -> bool:
        """Whether the rows of the training pictures lie beside the model: then new pictures are explained at once."""
        return self.directory is not None and (self.directory / ROWS).exists()

    @property
    def rows_help(self) -> bool:
        """Whether rows of all pictures in a file would save anything; a model on landmarks needs theirs only."""
        return self.directory is not None and not self.rows_kept and self._fitted.training.landmarks is None

    @one_at_a_time
    def rows_bytes(self) -> int:
        """What `keep_rows` would take on the disk."""
        return rows_bytes(self._fitted.training, self._fitted.rows(self._reader()))

    def keep_rows(self, tell: Callable[[int, int], None] | None = None) -> None:
        """Write the rows of the training pictures beside the saved model, once, and map them into memory.

        Every save then writes them anew, without what was forgotten. Other calls are answered meanwhile, and `tell` is
        given how many pictures are done, of how many. Cost: the network's passes over all pictures. A StoreError: the
        disk is full, or the model on it has changed.
        """
        if self.directory is None:
            raise InputError("this session has no directory; rows are kept beside a saved model")
        if self._fitted.training.landmarks is not None:
            raise InputError(
                "this model stands on landmarks and needs the rows of these only; there is nothing to keep"
            )
        self._timeline.start.fitted.check_pictures()
        self._write_rows(self._timeline.start.fitted, tell)
        with self._lock:
            self._be(replace(self._state, fitted=with_rows(self._fitted, self._reader())))

    def _write_rows(self, fitted: FittedModel, tell: Callable[[int, int], None] | None) -> None:
        """The rows of a model that is on the disk; other calls may come between two batches."""
        assert fitted.version is not None
        chosen, reader = torch.from_numpy(fitted.active.positions), fitted.rows(self._reader())
        writer = write_rows(fitted.version, fitted.training, chosen, reader)
        while True:
            with self._lock:
                done = next(writer, None)
            if done is None:
                return
            if tell is not None:
                tell(done, len(chosen))

    # -- edits of an earlier session ----------------------------------------------------------------------------------

    def pending(self) -> Pending | None:
        """Edits of an earlier session that were neither saved nor discarded; they go before any other edit."""
        version = self._fitted.version
        return None if self._unfinished is None else self._unfinished.pending("" if version is None else version.seal)

    @one_at_a_time
    def replay(self) -> Figures:
        """Take them all again; they can be undone as any others. A StoreError where they do not fit the model."""
        found, pending = self._unfinished, self.pending()
        if found is None or pending is None:
            raise InputError("there are no unfinished edits to replay")
        if not pending.usable:
            raise StoreError(pending.sentence)
        try:
            for entry in found.entries:
                self._replay(entry)
        except InputError as error:
            self._timeline.restart()
            self._be(self._state)
            raise StoreError(f"the unfinished edits cannot be replayed ({error}); discard them") from error
        self._unfinished = None
        return self._state.figures

    @one_at_a_time
    def discard(self) -> None:
        """Forget for good what was not saved, of an earlier session and of this one."""
        if self._journal is not None:
            self._journal.remove()
        self._unfinished = None
        self._timeline.restart()
        self._arrive()

    # -- inside -------------------------------------------------------------------------------------------------------

    def _check(self, version: int | None) -> None:
        if (pending := self.pending()) is not None:
            raise InputError(pending.sentence)
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
        return states.after(self._state, edited(self._fitted, edit, self._reader(), arrived), edit)

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

    def _replay(self, entry: Entry) -> None:
        if entry.action == "take":
            assert entry.edit is not None
            state = self._made(entry.edit, entry.arrived)
            self._take(entry.edit, entry.arrived, state, entry.when)
        else:
            getattr(self._timeline, entry.action)()
            self._arrive()
