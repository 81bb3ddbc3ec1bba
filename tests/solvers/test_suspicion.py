"""Suspicion of labels against refits, its damping against eigenvalues, and planted mistakes."""

from __future__ import annotations

import pytest
import torch
from reference import closeness, dense_solve, refit_loo
from torch import Tensor

from tangentune.solvers.leave_out import distrusting, loo, mean_eigenvalue
from tangentune.solvers.system import System, build


def problem(n: int = 18, outputs: int = 3, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Kernel, targets, weights."""
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(n, 30, generator=generator, dtype=torch.float64) + 0.5
    targets = torch.randn(n, outputs, generator=generator, dtype=torch.float64)
    return features @ features.T, targets, torch.rand(n, generator=generator, dtype=torch.float64) + 0.2


def suspicion(system: System) -> Tensor:
    """Squared distance of every picture's targets to what the others predict where no label is trusted by itself."""
    squares = (system.targets - loo(distrusting(system))).square().sum(1)
    return squares.unflatten(0, (-1, system.width)).sum(1)


def projected_mean(kernel: Tensor, weights: Tensor, intercept: bool) -> float:
    """Mean eigenvalue by an eigendecomposition; the intercept's eigenvalue, zero, is dropped."""
    roots = weights.sqrt()
    matrix = roots[:, None] * kernel * roots
    if intercept:
        unit = roots / roots.norm()
        outside = torch.eye(len(kernel), dtype=kernel.dtype) - torch.outer(unit, unit)
        matrix = outside @ matrix @ outside
    return float(torch.linalg.eigvalsh(matrix)[1 if intercept else 0 :].mean())


@pytest.mark.parametrize("intercept", [True, False])
@pytest.mark.parametrize("weighted", [True, False])
def test_mean_eigenvalue(intercept: bool, weighted: bool) -> None:
    kernel, targets, weights = problem()
    given = weights if weighted else torch.ones_like(weights)
    system = build(kernel, targets, 0.3, given, intercept=intercept)
    assert mean_eigenvalue(system) == pytest.approx(projected_mean(kernel, given, intercept), rel=1e-12)


def test_rows_without_weight_do_not_count() -> None:
    kernel, targets, weights = problem()
    weights[[2, 7]] = 0.0
    kept = weights > 0
    without = build(kernel[kept][:, kept], targets[kept], 0.3, weights[kept])
    system = build(kernel, targets, 0.3, weights)
    assert mean_eigenvalue(system) == pytest.approx(mean_eigenvalue(without), rel=1e-12)
    assert closeness(suspicion(system)[kept], suspicion(without)) < 1e-10
    dual, bias = dense_solve(kernel[kept][:, kept], targets[kept], mean_eigenvalue(without), weights[kept])
    plain = kernel[~kept][:, kept] @ dual + bias
    assert closeness(suspicion(system)[~kept], (targets[~kept] - plain).square().sum(1)) < 1e-10


@pytest.mark.parametrize("weighted", [True, False])
def test_is_the_distance_to_refits_at_the_mean_eigenvalue(weighted: bool) -> None:
    kernel, targets, weights = problem()
    given = weights if weighted else None
    system = build(kernel, targets, 1e-3, given)
    damping = projected_mean(kernel, weights if weighted else torch.ones_like(weights), True)
    refits = refit_loo(kernel, targets, damping, given)
    assert closeness(loo(distrusting(system)), refits) < 1e-10
    assert closeness(suspicion(system), (targets - refits).square().sum(1)) < 1e-10
    assert closeness(loo(system), refits) > 0.1  # the system's own damping would be another score


def test_a_larger_damping_is_kept() -> None:
    kernel, targets, _ = problem()
    damping = 3 * projected_mean(kernel, torch.ones(len(kernel), dtype=torch.float64), True)
    refits = refit_loo(kernel, targets, damping)
    assert closeness(loo(distrusting(build(kernel, targets, damping))), refits) < 1e-10


def test_pictures_of_several_rows() -> None:
    """The logit linearisation: the rows of a picture are left out, and their squares summed, together."""
    kernel, targets, _ = problem(outputs=1)
    system = build(kernel, targets, 1e-3, intercept=False, width=3)
    damping, expected = projected_mean(kernel, torch.ones(len(kernel), dtype=torch.float64), False), []
    for start in range(0, len(kernel), 3):
        rows = torch.arange(start, start + 3)
        rest = torch.tensor([row for row in range(len(kernel)) if row not in rows])
        matrix = kernel[rest][:, rest] + damping * torch.eye(len(rest), dtype=kernel.dtype)
        prediction = kernel[rows][:, rest] @ torch.linalg.solve(matrix, targets[rest])
        expected.append((targets[rows] - prediction).square().sum())
    assert closeness(suspicion(system), torch.stack(expected)) < 1e-10


def test_finds_planted_mistakes() -> None:
    """Overlapping classes, a fifth of the labels wrong: the raised damping finds more than the small one."""
    generator = torch.Generator().manual_seed(0)
    true = torch.arange(200) % 4
    centres = torch.randn(4, 10, generator=generator, dtype=torch.float64)
    x = 1.3 * centres[true] + torch.randn(200, 10, generator=generator, dtype=torch.float64)
    kernel = torch.exp(-torch.cdist(x, x).square() / 20)
    wrong = torch.randperm(200, generator=generator)[:40]
    given = true.clone()
    given[wrong] = (true[wrong] + torch.randint(1, 4, (40,), generator=generator)) % 4
    system = build(kernel, torch.nn.functional.one_hot(given).double(), damping=1e-3)

    def found(scores: Tensor) -> int:
        return int(torch.isin(scores.argsort(descending=True)[:40], wrong).sum())

    own = (system.targets - loo(system)).square().sum(1)
    assert found(suspicion(system)) >= 30
    assert found(suspicion(system)) > found(own) + 3
    others = loo(distrusting(system))[wrong].argmax(1)
    assert (others == true[wrong]).double().mean() > 0.8
