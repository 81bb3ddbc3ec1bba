"""Leave-one-out of target pictures with a source, its derivatives, and the choice made by it: real joint fits."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from numpy.testing import assert_allclose
from source_cases import F64, Joint, random_joint
from torch import Tensor

from tangentune.solvers.leave_out import loo
from tangentune.solvers.reweighting import squared
from tangentune.solvers.source.choice import (
    DAMPINGS,
    DEVIATIONS,
    STRENGTHS,
    SourceProblem,
    SourceSetting,
    _errors,
    choose_source,
    source_effects,
)
from tangentune.solvers.source.leave_out import target_leave_out, target_loo
from tangentune.solvers.system import build

CASES: list[dict[str, Any]] = [
    {},
    {"zeros": True, "deviation": 0.0, "damping": 0.2},
    {"single": True, "strength": 1.0, "deviation": 1.0},
    {"zeros": True, "single": True, "seed": 2, "strength": 0.01, "damping": 5.0},
]


def source_errors(problem: SourceProblem, setting: SourceSetting) -> torch.Tensor:
    """(n,) squared leave-one-out error of each target picture, the coupling made without it as well."""
    return _errors(problem, problem.means(), setting.class_weights)(setting)


def unnamed(joint: Joint) -> Joint:
    return replace(joint, named=torch.zeros_like(joint.named))


def with_light(joint: Joint, weight: float) -> Joint:
    """One target picture that hardly counts, with another of its class that alone remains of it."""
    weights = joint.weights.clone()
    weights[2] = weight
    return replace(joint, weights=weights)


# -- leave-one-out -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("names", [False, True])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_leave_one_out_is_n_joint_fits(case: dict[str, Any], names: bool) -> None:
    """Each without its picture, the coupling of the classes made without it too."""
    joint = random_joint(**case) if names else unnamed(random_joint(**case))
    system, said, _ = joint.reduced()
    assert_allclose(target_loo(system, said), joint.loo(), rtol=0, atol=1e-9)
    assert_allclose(source_errors(joint.problem(), joint.setting), joint.errors(), rtol=0, atol=1e-9)
    groups = torch.tensor([0, 0, 7, 7, 7, 3, 3, 5, 5, 5, 5, 5, 2, 0])
    assert_allclose(target_leave_out(system, said, groups), joint.leave_out(groups), rtol=0, atol=1e-9)
    held = loo(system) + said.offset
    assert_allclose(held, joint.loo(joint.coupling()), rtol=0, atol=1e-9)
    assert float((held - target_loo(system, said)).abs().max()) > 1e-3  # the coupling does know the labels


@pytest.mark.parametrize("weight", [1e-3, 1e-7, 1e-10])
def test_pictures_that_hardly_count_are_left_out_exactly(weight: float) -> None:
    joint = with_light(unnamed(random_joint(n=8)), weight)
    system, said, _ = joint.reduced()
    assert_allclose(target_loo(system, said), joint.loo(), rtol=0, atol=1e-8)


# -- the derivative ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", CASES, ids=str)
def test_effects_are_slopes_of_joint_leave_one_out(case: dict[str, Any]) -> None:
    joint = random_joint(**case)
    found = source_effects(joint.problem(), joint.setting)
    labels, a = joint.coupling(), joint.source_weights
    counted = joint.weights > 0
    assert not found[~counted].any()
    for j in range(0, len(a), 3):
        step = torch.zeros_like(a)
        step[j] = 1e-5
        if a[j] > 0:
            slope = (joint.reweighed(a + step).errors(labels) - joint.reweighed(a - step).errors(labels)) / 2e-5
        else:  # weight 0 cannot go below: a parabola through three points
            one, two = (joint.reweighed(a + k * step).errors(labels) for k in (1, 2))
            slope = (4 * one - two - 3 * joint.reweighed(a).errors(labels)) / 2e-5
        assert_allclose(found[counted, j], slope[counted], rtol=1e-4, atol=1e-6, err_msg=str(j))
    assert ("zeros" not in case) or bool(found[:, joint.positions == 1].any())


def test_effects_at_nothing_are_those_of_a_first_step() -> None:
    """Strength 0: where no source picture counts, its intercept follows the weights that all would get."""
    joint = random_joint(strength=0.0)
    none = replace(joint.setting, strength=0.0, class_weights=torch.zeros(4, dtype=F64))
    found = source_effects(joint.problem(), none)
    labels, before = joint.coupling(), joint.errors()
    one, two = (joint.reweighed(step * joint.given).errors(labels) for step in (1e-5, 2e-5))
    assert_allclose(found @ joint.given, (4 * one - two - 3 * before) / 2e-5, rtol=1e-4, atol=1e-6)


# -- the choice --------------------------------------------------------------------------------------------------------


def clusters(
    wrong: str = "", count: int = 5, distractors: int = 0, names: bool = False, seed: int = 0, spread: float = 1.6
) -> SourceProblem:
    """Three target classes of few pictures; a source with many of the same, unless it is wrong.

    Args:
        wrong: "labels" shuffles the source's, "pictures" puts its pictures anywhere.
        count: target pictures of a class.
        distractors: source classes far from any target class.
        names: whether source classes have the names of target classes.
        seed: of everything.
        spread: of each class.
    """
    generator = torch.Generator().manual_seed(seed)

    def normal(*size: int) -> Tensor:
        return torch.randn(*size, generator=generator, dtype=F64)

    width = 30
    centres = torch.zeros(3 + distractors, width, dtype=F64)
    centres[torch.arange(3 + distractors), torch.arange(3 + distractors)] = 3
    own, positions = torch.arange(3 * count) % 3, torch.arange(20 * (3 + distractors)) % (3 + distractors)
    rows = centres[own] + spread * normal(len(own), width) / 2
    source = centres[positions] + spread * normal(len(positions), width) / 2
    if wrong == "labels":
        positions = positions[torch.randperm(len(positions), generator=generator)]
    if wrong == "pictures":
        source = 2 * normal(len(positions), width)
    named = torch.eye(3 + distractors, 3).bool() & names
    kernels = (rows @ rows.T, rows @ source.T, source @ source.T)
    targets = torch.nn.functional.one_hot(own).to(F64)
    ones = torch.ones(len(own), dtype=F64)
    return SourceProblem(*kernels, targets, ones, positions, torch.ones(len(positions), dtype=F64), named)


def alone(problem: SourceProblem, damping: float) -> Tensor:
    return squared(loo(build(problem.kernel, problem.targets, damping, problem.weights)), problem.targets)


def best_damping(problem: SourceProblem) -> float:
    """Of 21 over five decades, as a fit without source chooses its own."""
    tried = [float(10**power) for power in torch.arange(-1, 4.1, 0.25)]
    return min(tried, key=lambda damping: float(alone(problem, damping).mean()))


@pytest.mark.parametrize("names", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_a_helpful_source_counts(seed: int, names: bool) -> None:
    problem = clusters(names=names, seed=seed)
    damping = best_damping(problem)
    choice = choose_source(problem, damping)
    assert choice.setting.strength > 0
    assert choice.error_without - choice.error > choice.standard_error > 0
    assert choice.error_without == pytest.approx(float(alone(problem, damping).mean()), rel=1e-10)
    assert choice.error == pytest.approx(float(source_errors(problem, choice.setting).mean()), rel=1e-10)
    assert choice.error == pytest.approx(min(row["loo_error"] for row in choice.tried), rel=1e-12)
    again = choose_source(problem, damping)
    assert again.tried == choice.tried
    assert torch.equal(again.setting.class_weights, choice.setting.class_weights)


@pytest.mark.parametrize("seed", range(4))
def test_a_harmful_source_counts_nothing(seed: int) -> None:
    """Its labels are shuffled, and its classes have the names of the target's."""
    problem = clusters("labels", names=True, seed=seed)
    damping = best_damping(problem)
    choice = choose_source(problem, damping)
    assert choice.setting.strength == 0
    assert choice.setting.damping == damping
    assert not choice.setting.class_weights.any()
    assert choice.error == choice.error_without


