"""The workbench on a model with landmarks: every figure as with the kernel of all pictures."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from small import FIXED, backbone, pictures

from tangentune import Pictures, TangentClassifier
from tangentune.errors import InputError
from tangentune.solvers.leave_out import loo
from tangentune.solvers.low_rank import FeatureInverse, FeatureKernel
from tangentune.solvers.system import refresh
from tangentune.workbench.edits import Edit
from tangentune.workbench.session import Session

X, Y = pictures(40)
NEW, _ = pictures(6, seed=5)
NAMES = np.array(["ant", "bee", "cat", "dog"])[Y].astype("<U6")


def session(**options: Any) -> Session:
    labelled = Pictures(torch.from_numpy(X), NAMES, [f"{i:02d}.png" for i in range(len(X))])
    return Session(TangentClassifier(backbone(), **(FIXED | options)).fit(labelled))


def same(ours: Session, dense: Session) -> None:
    one, two = ours.figures(), dense.figures()
    assert (one.n, one.classes, one.accuracy, one.interval) == (two.n, two.classes, two.accuracy, two.interval)
    assert (one.log_loss, one.calibration_error) == pytest.approx((two.log_loss, two.calibration_error), abs=1e-8)
    assert ours.class_figures() == dense.class_figures()
    first, second = ours.suspects(12), dense.suspects(12)
    assert [row.id for row in first] == [row.id for row in second]
    assert_allclose([row.score for row in first], [row.score for row in second], atol=1e-8)
    assert_allclose(ours.estimator.loo_predictions_, dense.estimator.loo_predictions_, atol=1e-8)


def test_every_figure_is_that_of_the_kernel_of_all_pictures() -> None:
    ours, dense = session(solver="landmarks", landmarks=40), session(solver="dual")
    same(ours, dense)
    relabelled = [Edit("relabel", numbers, name) for numbers, name in (((3,), "dog"), ((9, 11), "ant"))]
    for edit in (relabelled[0], Edit("forget", (5, 6)), relabelled[1], Edit("forget", (0,))):
        for one in (ours, dense):
            one.take(edit)
        same(ours, dense)
    for step in ("undo", "undo", "undo", "redo", "redo", "undo"):
        for one in (ours, dense):
            getattr(one, step)()
        same(ours, dense)
    for number in (3, 20):
        one, two = ours.answer(number), dense.answer(number)
        assert [reason.number for reason in one.supports] == [reason.number for reason in two.supports]
    unlabelled = Pictures(torch.from_numpy(NEW), None, [f"new{i}.png" for i in range(len(NEW))])
    one, two = (found.answer_new(unlabelled.select([0]))[0] for found in (ours, dense))
    assert [reason.number for reason in one.supports] == [reason.number for reason in two.supports]


def test_rows_of_all_pictures_are_not_offered() -> None:
    ours = session(solver="landmarks", landmarks=12)
    assert not ours.rows_help
    assert np.isfinite([(point.x, point.y) for point in ours.layout()]).all()


def test_a_save_leaves_nothing_of_forgotten_pictures_in_memory(tmp_path: object) -> None:
    place = f"{tmp_path}/model"
    model = session(solver="landmarks", landmarks=12).estimator
    model.save_pretrained(place)
    with Session(model, place) as found:
        gone = (next(i for i in range(40) if i not in landmark_numbers(found)), landmark_numbers(found)[0])
        found.take(Edit("forget", gone))
        found.save()
        solution = found._timeline.state.fitted.solution
        assert solution is not None
        assert solution.wary is not None
        for system in (solution.system, solution.wary):
            assert isinstance(system.kernel, FeatureKernel)
            assert isinstance(system.inverse, FeatureInverse)
            assert [len(part) for part in system.kernel.parts] == [38]
            assert system.inverse.kernel is system.kernel is found._timeline.state.fitted.training.kernel
            assert system.inverse.gram.terms == system.inverse.core.terms == ()
        found.take(Edit("relabel", (found.numbers[3],), "dog"))
        found.take(Edit("forget", (found.numbers[5], landmark_numbers(found)[0])))
        held = found.estimator.solution_.system
        anew = refresh(held)
        assert_allclose(held.dual, anew.dual, atol=1e-8)
        assert_allclose(found.estimator.loo_predictions_, loo(anew), atol=1e-8)


def test_a_state_put_by_is_found_from_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    found = session(solver="landmarks", landmarks=12)
    found.suspects()
    monkeypatch.setattr("tangentune.workbench.timeline.ROOM", sum(found._timeline.state.held().values()))
    monkeypatch.setattr("tangentune.estimators.fitted.solve", None)  # nothing is solved from the rows
    monkeypatch.setattr("tangentune.workbench.states.distrusting", None)
    marked = landmark_numbers(found)
    others = [number for number in range(40) if number not in marked]
    shown = []
    edits = ("forget", others[0]), ("relabel", others[1]), ("forget", marked[2]), ("forget", others[7])
    for kind, number in edits:
        shown.append((found.figures(), found.suspects(9), found.estimator.loo_predictions_))
        found.take(Edit("forget", (number,)) if kind == "forget" else Edit("relabel", (number,), "dog"))
    for i in (3, 2, 1):
        found.undo()
        assert found._timeline.state.fitted.solution is None
        assert (found.figures(), found.suspects(9)) == shown[i][:2]  # without a solution
        found.answer(others[9])
        held = found.estimator.solution_.system
        assert_allclose(loo(held), shown[i][2], atol=1e-8)
        assert_allclose(held.dual, refresh(held).dual, atol=1e-8)
    found.take(Edit("forget", (marked[1], others[5])))
    assert_allclose(found.estimator.loo_predictions_, loo(refresh(found.estimator.solution_.system)), atol=1e-8)


def landmark_numbers(found: Session) -> list[int]:
    landmarks = found._timeline.state.fitted.training.landmarks
    assert landmarks is not None
    return landmarks.numbers.tolist()


def test_no_rows_are_kept(tmp_path: object) -> None:
    place = f"{tmp_path}/model"
    model = session(solver="landmarks", landmarks=12).estimator
    model.save_pretrained(place)
    with Session(model, place) as found, pytest.raises(InputError, match="there is nothing to keep"):
        found.keep_rows()
