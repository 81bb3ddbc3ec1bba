"""Unbalanced Sinkhorn against plain log-sum-exp rounds, against POT and against its own optimality."""

from __future__ import annotations

import math
import warnings

import numpy as np
import ot
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import normalize

from tangentune.errors import InputError
from tangentune.methods.source_selection.sinkhorn import TransportPlan, unbalanced_sinkhorn

INF = math.inf


def unit(n: int, d: int, seed: int) -> Tensor:
    return normalize(torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64), dim=1)


def problem(n: int = 40, m: int = 12, scale: float = 0.3, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Cost, and uneven masses of the same total."""
    generator = torch.Generator().manual_seed(seed)
    cost = (1 - unit(n, 16, seed) @ unit(m, 16, seed + 1).T) / scale
    a, b = (torch.rand(k, generator=generator, dtype=torch.float64) + 0.2 for k in (n, m))
    return cost, a / a.sum(), b / b.sum()


def plainly(cost: Tensor, a: Tensor, b: Tensor, eps: float, taus: tuple[float, float], rounds: int) -> Tensor:
    """The plan by the given number of plain log-sum-exp rounds."""
    g, h = (1.0 if math.isinf(tau) else tau / (tau + eps) for tau in taus)
    log_kernel, log_u = -cost / eps, torch.zeros_like(a)
    log_v = torch.zeros_like(b)
    for _ in range(rounds):
        log_v = h * (b.log() - torch.logsumexp(log_kernel + log_u[:, None], 0))
        log_u = g * (a.log() - torch.logsumexp(log_kernel + log_v, 1))
    return (log_kernel + log_u[:, None] + log_v).exp()


def objective(plan: Tensor, cost: Tensor, a: Tensor, b: Tensor, eps: float, taus: tuple[float, float]) -> Tensor:
    """What is minimised; infinite penalties are left out."""
    total = (plan * cost).sum() + eps * (torch.xlogy(plan, plan) - plan).sum()
    for tau, has, wants in ((taus[0], plan.sum(1), a), (taus[1], plan.sum(0), b)):
        if not math.isinf(tau):
            total = total + tau * (torch.xlogy(has, has / wants) - has + wants).sum()
    return total


def far(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).abs().max() / expected.abs().max())


PENALTIES = [(1, 100), (1, 1), (0.3, 7), (20, 0.5), (1, 0), (0, 5), (0, 0), (1, INF), (INF, 3), (INF, INF), (INF, 0)]


@pytest.mark.parametrize("taus", PENALTIES)
@pytest.mark.parametrize("scale, eps", [(0.3, 1.0), (0.01, 0.4)])
def test_equals_plain_rounds_of_log_sum_exp(taus: tuple[float, float], scale: float, eps: float) -> None:
    cost, a, b = problem(scale=scale)
    made = unbalanced_sinkhorn(cost, a, b, eps=eps, tau_source=taus[0], tau_target=taus[1])
    assert far(made.plan, plainly(cost, a, b, eps, taus, max(600, made.iterations))) < 1e-10
    assert torch.equal(made.source_mass, made.plan.sum(1))
    assert torch.equal(made.target_mass, made.plan.sum(0))


@pytest.mark.parametrize("taus", [(1, 100), (30, 30), (INF, 2), (INF, INF)])
def test_is_the_same_iteration_at_every_round(taus: tuple[float, float]) -> None:
    """At costs of hundreds, where every potential moves far and softmaxes are made anew."""
    cost, a, b = problem(scale=0.004)
    for rounds in (1, 2, 5, 30):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)
            made = unbalanced_sinkhorn(
                cost, a, b, eps=1, tau_source=taus[0], tau_target=taus[1], max_iterations=rounds, tolerance=1e-300
            )
        assert made.iterations == rounds
        assert far(made.plan, plainly(cost, a, b, 1.0, taus, rounds)) < 1e-11


@pytest.mark.parametrize(
    "eps, taus", [(1.0, (1, 100)), (1.0, (1, 1)), (0.3, (0.5, 2)), (2.0, (10, 3)), (0.5, (2, 0.1))]
)
@pytest.mark.parametrize("scale", [1.0, 0.1])
def test_equals_pot(eps: float, taus: tuple[float, float], scale: float) -> None:
    cost, *uneven = problem(60, 15, scale)
    for a, b in (uneven, (torch.ones(60).double(), torch.ones(15).double())):
        made = unbalanced_sinkhorn(cost, a, b, eps=eps, tau_source=taus[0], tau_target=taus[1])
        theirs = pot(cost, a, b, eps, taus)
        assert far(made.plan, theirs) < 1e-8
        assert far(made.source_mass, theirs.sum(1)) < 1e-8


def pot(cost: Tensor, a: Tensor, b: Tensor, eps: float, taus: tuple[float, float]) -> Tensor:
    """POT's plan with the entropy `sum T (log T - 1)`, which is its divergence from a matrix of ones."""
    plan = ot.unbalanced.sinkhorn_unbalanced(
        a.numpy(), b.numpy(), cost.numpy(), eps, taus, reg_type="kl", c=np.ones(cost.shape), numItermax=20_000,
        stopThr=1e-15,
    )  # fmt: skip
    return torch.from_numpy(plan)


@pytest.mark.parametrize("taus", [(INF, 2.0), (0.7, INF)])
def test_one_exact_marginal_equals_pot(taus: tuple[float, float]) -> None:
    cost, a, b = problem(60, 15)
    made = unbalanced_sinkhorn(cost, a, b, eps=0.5, tau_source=taus[0], tau_target=taus[1])
    assert far(made.plan, pot(cost, a, b, 0.5, taus)) < 1e-8
    exact, wanted = (made.source_mass, a) if math.isinf(taus[0]) else (made.target_mass, b)
    assert far(exact, wanted) < 1e-11


@pytest.mark.parametrize("eps", [0.2, 1.0, 5.0])
def test_two_exact_marginals_equal_pot_balanced(eps: float) -> None:
    cost, a, b = problem(60, 15)
    made = unbalanced_sinkhorn(cost, a, b, eps=eps, tau_source=INF, tau_target=INF)
    theirs = ot.sinkhorn(a.numpy(), b.numpy(), cost.numpy(), eps, stopThr=1e-15, numItermax=10_000, warn=False)
    assert far(made.plan, torch.from_numpy(theirs)) < 1e-8
    assert far(made.source_mass, a) < 1e-12
    assert far(made.target_mass, b) < 1e-11


@pytest.mark.parametrize("taus", PENALTIES)
def test_row_masses_have_their_closed_form(taus: tuple[float, float]) -> None:
    cost, a, b = problem()
    made = unbalanced_sinkhorn(cost, a, b, eps=0.5, tau_source=taus[0], tau_target=taus[1], tolerance=1e-3)
    g = 1.0 if math.isinf(taus[0]) else taus[0] / (taus[0] + 0.5)
    v = (made.target_potential / 0.5).exp()
    assert far(made.source_mass, a**g * ((-cost / 0.5).exp() @ v) ** (1 - g)) < 1e-12
    plan = ((made.source_potential[:, None] + made.target_potential - cost) / 0.5).exp()
    assert far(made.plan, plan) < 1e-12


@pytest.mark.parametrize("taus", [(1, 100), (0.3, 7), (1, 0), (0, 0), (20, 20)])
def test_no_other_plan_is_better(taus: tuple[float, float]) -> None:
    cost, a, b = problem()
    made = unbalanced_sinkhorn(cost, a, b, eps=0.7, tau_source=taus[0], tau_target=taus[1])
    plan = made.plan.clone().requires_grad_()
    best = objective(plan, cost, a, b, 0.7, taus)
    (slope,) = torch.autograd.grad(best, plan)
    assert float(slope.abs().max()) < 1e-9
    generator = torch.Generator().manual_seed(5)
    for size in (1e-3, 0.1, 1.0):
        for _ in range(10):
            factors = (size * torch.randn(plan.shape, generator=generator, dtype=torch.float64)).exp()
            assert objective(plan * factors, cost, a, b, 0.7, taus) > best


def test_exact_marginals_leave_no_better_plan_either() -> None:
    cost, a, b = problem()
    made = unbalanced_sinkhorn(cost, a, b, eps=0.7, tau_source=INF, tau_target=INF)
    best = objective(made.plan, cost, a, b, 0.7, (INF, INF))
    moves = torch.randn(10, *cost.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    moves = moves - moves.mean(1, keepdim=True)
    moves = moves - moves.mean(2, keepdim=True)  # rows and columns keep their sums
    for move in moves:
        step = 0.5 * float((made.plan / move.abs()).min()) * move
        assert objective(made.plan + step, cost, a, b, 0.7, (INF, INF)) > best


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 999), st.floats(-50, 50), st.floats(0.5, 5), st.floats(0, 20), st.floats(0, 200))
def test_a_constant_in_the_cost_scales_the_plan(seed: int, c: float, eps: float, ts: float, tt: float) -> None:
    cost, a, b = problem(8, 5, seed=seed)
    one, other = (unbalanced_sinkhorn(x, a, b, eps=eps, tau_source=ts, tau_target=tt) for x in (cost, cost + c))
    g, h = ts / (ts + eps), tt / (tt + eps)
    # From the fixed point: log u and log v move by x and y with x = g (c/eps - y), y = h (c/eps - x).
    x, y = (p * (1 - q) / (1 - g * h) * c / eps for p, q in ((g, h), (h, g)))
    expected = one.plan * math.exp(x + y - c / eps)
    assert far(other.plan, expected) < 1e-9 * max(1.0, abs(c) / eps) / (1 - g * h)


