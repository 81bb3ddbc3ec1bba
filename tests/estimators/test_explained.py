"""Explanations of fitted models, each held to real refits with the feature map frozen."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from frozen import Frozen, frozen, rows_of, scores
from numpy.testing import assert_allclose
from reference import bordered
from sklearn.exceptions import NotFittedError
from small import FIXED, backbone, pictures

from tangentune import TangentClassifier, TangentRegressor
from tangentune.errors import InputError

BACKBONE = backbone()
X, Y = pictures(24)
NEW, _ = pictures(7, seed=5)
NUMBERS = np.stack([X[:, 0].mean((1, 2)) / 50, X[:, 1, :4].mean((1, 2)) / 9], 1)
WEIGHTS = np.where(np.arange(24) % 5 == 0, 0.0, 0.5 + np.arange(24) % 3)

VARIANTS: list[dict[str, Any]] = [
    {},
    {"normalize": True, "metric_power": 0.25, "probes": 2},
    {"normalize": True, "metric_power": 0.5, "augment": "flip", "probe_space": "pca"},
    {"subset": "none", "normalize": True},
    {"class_weight": "balanced", "metric_power": 0.25, "augment": "flip"},
]


def classifier(x: Any = X, y: Any = Y, weights: Any = None, **options: Any) -> TangentClassifier:
    return TangentClassifier(BACKBONE, **(FIXED | options)).fit(x, y, weights)


def regressor(y: Any = NUMBERS, weights: Any = None, **options: Any) -> TangentRegressor:
    return TangentRegressor(BACKBONE, **(FIXED | options)).fit(X, y, weights)


def uneven(options: dict[str, Any], weights: Any) -> tuple[TangentClassifier, Frozen, torch.Tensor]:
    """A classifier of uneven classes, its reference problem and the explicit features of the new pictures."""
    y = np.where(np.arange(24) == 1, 0, Y)
    clf = classifier(y=y, weights=weights, **options)
    return clf, frozen(clf, X, y, weights), rows_of(clf, NEW)


@pytest.fixture(scope="module")
def plain() -> TangentClassifier:
    return classifier()


# -- exactness ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("weights", [None, WEIGHTS], ids=["even", "weights"])
@pytest.mark.parametrize("options", VARIANTS, ids=str)
def test_influence_and_contributions_are_refits(options: dict[str, Any], weights: Any) -> None:
    clf, refits, new = uneven(options, weights)
    influence, shares, whole = clf.influence(NEW), clf.contributions(NEW), refits.predict(new)
    assert influence.shape == shares.shape == (7, 24, 4)
    expected = torch.stack([whole - refits.predict(new, [i]) for i in range(24)], 1)
    assert_allclose(influence, expected, rtol=0, atol=1e-8)
    assert_allclose(shares, (new @ refits.rows.T)[:, :, None] * refits.solution()[0], rtol=0, atol=1e-8)
    assert_allclose(shares.sum(1) + clf.intercept_, scores(clf, NEW), rtol=0, atol=1e-9)
    if weights is not None:
        assert not influence[:, weights == 0].any()


@pytest.mark.parametrize("options", [*VARIANTS[:3], VARIANTS[4]], ids=str)
def test_group_predictions_are_refits(options: dict[str, Any]) -> None:
    clf, refits, _ = uneven(options, WEIGHTS)
    cameras = np.array(["left", "right", "", "猫"])[np.arange(24) * 7 % 10 % 4]
    assert_allclose(clf.leave_out(cameras), refits.leave_out(cameras), rtol=0, atol=1e-8)
    assert_allclose(clf.leave_out(cameras.tolist()), clf.leave_out(cameras))
    folds = clf.fitted_.task.folds(clf.targets_, 5)
    assert_allclose(clf.leave_out(np.int64(5)), refits.leave_out(folds), rtol=0, atol=1e-8)
    assert np.bincount(folds).max() - np.bincount(folds).min() <= 1
    assert_allclose(clf.leave_out(24), clf.loo_predictions_, rtol=0, atol=1e-9)
    assert_allclose(clf.leave_out(range(24)), refits.loo(), rtol=0, atol=1e-8)


@pytest.mark.parametrize("class_weight", [None, "balanced"])
@pytest.mark.parametrize("weights", [None, WEIGHTS], ids=["even", "weights"])
def test_informativeness_is_what_refits_change(weights: Any, class_weight: Any) -> None:
    clf, refits, new = uneven({"metric_power": 0.25, "normalize": True, "class_weight": class_weight}, weights)
    errors = (refits.targets - refits.loo()).square().mean(1)
    noise = float(refits.weights @ errors / refits.weights.sum())
    steps = [refits.solution()[0] - refits.solution([i])[0] for i in range(24)]
    moved = [float((refits.rows.T @ step).square().sum()) * clf.damping_ / (2 * noise) for step in steps]
    assert_allclose(clf.informativeness(), moved, rtol=1e-7, atol=1e-12)
    changes = refits.predict(new) - torch.stack([refits.predict(new, [i]) for i in range(24)])
    expected = changes.square().sum(2).mean(1) / (2 * noise)
    assert_allclose(clf.informativeness(NEW), expected, rtol=1e-7, atol=1e-14)


def test_influence_is_that_of_whole_fits() -> None:
    """Nothing frozen by hand: estimators fitted to the other pictures."""
    clf = classifier(normalize=True)
    for i in (0, 11, 23):
        rest = np.arange(24) != i
        change = scores(clf, NEW) - scores(classifier(X[rest], Y[rest], normalize=True), NEW)
        assert_allclose(clf.influence(NEW)[:, i], change, rtol=0, atol=1e-9)


@pytest.mark.parametrize("flat", [False, True])
def test_regressors_explain_themselves(flat: bool) -> None:
    y = NUMBERS[:, 0] if flat else NUMBERS
    reg = regressor(y, WEIGHTS, normalize=True)
    refits, new = frozen(reg, X, y, WEIGHTS), rows_of(reg, NEW)
    expected = torch.stack([refits.predict(new) - refits.predict(new, [i]) for i in range(24)], 1)
    assert_allclose(reg.influence(NEW), expected, rtol=0, atol=1e-8)
    assert reg.influence(NEW).shape == (7, 24, 1 if flat else 2)
    answers = reg.contributions(NEW).sum(1) + reg.intercept_
    assert_allclose(answers[:, 0] if flat else answers, reg.predict(NEW), rtol=0, atol=1e-9)
    days = np.arange(24) // 5
    assert_allclose(reg.leave_out(days), refits.leave_out(days), rtol=0, atol=1e-8)
    assert_allclose(reg.leave_out(3), refits.leave_out(reg.fitted_.task.folds(reg.targets_, 3)), rtol=0, atol=1e-8)
    assert reg.informativeness().shape == reg.informativeness(NEW).shape == (24,)


def test_a_constant_holds_no_information() -> None:
    found = regressor(np.full(24, 0.5)).informativeness()
    assert ((found >= 0) & (found < 1)).all()  # rounding over rounding, never NaN


def test_a_picture_of_weight_0_is_as_if_absent() -> None:
    kept = WEIGHTS > 0
    clf, without = classifier(weights=WEIGHTS), classifier(X[kept], Y[kept], WEIGHTS[kept])
    for ask in ("influence", "contributions"):
        assert_allclose(getattr(clf, ask)(NEW)[:, kept], getattr(without, ask)(NEW), rtol=0, atol=1e-9)
    assert_allclose(clf.informativeness(NEW)[kept], without.informativeness(NEW), rtol=1e-9)
    assert_allclose(clf.ood_score(NEW), without.ood_score(NEW), rtol=1e-9)


# -- distance from the training pictures -------------------------------------------------------------------------------


def test_ood_scores_are_shares_of_left_out_variances() -> None:
    clf, refits, new = uneven({"metric_power": 0.25}, WEIGHTS)

    def share(rows: torch.Tensor, without: Any) -> float:
        """Variance of one row's prediction over that of its prior, by the bordered kernel."""
        kept = torch.from_numpy(~np.isin(np.arange(24), without)) & (refits.weights > 0)
        system = bordered(refits.rows[kept] @ refits.rows[kept].T, refits.damping, refits.weights[kept])
        side = torch.cat([refits.rows[kept] @ rows, torch.ones(1)])
        return float(1 - side @ torch.linalg.solve(system, side) / (rows @ rows))

    known = np.sort([share(refits.rows[i], [i]) for i in np.flatnonzero(WEIGHTS)])
    found = np.array([share(row, []) for row in new])
    expected = [np.mean(known <= one) + max(one / known[-1] - 1, 0) for one in found]
    assert_allclose(clf.ood_score(NEW), expected, rtol=0, atol=1e-7)


