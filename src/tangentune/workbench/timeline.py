"""The time line of a session: the state after each edit, back and forth between them, and what is told of them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any, final

from tangentune.errors import InputError
from tangentune.estimators import audit
from tangentune.workbench import states
from tangentune.workbench.edits import Edit
from tangentune.workbench.figures import Figures
from tangentune.workbench.states import State

ROOM = 2**29  # bytes that the matrices of former and later states may take
DONE = {"add": "added", "forget": "forgotten", "relabel": "relabelled", "reweight": "weighed anew", "keep": "kept"}


@final
@dataclass(frozen=True)
class Step:
    """One step of the time line, in words and as the edit that it is."""

    words: str
    edit: Edit
    when: str  # in UTC
    figures: Figures  # after it
    done: bool  # false of what was undone and can be done again
    saved: bool  # it is in the model on the disk, and cannot be undone


@final
@dataclass(frozen=True, eq=False)
class _Taken:
    """A state, and the edit that led to it with its line of the log; the first state has none."""

    state: State
    when: str
    edit: Edit | None = None
    line: dict[str, Any] | None = None


@final
class Timeline:
    """States from the first on; `at` is the one that counts, later ones were undone."""

    def __init__(self, state: State):
        self.at = 0
        self._past: list[Step] = []  # what was saved
        self._taken = [_Taken(state, now())]

    @property
    def state(self) -> State:
        """The one that counts."""
        return self._taken[self.at].state

    @property
    def start(self) -> State:
        """The first one: the model as it was read, or saved last."""
        return self._taken[0].state

    @property
    def undone(self) -> int:
        """How many edits could be done again."""
        return len(self._taken) - 1 - self.at

    def be(self, state: State) -> None:
        """The same edits, another record of where they led."""
        self._taken[self.at] = replace(self._taken[self.at], state=state)

    def take(self, edit: Edit, state: State, when: str) -> None:
        """Go on by an edit; what was undone is gone. The last line of the state's log is the edit's."""
        self._taken[self.at + 1 :] = [_Taken(state, when, edit, state.fitted.edits[-1])]
        self.at += 1
        self._lighten()

    def undo(self) -> None:
        """Back to the state before the last edit; the log goes on."""
        if not self.at:
            raise InputError("there is no edit to undo; those that were saved stay")
        self._go(self.at - 1, "undo", self._taken[self.at])

    def redo(self) -> None:
        """On to the state after the next one."""
        if not self.undone:
            raise InputError("there is no undone edit to do again")
        self._go(self.at + 1, "redo", self._taken[self.at + 1])

    def steps(self) -> list[Step]:
        """Every edit, oldest first, undone ones at the end."""
        own = [(i, one, one.edit) for i, one in enumerate(self._taken)]
        now = [Step(edit.words, edit, one.when, one.state.figures, i <= self.at, False) for i, one, edit in own if edit]
        return [*self._past, *now]

    def cut(self) -> None:
        """The model was saved as it stands: what led here cannot be undone, what was undone not be done again."""
        self._past = [replace(step, saved=True) for step in self.steps() if step.done]
        self._taken, self.at = [_Taken(self.state, now())], 0

    def restart(self) -> None:
        """Back to the first state, as if nothing had been taken."""
        del self._taken[1:]
        self.at = 0

    def history(self, number: int, digest: str) -> tuple[tuple[str, str], ...]:
        """When and how a picture was changed: by the log, and in this session with label and reason."""
        named = {one.line["seal"]: one.edit for one in self._taken if one.line is not None}
        out = []
        for line in self.state.fitted.edits:
            if digest not in line["pictures"] or number not in line.get("numbers", [number]):
                continue
            edit, before = named.get(line["seal"]), line.get("undone") or line.get("redone")
            words = DONE.get(before or line["edit"], str(line["edit"]))
            if before:
                words += ", taken back" if "undone" in line else ", done again"
            if edit is not None and number in edit.numbers:
                words += (f" as {edit.label}" if edit.label is not None else "") + (
                    f" ({edit.why})" if edit.why else ""
                )
            out.append((line["when"], words))
        return tuple(out)

    def _go(self, at: int, what: str, over: _Taken) -> None:
        """To a neighbouring state, over an edit; logged."""
        here, there = self.state.fitted, self._taken[at].state
        assert over.edit is not None
        assert over.line is not None
        facts: dict[str, Any] = {f"{what}ne": over.edit.kind}
        if over.edit.kind == "keep":
            facts["numbers"] = list(over.edit.numbers)
        line = audit.entry(here.edits, what, over.line["pictures"], **facts, n=len(there.fitted.active))
        self._taken[at] = replace(self._taken[at], state=states.moved(there, here, line))
        self.at = at
        self._lighten()

    def _lighten(self) -> None:
        """Take the problems from the states that are farthest away, until those of the rest fit into the room.

        The first state keeps its own if it can: those of all others are found from it.
        """
        room, seen = min(self.state.fitted.room, ROOM), set[int]()
        for i in sorted(range(len(self._taken)), key=lambda i: (i > 0, abs(i - self.at))):
            one = self._taken[i]
            new = {key: size for key, size in one.state.held().items() if key not in seen}
            if i != self.at and sum(new.values()) > room:
                room = 0 if i else room
                self._taken[i] = replace(one, state=states.light(one.state, self.start))
            else:
                room -= sum(new.values())
                seen |= set(new)


def now() -> str:
    """The time, as the time line and the log have it."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")
