"""Edits on feature rows: the same as solving anew at every damping, former states untouched, and errors are seen."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from reference import closeness
from torch import Tensor

from tangentune.errors import SingularError
from tangentune.solvers.leave_out import loo
from tangentune.solvers.low_rank import FeatureInverse, FeatureKernel
from tangentune.solvers.row_edits import edited
from tangentune.solvers.shared_matrix import MOST, SharedMatrix
from tangentune.solvers.system import System, build, refresh, residual, spot_check

N, D, C, DAMPINGS = 150, 64, 3, (0.4, 6.0)


def rows(count: int, seed: int) -> Tensor:
    return 0.3 + torch.randn(count, D, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def labels(count: int, seed: int) -> Tensor:
    return torch.eye(C, dtype=torch.float64)[torch.randint(C, (count,), generator=torch.Generator().manual_seed(seed))]


def start() -> list[System]:
    first = build(FeatureKernel.of(rows(N, 0)), labels(N, 1), DAMPINGS[0], torch.linspace(0.5, 2, N).double())
    return [first, refresh(first, damping=DAMPINGS[1])]


def parts(system: System) -> tuple[FeatureKernel, FeatureInverse]:
    assert isinstance(system.kernel, FeatureKernel)
    assert isinstance(system.inverse, FeatureInverse)
    return system.kernel, system.inverse


def step(systems: list[System], kind: str, seed: int) -> list[System]:
    """One edit of a kind, at random."""
    kernel, _ = parts(systems[0])
    n, generator = len(kernel), torch.Generator().manual_seed(seed)
    targets, weights, stays = systems[0].targets, systems[0].weights, torch.arange(n)
    some = torch.randperm(n, generator=generator)[:2]
    if kind == "forget":
        stays = torch.tensor([i for i in range(n) if i not in some.tolist()])
        kernel, targets, weights = kernel.select(stays), targets[stays], weights[stays]
    elif kind == "add":
        kernel, targets = kernel.joined(rows(2, 100 + seed)), torch.cat([targets, labels(2, seed)])
        weights = torch.cat([weights, torch.ones(2, dtype=torch.float64)])
    elif kind == "lose":
        fresh = kernel.left(torch.randn(D, 1, generator=generator, dtype=torch.float64))
        kernel = replace(kernel, lost=torch.cat([kernel.lost, fresh / fresh.norm()], 1), lengths=None)
    elif kind == "reweight":
        weights = weights.index_fill(0, some, 0.0).index_fill(0, some[:1], 1.5)
    else:
        targets = targets.clone()
        targets[some] = targets[some].roll(1, 1)
    return edited(systems, kernel, stays, targets, weights)


def same(ours: System, tolerance: float = 1e-8) -> None:
    """As solved anew on the same rows, in everything that a picture has."""
    kernel, inverse = parts(ours)
    anew = build(FeatureKernel.of(kernel.rows(slice(None))), ours.targets, ours.damping, ours.weights)
    _, fresh = parts(anew)
    for one, other in ((ours.dual, anew.dual), (ours.bias, anew.bias), (loo(ours), loo(anew))):
        assert closeness(one, other) < tolerance
    assert closeness(inverse.heights, fresh.heights) < tolerance
    assert closeness(inverse.fitted, fresh.fitted) < tolerance
    assert closeness(kernel.diagonal(), kernel.rows(slice(None)).square().sum(1)) < tolerance
    assert residual(ours)[0] < 1e-11
    assert spot_check(ours) < 1e-11


@pytest.mark.parametrize("kind", ["relabel", "forget", "add", "reweight", "lose"])
def test_an_edit_is_a_solution_anew_at_both_dampings(kind: str) -> None:
    for one in step(start(), kind, 3):
        same(one)


def test_one_pass_over_the_rows_serves_both_dampings(monkeypatch: pytest.MonkeyPatch) -> None:
    systems, passes = start(), list[int]()
    plain = FeatureKernel.times_all

    def counted(self: FeatureKernel, right: Tensor) -> Tensor:
        passes.append(right.shape[1])
        return plain(self, right)

    monkeypatch.setattr(FeatureKernel, "times_all", counted)
    step(systems, "relabel", 3)
    step(systems, "forget", 3)
    assert passes == [4, 4]  # a column for each of two pictures and dampings


def test_two_hundred_edits_do_not_drift_and_former_states_stay() -> None:
    systems, kinds = start(), ["relabel", "forget", "add", "relabel", "reweight"]
    first, before = systems, [loo(one).clone() for one in systems]
    shared = 0
    for i in range(200):
        after = step(systems, "lose" if i % 40 == 39 else kinds[i % 5], i)
        for old, new in zip(systems, after, strict=True):
            shared += parts(old)[1].core.base is parts(new)[1].core.base
            assert parts(new)[1].core.count * MOST <= D + 1
        assert parts(after[0])[1].gram is parts(after[1])[1].gram
        systems = after
    assert shared > 200
    for one in systems:
        same(one)
    for one, known in zip(first, before, strict=True):
        assert torch.equal(loo(one), known)
        same(one)


def test_other_outputs_and_many_pictures_are_taken_as_well() -> None:
    systems = start()
    wider = torch.eye(C + 2, dtype=torch.float64)[torch.arange(N) % (C + 2)]
    for one in edited(systems, parts(systems[0])[0], torch.arange(N), wider, systems[0].weights):
        same(one)
    stays = torch.arange(40, N)
    kernel, targets, weights = parts(systems[0])[0].select(stays), systems[0].targets[stays], systems[0].weights[stays]
    for one in edited(systems, kernel, stays, targets, weights):
        same(one)


def test_directions_do_not_come_back() -> None:
    narrowed = step(start(), "lose", 3)
    kernel = replace(parts(narrowed[0])[0], lost=torch.zeros(D, 0, dtype=torch.float64))
    with pytest.raises(SingularError, match="not independent"):
        edited(narrowed, kernel, torch.arange(N), narrowed[0].targets, narrowed[0].weights)


@pytest.mark.parametrize("spoilt", ["core", "heights", "coef", "fitted"])
def test_what_edits_carry_on_is_checked(spoilt: str) -> None:
    system = step(start(), "forget", 3)[0]
    inverse, changes = parts(system)[1], dict[str, Any]()
    if spoilt == "core":
        changes[spoilt] = SharedMatrix(inverse.core.whole() * (1 + 1e-7))
    else:
        changes[spoilt] = getattr(inverse, spoilt) * (1 + 1e-7)
    assert residual(replace(system, inverse=replace(inverse, **changes)))[0] > 1e-9


def test_terms_are_multiplied_as_if_they_were_added_up() -> None:
    generator = torch.Generator().manual_seed(0)
    base = torch.randn(90, 90, generator=generator, dtype=torch.float64)
    base, dense = SharedMatrix(base + base.T), base + base.T
    matrix, right = base, torch.randn(90, 7, generator=generator, dtype=torch.float64)
    for i in range(9):
        terms, sign = torch.randn(1 + i % 2, 90, generator=generator, dtype=torch.float64), (-1.0) ** i
        matrix, dense = matrix.plus(terms, sign), dense + sign * terms.T @ terms
        assert closeness(matrix @ right, dense @ right) < 1e-12
        assert closeness(matrix @ right[:, :2], dense @ right[:, :2]) < 1e-12
        assert closeness(matrix.diagonal(), dense.diagonal()) < 1e-12
        assert closeness(matrix.whole(), dense) < 1e-12
    assert matrix.base is not base.base  # added up by now
    assert matrix.count < 11
