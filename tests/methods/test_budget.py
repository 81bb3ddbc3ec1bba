"""Choosing by budgets and quotas against slow greedy loops; importance weights against bisection."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tangentune.errors import InputError
from tangentune.methods.source_selection.picking import Picks, choose, importance_weights
from tangentune.methods.source_selection.settings import Budget


def candidates(n: int, k: int, seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Scores with ties, shares, masses and counts."""
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randint(0, 2 * n, (n,), generator=generator).double()
    shares = torch.softmax(3 * torch.randn(n, k, generator=generator, dtype=torch.float64), 1)
    counts = torch.randint(1, 6, (n,), generator=generator)
    return scores, shares, torch.rand(n, generator=generator, dtype=torch.float64) * counts + 0.01, counts


def slowly(
    scores: Tensor, shares: Tensor, masses: Tensor, counts: Tensor, budget: Budget, quota: int
) -> dict[int, int]:
    """Pictures taken of each candidate, one decision after another."""
    order = sorted(range(len(scores)), key=lambda i: (-float(scores[i]), i))
    held, reserved = [0] * shares.shape[1], []
    for i in order:
        target = int(shares[i].argmax())
        if held[target] < quota:
            held[target] += 1
            reserved.append(i)
    taken: dict[int, int] = {}
    for place, i in enumerate(reserved + [i for i in order if i not in reserved]):
        if budget.kind == "classes":
            room = int(counts[i]) if len(taken) < budget.amount else 0
        elif budget.kind == "pictures":
            room = int(budget.amount) - sum(taken.values())
        else:
            enough = float(sum(masses[j] for j in taken)) >= budget.amount * float(masses.sum())
            room = 0 if enough and place >= len(reserved) else int(counts[i])
        if room > 0:
            taken[i] = min(room, int(counts[i]))
    return taken


def per_target(made: Picks, targets: int) -> list[int]:
    """Chosen pictures by the target that they serve best."""
    return torch.zeros(targets, dtype=torch.int64).index_add_(0, made.targets, made.pictures).tolist()


def check(made: Picks, taken: dict[int, int], scores: Tensor, shares: Tensor, masses: Tensor, counts: Tensor) -> None:
    """Everything that a choice says, from the pictures taken of each candidate."""
    order = sorted(taken, key=lambda i: (-float(scores[i]), i))
    assert made.chosen.tolist() == order
    assert made.pictures.tolist() == [taken[i] for i in order]
    assert made.targets.tolist() == [int(shares[i].argmax()) for i in order]
    for target in range(shares.shape[1]):
        whole = sum(float(masses[i] * shares[i, target]) for i in range(len(scores)))
        mine = sum(float(masses[i] / counts[i] * taken[i] * shares[i, target]) for i in order)
        assert abs(float(made.coverage[target]) - mine / whole) < 1e-12
        assert per_target(made, shares.shape[1])[target] == sum(
            taken[i] for i in order if int(shares[i].argmax()) == target
        )
    assert abs(float((made.weights * made.pictures).sum() / made.pictures.sum()) - 1) < 1e-12


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize(
    "kind, amount", [("classes", 14), ("pictures", 45), ("mass", 0.6), ("mass", 1), ("classes", 40)]
)
@pytest.mark.parametrize("quota", [0, 1, 2])
def test_chooses_as_a_slow_loop_does(seed: int, kind: str, amount: float, quota: int) -> None:
    scores, shares, masses, counts = candidates(40, 5, seed)
    budget = Budget(kind, amount)  # type: ignore[arg-type]
    made = choose(scores, shares, budget, masses=masses, counts=counts, quota=quota)
    check(made, slowly(scores, shares, masses, counts, budget, quota), scores, shares, masses, counts)


def test_quotas_are_met_and_the_rest_goes_by_score() -> None:
    scores = torch.arange(10).flip(0).double()
    shares = torch.eye(2)[[0, 0, 0, 0, 0, 0, 0, 1, 1, 1]]
    assert per_target(choose(scores, shares, Budget("pictures", 4)), 2) == [4, 0]
    made = choose(scores, shares, Budget("pictures", 4), quota=2)
    assert made.chosen.tolist() == [0, 1, 7, 8]
    assert made.coverage.tolist() == pytest.approx([2 / 7, 2 / 3])
    assert choose(scores, shares, Budget("pictures", 5), quota=2).chosen.tolist() == [0, 1, 2, 7, 8]
    assert choose(scores, shares, Budget("mass", 0.1), quota=1).chosen.tolist() == [0, 7]


