"""Scores of single pictures, and rankings of classes."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from tangentune.errors import InputError
from tangentune.methods.source_selection.rankings import Ranking, Scorer, descending, random_scores, rank
from tangentune.methods.source_selection.settings import COST_SCALE, SelectionSettings
from tangentune.methods.source_selection.sinkhorn import TransportPlan, unbalanced_sinkhorn


def unit(n: int, d: int, seed: int) -> Tensor:
    return normalize(torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64), dim=1)


METHODS = ("uot", "random", "all", "nearest")


def ranked(method: str, source: Any, target: Any, *, masses: Any = (None, None), **settings: Any) -> Ranking:
    """A ranking by keywords."""
    budget = None if method == "all" else 1
    known = SelectionSettings(budget=budget, method=method, **settings)  # type: ignore[arg-type]
    return rank(known, source, target, source_mass=masses[0], target_mass=masses[1])


def uot_scorer(source: Tensor, target: Tensor, **settings: Any) -> tuple[Scorer, TransportPlan]:
    made = ranked("uot", source, target, **settings)
    assert made.scorer is not None
    assert made.plan is not None
    return made.scorer, made.plan


def far(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).abs().max() / expected.abs().max())


@pytest.mark.parametrize("scale", [0.3, 0.1, 0.01])
@pytest.mark.parametrize("taus", [(1.0, 100.0), (0.0, 5.0), (3.0, math.inf)])
def test_scores_are_the_row_masses_of_the_plan(scale: float, taus: tuple[float, float]) -> None:
    source, target = unit(50, 32, 2), unit(9, 32, 3)
    scorer, made = uot_scorer(3 * source, target, cost_scale=scale, eps=0.5, tau_source=taus[0], tau_target=taus[1])
    scores = scorer.scores(source @ target.T)
    assert float((scores - made.plan.log().logsumexp(1)).abs().max()) < 1e-9
    assert far(scorer.shares(source @ target.T), made.plan / made.source_mass[:, None]) < 1e-9


def test_a_picture_is_scored_as_if_it_had_been_transported() -> None:
    """Potentials of half of the sources score the other half as the plan among that half does, given the targets' v."""
    source, target = unit(60, 32, 2), unit(9, 32, 3)
    scorer, made = uot_scorer(source[:30], target)
    log_v = made.target_potential
    expected = 0.5 * torch.logsumexp(log_v - (1 - source[30:] @ target.T) / COST_SCALE, 1)
    assert float((scorer.scores(source[30:] @ target.T) - expected).abs().max()) < 1e-12


def test_the_nearest_target_scores() -> None:
    source, target = unit(50, 32, 2), unit(9, 32, 3)
    scorer, cosines = Scorer(target), source @ target.T
    shares = scorer.shares(cosines)
    assert float((shares.sum(1) - 1).abs().max()) < 1e-12
    assert torch.equal(shares.argmax(1), cosines.argmax(1))
    assert float((scorer.scores(cosines) - cosines.max(1).values).abs().max()) < 1e-12


def test_scores_in_float32_survive_a_small_temperature() -> None:
    source, target = unit(500, 64, 2), unit(20, 64, 3)
    for scale in (0.1, 0.005, 0.001):
        exact, _ = uot_scorer(source, target, cost_scale=scale)
        rough = exact.in_float32()
        expected, found = exact.scores(source @ target.T), rough.scores(source.float() @ target.float().T)
        assert found.dtype == torch.float32
        assert float((found - expected).abs().max()) < 1e-6 / scale


def test_rankings_follow_their_definitions() -> None:
    source, target = unit(40, 16, 0), unit(6, 16, 1)
    cosines = source @ target.T
    plan = unbalanced_sinkhorn((1 - cosines) / 0.05, torch.ones(40), torch.ones(6), eps=1, tau_source=1, tau_target=1)
    expected = {
        "uot": plan.source_mass.log(),
        "nearest": cosines.max(1).values,
        "all": torch.zeros(40),
        "random": random_scores(torch.arange(40), 3),
    }
    for method, scores in expected.items():
        made = ranked(method, 2 * source, target, cost_scale=0.05, seed=3)
        assert float((made.scores - scores).abs().max()) < 1e-10
        assert made.order.tolist() == sorted(range(40), key=lambda i: (-made.scores[i].item(), i))
    assert ranked("all", source, target).order.tolist() == list(range(40))
    uot = ranked("uot", source, target, cost_scale=0.05)
    assert far(uot.shares, plan.plan / plan.source_mass[:, None]) < 1e-10


@pytest.mark.parametrize("method", METHODS)
def test_rankings_are_complete_and_repeatable(method: str) -> None:
    source, target = unit(30, 8, 0), unit(4, 8, 1)
    one, again = ranked(method, source, target), ranked(method, source.clone(), target.clone())
    assert one.method == method
    assert torch.equal(one.order, again.order)
    assert sorted(one.order.tolist()) == list(range(30))
    assert one.shares.shape == (30, 4)
    assert float((one.shares.sum(1) - 1).abs().max()) < 1e-12
    assert one.has_mass == (method == "uot")
    if one.scorer is not None:
        assert float((one.scorer.scores(source @ target.T) - one.scores).abs().max()) < 1e-12


def test_source_counts_enter_the_row_masses() -> None:
    source, target = unit(30, 8, 0), unit(4, 8, 1)
    made = ranked(
        "uot",
        source,
        target,
        masses=(torch.arange(1.0, 31).double(), torch.tensor([3.0, 1, 1, 1]).double()),
        tau_target=100,
    )
    assert made.plan is not None
    assert far(made.scores.exp(), made.plan.source_mass) < 1e-10
    assert made.order.tolist() != ranked("uot", source, target).order.tolist()
    assert made.plan.target_mass.argmax() == 0


def test_equal_sources_rank_by_position() -> None:
    source = torch.eye(3).double()[[2, 1, 1, 0, 1]]
    for method in ("nearest", "uot"):
        assert ranked(method, source, source[1:2]).order.tolist() == [1, 2, 4, 0, 3]


def test_random_scores_depend_on_index_and_seed_alone() -> None:
    whole = random_scores(torch.arange(100_000), seed=1)
    assert torch.equal(whole[torch.tensor([7, 99_999, 0])], random_scores(torch.tensor([7, 99_999, 0]), seed=1))
    other = random_scores(torch.arange(100_000), seed=2)
    assert bool(((whole >= 0) & (whole < 1)).all())
    counts = torch.histc(whole, 50, 0, 1)
    assert float(((counts - 2000) ** 2 / 2000).sum()) < 90  # chi-squared with 49 degrees: 1 in 3,000 above
    for a, b in ((whole, other), (whole[1:], whole[:-1])):
        assert abs(float(torch.corrcoef(torch.stack([a, b]))[0, 1])) < 0.01
    assert len(whole.unique()) == 100_000


def test_scores_refuse() -> None:
    with pytest.raises(InputError, match="2 scores are NaN"):
        descending(torch.tensor([math.nan, 1, math.nan]))
