"""What the workbench stands on after each edit, so that edits are taken back, and done again, without solving anew."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, final

from tangentune.estimators.fitted import FittedModel, bounded, compacted, solved
from tangentune.estimators.row_file import read_rows
from tangentune.solvers.leave_out import distrusting
from tangentune.solvers.system import System, held
from tangentune.workbench import figures, suspects
from tangentune.workbench.edits import Edit, kept_for_good
from tangentune.workbench.figures import Figures
from tangentune.workbench.suspects import Doubts


@final
@dataclass(frozen=True, eq=False)
class State:
    """A fitted classifier and all that is shown of it; the large parts may be gone, and are then made again."""

    fitted: FittedModel
    wary_damping: float | None  # None until the first one is made
    kept: frozenset[int]  # numbers of pictures whose labels are right

    @property
    def wary(self) -> System | None:
        """The problem at the distrusting damping; None until it is needed."""
        return None if self.fitted.solution is None else self.fitted.solution.wary

    @cached_property
    def figures(self) -> Figures:
        """Of the whole model."""
        return figures.whole(self.fitted)

    @cached_property
    def doubts(self) -> Doubts:
        """Of every label; the wary problem must be there."""
        assert self.wary is not None
        return suspects.doubts(self.fitted, self.wary)

    def held(self) -> dict[int, int]:
        """Bytes of each large part of its problems, by what tells it from others."""
        solution = self.fitted.solution
        return {} if solution is None else held(solution.system, solution.wary)


def first(fitted: FittedModel) -> State:
    """Where a session starts; its wary problem has a damping of its own, whatever a former session left."""
    if fitted.solution is not None and fitted.solution.wary is not None:
        fitted = replace(fitted, solution=replace(fitted.solution, wary=None))
    return State(fitted, None, kept_for_good(fitted))


def with_wary(state: State) -> State:
    """The same with its wary problem; n^3 if it is not there."""
    if state.wary is not None:
        return state
    solution, damping = solved(state.fitted), state.wary_damping
    wary = solution.wary
    if wary is None:
        wary = distrusting(solution.system, damping)
    fitted = replace(state.fitted, solution=replace(solution, wary=wary))
    return _same(state, fitted=fitted, wary_damping=wary.damping)


def with_doubts(state: State) -> State:
    """The same, such that its doubts are known or can be asked for."""
    return state if "doubts" in vars(state) else with_wary(state)


def after(state: State, fitted: FittedModel, edit: Edit) -> State:
    """The state that an edit leads to, `fitted` being the model after it."""
    kept = state.kept | set(edit.numbers) if edit.kind == "keep" else state.kept
    if edit.kind == "forget":
        kept = state.kept - set(edit.numbers)
    fitted = replace(fitted, undo=bounded(fitted.undo, 0))  # the time line keeps solutions itself
    return State(fitted, state.wary_damping, frozenset(kept))


def moved(there: State, here: FittedModel, line: dict[str, Any]) -> State:
    """A former or later state, reached from another one: what is true whatever the edits goes with it.

    That is the log, with the line that tells of the way; the next number, for none is used twice; and rows in memory.
    """
    fitted, training, rows = there.fitted, there.fitted.training, here.training.rows
    if training.rows is None and rows is not None and len(rows) >= len(training):
        training = replace(training, rows=rows.first(len(training)))
    number = max(here.next_number, fitted.next_number)
    return _same(there, fitted=replace(fitted, edits=[*here.edits, line], next_number=number, training=training))


def saved(state: State, rows: bool) -> State:
    """The state of a model that was just saved: what it has forgotten is gone from memory, as it is from the disk.

    Where `rows` were written beside it, those are mapped instead of the former ones.
    """
    fitted = state.fitted
    if rows and fitted.version is not None:
        fitted = compacted(replace(fitted, training=replace(fitted.training, rows=None)))
        assert fitted.version is not None
        fitted = replace(fitted, training=replace(fitted.training, rows=read_rows(fitted.version, fitted.training)))
    return replace(state, fitted=compacted(fitted))


def light(state: State, start: State) -> State:
    """The same without its problems; what was shown of it is still known. They can be found from those of the start."""
    held = start.fitted.solution
    former = None if held is None or start is state else (held, start.fitted.active)
    return _same(state, fitted=replace(state.fitted, solution=None, former=former))


def _same(state: State, **changes: Any) -> State:
    """With changes of what nothing that is shown depends on."""
    new = replace(state, **changes)
    vars(new).update({name: vars(state)[name] for name in ("figures", "doubts") if name in vars(state)})
    return new