def test_ood_scores_rise_with_strangeness() -> None:
    clf = classifier(metric_power=0.25)
    known, new = clf.ood_score(X), clf.ood_score(NEW)
    strange = clf.ood_score(np.stack([np.full((3, 8, 8), 255), np.indices((3, 8, 8)).sum(0) % 2 * 255]).astype("uint8"))
    assert (known <= 1).all()  # a picture seen is more certain than left out
    assert known.mean() < new.mean() < strange.min()
    assert strange[0] > 1
    before = strange[1]
    clf.add((np.indices((1, 3, 8, 8)).sum(0) % 2 * 255).astype("uint8"), [0])
    assert clf.ood_score((np.indices((1, 3, 8, 8)).sum(0) % 2 * 255).astype("uint8"))[0] < before


# -- suspects ----------------------------------------------------------------------------------------------------------


def test_a_wrong_label_is_the_first_suspect() -> None:
    wrong = Y.copy()
    wrong[6] = 0
    clear, names = (X // 4 + 60 * Y[:, None, None, None]).astype("uint8"), np.array(["a", "b", "c", "d"])
    found = classifier(clear, names[wrong], metric_power=0.25, normalize=True, damping="loo").suspects(3)
    assert len(found) == 3
    assert (found[0].id, found[0].position, found[0].label, found[0].suggestion) == ("6", 6, "a", "c")
    assert found[0].score > found[1].score > found[2].score
    assert found[0].probability is not None
    assert found[0].probability < 0.5


def test_a_wrong_number_is_the_first_suspect() -> None:
    wrong = NUMBERS.copy()
    wrong[7] += 5
    found = regressor(wrong).suspects()
    assert len(found) == 24
    assert found[0].position == 7
    assert np.linalg.norm(found[0].suggestion - NUMBERS[7]) < np.linalg.norm(wrong[7] - NUMBERS[7])


# -- what is refused ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("groups", "words"), [
    (np.zeros(24), "one group"), (["a"] * 24, "one group"), (np.arange(23), "24 pictures"), (np.zeros((24, 2)), "24"),
    (1, "2 to 24"), (25, "2 to 24"), (0, "2 to 24"), (-3, "2 to 24"), (True, "2 to 24"),
], ids=str)  # fmt: skip
def test_wrong_groups_are_refused(plain: TangentClassifier, groups: Any, words: str) -> None:
    refused(lambda: plain.leave_out(groups), words)