SMALL = (0.02, 0.005, 0.0005)


@pytest.mark.parametrize(
    "scale, dtype", [(scale, torch.float32) for scale in SMALL] + [(scale, torch.float64) for scale in (*SMALL, 1e-5)]
)
def test_small_cost_scales_stay_finite_and_right(scale: float, dtype: torch.dtype) -> None:
    cost = (1 - unit(200, 64, 0) @ unit(30, 64, 1).T) / scale
    kernel = (-cost.to(dtype)).exp()
    assert scale > 0.01 or dtype == torch.float64 or bool((kernel == 0).all(1).any())  # the usual kernel has failed
    made = unbalanced_sinkhorn(cost.to(dtype), torch.ones(200), torch.ones(30), eps=1, tau_source=1, tau_target=100)
    for tensor in (made.plan, made.source_mass, made.source_potential, made.target_potential):
        assert tensor.dtype == dtype
        assert bool(torch.isfinite(tensor).all())
    expected = plainly(cost, torch.ones(200).double(), torch.ones(30).double(), 1.0, (1, 100), 60)
    rounding = float(cost.max()) * torch.finfo(dtype).eps
    assert far(made.plan.double(), expected) < 1e-12 + 20 * rounding
    assert made.error < 1e-12 + 20 * rounding


def test_entropic_transport_tends_to_emd() -> None:
    cost, a, b = problem(20, 6)
    value = float(ot.emd2(a.numpy(), b.numpy(), cost.numpy()))  # type: ignore[arg-type]
    gaps = []
    for eps in (0.3, 0.1, 0.03):
        plan = unbalanced_sinkhorn(cost, a, b, eps=eps, tau_source=INF, tau_target=INF, tolerance=1e-9).plan
        gaps.append(float((plan * cost).sum()) - value)
    assert gaps[0] > gaps[1] > gaps[2] > 0
    assert gaps[2] < 0.05 * value


