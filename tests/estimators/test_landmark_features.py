"""The finite map: its products are the tangent kernel, its sums solve what the estimators solve."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from sklearn.base import clone
from sklearn.linear_model import RidgeClassifier
from sklearn.pipeline import make_pipeline
from small import backbone, fitted_features, normalised, pictures
from torch.nn import functional as F

from tangentune import TangentClassifier, TangentFeatures, TangentRegressor, TangentSums
from tangentune.errors import InputError
from tangentune.solvers.landmarks import choose_landmarks

BACKBONE = backbone()
X, Y = pictures()
NEW, NEW_Y = pictures(13, seed=5)
DAMPING = 0.07


@pytest.fixture(scope="module")
def whole() -> TangentFeatures:
    """Every picture a landmark."""
    return TangentFeatures(BACKBONE, landmarks=len(X)).fit(X, Y)


@pytest.fixture(scope="module")
def few() -> TangentFeatures:
    return TangentFeatures(BACKBONE, landmarks=15, augment="flip", random_state=1).fit(X, Y)


def test_with_every_picture_a_landmark_it_is_the_kernel(whole: TangentFeatures) -> None:
    assert whole.landmarks_ == [str(i) for i in range(len(X))]
    assert isinstance(whole.model_, TangentClassifier)
    known, new = whole.transform(X), whole.transform(NEW)
    assert_allclose(known @ known.T, whole.model_.kernel_, rtol=0, atol=1e-8)
    scores = new @ known.T @ whole.model_.dual_coef_ + whole.model_.intercept_
    assert_allclose(scores, whole.model_.decision_function(NEW), rtol=0, atol=1e-8)


def test_sums_over_shards_answer_as_the_classifier(whole: TangentFeatures) -> None:
    fixed: dict[str, Any] = {name: getattr(whole.model_, f"{name}_") for name in ("metric_power", "body_scale")}
    fixed |= {"normalize": whole.model_.normalize_, "augment": whole.model_.augment_, "damping": DAMPING}
    clf = TangentClassifier(BACKBONE, outer_steps=0, **fixed).fit(X, Y)
    shards = [whole.sums(X[i::3], Y[i::3]) for i in range(3)]
    total = shards[0] + shards[1] + shards[2]
    rows = torch.from_numpy(whole.transform(X))
    found = total.fit(DAMPING).predict(torch.from_numpy(whole.transform(NEW)))
    assert_allclose(found.numpy(), clf.decision_function(NEW), rtol=0, atol=1e-7)
    loo = total.factor().leave_one_out(rows, F.one_hot(torch.from_numpy(Y)), DAMPING)
    assert_allclose(loo.numpy(), clf.loo_predictions_, rtol=0, atol=1e-7)
    gone = [3, 8, 21]
    clf.forget([str(i) for i in gone])
    left = total - whole.sums(X[gone], Y[gone])
    found = left.fit(DAMPING).predict(torch.from_numpy(whole.transform(NEW)))
    assert_allclose(found.numpy(), clf.decision_function(NEW), rtol=0, atol=1e-7)


def test_few_landmarks_give_the_nystroem_kernel(few: TangentFeatures) -> None:
    """Head rows as they are, and `K_bu K_uu^-1 K_ub` of the body, from rows written out by autograd."""
    assert isinstance(few.model_, TangentClassifier)
    dense, rows = fitted_features(few.model_, normalised(X)).numpy(), few.transform(X)
    head, body = dense[:, :6], dense[:, 6:]
    places = [int(name) for name in few.landmarks_]
    across, own = body @ body[places].T, body[places] @ body[places].T
    expected = head @ head.T + across @ np.linalg.pinv(own, rcond=1e-12, hermitian=True) @ across.T
    assert rows.shape[1] <= 6 + len(places) == 21
    assert_allclose(rows @ rows.T, expected, rtol=0, atol=1e-7)
    assert np.linalg.eigvalsh(dense @ dense.T - rows @ rows.T).min() > -1e-8  # never more than there is


def test_leave_one_out_over_few_landmarks_is_that_of_refits(few: TangentFeatures) -> None:
    rows, targets = torch.from_numpy(few.transform(X)), F.one_hot(torch.from_numpy(Y)).double()
    found = few.sums(X, Y).factor().leave_one_out(rows, targets, DAMPING)
    for i in (0, 7, 39):
        rest = np.delete(np.arange(len(X)), i)
        expected = few.sums(X[rest], Y[rest]).fit(DAMPING).predict(rows[i : i + 1])[0]
        assert_allclose(found[i].numpy(), expected.numpy(), rtol=0, atol=1e-8)


def test_a_regressor_and_weights() -> None:
    y = X.mean((1, 2, 3))
    features = TangentFeatures(BACKBONE, landmarks=len(X)).fit(X, y)
    weights = 0.5 + np.arange(len(X)) / len(X)
    reg = features.model_
    assert isinstance(reg, TangentRegressor)
    reg.reweight(weights)  # the map stays
    found = features.sums(X, y, weights).fit(reg.damping_).predict(torch.from_numpy(features.transform(NEW)))
    assert_allclose(found[:, 0].numpy(), reg.predict(NEW), rtol=0, atol=1e-7)


def test_it_is_a_transformer(few: TangentFeatures) -> None:
    pipe = make_pipeline(clone(few), RidgeClassifier()).fit(X, Y)
    assert pipe.score(X, Y) > 0.8
    names: Any = pipe[0].get_feature_names_out()
    assert (len(names), names[0]) == (pipe[0].transform(NEW).shape[1], "tangentfeatures0")
    again: Any = clone(few)
    assert again.fit(X, Y).fingerprint_ == few.fingerprint_


def test_foreign_maps_classes_and_options_are_refused(few: TangentFeatures, whole: TangentFeatures) -> None:
    with pytest.raises(InputError, match="different feature maps"):
        _ = few.sums(X, Y) + whole.sums(X, Y)
    assert few.sums(NEW, np.where(NEW_Y == 1, 9, NEW_Y)).classes == (0, 2, 3, 9)
    with pytest.raises(InputError, match="not fitted yet"):
        TangentFeatures(BACKBONE).transform(X)
    with pytest.raises(InputError, match="landmarks is 1; it must be a whole number >= 2"):
        TangentFeatures(BACKBONE, landmarks=1).fit(X, Y)
    assert isinstance(few.sums(NEW, NEW_Y), TangentSums)


def test_landmarks_find_the_small_cluster() -> None:
    """20 of 1,000 rows lie apart: evenly drawn landmarks often miss them, these do not."""
    generator = torch.Generator().manual_seed(0)
    rows = 0.02 * torch.randn(1000, 8, generator=generator, dtype=torch.float64)
    rows[:, 0] += 1
    rows[:20, 0] -= 1
    rows[:20, 1] += 1
    missed = {"pivoted": 0, "even": 0}
    for seed in range(50):
        chosen = choose_landmarks(rows, 10, seed)
        assert len(set(chosen.tolist())) == 10
        even = torch.randperm(1000, generator=torch.Generator().manual_seed(seed))[:10]
        for name, places in (("pivoted", chosen), ("even", even)):
            missed[name] += int(bool((places >= 20).all()))
    assert missed["pivoted"] == 0
    assert missed["even"] > 20
    assert choose_landmarks(rows, 10, 3).equal(choose_landmarks(rows, 10, 3))
    assert choose_landmarks(torch.ones(5, 2, dtype=torch.float64), 5).tolist() == [0, 1, 2, 3, 4]