def test_a_group_with_all_the_weight_is_refused() -> None:
    clf = classifier(weights=np.where(Y == 0, 1.0, 0.0) + np.where(Y == 1, 1.0, 0.0))
    refused(lambda: clf.leave_out(np.where(Y > 1, "x", "y")), "nothing is left")


def test_other_pictures_are_refused() -> None:
    clf = classifier()
    for ask in (clf.influence, clf.contributions, clf.ood_score, clf.informativeness):
        refused(lambda ask=ask: ask(NEW[:, :2]), "")
    refused(lambda: clf.suspects(0), "at least one")


def test_a_model_without_pictures_still_knows_itself(tmp_path: Path) -> None:
    """Its kernel is there: what asks for no new row works, the rest is refused; saved again it stays so."""
    clf = classifier(weights=WEIGHTS)
    clf.save_pretrained(tmp_path / "m", pictures=False)
    assert not (tmp_path / "m" / "pictures.safetensors").exists()
    for _ in range(2):
        bare = TangentClassifier.from_pretrained(tmp_path / "m", backbone=BACKBONE)
        assert np.array_equal(bare.decision_function(NEW), clf.decision_function(NEW))
        assert_allclose(bare.leave_out(4), clf.leave_out(4), rtol=0, atol=1e-12)
        assert_allclose(bare.informativeness(), clf.informativeness(), rtol=1e-10)
        assert [one.id for one in bare.suspects(3)] == [one.id for one in clf.suspects(3)]
        for ask in (bare.influence, bare.contributions, bare.ood_score, bare.informativeness):
            refused(lambda ask=ask: ask(NEW), "saved without its pictures")
        bare.save_pretrained(tmp_path / "m")
        assert not (tmp_path / "m" / "pictures.safetensors").exists()


def test_nothing_is_told_before_the_fit() -> None:
    clf = TangentClassifier(BACKBONE)
    for ask in (clf.influence, clf.contributions, clf.ood_score, clf.informativeness, clf.leave_out):
        with pytest.raises(NotFittedError):
            ask(NEW)
    for ask in (clf.informativeness, clf.suspects):
        with pytest.raises(NotFittedError):
            ask()


def refused(call: Any, words: str) -> None:
    with pytest.raises(InputError) as caught:
        call()
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
