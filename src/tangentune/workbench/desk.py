"""The session at work: one thread for all that touches the model, and the pictures beside it.

One thread, because locks of the model's directory belong to the thread that took them, and because edits are a sequence
anyhow: whoever asks waits until the answer before is there.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Self, TypeVar, final

from tangentune._files import user_path
from tangentune.errors import InputError
from tangentune.estimators import audit
from tangentune.estimators.classifier import TangentClassifier
from tangentune.estimators.model_directory import read_config, saved_seal, version_of
from tangentune.networks.backbone import Backbone
from tangentune.workbench.answers import NewAnswer
from tangentune.workbench.originals import Originals
from tangentune.workbench.rows_job import RowsJob
from tangentune.workbench.session import Session
from tangentune.workbench.tray import Tray
from tangentune.workbench.unlabelled import Unlabelled

T = TypeVar("T")


@final
@dataclass
class Desk:
    """A session on its thread, with the originals, the tray of new pictures, and what was skipped; `close` ends it."""

    name: str
    session: Session
    originals: Originals
    tray: Tray
    thread: ThreadPoolExecutor
    room: TemporaryDirectory[str]
    unlabelled: Unlabelled | None = None
    skipped: set[int] = field(default_factory=set)
    table: dict[str, str] = field(default_factory=dict)  # groups by the names of pictures
    rows: RowsJob = field(default_factory=RowsJob)
    said: dict[int, tuple[int, NewAnswer]] = field(default_factory=dict)  # of new pictures, at a version

    @classmethod
    def open(
        cls,
        model: str | os.PathLike[str] | TangentClassifier,
        originals: str | os.PathLike[str] | None = None,
        unlabelled: str | os.PathLike[str] | None = None,
        backbone: Backbone | None = None,
    ) -> Self:
        """Open a session on a saved classifier, named by its directory; or on one at hand, edited in place.

        Raises:
            StoreError: there is no such model, or another workbench is open on it.
            InputError: it has no classes or no pictures, or the folder of originals is none.
        """
        folders = [_folder(one) for one in (originals, unlabelled)]
        thread = ThreadPoolExecutor(1, "tangentune-session")
        try:
            session = thread.submit(_opened, model, backbone).result()
        except BaseException:
            thread.shutdown()
            raise
        room = TemporaryDirectory(prefix="tangentune-", ignore_cleanup_errors=True)
        tray = Tray(Path(room.name), session.estimator.backbone_.contract)
        name = "model" if session.directory is None else Path(os.path.realpath(session.directory)).name
        pool = None if folders[1] is None else Unlabelled(folders[1], session.estimator.backbone_.contract)
        return cls(name, session, Originals(folders[0]), tray, thread, room, pool)

    async def ask(self, question: Callable[[Session], T]) -> T:
        """What a function of the session gives, found on the session's thread."""
        return await asyncio.get_running_loop().run_in_executor(self.thread, question, self.session)

    def close(self) -> None:
        """Let the model go; edits that were not saved stay in the journal."""
        self.thread.submit(self.session.close).result()
        self.thread.shutdown()
        self.room.cleanup()


def _folder(given: str | os.PathLike[str] | None) -> Path | None:
    """A folder that was named; an InputError if it is none."""
    folder = None if given is None else user_path(given)
    if folder is not None and not folder.is_dir():
        raise InputError(f"{given} is no folder of pictures")
    return folder


def _opened(model: str | os.PathLike[str] | TangentClassifier, backbone: Backbone | None) -> Session:
    """A session on a directory; of a model at hand on its own, which must hold it as it is: a journal follows that."""
    if not isinstance(model, TangentClassifier):
        if (kind := read_config(model).get("estimator")) != "TangentClassifier":
            raise InputError(f"{model} holds a {kind}; the workbench corrects class labels, and it has none")
        return Session.open(Path(model), backbone=backbone)
    fitted = model.fitted_
    version, edits = fitted.version, fitted.edits
    same = version is not None and version_of(version.directory) == version
    if version is None or not same or saved_seal(version.directory) != (edits[-1]["seal"] if edits else audit.FIRST):
        raise InputError("the workbench needs a saved model as it stands; use model.save_pretrained(DIRECTORY) first")
    return Session(model, version.directory)