@pytest.mark.parametrize("seed", range(3))
def test_distractors_keep_little_weight(seed: int) -> None:
    problem = clusters(distractors=6, seed=seed)
    choice = choose_source(problem, best_damping(problem))
    weights = choice.setting.class_weights * torch.bincount(problem.positions)
    assert choice.setting.strength > 0
    assert float(weights[3:].sum() / weights.sum()) < 0.05
    assert float(choice.setting.class_weights.max()) == 1


@pytest.mark.parametrize("seed", range(2))
def test_a_class_that_harms_is_dropped(seed: int) -> None:
    """Its name is that of the first target class, its pictures are the second's."""
    problem = clusters(distractors=1, names=True, seed=seed)
    named, places = problem.named.clone(), torch.arange(80)
    named[3, 0] = True
    places[problem.positions == 3] = (problem.positions == 1).nonzero().flatten()
    own = problem.own[places][:, places] + 1e-6 * torch.eye(80, dtype=F64)
    problem = replace(problem, cross=problem.cross[:, places], own=own, named=named)
    choice = choose_source(problem, best_damping(problem))
    assert choice.setting.class_weights.tolist() == [1, 1, 1, 0]
    assert {row["classes"] for row in choice.tried} >= {3, 4}
    slopes = torch.zeros(4, dtype=F64)
    whole = replace(choice.setting, class_weights=torch.ones(4, dtype=F64))
    slopes.index_add_(0, problem.positions, source_effects(problem, whole).mean(0))
    assert int(slopes.argmax()) == 3
    assert slopes[3] > 0


