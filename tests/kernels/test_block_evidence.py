"""Scales of blocks by evidence: the search ends higher than it began, and the model is the kernel's."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from small import backbone, fitted_features, normalised, pictures
from torch import Tensor

from tangentune import TangentClassifier, TangentRegressor
from tangentune.kernels.choice import KernelCandidates, KernelChoice, combine, learn_scales, score

X, Y = pictures(60)
NEW, _ = pictures(9, seed=3)
EVIDENCE: dict[str, Any] = dict.fromkeys(("metric_power", "body_scale", "normalize", "damping"), "evidence")


def problem() -> KernelCandidates:
    """Only the second of three blocks knows the targets."""
    generator = torch.Generator().manual_seed(0)
    rows = [torch.randn(50, 8, generator=generator, dtype=torch.float64) for _ in range(4)]
    targets = rows[2] @ torch.randn(8, 2, generator=generator, dtype=torch.float64)
    grams: list[Tensor] = [part @ part.T for part in rows]
    return KernelCandidates(grams[0], {"a": grams[1], "b": grams[2], "c": grams[3]}, targets, torch.ones(50).double())


@pytest.mark.parametrize("normalize", [True, False])
def test_evidence_rises_and_the_right_block_gains(normalize: bool) -> None:
    made = problem()
    start = score(made, KernelChoice(0.0, normalize, 1.0), None, "evidence")
    learned = learn_scales(made, start)
    assert learned.criterion < start.criterion - 1
    scales = learned.choice.scales(["a", "b", "c"])
    assert scales["b"] > 1.5 * max(scales["a"], scales["c"])
    assert abs(np.mean(list(scales.values())) - 1) < 1e-12
    even = KernelChoice(0.0, normalize, learned.choice.body_scale, factors=(1.0, 1.0, 1.0))
    assert learned.criterion < score(made, even, learned.damping, "evidence").criterion


def test_a_block_without_rows_stays_out() -> None:
    made = problem()
    made.blocks["c"].zero_()
    learned = learn_scales(made, score(made, KernelChoice(0.0, False, 1.0), None, "evidence"))
    assert learned.choice.factors[2] == 0
    assert torch.isfinite(combine(made, learned.choice)).all()


def test_the_model_is_that_of_the_explicit_features() -> None:
    clf = TangentClassifier(backbone(), **EVIDENCE, outer_steps=0).fit(X, Y)
    assert len({round(scale / clf.body_scale_, 6) for scale in list(clf.block_scales_.values())[1:]}) > 2
    known, new = (fitted_features(clf, normalised(x)) for x in (X, NEW))
    assert np.allclose(clf.kernel_, (known @ known.T).numpy(), rtol=0, atol=1e-9)
    expected = (new @ known.T).numpy() @ clf.dual_coef_ + clf.intercept_
    assert np.allclose(clf.decision_function(NEW), expected, rtol=0, atol=1e-9)


def test_a_fixed_damping_leaves_the_profile() -> None:
    options: dict[str, Any] = EVIDENCE | {"damping": 0.1}
    reg = TangentRegressor(backbone(), **options).fit(X, X[:, 0].mean((1, 2)))
    assert reg.damping_ == 0.1
    assert all(row["body_scale"] >= 0 for row in reg.selection_)
