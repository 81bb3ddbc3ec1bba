"""Which target class a source class stands for, and how leave-one-out sees it: each held to the plain computation."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from numpy.testing import assert_allclose
from source_cases import F64, Joint, random_joint
from torch import Tensor

from tangentune.methods.source_selection import unbalanced_sinkhorn
from tangentune.solvers.source import coupling as module
from tangentune.solvers.source.coupling import SCALE, coupling, coupling_shift, coupling_without, transport

CASES = [{}, {"zeros": True}, {"single": True}, {"zeros": True, "single": True, "seed": 3}]


def unnamed(joint: Joint) -> Joint:
    return replace(joint, named=torch.zeros_like(joint.named))


def cosines(joint: Joint) -> Tensor:
    """(S, C) between class means, by hand."""
    sources = torch.stack([joint.given[p] @ joint.source[p] for p in (joint.positions == s for s in range(4))])
    targets = (joint.weights[:, None] * joint.targets).T @ joint.rows
    return torch.nn.functional.normalize(sources, dim=1) @ torch.nn.functional.normalize(targets, dim=1).T


@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_plan_is_semi_relaxed_transport(case: dict) -> None:
    """Source masses free, target masses met: what the Sinkhorn solver finds for the same cost."""
    joint = random_joint(**case)
    plan = transport(joint.problem().means())
    assert_allclose(plan.sum(0), torch.ones(3), rtol=0, atol=1e-14)
    ones = (torch.ones(4, dtype=F64), torch.ones(3, dtype=F64))
    cost = (1 - cosines(joint)) / SCALE
    solved = unbalanced_sinkhorn(cost, *ones, eps=1, tau_source=0, tau_target=math.inf)
    assert_allclose(plan, solved.plan, rtol=0, atol=1e-10)


@pytest.mark.parametrize("names", [False, True])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_source_classes_get_their_share_of_the_plan(case: dict, names: bool) -> None:
    joint = random_joint(**case) if names else unnamed(random_joint(**case))
    found = coupling(joint.problem().means())
    assert_allclose(found.sum(1), torch.ones(4), rtol=0, atol=1e-14)
    assert_allclose(found, joint.coupling(), rtol=0, atol=1e-12)
    assert bool((found >= 0).all())
    assert not names or found[3].tolist() == [1, 0, 0]


def test_a_class_without_weight_asks_for_nothing() -> None:
    joint = random_joint()
    weights = joint.weights * (joint.targets[:, 1] == 0)
    means = replace(joint, weights=weights).problem().means()
    assert not transport(means)[:, 1].any()
    assert not coupling(means)[:, 1].any()
    named = replace(means, named=torch.eye(4, 3).bool())
    assert coupling(named)[1].tolist() == [0, 1, 0]  # its name is enough


@pytest.mark.parametrize("names", [False, True])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_targets_shift_as_the_coupling_made_without_each_picture(case: dict, names: bool) -> None:
    joint = random_joint(**case) if names else unnamed(random_joint(**case))
    means, generator = joint.problem().means(), torch.Generator().manual_seed(1)
    pull = torch.randn(14, 4, generator=generator, dtype=F64)
    whole = joint.coupling()
    expected = torch.stack([pull[i] @ (joint.without(i).coupling() - whole) for i in range(14)])
    found = coupling_shift(means, pull)
    assert_allclose(found, expected, rtol=0, atol=1e-11)
    alone = coupling_shift(means, pull, torch.arange(14))
    assert_allclose(alone, expected, rtol=0, atol=1e-11)
    if "zeros" in case:
        assert not found[3].any()
    groups = torch.arange(14) // 4
    expected = torch.zeros_like(found)
    for group in range(4):
        own = (groups == group).nonzero().flatten()
        less = joint.without(*own.tolist()).coupling()
        expected[own] = pull[own] @ (less - whole)
        assert_allclose(coupling_without(means, own), less, rtol=0, atol=1e-11)
    found = coupling_shift(means, pull, groups)
    assert_allclose(found, expected, rtol=0, atol=1e-11)


def test_portions_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    joint = random_joint(31, single=True)
    arguments = (joint.problem().means(), torch.ones(31, 4, dtype=F64))
    whole = coupling_shift(*arguments)
    for entries in (1, 12, 30, 12 * 31):
        monkeypatch.setattr(module, "CHUNK_ENTRIES", entries)
        assert_allclose(coupling_shift(*arguments), whole, rtol=0, atol=1e-15)


@pytest.mark.parametrize("weight", [1e5, 1e9, 1e14])
def test_a_picture_that_is_nearly_its_whole_class_is_left_out_exactly(weight: float) -> None:
    """What remains of the class is summed anew, not a difference of two large numbers."""
    joint = unnamed(random_joint())
    weights = joint.weights.clone()
    weights[0] = weight
    joint = replace(joint, weights=weights)
    pull = torch.ones(14, 4, dtype=F64)
    found = coupling_shift(joint.problem().means(), pull)
    expected = torch.stack([(joint.without(i).coupling() - joint.coupling()).sum(0) for i in range(14)])
    assert_allclose(found, expected, rtol=0, atol=1e-10)
    assert float(found[0].abs().max()) > 0.01
