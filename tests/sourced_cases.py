"""Estimators with a source behind them, and the joint problem that each of them stands for."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from frozen import frozen, rows_of, scores
from numpy.testing import assert_allclose
from numpy.typing import NDArray
from reference import kernel_of
from small import FIXED, backbone, pictures
from source_cases import Joint

from tangentune import TangentClassifier
from tangentune.estimators.solution import solve
from tangentune.pictures.load import Pictures

BACKBONE = backbone()
NAMES = np.array(["ant", "bee", "cat", "dog"])
X, NUMBERS = pictures(20, seed=1)
Y = NAMES[NUMBERS]
NEW, _ = pictures(7, seed=5)
MORE, _ = pictures(6, seed=8)
WEIGHTS = np.where(np.arange(20) == 5, 0.0, 0.5 + np.arange(20) % 3)
VARIANTS: list[dict[str, Any]] = [
    {},
    {"metric_power": 0.25, "normalize": True, "probe_space": "pca", "probes": 2},
    {"class_weight": "balanced", "augment": "flip"},
]


def source(names: str = "ant fly gnu elk", n: int = 40, seed: int = 3) -> Pictures:
    """Pictures of the same four kinds; one has its name in common with the target."""
    x, y = pictures(n, seed=seed)
    return Pictures(torch.from_numpy(x), np.array(names.split())[y], [f"s{i}" for i in range(n)])


def classifier(given: Any = None, weights: Any = None, x: NDArray = X, y: NDArray = Y, **options: Any) -> Any:
    given = source() if given is None else given
    return TangentClassifier(BACKBONE, **(FIXED | options)).fit(x, y, weights, source=given)


def joint(model: Any, x: NDArray, y: NDArray, weights: NDArray | None = None) -> Joint:
    """The problem of a fitted model's map and setting with these target pictures, from explicit features."""
    refit, behind = frozen(model, x, y, weights), model.fitted_.training.source
    classes = np.array(behind.pictures.classes)
    named = torch.from_numpy(classes[:, None] == np.unique(y))
    rows = rows_of(model, behind.pictures.pictures.pixels.numpy())
    where, given = behind.pictures.positions, behind.pictures.given
    return Joint(refit.rows, refit.targets, refit.weights, rows, where, given, named, behind.setting, refit.balanced)


def equals_joint(model: Any, x: NDArray, y: NDArray, weights: NDArray | None = None) -> Joint:
    """Scores, leave-one-out, leave-group-out: n + 1 joint fits and more; the inverse, if edited, solved anew."""
    asked = joint(model, x, y, weights)
    new = rows_of(model, NEW)
    assert_allclose(scores(model, NEW), asked.predict(new), rtol=0, atol=1e-8)
    assert_allclose(model.loo_predictions_, asked.loo(), rtol=0, atol=1e-8)
    groups = np.arange(len(y)) // 3
    assert_allclose(model.leave_out(groups), asked.leave_out(groups), rtol=0, atol=1e-8)
    assert_allclose(model.leave_out(np.arange(len(y))), model.loo_predictions_, rtol=0, atol=1e-9)
    fitted, state = model.fitted_, model.solution_
    fresh = solve(fitted.training, fitted.active, fitted.task.encode, model.damping_)
    assert_allclose(state.system.dual, fresh.system.dual, rtol=0, atol=1e-8)
    assert_allclose(state.loo, fresh.loo, rtol=0, atol=1e-8)
    assert_allclose(model.kernel_, kernel_of(fresh.system), rtol=0, atol=1e-12)
    assert np.array_equal(model.targets_, y)
    assert np.array_equal(model.pictures_.pixels.numpy(), x)
    for facts, labels in zip(model.source_["classes"], asked.coupling().tolist(), strict=True):
        told = [facts["stands_for"].get(str(name), 0.0) for name in model.classes_]
        assert_allclose(told, labels, rtol=0, atol=0.006)
    return asked
