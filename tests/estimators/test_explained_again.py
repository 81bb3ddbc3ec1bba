"""Explanations cost memory only where there is some: rows taken again, in portions, from disk tell the same."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from frozen import frozen, rows_of, scores
from numpy.testing import assert_allclose
from small import FIXED, backbone, pictures

from tangentune import TangentClassifier
from tangentune.errors import BudgetError
from tangentune.kernels.feature_map import cross_kernel

BACKBONE = backbone()
X, Y = pictures(24)
NEW, _ = pictures(7, seed=5)
WEIGHTS = np.where(np.arange(24) % 5 == 0, 0.0, 0.5 + np.arange(24) % 3)

VARIANTS: list[dict[str, Any]] = [
    {"normalize": True, "metric_power": 0.25, "probes": 2},
    {"subset": "none", "normalize": True, "augment": "flip"},
]


def classifier(x: Any = X, y: Any = Y, weights: Any = None, **options: Any) -> TangentClassifier:
    return TangentClassifier(BACKBONE, **(FIXED | options)).fit(x, y, weights)


def asked(model: Any) -> list[np.ndarray]:
    """Every explanation."""
    return [
        model.influence(NEW), model.contributions(NEW), model.informativeness(NEW), model.informativeness(),
        model.ood_score(NEW), model.leave_out(4),
    ]  # fmt: skip


def close(found: list[np.ndarray], expected: list[np.ndarray], tolerance: float) -> None:
    for one, other in zip(found, expected, strict=True):
        assert_allclose(one, other, rtol=0, atol=tolerance * np.abs(other).max())


@pytest.mark.parametrize("options", VARIANTS, ids=str)
def test_rows_need_not_be_kept(options: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    clf = classifier(weights=WEIGHTS, **options)
    assert clf.fitted_.training.rows is not None
    expected = asked(clf)
    clf.save_pretrained(tmp_path / "m")
    monkeypatch.setattr("tangentune.estimators.fitted.PORTION", 3)
    close(asked(clf), expected, 1e-12)
    clf.fitted_ = replace(clf.fitted_, room=0, training=replace(clf.fitted_.training, rows=None))
    close(asked(clf), expected, 1e-12)
    assert clf.fitted_.training.rows is None
    loaded = TangentClassifier.from_pretrained(tmp_path / "m", backbone=BACKBONE)
    close(asked(loaded), expected, 1e-11)
    assert loaded.fitted_.training.rows is not None


@pytest.mark.usefixtures("own_memory_only")
def test_a_tight_memory_budget_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tangentune.estimators.fit.ROWS_SHARE", 16)  # kernels of so few pictures outweigh their rows
    options, budget = {"metric_power": 0.25, "normalize": True}, 0
    for budget in range(60_000, 600_000, 32_768):
        try:
            if TangentClassifier(BACKBONE, **(FIXED | options), memory_budget=budget).plan(X, Y)["passes"] > 1:
                break
        except BudgetError:
            continue
    clf = classifier(memory_budget=budget, **options)
    assert clf.fit_report_["passes"] > 1
    assert clf.fitted_.training.rows is None
    refits, new = frozen(clf, X, Y), rows_of(clf, NEW)
    expected = torch.stack([refits.predict(new) - refits.predict(new, [i]) for i in range(24)], 1)
    assert_allclose(clf.influence(NEW), expected, rtol=0, atol=1e-8)
    clf.forget([3, 5])
    assert clf.fitted_.training.rows is None  # they would not fit
    assert_allclose(scores(clf, NEW), refits.predict(new, [3, 5]), rtol=0, atol=1e-8)


def test_expansion_points_stay_with_their_pictures(tmp_path: Path) -> None:
    """Rows at four networks: the kernel kept and rows taken again tell the same, here, from disk, and after edits."""
    clf = classifier(metric_power=0.25, normalize=True, outer_steps=2)
    assert sorted(set(clf.fitted_.training.points)) == [0, 1, 2, 3]
    assert_allclose(clf.contributions(NEW).sum(1) + clf.intercept_, scores(clf, NEW), rtol=0, atol=1e-9)
    expected = asked(clf)
    clf.save_pretrained(tmp_path / "m")
    loaded = TangentClassifier.from_pretrained(tmp_path / "m", backbone=BACKBONE)
    close(asked(loaded), expected, 1e-9)
    rows = loaded.fitted_.training.rows
    assert rows is not None
    assert_allclose(cross_kernel(loaded.model_.map, rows.parts[0]), clf.kernel_, rtol=0, atol=1e-9)
    for model in (clf, loaded):
        model.forget([4, 9]).add(NEW[:2], [1, 2])
        assert_allclose(model.contributions(NEW).sum(1) + model.intercept_, scores(model, NEW), rtol=0, atol=1e-9)
    close(asked(loaded), asked(clf), 1e-9)
    assert clf.fitted_.training.points[-2:] == (-1, -1)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("weights", [None, WEIGHTS], ids=["even", "weights"])
def test_a_gpu_explains_the_same(weights: Any) -> None:
    here, there = (classifier(weights=weights, metric_power=0.25, device=device) for device in ("cpu", "cuda"))
    close(asked(there), asked(here), 1e-6)
    assert [one.id for one in there.suspects(5)] == [one.id for one in here.suspects(5)]
