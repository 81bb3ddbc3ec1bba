"""The exact dual of the logits: its Gram matrix by layers, its solution, real refits, and equality with PCG."""

from __future__ import annotations

import pytest
import torch
from cases import CASES, Case, Narrow, Seq, images, seeded
from reference import closeness, explicit_jacobian
from torch import Tensor, nn

from tangentune.errors import BudgetError, InputError
from tangentune.jacobian.layers import Pairs, Rows
from tangentune.jacobian.linearization import Linearization
from tangentune.jacobian.task_vector import flatten, unflatten
from tangentune.kernels.output_gram import add_gram, logit_gram
from tangentune.solvers.leave_out import loo
from tangentune.solvers.pcg import pcg
from tangentune.solvers.system import System, build

DAMPINGS = (0.03, 1.0, 30.0)


def solve(kernel: Tensor, residuals: Tensor, damping: float) -> System:
    """The dual of `1/2 sum_i ||J_i u - r_i||^2 + damping/2 ||u||^2`: each picture owns a row for each output."""
    return build(kernel, residuals.reshape(-1, 1), damping, intercept=False, width=residuals.shape[1])


def dense(network: nn.Module, x: Tensor) -> Tensor:
    """J, (n C, p)."""
    return torch.cat([rows.reshape(network(x).numel(), -1) for rows in explicit_jacobian(network, x).values()], 1)


def network() -> nn.Module:
    layers = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Tanh(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(16, 3)
    return seeded(Seq(*layers))


def problem(n: int = 7) -> tuple[Linearization, Tensor, Tensor]:
    lin, x = Linearization(network()), images(3, 6, 6)(n, torch.Generator().manual_seed(3))
    targets = torch.eye(3, dtype=torch.float64)[torch.arange(n) % 3]
    return lin, x, targets - lin.f0(x)


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel:UserWarning")
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_gram_is_the_jacobian_times_its_transpose(case: Case) -> None:
    x = case.batch(4)
    network = Narrow(case.network(), x)
    lin, jacobian = Linearization(network), dense(network, x)
    assert closeness(logit_gram(lin, [x[:3], x[3:]]), jacobian @ jacobian.T) < 1e-12


@pytest.mark.parametrize("positions", [1, 2, 9])
@pytest.mark.parametrize("tile_bytes", [1, 3000, 10**6])
def test_both_ways_to_the_gram_agree_with_explicit_rows(positions: int, tile_bytes: int) -> None:
    generator = torch.Generator().manual_seed(0)
    entry = Pairs(
        torch.randn(130, positions, 40, generator=generator, dtype=torch.float64),
        torch.randn(130, positions, 2, 7, generator=generator, dtype=torch.float64),
    )
    rows = entry.explicit().reshape(260, -1)
    for given in (entry, Rows(entry.explicit())):
        out = torch.zeros(260, 260, dtype=torch.float64)
        add_gram(out, given, tile_bytes=tile_bytes)
        assert closeness(torch.triu(out), torch.triu(rows @ rows.T)) < 1e-12


def test_groups_of_parameters_give_the_same_gram() -> None:
    lin, x, _ = problem()
    whole = logit_gram(lin, [x])
    assert closeness(logit_gram(lin, [x], memory_bytes=21_000), whole) < 1e-12
    with pytest.raises(BudgetError, match=r"rows of 5.weight need 0.\d MB for 7 pictures; allow more memory_bytes"):
        logit_gram(lin, [x], memory_bytes=1000)


def test_too_many_rows_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    lin, x, _ = problem()
    monkeypatch.setattr("tangentune.kernels.output_gram.LIMIT", 20)
    with pytest.raises(InputError, match=r"7 pictures x 3 outputs make a Gram matrix of 21 rows, above 20.*pcg"):
        logit_gram(lin, [x])


@pytest.mark.parametrize("damping", DAMPINGS)
def test_dual_is_the_primal_optimum_and_the_limit_of_pcg(damping: float) -> None:
    lin, x, r = problem()
    dual = solve(logit_gram(lin, [x[:4], x[4:]]), r, damping).dual.view_as(r)
    u = lin.vjp(x, dual)
    jacobian = dense(network(), x)
    hessian = jacobian.T @ jacobian + damping * torch.eye(jacobian.shape[1], dtype=torch.float64)
    assert closeness(flatten(u), torch.linalg.solve(hessian, jacobian.T @ r.reshape(-1))) < 1e-9
    assert closeness(lin.jvp(x, u), r - damping * dual) < 1e-10
    shaped = lambda v: unflatten(v, {name: p.shape for name, p in lin.point().items()})
    normal = lambda v: flatten(lin.normal(x, shaped(v))) + damping * v
    result = pcg(normal, flatten(lin.vjp(x, r)), tolerance=1e-12, max_iterations=500)
    assert result.converged
    assert closeness(lin.jvp(x, shaped(result.x)), lin.jvp(x, u)) < 1e-9


@pytest.mark.parametrize("damping", DAMPINGS)
def test_leave_one_out_is_real_refits(damping: float) -> None:
    lin, x, r = problem()
    found = loo(solve(logit_gram(lin, [x]), r, damping)).view_as(r)
    for i in range(len(x)):
        rest = torch.arange(len(x)) != i
        refit = solve(logit_gram(lin, [x[rest]]), r[rest], damping).dual.view(-1, 3)
        expected = lin.jvp(x[i : i + 1], lin.vjp(x[rest], refit))
        assert closeness(found[i : i + 1], expected) < 1e-8
