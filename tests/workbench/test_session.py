"""The workbench's engine: after any edit every figure is that of a fit to the changed pictures."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from numpy.typing import NDArray
from reference import inverse_of
from small import FIXED, backbone, pictures

from tangentune import Pictures, TangentClassifier, TangentRegressor
from tangentune.errors import InputError, StaleError
from tangentune.estimators.summary import class_scores
from tangentune.reports.explanation import familiarity
from tangentune.solvers.leave_out import distrusting
from tangentune.solvers.system import refresh
from tangentune.workbench.edits import Edit
from tangentune.workbench.session import Session
from tangentune.workbench.states import with_wary

BACKBONE = backbone()
X, Y = pictures(40)
NEW, NEW_Y = pictures(6, seed=5)
NAMES = np.array(["ant", "bee", "cat", "dog"])[Y].astype("<U6")
IDS = [f"{day}/{i:02d}.png" for i, day in zip(range(40), "abcde" * 8, strict=True)]


def fitted(x: NDArray, y: NDArray, ids: list[str], **options: Any) -> TangentClassifier:
    """A classifier whose feature map owes nothing to its pictures, so that another fit has the same one."""
    return TangentClassifier(BACKBONE, **(FIXED | options)).fit(Pictures(torch.from_numpy(x), y, ids))


def session(**options: Any) -> Session:
    return Session(fitted(X, NAMES, IDS, **options))


def equals_refit(found: Session, x: NDArray, y: NDArray, ids: list[str], **options: Any) -> None:
    """Everything that is shown equals that of a model fitted outright to these pictures."""
    refit = fitted(x, y, ids, **options)
    given = np.searchsorted(refit.classes_, y)
    scores, shown = class_scores(given, refit.loo_proba_), found.figures()
    assert (shown.n, shown.classes) == (len(y), len(refit.classes_))
    assert shown.accuracy == pytest.approx(scores["accuracy"], abs=1e-12)
    assert shown.interval[0] < shown.accuracy < shown.interval[1]
    assert shown.log_loss == pytest.approx(scores["nll"], abs=1e-8)
    assert shown.calibration_error == pytest.approx(scores["ece"], abs=1e-8)
    assert found.classes == refit.classes_.tolist()
    right = refit.loo_proba_.argmax(1) == given
    for k, one in enumerate(found.class_figures()):
        assert (one.name, one.count) == (found.classes[k], (given == k).sum())
        assert one.accuracy == pytest.approx(right[given == k].mean())
    assert_allclose(found.estimator.loo_predictions_, refit.loo_predictions_, rtol=0, atol=1e-8)
    assert_allclose(found.estimator.dual_coef_, refit.dual_coef_, rtol=0, atol=1e-8)
    counts = found.confusion()
    assert counts.sum() == len(y)
    assert np.trace(counts) == right.sum()
    rows, state = found.suspects(len(y)), with_wary(found._timeline.state)
    assert state.wary is not None
    anew = refresh(refit.solution_.system, damping=state.wary.damping)
    assert_allclose(inverse_of(state.wary), inverse_of(anew), rtol=0, atol=1e-8 * float(inverse_of(anew).abs().max()))
    assert_allclose(state.wary.dual, anew.dual, rtol=0, atol=1e-8)
    assert sorted(row.id for row in rows) == sorted(ids)
    assert all(one.score >= two.score for one, two in pairwise(rows))
    for row in rows[:5]:
        i = ids.index(row.id)
        assert row.label == y[i] != row.suggestion
        assert row.probability == pytest.approx(refit.loo_proba_[i, given[i]], abs=1e-8)


VARIANTS: list[dict[str, Any]] = [{}, {"class_weight": "balanced"}, {"damping": 1e-3, "augment": "flip"}]


@pytest.mark.parametrize("options", VARIANTS, ids=str)
def test_every_edit_is_a_refit(options: dict[str, Any]) -> None:
    found, x, y, ids = session(**options), X, NAMES.copy(), list(IDS)
    opening = found.opening
    found.suspects()
    found.take(Edit("relabel", (3, 17), "bee"))
    y[[3, 17]] = "bee"
    equals_refit(found, x, y, ids, **options)
    found.take(Edit("forget", (0, 5, 39)))
    rest = np.setdiff1d(np.arange(40), (0, 5, 39))
    equals_refit(found, x[rest], y[rest], [ids[i] for i in rest], **options)
    found.add(NEW[:2], "emu", new_class=True)
    both = np.concatenate([x[rest], NEW[:2]]), np.r_[y[rest], ["emu", "emu"]], [*(ids[i] for i in rest), "40", "41"]
    equals_refit(found, *both, **options)
    before = found.figures()
    found.take(Edit("keep", (7,)))
    assert found.figures() == before
    found.undo()
    found.undo()
    equals_refit(found, x[rest], y[rest], [ids[i] for i in rest], **options)
    found.redo()
    equals_refit(found, *both, **options)
    for _ in range(3):
        found.undo()
    equals_refit(found, X, NAMES, IDS, **options)
    assert found.figures() == opening == found.opening
    assert found.version == 10
    assert [step.done for step in found.timeline()] == [False] * 4
    with pytest.raises(InputError, match="no edit to undo"):
        found.undo()


def test_a_later_session_chooses_its_own_distrusting_damping() -> None:
    found = session()
    found.suspects()
    found.take(Edit("forget", tuple(range(0, 20, 2))))
    later = Session(found.estimator)
    later.suspects()
    fresh = session()
    fresh.take(Edit("forget", tuple(range(0, 20, 2))))
    dampings = [with_wary(one._timeline.state).wary_damping for one in (found, later, fresh)]
    assert dampings[0] == dampings[2] != dampings[1]
    assert dampings[1] == distrusting(later.estimator.solution_.system).damping


def test_states_without_room_are_solved_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tangentune.workbench.timeline.ROOM", 0)
    found, rest = session(), np.setdiff1d(np.arange(40), (0, 5))
    found.take(Edit("forget", (0, 5)))
    found.take(Edit("relabel", (3,), "bee"))
    assert [one.state.wary is None for one in found._timeline._taken] == [True, True, False]
    found.undo()
    assert found._timeline.state.fitted.solution is None
    equals_refit(found, X[rest], NAMES[rest], [IDS[i] for i in rest])
    found.undo()
    equals_refit(found, X, NAMES, IDS)
    found.redo()
    equals_refit(found, X[rest], NAMES[rest], [IDS[i] for i in rest])


@pytest.fixture(scope="module")
def plain() -> Session:
    """Read only: tests that edit make their own."""
    return session()


def test_a_preview_changes_nothing(plain: Session) -> None:
    before, version = plain.figures(), plain.version
    forgot = plain.preview(Edit("forget", (3, 4)))
    assert forgot.n == 38
    assert plain.preview(Edit("relabel", (3,), "ant")).n == 40
    assert (plain.figures(), plain.version, plain.timeline()) == (before, version, [])
    other = session()
    assert other.preview(Edit("forget", (3, 4))) == other.take(Edit("forget", (3, 4))) == forgot


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (Edit("relabel", (3,), "bea"), "no such class; did you mean 'bee'"),
        (Edit("relabel", (3,)), "relabel needs a label"),
        (Edit("forget", (3,), "bee"), "takes no label"),
        (Edit("forget", ()), "no picture is named"),
        (Edit("forget", (3, 77)), "number 77"),
        (Edit("forget", tuple(range(39))), "2"),
        (Edit("add", (40,), "bee"), "use add"),
        (Edit("burn", (3,)), "one of relabel, forget"),  # pyright: ignore[reportArgumentType]
    ],
    ids=str,
)
def test_what_cannot_be_done_is_refused(plain: Session, edit: Edit, words: str) -> None:
    version = plain.version
    with pytest.raises(InputError, match=words):
        plain.take(edit, version=version)
    assert plain.version == version


def test_a_stale_edit_is_refused() -> None:
    found = session()
    found.take(Edit("keep", (3,)), version=0)
    for late in (
        lambda: found.take(Edit("forget", (3,)), version=0),
        lambda: found.add(NEW, "ant", version=0),
        lambda: found.undo(version=0),
        lambda: found.redo(version=0),
    ):
        with pytest.raises(StaleError, match="has changed since"):
            late()
    assert found.undo(version=1) == found.opening


def test_an_estimator_that_was_edited_elsewhere_is_not_gone_on_with() -> None:
    found = session()
    found.estimator.predict(NEW)
    found.take(Edit("keep", (3,)))
    found.estimator.forget([3])
    with pytest.raises(InputError, match="edited outside of its workbench"):
        found.take(Edit("forget", (4,)))


def test_numbers_have_no_labels_to_correct() -> None:
    reg = TangentRegressor(BACKBONE, **FIXED).fit(X, np.arange(40.0))
    with pytest.raises(InputError, match="predicts numbers"):
        Session(reg)  # pyright: ignore[reportArgumentType]


def test_classes_of_whole_numbers_are_named_by_text() -> None:
    found = Session(fitted(X, Y, IDS))
    assert found.classes == ["0", "1", "2", "3"]
    found.take(Edit("relabel", (3,), "1"))
    found.take(Edit("relabel", (4,), "7", new_class=True))
    assert found.estimator.targets_[[3, 4]].tolist() == [1, 7]
    with pytest.raises(InputError, match="'x' is of another kind"):
        found.take(Edit("relabel", (3,), "x", new_class=True))


def test_suspects_are_those_of_the_model_and_can_be_chosen(plain: Session) -> None:
    clf = fitted(X, NAMES, IDS)
    mine, theirs = plain.suspects(40), clf.suspects()
    assert [(one.id, one.label, one.suggestion) for one in mine] == [(o.id, o.label, o.suggestion) for o in theirs]
    assert_allclose([one.score for one in mine], [one.score for one in theirs], rtol=0, atol=1e-12)
    assert {one.label for one in plain.suspects(40, label="bee")} == {"bee"}
    assert {one.suggestion for one in plain.suspects(40, suggestion="cat")} <= {"cat"}
    assert [one.number for one in plain.suspects(40, text="A/1")] == [
        one.number for one in mine if one.id.startswith("a/1")
    ]
    with pytest.raises(InputError, match="no class 'x'"):
        plain.suspects(label="x")


def test_kept_pictures_leave_the_suspects_for_good() -> None:
    found = session()
    first, second = (row.number for row in found.suspects(2))
    found.take(Edit("keep", (first,)))
    assert found.suspects(1)[0].number == second
    found.undo()
    assert found.suspects(1)[0].number == first
    found.redo()
    found.take(Edit("relabel", (second,), "ant"))
    assert first not in [row.number for row in found.suspects(40)]
    assert Session(found.estimator)._timeline.state.kept == {first}
    assert found.answer(first).history[0][1] == "kept"
    assert found.answer(second).history[-1][1] == "relabelled as ant"


def test_members_are_those_of_the_confusion(plain: Session) -> None:
    counts, names = plain.confusion(), plain.classes
    found = [[len(plain.members(one, other)) for other in names] for one in names]
    assert found == counts.tolist()
    assert [len(plain.members(one)) for one in names] == counts.sum(1).tolist()


def test_pictures_are_shown_as_they_are_stored(plain: Session) -> None:
    assert plain.picture(7).dtype == np.uint8
    assert np.array_equal(plain.picture(7), X[7].transpose(1, 2, 0))
    with pytest.raises(InputError, match="number 40"):
        plain.picture(40)


def test_the_map_shows_what_the_kernel_tells_apart() -> None:
    found = session()
    kernel = found.estimator.kernel_
    centred = kernel - kernel.mean(0) - kernel.mean(1)[:, None] + kernel.mean()
    values, vectors = np.linalg.eigh(centred)
    expected = vectors[:, [-1, -2]] * np.sqrt(values[[-1, -2]])
    places = np.array([(one.x, one.y) for one in found.layout()])
    assert_allclose(np.abs(places), np.abs(expected), rtol=0, atol=1e-6 * np.abs(expected).max())
    with pytest.warns(UserWarning, match="repeats one that the model has"):
        found.add(X[:1], "ant")
    found.take(Edit("forget", (5,)))
    points = {one.number: one for one in found.layout()}
    assert_allclose([points[40].x, points[40].y], places[0], rtol=0, atol=1e-9)
    assert_allclose([points[7].x, points[7].y], places[7], rtol=0, atol=1e-12)
    assert 5 not in points
    proba, given = found.estimator.loo_proba_, list(found.numbers).index(7)
    own = found.classes.index(points[7].label)
    assert points[7].margin == pytest.approx(proba[given, own] - np.delete(proba[given], own).max())


@pytest.mark.parametrize("options", [{}, {"class_weight": "balanced"}], ids=str)
def test_a_training_picture_is_explained_from_the_kernel_alone(options: dict[str, Any]) -> None:
    """As `explain` does by taking it out of the problem, and by fits without it and without another one."""
    found = session(**options)
    answer = found.answer(6, top=40)
    rest = np.setdiff1d(np.arange(40), [6])
    without = fitted(X[rest], NAMES[rest], [IDS[i] for i in rest], **options)
    names = without.classes_.tolist()
    scores = without._scores(X[6:7])[0]
    assert answer.without_label[0][0] == names[int(scores.argmax())]
    assert_allclose(dict(answer.without_label)["cat"], found.estimator.loo_proba_[6, 2], rtol=0, atol=1e-12)
    assert answer.with_label is not None
    assert_allclose([p for _, p in sorted(answer.with_label)], found.estimator.predict_proba(X[6:7])[0], atol=1e-9)
    best, second = (names.index(name) for name, _ in answer.without_label[:2])
    effects = without.influence(X[6:7])[0]
    shares = without.contributions(X[6:7])[0]
    reasons = {one.id: one for one in (*answer.supports, *answer.opposes)}
    assert len(reasons) == 39
    for place, name in enumerate(without.ids_):
        lead = effects[place, best] - effects[place, second]
        assert reasons[name].influence == pytest.approx(lead, abs=1e-9)
        assert reasons[name].contribution == pytest.approx(shares[place, best] - shares[place, second], abs=1e-9)
    assert [one.influence for one in answer.supports] == sorted((r.influence for r in answer.supports), reverse=True)
    assert answer.familiar


def test_new_pictures_are_answered_with_reasons(plain: Session) -> None:
    found = plain.answer_new(np.concatenate([NEW, X[9:10]]), top=3)
    proba = plain.estimator.predict_proba(NEW)
    for one, row in zip(found, proba, strict=False):
        assert one.known is None
        assert_allclose([p for _, p in sorted(one.classes)], row, rtol=0, atol=1e-9)
        assert len(one.supports) <= 3
        assert one.familiar
    assert found[-1].known == 9
    assert_allclose(dict(found[-1].classes)["bee"], plain.estimator.loo_proba_[9, 1], rtol=0, atol=1e-9)
    odd = np.stack([np.zeros((3, 8, 8), np.uint8), np.random.default_rng(0).integers(0, 2, (3, 8, 8), np.uint8) * 255])
    strange = plain.answer_new(odd)
    assert_allclose([one.distance for one in strange], plain.estimator.ood_score(odd), rtol=0, atol=1e-9)
    assert [one.familiar for one in strange] == [familiarity(one.distance) for one in strange]


def test_groups_are_left_out_whole(plain: Session, tmp_path: Any) -> None:
    days = [name[0] for name in IDS]
    found = plain.groups(r"^(\w)/")
    assert [one.name for one in found] == list("abcde")
    scores = plain.estimator.leave_out(days)
    for one in found:
        own = np.array(days) == one.name
        assert one.numbers == tuple(np.flatnonzero(own).tolist())
        given = NAMES[own] == np.array(plain.classes)[scores[own].argmax(1)]
        assert one.whole.accuracy == pytest.approx(given.mean())
        assert one.alone.accuracy == pytest.approx((plain.estimator.loo_proba_.argmax(1) == Y)[own].mean())
    table = tmp_path / "days.csv"
    table.write_text("id,day\n" + "".join(f"{name},{day}\n" for name, day in zip(IDS, days, strict=True)))
    assert plain.groups(table=table, column="day") == found == plain.groups(table=dict(zip(IDS, days, strict=True)))
    for bad, words in (("(", "no regular expression"), ("^a", "does not fit 32 pictures"), ("png", "in one group")):
        with pytest.raises(InputError, match=words):
            plain.groups(bad)
    with pytest.raises(InputError, match="pattern or from a table"):
        plain.groups()
    assert plain.preview(Edit("forget", found[0].numbers)).n == 32
