"""Work that goes on behind the page: rows of the training pictures written beside the model, with progress."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import final

from tangentune.errors import TangentuneError
from tangentune.workbench.session import Session

_PAUSE = 0.2  # seconds between two looks at how far it is


@final
@dataclass
class RowsJob:
    """One run of `Session.keep_rows` on a thread of its own; the session answers others between two batches."""

    done: int = 0  # pictures, of `all`
    all: int = 0
    running: bool = False
    problem: str = ""  # why it ended without its work, as a sentence
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def start(self, session: Session) -> None:
        """Begin, unless it has."""
        with self._lock:
            if self.running:
                return
            self.done, self.all, self.running, self.problem = 0, len(session.numbers), True, ""
        threading.Thread(target=self._run, args=(session,), name="tangentune-rows", daemon=True).start()

    def _run(self, session: Session) -> None:
        try:
            session.keep_rows(self._tell)
        except (TangentuneError, OSError, MemoryError) as error:
            self.problem = str(error)
        finally:
            self.running = False

    def _tell(self, done: int, everything: int) -> None:
        self.done, self.all = done, everything

    async def events(self) -> AsyncIterator[str]:
        """Server-sent events: how many pictures of how many; at last "end", with what went wrong if something did."""
        while self.running:
            yield f"data: {self.done} {self.all}\n\n"
            await asyncio.sleep(_PAUSE)
        yield f"event: end\ndata: {' '.join(self.problem.split())}\n\n"
