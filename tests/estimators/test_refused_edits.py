"""What cannot be done, or fails half-way, leaves a model exactly as it was."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from edit_cases import (
    BACKBONE,
    EDITS,
    MORE,
    MORE_Y,
    NEW,
    X,
    Y,
    plain,
    regressor,
)
from frozen import scores
from numpy.typing import NDArray
from small import FIXED

from tangentune import Pictures, TangentClassifier
from tangentune.errors import InputError


@pytest.fixture(scope="module")
def fitted() -> TangentClassifier:
    return plain()


def wrong(size: int = 8, channels: int = 3, dtype: Any = np.uint8) -> NDArray:
    return np.ones((2, channels, size, size), dtype)


REFUSED: dict[str, tuple[Callable[[TangentClassifier], Any], str]] = {
    "unknown number": (lambda clf: clf.forget([1, 400]), "400"),
    "unknown name": (lambda clf: clf.forget("nowhere.png"), "'nowhere.png'"),
    "negative": (lambda clf: clf.forget(-1), "-1"),
    "mask": (lambda clf: clf.forget(np.ones(40, bool)), "True"),
    "none": (lambda clf: clf.forget([]), "no id"),
    "none named": (lambda clf: clf.forget(None), "None"),
    "everything": (lambda clf: clf.forget(clf.ids_), "at least 2"),
    "all but one": (lambda clf: clf.forget(range(1, 40)), "at least 2"),
    "all but one, strictly": (lambda clf: clf.forget(range(1, 40), strict=True), "at least 2"),
    "all but a class": (lambda clf: clf.forget(np.flatnonzero(Y != 2)), "two classes"),
    "all but a class, strictly": (lambda clf: clf.forget(np.flatnonzero(Y != 2), strict=True), "two classes"),
    "no class": (lambda clf: clf.forget_class("cat"), "the classes are: 0, 1, 2, 3"),
    "no class number": (lambda clf: clf.forget_class(4), "the classes are"),
    "classes": (lambda clf: clf.forget_class(np.arange(40)), "the classes are"),
    "text for numbers": (lambda clf: clf.relabel([3], "cat"), "another kind"),
    "truth for numbers": (lambda clf: clf.relabel([3], True), "another kind"),
    "no label": (lambda clf: clf.relabel([3], None), "missing"),
    "NaN": (lambda clf: clf.relabel([3], float("nan")), "NaN"),
    "fractions": (lambda clf: clf.relabel([3], 0.5), "continuous"),
    "too many labels": (lambda clf: clf.relabel([3, 4], [1, 2, 3]), "3 labels for 2 ids"),
    "too few labels": (lambda clf: clf.relabel([3, 4, 5], [1, 2]), "2 labels for 3 ids"),
    "wide labels": (lambda clf: clf.relabel([3, 4], [[1, 2], [0, 1]]), ""),
    "one class left": (lambda clf: clf.relabel(range(40), 1), "two classes"),
    "39 weights": (lambda clf: clf.reweight(np.ones(39)), "for 40 pictures"),
    "a weight for all": (lambda clf: clf.reweight(2.0), "for 40 pictures"),
    "negative weight": (lambda clf: clf.reweight(np.r_[np.ones(39), -1]), "picture 39 has a negative weight"),
    "NaN weight": (lambda clf: clf.reweight(np.r_[np.ones(39), np.nan]), "weight 39 is nan"),
    "text weight": (lambda clf: clf.reweight(["much"] * 40), "40 numbers"),
    "one weight": (lambda clf: clf.reweight(np.eye(40)[3]), "at least 2"),
    "wrong size": (lambda clf: clf.add(Pictures(torch.from_numpy(wrong(9)), np.array([0, 1]), ["a", "b"])), "9, 9"),
    "wrong channels": (lambda clf: clf.add(wrong(channels=2), [0, 1]), ""),
    "floats": (lambda clf: clf.add(wrong(dtype=np.float32), [0, 1]), "uint8"),
    "NaN pictures": (lambda clf: clf.add(np.full((1, 3, 8, 8), np.nan), [0]), ""),
    "no labels": (lambda clf: clf.add(MORE), "no labels"),
    "labels missing": (lambda clf: clf.add(MORE, [1, 2]), "2 labels for 12"),
    "other labels": (lambda clf: clf.add(MORE[:1], ["cat"]), "another kind"),
    "no pictures": (lambda clf: clf.add(Pictures(torch.zeros(0, 3, 8, 8), np.zeros(0), [])), ""),
    "path there": (lambda clf: clf.add(Pictures(torch.from_numpy(MORE[:2]), MORE_Y[:2], ["y", "x"])), "a picture 'x'"),
    "added weights": (lambda clf: clf.add(MORE, MORE_Y, sample_weight=[1, 2]), "for 12 pictures"),
    "an added weight": (lambda clf: clf.add(MORE, MORE_Y, sample_weight=3.0), "for 12 pictures"),
}  # fmt: skip


@pytest.fixture(scope="module")
def guarded() -> tuple[TangentClassifier, tuple[Any, ...]]:
    """A model that all wrong edits are tried on, and what must stay as it was."""
    clf = TangentClassifier(BACKBONE, **FIXED).fit(Pictures(torch.from_numpy(X), Y, ["x", *map(str, range(1, 40))]))
    return clf, state_of(clf)


@pytest.mark.parametrize("case", REFUSED)
def test_refusals_change_nothing(guarded: tuple[TangentClassifier, tuple[Any, ...]], case: str) -> None:
    (clf, before), (call, words) = guarded, REFUSED[case]
    with pytest.raises(ValueError) as caught:
        call(clf)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
    unchanged(clf, before)


def test_regressors_refuse_too() -> None:
    reg = regressor()
    for call, words in (
        (lambda: reg.relabel([3], 1.0), "(2,)"), (lambda: reg.relabel([3], "red"), "not a number"),
        (lambda: reg.relabel([3], [np.inf, 1.0]), "inf"), (lambda: reg.add(MORE, MORE_Y), "(2,)"),
        (lambda: reg.add(MORE, np.ones((12, 3))), "(3,)"), (lambda: reg.forget_class(1), "no classes"),
        (lambda: reg.relabel([3, 4], [1.0, np.nan]), ""),
    ):  # fmt: skip
        before = state_of(reg)
        with pytest.raises(InputError) as caught:
            call()
        assert words in str(caught.value), str(caught.value)
        assert "\n" not in str(caught.value)
        unchanged(reg, before)


def state_of(model: Any) -> tuple[Any, ...]:
    """What may not change: attributes, answers bit for bit, the log."""
    answers = scores(model, NEW), model.influence(NEW)
    kept = {key: value for key, value in vars(model.fitted_).items() if key not in ("training", "primal")}
    return *answers, model.get_params(deep=False), kept, set(vars(model)), list(model.edits_)


def unchanged(model: Any, before: tuple[Any, ...]) -> None:
    predictions, influence, options, kept, keys, edits = before
    assert set(vars(model)) == keys
    assert model.get_params(deep=False) == options
    assert all(
        getattr(model.fitted_, key) is value or getattr(model.fitted_, key) == value for key, value in kept.items()
    )
    assert model.edits_ == edits
    assert np.array_equal(scores(model, NEW), predictions)
    assert np.array_equal(model.influence(NEW), influence)


class Broken(RuntimeError):
    """Raised where nothing should go wrong."""


@pytest.mark.parametrize(("edit", "place"), [
    *[(edit, place) for edit in [*EDITS, "undo"] for place in ("audit.entry", "solution.loo")],
    ("forget", "solution.refinement"), ("forget", "tasks.fit_probabilities"),
    ("forget", "solution.residual"), ("add", "edits.extend"),
    ("strict", "edits.reestimate"),
])  # fmt: skip
def test_a_failure_inside_leaves_all_as_it_was(
    fitted: TangentClassifier, edit: str, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    clf = copy.deepcopy(fitted).forget([7])
    before = state_of(clf)
    change = EDITS.get(edit, lambda clf: clf.undo())
    change = (lambda clf: clf.reweight(np.arange(39.0))) if edit == "reweight" else change

    def fail(*_: Any, **__: Any) -> None:
        raise Broken

    with monkeypatch.context() as patch:
        patch.setattr(f"tangentune.estimators.{place}", fail)
        with pytest.raises(Broken):
            change(clf)
    unchanged(clf, before)
    change(clf)
    assert len(clf.edits_) == 2
