"""Fits that choose their kernel on a part of the pictures: still the exact solution of all of them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from small import FIXED, backbone, pictures
from test_memory_budget import tight_budget

from tangentune import TangentClassifier
from tangentune.kernels.choice import FixedChoices, KernelCandidates, KernelChoice, damping_path, probe_loo, score
from tangentune.kernels.large import DAMPINGS, mean_eigenvalue, probe_predictions, walk
from tangentune.kernels.pilot import choosing_pictures
from tangentune.kernels.stages import FitSettings
from tangentune.solvers.ridge import factor_ridge, solve

CHOSEN = {"metric_power": "loo", "body_scale": "loo", "normalize": "loo", "damping": "loo"}
BACKBONE = backbone()
X, Y = pictures(60)
NEW, _ = pictures(13, seed=5)


@pytest.fixture
def part(monkeypatch: pytest.MonkeyPatch) -> None:
    """Twenty pictures are a part that counts."""
    monkeypatch.setattr("tangentune.kernels.pilot.CHOOSING_PICTURES", 20)
    monkeypatch.setattr("tangentune.kernels.pilot.CHOOSING_PER_OUTPUT", 2)


def classifier(**options: Any) -> TangentClassifier:
    return TangentClassifier(BACKBONE, **(FIXED | options))


def settings(damping: float | None = None, criterion: str = "loo") -> FitSettings:
    return FitSettings(1, "pca", 0.0, FixedChoices(damping=damping), criterion, False, 0, 2**40, 0)


def problem(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Features, a kernel that is more than theirs, targets and weights of 40 pictures."""
    draw = torch.Generator().manual_seed(seed)
    phi, more = (torch.randn(40, d, generator=draw, dtype=torch.float64) for d in (6, 50))
    targets = torch.nn.functional.one_hot((phi[:, 0] > 0).long(), 2).double()
    weights = torch.rand(40, generator=draw, dtype=torch.float64) + 0.1
    return phi, phi @ phi.T + 0.1 * more @ more.T, targets, weights


def test_the_part_is_even_and_only_of_many_pictures() -> None:
    assert choosing_pictures(1400, 10) is None
    chosen = choosing_pictures(50_000, 10)
    assert chosen is not None
    assert len(chosen) == 1000
    assert chosen[0] == 0
    assert chosen[-1] == 49_999
    more = choosing_pictures(50_000, 200)
    assert more is not None
    assert len(more) == 2000, "ten a class"


@pytest.mark.usefixtures("part")
@pytest.mark.parametrize(
    "options", [{}, CHOSEN, {"class_weight": {0: 2.0, 3: 0.5}, "augment": "flip"}, {"outer_steps": 2}], ids=str
)
def test_a_large_fit_solves_the_problem_of_all_pictures(options: dict[str, Any]) -> None:
    clf = classifier(**options).fit(X, Y)
    rows = clf.selection_
    assert rows[-1]["pictures"] == len(X)
    assert {row["pictures"] for row in rows[:-1]} <= set(range(2, 21))
    targets = np.eye(len(clf.classes_))[np.searchsorted(clf.classes_, Y)]
    weights = clf.solution_.system.weights
    dense = solve(factor_ridge(torch.from_numpy(clf.kernel_), weights), torch.from_numpy(targets), clf.damping_)
    assert_allclose(clf.dual_coef_, dense.dual, rtol=0, atol=1e-8)
    assert_allclose(clf.loo_predictions_, dense.loo, rtol=0, atol=1e-8)
    cross = np.concatenate([new.kernel.numpy() for new in clf.kernel_to_training(NEW)])
    assert_allclose(clf.decision_function(NEW), cross @ clf.dual_coef_ + clf.intercept_, rtol=0, atol=1e-5)
    assert sum(clf.block_shares_.values()) == pytest.approx(1)


@pytest.mark.usefixtures("part")
def test_with_its_choices_given_a_large_fit_is_the_usual_one() -> None:
    fixed = {"metric_power": 0.25, "normalize": True, "body_scale": 2.0, "damping": 0.1}
    large = classifier(**fixed).fit(X, Y)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tangentune.kernels.pilot.CHOOSING_PICTURES", 1000)
        whole = classifier(**fixed).fit(X, Y)
    assert_allclose(large.kernel_, whole.kernel_, rtol=1e-6)
    assert_allclose(large.decision_function(NEW), whole.decision_function(NEW), atol=1e-6)
    assert large.block_scales_ == pytest.approx(whole.block_scales_)


@pytest.mark.usefixtures("part", "own_memory_only")
def test_a_large_fit_keeps_a_tight_budget_in_several_passes() -> None:
    whole = classifier(metric_power=0.25, normalize=True).fit(X, Y)
    clf = classifier(metric_power=0.25, normalize=True, solver="dual")
    tight = clf.set_params(memory_budget=tight_budget(clf, X, Y)).fit(X, Y)
    assert tight.fit_report_["passes"] > whole.fit_report_["passes"]
    assert_allclose(tight.kernel_, whole.kernel_, rtol=1e-6, atol=1e-6 * whole.kernel_.max())
    assert_allclose(tight.decision_function(NEW), whole.decision_function(NEW), rtol=0, atol=1e-6)


@pytest.mark.parametrize("start", [1e-2, 0.1, 10.0])
def test_the_walk_ends_where_the_whole_path_is_lowest(start: float) -> None:
    _, kernel, targets, weights = problem()
    walked = walk(kernel, targets, weights, start, settings())
    factor = factor_ridge(kernel, weights)
    dampings, errors, _ = damping_path(factor, targets, "loo")
    assert mean_eigenvalue(kernel, weights) == (pytest.approx(factor.mean_eigenvalue), False)
    assert walked.error <= 1.005 * float(errors.min()), "steps that gain nothing to speak of are not taken"
    dense = solve(factor, targets, walked.solution.damping)
    assert_allclose(walked.solution.loo, dense.loo, atol=1e-8)
    assert_allclose(walked.solution.intercept, dense.intercept, atol=1e-8)
    assert len(walked.path[0]) < len(DAMPINGS)
    assert min(dampings) <= walked.solution.damping <= max(dampings)


def test_the_walk_takes_a_given_damping_and_the_evidence() -> None:
    _, kernel, targets, weights = problem()
    assert walk(kernel, targets, weights, 1.0, settings(damping=0.3)).solution.damping == 0.3
    best = score(KernelCandidates(kernel, {}, targets, weights), KernelChoice(0.0, False, 0.0), None, "evidence")
    assert walk(kernel, targets, weights, 1.0, settings(criterion="evidence")).solution.damping == best.damping
    assert walk(torch.ones(40, 40, dtype=torch.float64), targets, weights, 1.0, settings()).flat


@pytest.mark.parametrize("normalize", [False, True])
def test_the_probe_of_many_pictures_is_the_probe(normalize: bool) -> None:
    phi, _, targets, weights = problem()
    candidates = KernelCandidates(phi @ phi.T, {}, targets, weights)
    tried = [score(candidates, KernelChoice(0.0, normalize, 0.0), None, "loo")]
    expected = probe_loo(candidates, tried)
    assert expected is not None
    assert_allclose(probe_predictions(phi, targets, weights, normalize), expected, atol=1e-8)
