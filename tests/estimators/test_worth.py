"""Was the whole network worth its time: the linear probe on the same pictures, the paired interval, the words."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
from edit_cases import NUMBERS, X, Y
from small import backbone

from tangentune import TangentClassifier, TangentRegressor
from tangentune.estimators.summary import Summary, summarise
from tangentune.estimators.worth import compare_classes, compare_numbers, next_steps, verdict


def free(kind: Any, y: Any, **options: Any) -> Any:
    return kind(backbone(), **options).fit(X, y)


@cache
def usual() -> Any:
    """With everything chosen; nothing here changes it."""
    return free(TangentClassifier, Y)


def facts(**changes: Any) -> Summary:
    return replace(summarise(usual()), **changes)


def test_a_fit_tells_what_a_linear_probe_scores_on_the_same_pictures() -> None:
    clf, alone = free(TangentClassifier, Y, body_scale=1.0), free(TangentClassifier, Y, body_scale=0)
    assert clf.fit_report_["probe"] is None  # a scale that was given: no probe was tried
    clf = free(TangentClassifier, Y, outer_steps=0)  # else the probe is on the moved network
    probe = clf.fit_report_["probe"]
    assert probe["score"] == alone.loo_score_
    assert probe["gain"] == pytest.approx(clf.loo_score_ - alone.loo_score_, abs=1e-12)
    low, high = probe["interval"]
    assert low <= probe["gain"] <= high or abs(probe["gain"]) < 1e-12
    assert probe["seconds"] > 0


def test_the_same_of_numbers_in_shares_of_the_variance() -> None:
    reg, alone = free(TangentRegressor, NUMBERS[:, 0]), free(TangentRegressor, NUMBERS[:, 0], body_scale=0)
    probe = reg.fit_report_["probe"]
    assert probe["score"] == pytest.approx(alone.loo_score_, abs=1e-12)
    assert probe["gain"] == pytest.approx(reg.loo_score_ - alone.loo_score_, abs=1e-12)
    assert verdict(summarise(alone)).startswith("This fit is a linear probe")


def test_a_probe_given_a_damping_that_suits_the_body_is_not_judged() -> None:
    assert free(TangentClassifier, Y, damping=0.1).fit_report_["probe"] is None


@pytest.mark.parametrize("n", [20, 200])
def test_the_paired_interval_holds_the_truth_as_often_as_it_says(n: int) -> None:
    rng, held, labels = np.random.default_rng(0), 0, np.zeros(n, int)
    for _ in range(400):  # 10 % won, 5 % lost, the rest equal
        kind = rng.choice(3, n, p=[0.1, 0.05, 0.85])
        low, high = compare_classes(labels, np.where(kind == 1, 1, 0), np.where(kind == 0, 1, 0))["interval"]
        held += low <= 0.05 <= high
    assert 0.93 <= held / 400 <= 1


def test_the_paired_interval_of_numbers() -> None:
    rng, held = np.random.default_rng(0), 0
    for _ in range(300):
        y = rng.normal(size=(100, 1))
        found = compare_numbers(y, y + rng.normal(0, 0.5, y.shape), y + rng.normal(0, 0.6, y.shape))
        held += found["interval"][0] <= 0.36 - 0.25 <= found["interval"][1]
    assert 0.9 <= held / 300 <= 0.99


def test_two_equal_answers_leave_it_open() -> None:
    same = compare_classes(np.zeros(50, int), np.zeros(50, int), np.zeros(50, int))
    assert same["gain"] == 0
    assert same["interval"][0] < 0 < same["interval"][1]


@pytest.mark.parametrize(
    ("interval", "words"),
    [([0.01, 0.05], "was worth its time"), ([-0.01, 0.05], "not certain"), ([-0.05, -0.01], "was not worth its time")],
)
def test_the_verdict_follows_the_interval(interval: list[float], words: str) -> None:
    probe = {"score": 0.876, "gain": 0.03, "interval": interval, "seconds": 2.0}
    said = verdict(facts(probe=probe, seconds=38.0, settings=facts().settings | {"body_scale": 1.0, "outer_steps": 0}))
    assert words in said
    assert "A linear probe of the same pictures has 87.6 %; the whole network changes that by +3.0 points" in said
    assert f"(95 % interval {100 * interval[0]:+.1f} to {100 * interval[1]:+.1f})" in said
    assert "38 s instead of about 2.0 s" in said


def test_a_probe_of_moved_features_is_called_that() -> None:
    probe = {"score": 0.886, "gain": -0.01, "interval": [-0.035, 0.016], "seconds": 0.3}
    moved = facts(probe=probe, settings=facts().settings | {"body_scale": 1.0, "outer_steps": 32})
    assert "of the features as they were moved has 88.6 %; their tangents change that by -1.0 points" in verdict(moved)
    assert "instead of" not in verdict(moved)
    assert all("subset" not in step.command for step in next_steps(moved))


def test_next_steps_are_few_and_fit_the_fit() -> None:
    steps = next_steps(facts(doubtful=3))
    assert [step.command for step in steps] == ["tangentune suspects"]
    assert steps[0].why == "look at 3 doubtful labels"
    luck = next_steps(facts(doubtful=3, interval=(0.2, 0.8)))  # doubts of a model that knows nothing are none
    assert (luck[0].command, luck[0].why[:13]) == ("tangentune add", "more pictures")
    assert all("suspects" not in step.command for step in luck)


def test_an_edited_model_is_another_model() -> None:
    clf = free(TangentClassifier, Y).forget([1])
    assert summarise(clf).probe is None
    assert verdict(summarise(clf)) == ""
