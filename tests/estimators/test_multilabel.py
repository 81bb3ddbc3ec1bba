"""Several labels a picture: one kernel for all, exact as L fits of one label each, edits exact as fits anew."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sklearn
import torch
from edit_cases import NEW, X
from frozen import Frozen, rows_of, scores
from numpy.testing import assert_allclose
from numpy.typing import NDArray
from sklearn.metrics import average_precision_score, f1_score
from small import FIXED, backbone

from tangentune import Backbone, TangentClassifier, TangentFeatures, TangentRegressor
from tangentune.errors import InputError
from tangentune.estimators.summary import summarise
from tangentune.pictures.label_sets import label_sets

BACKBONE, NAMES = backbone(), ["bright", "red", "low"]
MEANS = X.mean((2, 3))
Y = np.stack([X.mean((1, 2, 3)) > X.mean(), MEANS[:, 0] > MEANS[:, 1], X[:, :, 4:].mean((1, 2, 3)) > X.mean()], 1)
Y = Y.astype(np.int64)
LISTS = [[name for name, there in zip(NAMES, row, strict=True) if there] for row in Y]
MORE = np.random.default_rng(3).integers(0, 255, (5, *X.shape[1:]), np.uint8)
MORE_Y = np.array([[1, 0, 0], [0, 0, 0], [1, 1, 1], [0, 1, 0], [0, 0, 1]])


def fitted(y: Any = None, x: NDArray = X, weights: Any = None, **options: Any) -> TangentClassifier:
    return TangentClassifier(BACKBONE, **(FIXED | options)).fit(x, LISTS if y is None else y, weights)


@cache
def usual() -> TangentClassifier:
    """Not to be edited."""
    return fitted()


def test_the_ways_to_give_labels_agree() -> None:
    import pandas as pd

    one = usual()
    assert one.classes_.tolist() == sorted(NAMES)
    order = [NAMES.index(name) for name in one.classes_]
    frame = pd.DataFrame(Y, columns=NAMES)
    for y, names in ((Y, ["0", "1", "2"]), (Y.astype(float), ["0", "1", "2"]), (frame, NAMES), (torch.tensor(Y), None)):
        other = fitted(y)
        assert names is None or other.classes_.tolist() == names
        assert np.array_equal(other.targets_, Y)
        assert_allclose(other.loo_proba_[:, order], one.loo_proba_, rtol=0, atol=1e-12)
        assert_allclose(other.predict_proba(NEW)[:, order], one.predict_proba(NEW), rtol=0, atol=1e-12)
    sets = fitted([set(names) for names in LISTS])
    assert np.array_equal(sets.loo_proba_, one.loo_proba_)
    assert one.predict(NEW).dtype == np.int64
    assert np.array_equal(one.predict(NEW), one.predict_proba(NEW) >= one.thresholds_)
    assert one.decision_function(NEW).shape == (len(NEW), 3)
    assert fitted(Y[:, :2]).decision_function(NEW).shape == (len(NEW), 2)
    exact = (one.predict(X) == one.targets_).all(1).mean()
    with pytest.warns(UserWarning, match="fitted on"):
        assert one.score(X, LISTS) == exact


def test_labels_equal_fits_of_one_label_each() -> None:
    """L separate least-squares problems, each fitted anew with the same kernel and damping, and solved outright."""
    model = usual()
    for k in range(3):
        alone = TangentRegressor(BACKBONE, **FIXED).fit(X, model.targets_[:, k])
        assert_allclose(alone.dual_coef_[:, 0], model.dual_coef_[:, k], rtol=0, atol=1e-8)
        assert_allclose(alone.loo_predictions_[:, 0], model.loo_predictions_[:, k], rtol=0, atol=1e-8)
        assert_allclose(alone.predict(NEW), model.decision_function(NEW)[:, k], rtol=0, atol=1e-8)
        assert_allclose(alone.influence(NEW)[..., 0], model.influence(NEW)[..., k], rtol=0, atol=1e-8)
    assert_allclose(model.loo_predictions_, problem(model, X, model.targets_).loo(), rtol=0, atol=1e-8)


def problem(model: TangentClassifier, x: NDArray, y: NDArray, weights: Any = None) -> Frozen:
    given = np.ones(len(y)) if weights is None else weights
    return Frozen(rows_of(model, x), torch.from_numpy(y).double(), torch.from_numpy(given), model.damping_)


def changed(places: list[int], rows: list[list[int]]) -> NDArray:
    out = usual().targets_.copy()
    out[places] = rows
    return out


KEPT = np.delete(np.arange(40), [5, 6])
EDITS: dict[str, tuple[Callable[[TangentClassifier], Any], NDArray, NDArray, Any]] = {
    "forget": (lambda clf: clf.forget([5, 6]), X[KEPT], usual().targets_[KEPT], None),
    "add": (
        lambda clf: clf.add(MORE, [[NAMES[2 * k % 3] for k in np.flatnonzero(row)] for row in MORE_Y]),
        np.concatenate([X, MORE]),
        # columns are bright, low, red; the names of 0, 1, 2 are bright, low, red too
        np.concatenate([usual().targets_, MORE_Y]),
        None,
    ),
    "add rows": (
        lambda clf: clf.add(MORE, MORE_Y), np.concatenate([X, MORE]), np.concatenate([usual().targets_, MORE_Y]), None
    ),
    "one set": (lambda clf: clf.relabel(4, [["bright", "red"]]), X, changed([4], [[1, 0, 1]]), None),
    "sets": (lambda clf: clf.relabel([4, 9], [[], ["low"]]), X, changed([4, 9], [[0, 0, 0], [0, 1, 0]]), None),
    "one for all": (lambda clf: clf.relabel([4, 9], {"low"}), X, changed([4, 9], [[0, 1, 0]] * 2), None),
    "a name": (lambda clf: clf.relabel([4], "low"), X, changed([4], [[0, 1, 0]]), None),
    "rows": (lambda clf: clf.relabel([4, 9], [[1, 1, 1], [0, 0, 1]]), X, changed([4, 9], [[1, 1, 1], [0, 0, 1]]), None),
    "reweight": (lambda clf: clf.reweight(np.arange(40.0)), X, usual().targets_, np.arange(40.0)),
}  # fmt: skip


@pytest.mark.parametrize("name", EDITS)
def test_edits_equal_refits(name: str) -> None:
    edit, x, y, weights = EDITS[name]
    model = fitted()
    edit(model)
    assert np.array_equal(model.targets_, y)
    refit, new = problem(model, x, y, weights), rows_of(model, NEW)
    assert_allclose(scores(model, NEW), refit.predict(new), rtol=0, atol=1e-8)
    assert_allclose(model.loo_predictions_, refit.loo(), rtol=0, atol=1e-8)
    again = fitted(y, x, weights)  # the map of this fit owes nothing to pictures
    assert_allclose(again.loo_proba_, model.loo_proba_, rtol=0, atol=1e-7)
    assert again.thresholds_ is not None
    assert_allclose(again.thresholds_, np.array(model.thresholds_), rtol=0, atol=1e-7)
    model.undo()
    assert np.array_equal(model.targets_, usual().targets_)
    assert_allclose(model.loo_proba_, usual().loo_proba_, rtol=0, atol=1e-8)


def test_groups_and_folds() -> None:
    model, groups = usual(), np.arange(40) // 4
    assert_allclose(model.leave_out(groups), problem(model, X, model.targets_).leave_out(groups), rtol=0, atol=1e-8)
    folds = model.fitted_.task.folds(model.fitted_.active.labels, 4)
    assert np.bincount(folds).tolist() == [10] * 4
    spread = np.array([model.targets_[folds == fold].sum(0) for fold in range(4)])
    assert (spread.max(0) - spread.min(0) <= 5).all()


def test_scores_are_those_of_scikit_learn() -> None:
    model, facts = usual(), summarise(usual())
    assert model.thresholds_ is not None
    given, found, proba = model.targets_, (model.loo_proba_ >= model.thresholds_).astype(int), model.loo_proba_
    wanted = {f"{kind}_f1": f1_score(given, found, average=kind) for kind in ("macro", "micro")}
    wanted["average_precision"] = average_precision_score(given, proba, average="macro")
    wanted["subset_accuracy"] = model.loo_score_
    for name, value in wanted.items():
        assert facts.scores[name] == pytest.approx(value, abs=1e-12), name
    assert [row.pictures for row in facts.labels] == given.sum(0).tolist()
    each = [f1_score(given[:, k], found[:, k]) for k in range(3)]
    assert [row.f1 for row in facts.labels] == pytest.approx(each)


def test_suspects_name_the_label_and_mend_it() -> None:
    wrong = usual().targets_.copy()
    wrong[7, 1] = 1 - wrong[7, 1]
    model = fitted([[str(name) for name in usual().classes_[row > 0]] for row in wrong])
    worst = model.suspects(3)
    assert worst[0].score >= worst[1].score
    assert len(model.suspects()) == 120
    mine = next(one for one in model.suspects() if (one.position, one.doubted) == (7, usual().classes_[1]))
    given = model.loo_proba_[7, 1] if wrong[7, 1] else 1 - model.loo_proba_[7, 1]
    assert mine.probability == pytest.approx(given, abs=1e-12)
    assert set(mine.label) ^ set(mine.suggestion) == {mine.doubted}
    model.relabel(mine.id, [mine.suggestion])
    assert np.array_equal(model.targets_, usual().targets_)


def test_saved_models_answer_and_edit_alike(tmp_path: Path) -> None:
    model = fitted()
    model.relabel(3, [["low"]])
    model.save_pretrained(tmp_path / "m")
    read = TangentClassifier.from_pretrained(tmp_path / "m", backbone=BACKBONE)
    for name in ("classes_", "thresholds_", "targets_", "loo_proba_"):
        assert np.array_equal(getattr(read, name), getattr(model, name)), name
    assert np.array_equal(read.predict_proba(NEW), model.predict_proba(NEW))
    card = (tmp_path / "m" / "README.md").read_text()
    assert "| macro F1 |" in card
    assert "| bright | " in card
    read.add(MORE, MORE_Y).forget([0])
    model.add(MORE, MORE_Y).forget([0])
    assert_allclose(read.loo_proba_, model.loo_proba_, rtol=0, atol=1e-8)


REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "unknown": (lambda: fitted().relabel(3, [["lwo"]]), "no label 'lwo'; did you mean 'low'"),
    "new": (lambda: fitted().add(MORE[:1], [["blue"]], new_class=True), "A new label needs a new fit"),
    "class": (lambda: fitted().forget_class("low"), "several labels each"),
    "balance": (lambda: fitted(class_weight="balanced"), "class_weight is for one class a picture"),
    "laplace": (lambda: fitted(likelihood="laplace"), "for one class a picture"),
    "source": (lambda: TangentClassifier(BACKBONE, **FIXED).fit(X, Y, source="nowhere"), "source= is for one class"),
    "same": (lambda: fitted(np.ones_like(Y)), "the same labels"),
    "width": (lambda: fitted().relabel(3, [[1, 0]]), "matrix of 0 and 1 with 3 columns"),
    "columns": (lambda: fitted([["a"], ["a", "b"]]), "2 labels for 40 pictures"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_is_one_sentence(name: str) -> None:
    call, words = REFUSED[name]
    with pytest.raises(InputError) as caught:
        call()
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "np.str_" not in str(caught.value)


def test_odd_labels_are_told() -> None:
    empty = np.column_stack([Y, np.zeros(40, int)])
    with pytest.warns(UserWarning, match="no picture has 3, so nothing"):
        model = fitted(empty)
    assert not model.predict(NEW)[:, 3].any()
    with pytest.warns(UserWarning, match="exactly one label"):
        fitted(label_sets(np.eye(3, dtype=int)[np.arange(40) % 3], NAMES))
    with pytest.raises(InputError, match=r"one-hot \(40 x 3\); give the class of each picture, y.argmax\(1\)"):
        fitted(np.eye(3, dtype=int)[np.arange(40) % 3])


@pytest.mark.skipif(sklearn.__version__.startswith("1.6."), reason="it looks for pos_label among the labels' names")
def test_scikit_learn_scores_and_searches() -> None:
    from sklearn.metrics import make_scorer
    from sklearn.model_selection import GridSearchCV, cross_val_score

    x = np.random.default_rng(0).normal(size=(48, 4))
    y = np.stack([x[:, 0] > 0, x[:, 1] > 0.5, x[:, 0] * x[:, 2] > 0], 1).astype(int)
    net = Backbone(torch.nn.Sequential(torch.nn.Linear(4, 12), torch.nn.Tanh()).double())
    model = TangentClassifier(net, outer_steps=0)
    assert cross_val_score(model, x, y, scoring="f1_macro", cv=3).mean() > 0.6
    assert cross_val_score(model, x, y, scoring="average_precision", cv=3).mean() > 0.6
    found = GridSearchCV(model, {"subset": ["none", "all"]}, cv=2, scoring=make_scorer(f1_score, average="micro"))
    assert found.fit(x, y).best_estimator_.thresholds_.shape == (3,)


def test_sums_over_landmark_features_take_several_labels() -> None:
    """Solved outright: least squares with an intercept that is not penalised."""
    features = TangentFeatures(BACKBONE, landmarks=20, metric_power=0, augment=None).fit(X, LISTS)
    found = features.sums(X, LISTS).fit(0.5).predict(torch.from_numpy(features.transform(X))).numpy()
    rows = np.column_stack([features.transform(X), np.ones(len(X))])
    assert isinstance(features.model_, TangentClassifier)
    given = Y[:, [NAMES.index(name) for name in features.model_.classes_]]
    penalty = 0.5 * np.diag([1.0] * (rows.shape[1] - 1) + [0.0])
    wanted = rows @ np.linalg.solve(rows.T @ rows + penalty, rows.T @ given)
    assert_allclose(found, wanted, rtol=0, atol=1e-6)


def test_numbers_stay_numbers() -> None:
    assert TangentRegressor(BACKBONE, **FIXED).fit(X, Y.astype(float)).predict(NEW).dtype == np.float64
