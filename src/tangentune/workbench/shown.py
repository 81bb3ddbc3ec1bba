"""What a workbench session shows of its classifier as it stands: figures, suspects, a map, pictures and reasons."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import wraps
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from tangentune._torch import usual_torch
from tangentune.errors import InputError
from tangentune.estimators.classifier import TangentClassifier
from tangentune.estimators.fitted import FittedModel, solved
from tangentune.estimators.training_set import PictureReader
from tangentune.estimators.user_input import load_inputs
from tangentune.pictures.pictures import Pictures
from tangentune.reports.explanation import explain
from tangentune.workbench import answers, figures, groups, layout, states, suspects
from tangentune.workbench.answers import Answer, NewAnswer
from tangentune.workbench.edits import digests, places
from tangentune.workbench.figures import ClassFigures, Figures
from tangentune.workbench.groups import GroupFigures
from tangentune.workbench.layout import Components, Point
from tangentune.workbench.states import State
from tangentune.workbench.suspects import SuspectRow
from tangentune.workbench.timeline import Step, Timeline

Method = TypeVar("Method", bound=Callable[..., Any])


def one_at_a_time(method: Method) -> Method:
    """A method that no other thread disturbs."""

    @wraps(method)
    def alone(self: Shown, *arguments: Any, **options: Any) -> Any:
        with self._lock:
            self._look()
            return method(self, *arguments, **options)

    return alone  # type: ignore[return-value]


@usual_torch
class Shown:
    """A fitted classifier as the workbench shows it; what a session is without its edits.

    Args:
        estimator: a fitted classifier.

    Raises:
        InputError: it predicts numbers.
    """

    def __init__(self, estimator: TangentClassifier):
        if not isinstance(estimator, TangentClassifier):
            raise InputError("the workbench corrects class labels; this model predicts numbers and has none")
        if estimator.fitted_.outcome.labels is not None:
            raise InputError(
                "the workbench corrects one class a picture; with several labels use `tangentune suspects`, and relabel"
            )
        self.estimator = estimator
        self._lock = threading.RLock()
        self._timeline = Timeline(states.first(estimator.fitted_))
        estimator.fitted_ = self._fitted
        self._components: Components | None = None

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

    def figures(self) -> Figures:
        """Of the whole model as it stands."""
        return self._state.figures

    def class_figures(self) -> list[ClassFigures]:
        """One entry a class, in the order of `classes`."""
        return figures.of_classes(self._fitted)

    @one_at_a_time
    def suspects(
        self, k: int = 24, *, label: str | None = None, suggestion: str | None = None, text: str = ""
    ) -> list[SuspectRow]:
        """The k labels that look most like mistakes, worst first; kept ones are left out.

        Of one given label, one suggestion, or ids that hold a text only. The first call costs n^3.
        """
        self._be(state := states.with_doubts(self._state))
        chosen = {"without": state.kept, "label": label, "suggestion": suggestion, "text": text}
        return suspects.worst(state.fitted, state.doubts, k, **chosen)

    def confusion(self) -> NDArray[np.int64]:
        """(C, C) counts: row = the label given, column = what the other pictures say."""
        return figures.confusion(self._fitted)

    def members(self, label: str, predicted: str | None = None) -> list[int]:
        """Numbers of the pictures of a label, or of one cell of the confusion."""
        return figures.members(self._fitted, label, predicted)

    @one_at_a_time
    def layout(self) -> list[Point]:
        """Every picture in the plane of two components of the kernel, which stay as the first call finds them."""
        if self._components is None:
            self._components = layout.components(self._fitted)
        return layout.points(self._fitted, self._components)

    def picture(self, number: int) -> NDArray[np.uint8]:
        """A stored picture as the network sees it, (H, W, 3); an InputError where there is none."""
        place = int(places(self._fitted, (number,))[0])
        return answers.pixels(self._fitted, place)

    @one_at_a_time
    def answer(self, number: int, top: int = 8) -> Answer:
        """What the model says of one of its pictures, with it and without it, why, and what was done to it."""
        place = int(places(self._fitted, (number,))[0])
        self._solve()
        digest = digests(self._fitted, np.array([place]))[0]
        return answers.of_training(self._fitted, place, top, self._timeline.history(number, digest))

    @one_at_a_time
    def answer_new(self, pictures: Any, top: int = 8) -> list[NewAnswer]:
        """What the model says of new pictures, given as for `predict`, why, and how unlike all others they are."""
        loaded = self._load(pictures)
        same = self._fitted.copies_of(loaded)
        self._solve()
        found = explain(self.estimator, loaded, top)
        self._be(replace(self._state, fitted=self.estimator.fitted_))  # its rows may be in memory now
        return [answers.of_new(self._fitted, one, copies) for one, copies in zip(found, same, strict=True)]

    @one_at_a_time
    def groups(
        self, pattern: str | None = None, *, table: Path | Mapping[str, str] | None = None, column: str = "group"
    ) -> list[GroupFigures]:
        """Figures of each group when it is left out whole, the largest group first.

        Groups come from a regular expression on the ids, or from a table: id to group, or a CSV file with a `column`.
        """
        if (pattern is None) == (table is None):
            raise InputError("groups come from a pattern or from a table; give one of them")
        by = groups.table(table, column) if isinstance(table, Path) else table or pattern or ""
        self._solve()
        return groups.figures(self._fitted, groups.named_by(self._fitted.ids, by))

    @one_at_a_time
    def timeline(self) -> list[Step]:
        """Every edit since the opening, oldest first, undone ones at the end."""
        return self._timeline.steps()

    # -- inside -------------------------------------------------------------------------------------------------------

    @property
    def _state(self) -> State:
        return self._timeline.state

    @property
    def _fitted(self) -> FittedModel:
        return self._state.fitted

    def _look(self) -> None:
        """Take over what the estimator has found meanwhile, such as rows or weights."""
        found, own = self.estimator.fitted_, self._fitted
        if found is own:
            return
        if found.active is not own.active or len(found.edits) != len(own.edits):
            raise InputError("the estimator was edited outside of its workbench; open another one on it")
        self._timeline.be(replace(self._state, fitted=found))

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

    def _reader(self) -> PictureReader:
        size, flip = self.estimator.batch_size, self._fitted.feature_map.mirrored
        return PictureReader(self._fitted.backbone, size, flip, 0)
