"""Dampings that float64 does not carry: refused in a sentence, before anything is changed, or never chosen."""

from __future__ import annotations

import re
import warnings
from typing import Any

import numpy as np
import pytest
from frozen import frozen
from numpy.testing import assert_allclose
from small import FIXED, backbone, pictures

from tangentune import TangentClassifier
from tangentune.errors import InputError, SingularError

BACKBONE = backbone()
X, Y = pictures(12, classes=2)


def equal_pair() -> tuple[Any, Any]:
    """Two equal pictures of opposite labels among the others."""
    x, y = X.copy(), Y.copy()
    x[1] = x[0]
    return x, y


@pytest.mark.filterwarnings("ignore:.*appears")
@pytest.mark.parametrize("damping", [1e-12, 1e-14, 1e-18])
def test_a_damping_below_what_float64_carries_is_refused(damping: float) -> None:
    x, y = equal_pair()
    model: TangentClassifier = TangentClassifier(BACKBONE, **(FIXED | {"damping": damping, "subset": "none"}))
    with pytest.raises(SingularError, match=f"damping {damping:g}") as told:
        model.fit(x, y)
    enough = re.search(r"at least (\S+)", str(told.value))
    assert damping < 1e-15 or enough
    if enough:  # the advice is right
        model.set_params(damping=float(enough[1])).fit(x, y)
        assert_allclose(model.loo_predictions_, frozen(model, x, y).loo(), rtol=0, atol=1e-4)


@pytest.mark.filterwarnings("ignore:.*appears", "ignore:.*looks the same", "ignore:.*repeats? one")
def test_an_edit_that_needs_more_damping_changes_nothing() -> None:
    x, y = equal_pair()
    options: dict[str, Any] = FIXED | {"damping": 1e-12}
    model = TangentClassifier(BACKBONE, **options).fit(np.delete(x, 1, 0), y[1:])
    before = model.fitted_
    with pytest.raises(InputError, match="use a larger damping|use a damping of at least"):
        model.add(x[1:2], y[1:2])
    assert model.fitted_ is before


@pytest.mark.filterwarnings("ignore:.*appears")
@pytest.mark.parametrize("options", [{}, {"normalize": "loo"}, {"body_scale": "loo", "metric_power": "loo"}], ids=str)
@pytest.mark.parametrize("criterion", ["loo", "evidence"])
def test_equal_pictures_are_fitted_by_their_mean_and_told(options: Any, criterion: str) -> None:
    """No damping is chosen that nobody could solve for."""
    chosen: dict[str, Any] = FIXED | {"damping": criterion} | dict.fromkeys(options, criterion)
    model = TangentClassifier(BACKBONE, **chosen)
    with pytest.warns(UserWarning, match="the network sees the same in every picture"):
        model.fit(np.repeat(X[:1], 12, 0), Y)
    assert_allclose(model.decision_function(X[:1]), model.decision_function(X[:1]) * 0, atol=1e-6)
    assert_allclose(model.predict_proba(X[:1]), 0.5, atol=1e-6)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert model.forget([0]).damping_ == model.damping_
