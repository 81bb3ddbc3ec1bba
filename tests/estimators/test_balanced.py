"""`class_weight="balanced"` with unequal classes: what is calculated equals whole fits to what is left."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from edit_cases import BACKBONE, NEW, X
from frozen import scores
from numpy.testing import assert_allclose
from small import FIXED

from tangentune import TangentClassifier
from tangentune.solvers.leave_out import mean_eigenvalue

N = 24
Y = np.array([0] * 13 + [1] * 6 + [2] * 3 + [3] * 2)
pytestmark = pytest.mark.filterwarnings("ignore:.*only one picture")
UNEVEN = np.where(np.arange(N) % 5 == 1, 0.0, 0.5 + np.arange(N) % 3)


def fit(rows: Any, weights: Any = None, **options: Any) -> TangentClassifier:
    given = None if weights is None else weights[rows]
    model: TangentClassifier = TangentClassifier(BACKBONE, class_weight="balanced", **(FIXED | options))
    return model.fit(X[:N][rows], Y[rows], given)


@pytest.mark.parametrize("weights", [None, UNEVEN], ids=["even", "weights"])
def test_leaving_out_is_fitting_the_rest(weights: Any) -> None:
    model = fit(np.arange(N), weights)
    changes, left_out = model.influence(NEW), model.loo_predictions_
    for i in (0, 12, 13, 20, 23):
        rest = fit(np.arange(N) != i, weights)
        assert_allclose(left_out[i], rest.decision_function(X[i : i + 1])[0], rtol=0, atol=1e-8)
        assert_allclose(changes[:, i], scores(model, NEW) - scores(rest, NEW), rtol=0, atol=1e-8)
    for groups, folds in ((np.arange(N) // 4, np.arange(N) // 4), (3, model.fitted_.task.folds(Y, 3))):
        found = model.leave_out(groups)
        for one in np.unique(folds):
            rest = fit(folds != one, weights)
            expected = np.zeros((int((folds == one).sum()), 4))
            expected[:, rest.classes_] = scores(rest, X[:N][folds == one])  # a class that is gone scores 0
            assert_allclose(found[folds == one], expected, rtol=0, atol=1e-8)


def test_forgetting_agrees_with_leaving_out() -> None:
    model = fit(np.arange(N))
    before = model.loo_predictions_
    model.forget([14])
    assert_allclose(model.decision_function(X[14:15])[0], before[14], rtol=0, atol=1e-8)
    assert_allclose(model.loo_predictions_, fit(np.arange(N) != 14).loo_predictions_, rtol=0, atol=1e-8)


def test_a_picture_of_weight_0_does_not_count_in_the_balance() -> None:
    kept = UNEVEN > 0
    model, without = fit(np.arange(N), UNEVEN), fit(kept, UNEVEN)
    assert_allclose(scores(model, NEW), scores(without, NEW), rtol=0, atol=1e-9)
    assert_allclose(model.influence(NEW)[:, kept], without.influence(NEW), rtol=0, atol=1e-9)
    assert_allclose(model.informativeness(NEW)[kept], without.informativeness(NEW), rtol=1e-8)
    assert_allclose(model.informativeness()[kept], without.informativeness(), rtol=1e-8)
    assert_allclose(model.ood_score(NEW), without.ood_score(NEW), rtol=1e-9)
    assert not model.influence(NEW)[:, ~kept].any()


def test_suspects_are_judged_by_fits_to_the_others() -> None:
    model = fit(np.arange(N))
    damping = max(model.damping_, mean_eigenvalue(model.solution_.system))
    for suspect in model.suspects(4):
        rest = fit(np.arange(N) != suspect.position, damping=damping)
        given = np.eye(4)[Y[suspect.position]]
        others = rest.decision_function(X[suspect.position : suspect.position + 1])[0]
        assert suspect.score == pytest.approx(float(((given - others) ** 2).sum()), abs=1e-8)