def test_a_fixed_damping_stays() -> None:
    problem = clusters()
    fixed = choose_source(problem, 3.0, fixed=True)
    assert fixed.setting.damping == 3.0
    assert {row["damping"] for row in fixed.tried} == {3.0}
    assert len(fixed.tried) % (len(STRENGTHS) * len(DEVIATIONS)) == 0
    free = choose_source(problem, 3.0)
    assert {row["damping"] for row in free.tried} == {3.0 * factor for factor in DAMPINGS}


@pytest.mark.parametrize("count", [1, 5])
def test_damping_alone_is_no_merit_of_the_source(count: int) -> None:
    """Pictures without any likeness to the target's say nothing; at a damping far too small a larger one gains."""
    problem = clusters(count=count)
    problem = replace(problem, cross=torch.zeros_like(problem.cross))
    choice = choose_source(problem, 1e-3)
    assert min(row["loo_error"] for row in choice.tried) < choice.error_without - 1e-4
    assert choice.setting.strength == 0
    assert choice.setting.damping == 1e-3
    assert choice.error == choice.error_without == pytest.approx(float(alone(problem, 1e-3).mean()))


def test_weights_of_target_pictures_are_in_every_mean() -> None:
    problem = clusters()
    weights = torch.arange(15.0, dtype=F64) % 4
    problem = replace(problem, weights=weights)
    choice = choose_source(problem, 10.0)
    assert choice.error_without == pytest.approx(float(weights @ alone(problem, 10.0) / weights.sum()), rel=1e-10)
    errors = source_errors(problem, choice.setting)
    assert choice.error == pytest.approx(float(weights @ errors / weights.sum()), rel=1e-10)
    kept = weights > 0
    part = replace(
        problem, kernel=problem.kernel[kept][:, kept], cross=problem.cross[kept], targets=problem.targets[kept],
        weights=weights[kept],
    )  # fmt: skip
    less = choose_source(part, 10.0)
    assert less.error == pytest.approx(choice.error, rel=1e-9)
    assert_allclose(less.setting.class_weights, choice.setting.class_weights, rtol=1e-9)
