"""The memory budget: the same answer in as many passes over the pictures as it takes."""

from __future__ import annotations

from typing import Any

import pytest
from numpy.testing import assert_allclose
from small import FIXED, backbone, network, pictures

from tangentune import TangentClassifier
from tangentune.errors import BudgetError
from tangentune.kernels.collect import plan_passes

BACKBONE = backbone()
X, Y = pictures()
NEW, NEW_Y = pictures(13, seed=5)


def classifier(**options: Any) -> TangentClassifier:
    return TangentClassifier(BACKBONE, **(FIXED | options))


@pytest.mark.parametrize("options", [
    {}, {"metric_power": 0.25, "normalize": True}, {"metric_power": 0.5, "augment": "flip", "probes": 2},
    {"metric_power": "loo", "body_scale": "loo", "normalize": "loo", "damping": "loo"},
], ids=str)  # fmt: skip
def test_tiles_give_the_same_answer(options: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tangentune.kernels.stages.WORKING_BYTES", 0)
    whole = classifier(**options).fit(X, Y)
    tight = classifier(**options, memory_budget=_tight_budget(classifier(**options))).fit(X, Y)
    assert whole.fit_report_["passes"] == 1
    assert tight.fit_report_["passes"] > 1
    assert_allclose(tight.kernel_, whole.kernel_, rtol=1e-6, atol=1e-6 * whole.kernel_.max())
    assert_allclose(tight.decision_function(NEW), whole.decision_function(NEW), rtol=0, atol=1e-6)
    assert tight.block_shares_ == pytest.approx(whole.block_shares_, rel=1e-6)


def _tight_budget(clf: TangentClassifier) -> int:
    """The smallest budget, in steps of 4 kB, that the plan accepts."""
    for budget in range(100_000, 2_000_000, 4096):
        try:
            if clf.set_params(memory_budget=budget).plan(X, Y)["passes"] > 1:
                return budget
        except BudgetError:
            continue
    raise AssertionError


def test_a_hopeless_budget_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BudgetError, match="memory budget") as caught:
        classifier(memory_budget="1MiB").fit(X, Y)
    assert "\n" not in str(caught.value)
    monkeypatch.setattr("tangentune.kernels.stages.WORKING_BYTES", 0)
    with pytest.raises(BudgetError, match="raise memory_budget"):
        classifier(memory_budget=200_000).fit(X, Y)


def test_passes_hold_their_budget_and_every_parameter_once() -> None:
    sizes = {"a": 10, "b": 400, "c": 30, "d": 200, "e": 5}
    for budget in (12_000, 15_000, 20_000, 30_000):
        groups = plan_passes(sizes, 10, budget)
        assert sorted(name for group in groups for name in group) == sorted(sizes)
        for group in groups:
            assert 10 * (sum(sizes[n] for n in group) + 2 * max(sizes[n] for n in group)) <= budget
            assert group == [name for name in sizes if name in group]
    assert len(plan_passes(sizes, 10, 30_000)) == 1
    with pytest.raises(BudgetError, match="the rows of b"):
        plan_passes(sizes, 10, 11_999)


def test_the_plan_says_what_fit_does() -> None:
    plan = classifier().plan(X, Y)
    assert {"n", "seconds", "peak_bytes", "passes", "parameters", "layers"} <= set(plan)
    assert plan["n"] == 40
    assert plan["parameters"] == sum(p.numel() for p in network().parameters())
    assert {layer["name"] for layer in plan["layers"]} == {name for name, _ in network().named_parameters()}