def test_what_cannot_be_had_is_noted() -> None:
    scores, shares = torch.arange(6.0), torch.eye(3)[[0, 0, 0, 0, 1, 1]]
    made = choose(scores, shares, Budget("pictures", 9))
    assert made.chosen.tolist() == [5, 4, 3, 2, 1, 0]
    assert made.notes == ("the budget is 9 pictures and there are 6, all of which are taken",)
    assert per_target(made, 3) == [4, 2, 0]
    assert math.isnan(made.coverage[2])
    assert choose(scores, shares, Budget("classes", 6), quota=1).notes == ()  # a quota that is not met is told by name
    made = choose(scores, shares, Budget("mass", 0.1), quota=1)
    assert made.notes == ("the quotas alone take 0.3333 of the mass, more than the budget of 0.1",)
    made = choose(scores, shares, Budget("mass", 0.5), target_totals=torch.tensor([10.0, 4.0, 10.0]))
    assert made.notes == ("the budget is 0.5 of the mass and the candidates hold 0.25 of it; all are taken",)
    assert made.coverage.tolist() == pytest.approx([0.4, 0.5, 0.0])
    assert choose(scores, shares, Budget("mass", 1.0)).notes == ()


def test_small_masses_keep_their_meaning() -> None:
    """Row masses of 1e-60 with shares in float32."""
    scores, shares, masses, counts = candidates(40, 5, 0)
    plain = choose(scores, shares, Budget("mass", 0.5), masses=masses, counts=counts)
    tiny = choose(scores, shares.float(), Budget("mass", 0.5), masses=1e-60 * masses, counts=counts)
    assert torch.equal(plain.chosen, tiny.chosen)
    assert float((plain.coverage - tiny.coverage).abs().max()) < 1e-6
    assert float((plain.weights - tiny.weights).abs().max()) < 1e-12


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.floats(0, 1e6), st.integers(1, 9)), min_size=1, max_size=30).filter(
        lambda pairs: any(mass > 1e-3 for mass, _ in pairs)
    ),
    st.floats(1.01, 20),
)
def test_weights_are_masses_under_a_cap_with_mean_one(pairs: list[tuple[float, int]], cap: float) -> None:
    masses, number = (torch.tensor([pair[i] for pair in pairs]).double() for i in (0, 1))
    weights = importance_weights(masses, number, cap=cap)
    assert abs(float((weights * number).sum() / number.sum()) - 1) < 1e-9
    assert float(weights.max()) <= cap * (1 + 1e-12)
    assert float(weights.min()) >= 0
    if float((number * cap * (masses > 0)).sum()) <= float(number.sum()):
        assert float((weights[masses > 0] - cap).abs().max()) < 1e-9
        return
    low, high = 0.0, cap / float(masses[masses > 0].min())
    for _ in range(200):  # the scale by bisection
        scale = (low + high) / 2
        total = float((number * (masses * scale).clamp(max=cap)).sum())
        low, high = (scale, high) if total < float(number.sum()) else (low, scale)
    assert float((weights - (masses * low).clamp(max=cap)).abs().max()) < 1e-9 * cap


def test_weights_of_equal_masses_are_one_and_units_do_not_matter() -> None:
    assert importance_weights(torch.full((7,), 3.0)).tolist() == [1.0] * 7
    masses = torch.rand(50, generator=torch.Generator().manual_seed(0), dtype=torch.float64) ** 6
    assert float((importance_weights(masses) - importance_weights(masses * 1e-200)).abs().max()) < 1e-10
    assert float(importance_weights(masses, cap=1e9).max()) == pytest.approx(float(masses.max() / masses.mean()))
    capped = importance_weights(masses, cap=2.0)
    assert 50 >= float(capped.sum() ** 2 / (capped**2).sum()) >= 50 / 2


@pytest.mark.parametrize(
    "kind, amount, sentence",
    [
        ("classes", 0, "a budget of classes is a whole number of at least 1, not 0"),
        ("pictures", -3, "not -3"),
        ("pictures", 2.5, "not 2.5"),
        ("pictures", math.inf, "not inf"),
        ("mass", 0, "a share of it, above 0 and up to 1, not 0"),
        ("mass", 1.5, "not 1.5"),
        ("mass", math.nan, "not nan"),
        ("rows", 3, "kind is 'rows'; use one of 'classes', 'pictures', 'mass'"),
    ],
)
def test_budgets_refuse(kind: str, amount: float, sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        Budget(kind, amount)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "changes, sentence",
    [
        ({"quota": 3}, "a quota of 3 for every target asks for 6, more than the budget of 5 pictures"),
        ({"quota": 2, "counts": torch.full((8,), 2)}, "takes classes of 8 pictures, more than the budget of 5"),
        ({"scores": torch.full((8,), math.nan)}, "8 scores are NaN"),
        ({"masses": torch.zeros(8)}, "use a larger cost scale"),
    ],
)
def test_choices_refuse(changes: dict[str, object], sentence: str) -> None:
    settings = {"scores": torch.arange(8.0), "shares": torch.eye(2).repeat(4, 1), "budget": Budget("pictures", 5)}
    with pytest.raises(InputError, match=sentence):
        choose(**{**settings, **changes})  # type: ignore[arg-type]