def test_error_bounds_the_distance_to_the_solution() -> None:
    cost, a, b = problem(scale=0.05)
    for taus in ((1, 100), (50, 20), (INF, 4), (INF, INF)):
        solved = unbalanced_sinkhorn(cost, a, b, eps=1, tau_source=taus[0], tau_target=taus[1])
        for tolerance in (1e-1, 1e-3, 1e-6):
            made = unbalanced_sinkhorn(cost, a, b, eps=1, tau_source=taus[0], tau_target=taus[1], tolerance=tolerance)
            assert made.error <= tolerance
            left = [made.source_potential - solved.source_potential, made.target_potential - solved.target_potential]
            slack = 1.01
            if taus == (INF, INF):  # an estimate, up to a constant
                left, slack = [part - (part.max() + part.min()) / 2 for part in left], 2.0
            assert max(float(part.abs().max()) for part in left) <= slack * made.error
            assert made.iterations < solved.iterations


def test_a_round_contracts_by_the_stated_factor() -> None:
    cost, a, b = problem(200, 40, scale=0.1)
    made = {
        tolerance: unbalanced_sinkhorn(cost, a, b, eps=1, tau_source=1, tau_target=100, tolerance=tolerance)
        for tolerance in (1e-9, 1e-12)
    }
    factor = 0.5 * 100 / 101
    assert round(factor, 3) == 0.495
    assert 25 <= made[1e-9].iterations <= 36
    more = made[1e-12].iterations - made[1e-9].iterations
    assert made[1e-12].error <= 1.01 * made[1e-9].error * factor**more


