"""Edits that several test files try, and the pictures they try them on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from frozen import frozen, rows_of, scores
from numpy.testing import assert_allclose
from numpy.typing import NDArray
from small import FIXED, backbone, pictures

from tangentune import TangentClassifier, TangentRegressor

BACKBONE = backbone()
X, Y = pictures(40)
NEW, _ = pictures(7, seed=5)
MORE, MORE_Y = pictures(12, seed=8)
NUMBERS = np.stack([X[:, 0].mean((1, 2)) / 50, X[:, 1, :4].mean((1, 2)) / 9], 1)

Options = dict[str, Any]

EDITS: dict[str, Callable[[TangentClassifier], Any]] = {
    "forget": lambda clf: clf.forget([5, 6]),
    "forget_class": lambda clf: clf.forget_class(3),
    "add": lambda clf: clf.add(MORE, MORE_Y + 1, new_class=True),
    "relabel": lambda clf: clf.relabel([4], 17, new_class=True),
    "reweight": lambda clf: clf.reweight(np.arange(40.0)),
    "strict": lambda clf: clf.forget([5, 6], strict=True),
}


def classifier(y: Any = Y, weights: Any = None, **options: Any) -> TangentClassifier:
    return TangentClassifier(BACKBONE, **(FIXED | options)).fit(X, y, weights)


def regressor(y: Any = NUMBERS, **options: Any) -> TangentRegressor:
    return TangentRegressor(BACKBONE, **(FIXED | options)).fit(X, y)


def equals_refit(model: Any, x: NDArray, y: NDArray, weights: NDArray | None = None, atol: float = 1e-8) -> None:
    """The model's every figure is that of the same map fitted to these pictures."""
    refit = frozen(model, x, y, weights)
    dual, bias = refit.solution()
    new = rows_of(model, NEW)
    assert_allclose(scores(model, NEW), refit.predict(new), rtol=0, atol=atol)
    assert_allclose(model.dual_coef_, dual, rtol=0, atol=atol * float(dual.abs().max().clamp_min(1)))
    assert_allclose(model.intercept_, bias, rtol=0, atol=atol)
    assert_allclose(model.loo_predictions_, refit.loo(), rtol=0, atol=atol)
    assert_allclose(
        model.kernel_, refit.rows @ refit.rows.T, rtol=0, atol=atol * float(refit.rows.square().sum(1).max())
    )
    assert np.array_equal(model.targets_, y)
    assert len(model.ids_) == len(model.pictures_) == len(y)
    assert np.array_equal(model.pictures_.pixels.numpy(), x)
    if hasattr(model, "classes_"):
        assert np.array_equal(model.classes_, np.unique(y))
        assert model.loo_proba_.shape == (len(y), len(np.unique(y)))


def plain() -> TangentClassifier:
    """A classifier whose map owes probes and metric to the pictures."""
    return classifier(metric_power=0.25, probe_space="pca", normalize=True)


def restored(clf: TangentClassifier, before: TangentClassifier) -> None:
    assert_allclose(scores(clf, NEW), scores(before, NEW), rtol=0, atol=1e-9)
    for name in ("dual_coef_", "intercept_", "loo_predictions_", "probes_", "kernel_"):
        assert_allclose(getattr(clf, name), getattr(before, name), rtol=0, atol=1e-9, err_msg=name)
    assert clf.ids_ == before.ids_
    assert np.array_equal(clf.targets_, before.targets_)
    assert clf.targets_.dtype == before.targets_.dtype
    assert np.array_equal(clf.classes_, before.classes_)


def alike(model: Any, other: Any, tolerance: float) -> None:
    assert_allclose(scores(model, NEW), scores(other, NEW), rtol=0, atol=tolerance)
    assert_allclose(model.loo_predictions_, other.loo_predictions_, rtol=0, atol=tolerance)
    assert_allclose(model.influence(NEW), other.influence(NEW), rtol=0, atol=tolerance)
    assert model.ids_ == other.ids_


def vectors(n: int, seed: int) -> tuple[NDArray, NDArray]:
    x = np.random.default_rng(seed).normal(size=(n, 5))
    return x, (x[:, 0] > 0) + 2 * (x[:, 1] * x[:, 2] > 0)
