"""What the workbench stands on after each edit, so that edits are taken back, and done again, without solving anew."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, final

from tangentune.estimators.fitted import FittedModel, bounded, compacted, solved
from tangentune.estimators.row_file import read_rows
from tangentune.estimators.solution import follow
from tangentune.solvers.low_rank import FeatureKernel
from tangentune.solvers.system import System
from tangentune.workbench import figures, suspects
from tangentune.workbench.edits import Edit, kept_for_good
from tangentune.workbench.figures import Figures
from tangentune.workbench.suspects import Doubts


@final
@dataclass(frozen=True, eq=False)
class State:
    """A fitted classifier and all that is shown of it; the large parts may be gone, and are then made again."""

    fitted: FittedModel
    wary: System | None  # the problem at the distrusting damping; None until it is needed
    wary_damping: float | None  # None until the first one is made
    kept: frozenset[int]  # numbers of pictures whose labels are right

    @cached_property
    def figures(self) -> Figures:
        """Of the whole model."""
        return figures.whole(self.fitted)

    @cached_property
    def doubts(self) -> Doubts:
        """Of every label; the wary problem must be there."""
        assert self.wary is not None
        return suspects.doubts(self.fitted, self.wary)

    def matrices(self) -> list[tuple[int, int]]:
        """Of each matrix a number that tells it from others, and its bytes."""
        systems = [self.wary, None if self.fitted.solution is None else self.fitted.solution.system]
        found = [part for one in systems if one is not None for part in (one.kernel, one.inverse)]
        found = [part for part in found if not isinstance(part, FeatureKernel)]  # rows, which all have in common
        return [(part.data_ptr(), part.nbytes) for part in found]


def first(fitted: FittedModel) -> State:
    """Where a session starts."""
    return State(fitted, None, None, kept_for_good(fitted))


def with_wary(state: State) -> State:
    """The same with its wary problem; n^3 if it is not there."""
    if state.wary is not None:
        return state
    fitted = replace(state.fitted, solution=solved(state.fitted))
    wary = suspects.wary_of(fitted) if state.wary_damping is None else suspects.wary_at(fitted, state.wary_damping)
    return replace(state, fitted=fitted, wary=wary, wary_damping=wary.damping)


def after(state: State, fitted: FittedModel, edit: Edit) -> State:
    """The state that an edit leads to, `fitted` being the model after it; the wary problem follows, n^2 a picture."""
    kept = state.kept | set(edit.numbers) if edit.kind == "keep" else state.kept
    if edit.kind == "forget":
        kept = state.kept - set(edit.numbers)
    state = with_wary(state)
    assert state.wary is not None
    wary, fitted = state.wary, replace(fitted, undo=bounded(fitted.undo, 0))  # the time line keeps solutions itself
    if wary.damping == solved(fitted).system.damping:
        wary = solved(fitted).system
    elif fitted.solution is not state.fitted.solution:
        wary = follow(wary, state.fitted.active, fitted.active, solved(fitted), fitted.training)
    return State(fitted, wary, wary.damping, frozenset(kept))


def moved(there: State, here: FittedModel, line: dict[str, Any]) -> State:
    """A former or later state, reached from another one: what is true whatever the edits goes with it.

    That is the log, with the line that tells of the way; the next number, for none is used twice; and rows in memory.
    """
    fitted, training, rows = there.fitted, there.fitted.training, here.training.rows
    if training.rows is None and rows is not None and len(rows) >= len(training):
        training = replace(training, rows=rows.first(len(training)))
    number = max(here.next_number, fitted.next_number)
    return replace(there, fitted=replace(fitted, edits=[*here.edits, line], next_number=number, training=training))


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


def light(state: State) -> State:
    """The same without its matrices."""
    return replace(state, fitted=replace(state.fitted, solution=None), wary=None)