def test_the_end_of_the_rounds_is_said() -> None:
    cost, a, b = problem()
    with pytest.warns(RuntimeWarning, match="stopped after 7 rounds with potentials known to .* only, not to 1.0e-12"):
        made = unbalanced_sinkhorn(cost, a, b, eps=1, tau_source=100, tau_target=100, max_iterations=7)
    assert made.iterations == 7
    assert made.error > 1e-3


def test_takes_arrays_and_keeps_them() -> None:
    cost, a, b = problem()
    given = [array.numpy().copy() for array in (cost, a, b)]
    for array in given:
        array.flags.writeable = False
    made = unbalanced_sinkhorn(*given, eps=1, tau_source=1, tau_target=100)
    assert torch.equal(made.plan, unbalanced_sinkhorn(cost, a, b, eps=1, tau_source=1, tau_target=100).plan)
    one = unbalanced_sinkhorn(np.array([[3]]), np.array([2]), np.array([1]), eps=1, tau_source=1, tau_target=1)
    assert one.plan.dtype == torch.float64


def solve(**changes: object) -> TransportPlan:
    cost, a, b = problem(4, 3)
    return unbalanced_sinkhorn(**{"cost": cost, "a": a, "b": b, "eps": 1, "tau_source": 1, "tau_target": 1, **changes})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "changes, sentence",
    [
        ({"a": torch.tensor([1.0, 1, math.nan, 1])}, "source masses a must be positive and finite"),
        ({"b": torch.tensor([1.0, -1, 1])}, "target masses b must be positive and finite"),
        ({"b": torch.tensor([1.0, 0, 1])}, "leave out what has no mass"),
        ({"a": torch.ones(0), "cost": torch.ones(0, 3)}, r"none empty, not \(0, 3\)"),
        ({"a": torch.ones(3)}, r"not \(4, 3\) with \(3,\) and \(3,\)"),
        ({"cost": torch.ones(12)}, r"not \(12,\)"),
        ({"cost": torch.full((4, 3), math.nan)}, "the cost must be finite"),
        ({"eps": 0}, "eps is 0"),
        ({"eps": math.nan}, "eps is nan"),
        ({"tau_source": -1}, "tau_source is -1"),
        ({"tau_target": math.nan}, "tau_target is nan"),
        ({"tau_source": INF, "tau_target": INF, "a": torch.ones(4)}, "a sums to 4 and b to 1"),
        ({"tolerance": 0}, "tolerance and max_iterations must be positive"),
    ],
)  # fmt: skip
def test_refuses(changes: dict[str, object], sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        solve(**changes)
