"""Edits taken back, one by one."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest
from edit_cases import (
    EDITS,
    NEW,
    plain,
    restored,
)
from frozen import scores
from numpy.testing import assert_allclose

from tangentune import TangentClassifier
from tangentune.errors import InputError


@pytest.fixture(scope="module")
def fitted() -> TangentClassifier:
    return plain()


@pytest.mark.parametrize("edit", EDITS)
def test_every_edit_can_be_undone(fitted: TangentClassifier, edit: str) -> None:
    clf = copy.deepcopy(fitted)
    EDITS[edit](clf)
    assert not np.allclose(clf.loo_predictions_[:5, :3], fitted.loo_predictions_[:5, :3])
    clf.undo()
    restored(clf, fitted)
    assert [entry["edit"] for entry in clf.edits_] == ["forget" if edit in ("strict", "forget_class") else edit, "undo"]
    assert clf.edits_[-1]["undone"] == clf.edits_[0]["edit"]
    with pytest.raises(InputError, match="no edit to undo"):
        clf.undo()


def test_several_edits_are_undone_one_by_one(fitted: TangentClassifier) -> None:
    clf = copy.deepcopy(fitted)
    states = []
    for name in ("forget", "add", "strict_later", "relabel", "forget_class"):
        states.append((scores(clf, NEW), clf.loo_predictions_, clf.ids_))
        EDITS[name](clf) if name in EDITS else clf.forget([41, 20], strict=True)
    for predictions, loo, ids in reversed(states):
        clf.undo()
        assert_allclose(scores(clf, NEW), predictions, rtol=0, atol=1e-8)
        assert_allclose(clf.loo_predictions_, loo, rtol=0, atol=1e-8)
        assert clf.ids_ == ids
    restored(clf, fitted)
    clf.forget([1]).undo()
    restored(clf, fitted)


def test_undo_keeps_no_rows_of_former_maps(fitted: TangentClassifier) -> None:
    clf = copy.deepcopy(fitted).forget([1], strict=True)
    (step,) = clf.fitted_.undo
    assert step.training is not None
    assert step.training.rows is None


def test_the_latest_edits_are_taken_back_without_solving(
    fitted: TangentClassifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Solutions are kept as long as there is room; without room the former problem is solved anew, to the same."""
    clf, poor = copy.deepcopy(fitted), copy.deepcopy(fitted)
    poor.fitted_ = replace(poor.fitted_, room=0)
    for model in (clf, poor):
        model.relabel([3], 0).forget([1, 7]).relabel([5], 2).forget([6])
    solutions = [step.solution for step in clf.fitted_.undo]
    assert solutions[0] is not None
    assert solutions[0].system.inverse is fitted_inverse(clf)
    assert [step.solution for step in poor.fitted_.undo] == [None] * 4
    for _ in range(4):
        poor.undo()
    restored(poor, fitted)
    monkeypatch.setattr("tangentune.estimators.edits.solve", lambda *_: pytest.fail("solved anew"))
    for _ in range(4):
        clf.undo()
    assert clf.solution_ is solutions[0]
    restored(clf, fitted)


def fitted_inverse(clf: TangentClassifier) -> object:
    """Of the second step's solution: a new label leaves the inverse as it is."""
    solution = clf.fitted_.undo[1].solution
    assert solution is not None
    return solution.system.inverse
