"""Explanations of the logit problem against solutions with explicit Jacobians."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from lqf_dense import C, Dense, N, fit, inputs, noise_pictures, positions, probe, small_backbone
from reference import closeness
from torch import Tensor

from tangentune.errors import InputError
from tangentune.jacobian.linearization import Linearization
from tangentune.kernels.output_gram import logit_cross_gram, logit_gram
from tangentune.methods.lqf import LogitExplanations, explain
from tangentune.pictures.pictures import Pictures
from tangentune.solvers.targets import one_hot_targets

DAMPING = 0.4
TEST = 4


class Problem:
    """The small network's logit problem, dense, with any pictures kept, targets and weights."""

    def __init__(self, flip: bool) -> None:
        self.flip, whole = flip, inputs(noise_pictures(N + TEST))
        self.x, self.test = whole[:N], whole[N:]
        self.targets = one_hot_targets(positions(), C)
        self.head = probe(self.x)
        self.lin = Linearization(small_backbone(), "all", self.head)
        self.views = [self.x, self.x.flip(-1)] if flip else [self.x]
        self.dense = [Dense(self.head, view) for view in self.views]
        self.tested = Dense(self.head, self.test)

    def solved(self) -> LogitExplanations:
        return LogitExplanations.of(self.lin, [self.x[:7], self.x[7:]], self.targets, DAMPING, flip=self.flip)

    def tangent(self, weights: Tensor, targets: Tensor | None = None) -> Tensor:
        """u of the primal normal equations."""
        y = self.targets if targets is None else targets
        share = (weights / len(self.views)).repeat_interleave(C)[:, None]
        rows = [dense.rows for dense in self.dense]
        matrix = sum(r.T @ (share * r) for r in rows) + DAMPING * torch.eye(rows[0].shape[1]).double()
        right = sum(d.rows.T @ (share * (y - d.f0).reshape(-1, 1)) for d in self.dense)
        return torch.linalg.solve(matrix, right)[:, 0]

    def predicted(self, u: Tensor) -> Tensor:
        return self.tested.f0 + (self.tested.rows @ u).view(-1, C)

    def trained(self, u: Tensor) -> Tensor:
        """Mean over views, at the training pictures."""
        return torch.stack([d.f0 + (d.rows @ u).view(-1, C) for d in self.dense]).mean(0)


def without(*pictures: int) -> Tensor:
    weights = torch.ones(N).double()
    weights[list(pictures)] = 0
    return weights


both = pytest.mark.parametrize("flip", [False, True])


@both
def test_outputs_and_tangent_are_the_dense_solution(flip: bool) -> None:
    problem = Problem(flip)
    solved, u = problem.solved(), problem.tangent(without())
    assert closeness(solved.outputs([problem.test]), problem.predicted(u)) < 1e-9
    found = torch.cat([solved.tangent()[name].reshape(-1) for name in problem.lin.names])
    assert closeness(found, u) < 1e-9


@both
def test_influence_loo_and_information_are_refits(flip: bool) -> None:
    problem = Problem(flip)
    solved, u = problem.solved(), problem.tangent(without())
    others = [problem.tangent(without(i)) for i in range(N)]
    moved = torch.stack([problem.predicted(u) - problem.predicted(other) for other in others], 1)
    assert closeness(solved.influence([problem.test[:1], problem.test[1:]]), moved) < 1e-8
    assert closeness(solved.loo(), torch.stack([problem.trained(v)[i] for i, v in enumerate(others)])) < 1e-8
    assert closeness(solved.unique_information([problem.test]), moved.square().sum(2).mean(0)) < 1e-8
    assert closeness(solved.unique_information(), torch.stack([(u - v).square().sum() for v in others])) < 1e-8


@both
def test_groups_are_left_out_together(flip: bool) -> None:
    problem, groups = Problem(flip), positions()
    fits = [problem.trained(problem.tangent((groups != k).double())) for k in range(C)]
    expected = torch.stack([fits[int(groups[i])][i] for i in range(N)])
    assert closeness(problem.solved().leave_out(groups), expected) < 1e-8


@both
def test_contributions_sum_to_the_change_of_outputs(flip: bool) -> None:
    problem = Problem(flip)
    solved = problem.solved()
    found = solved.contributions([problem.test])
    assert found.shape == (TEST, N, C)
    assert closeness(found.sum(1), solved.outputs([problem.test]) - problem.tested.f0) < 1e-9
    dual = solved.system.dual.view(N, -1)[5].view(len(problem.views), C)
    own = sum(
        problem.tested.rows @ dense.rows[5 * C : 6 * C].T @ c for dense, c in zip(problem.dense, dual, strict=True)
    )
    assert closeness(found[:, 5].reshape(-1), torch.as_tensor(own)) < 1e-9


@pytest.mark.parametrize(
    "fields",
    [
        {"flip": True, "head": "cross_fitted"},
        {"outer_steps": 2, "head": "cross_fitted"},
        {"slope": 0.2, "alpha": 2.0, "outer_steps": 2, "flip": True},
    ],
)
def test_a_fit_is_explained_as_it_was_fitted(fields: dict[str, Any]) -> None:
    pictures, other = noise_pictures(), inputs(noise_pictures(20))
    fitted = fit(solver="dual", batch_size=4, **fields)
    solved = explain(fitted, small_backbone(), pictures)
    assert fitted.loo is not None
    assert closeness(solved.loo(), fitted.loo) < 1e-8
    assert closeness(solved.outputs([other]), fitted.lin(other).detach()) < 1e-8
    u = solved.tangent()
    assert all(closeness(u[name], v) < 1e-7 for name, v in fitted.lin.task_vector().items())


def test_both_ways_to_the_cross_gram_agree_and_are_chosen_by_cost(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = Problem(flip=False)
    expected = problem.dense[0].rows @ problem.tested.rows.T
    train, test = [problem.x[:7], problem.x[7:]], [problem.test[:1], problem.test[1:]]
    jvp, calls = Linearization.jvp, []
    monkeypatch.setattr(Linearization, "jvp", lambda *given: calls.append(1) or jvp(*given))
    for memory, cost, by_products in ((10**8, 0, True), (10**8, 10**9, False), (60_000, 10**9, False), (100, 1, True)):
        monkeypatch.setattr("tangentune.kernels.output_gram.DUAL_FORWARD", cost)
        assert closeness(logit_cross_gram(problem.lin, train, test, memory_bytes=memory), expected) < 1e-12
        assert bool(calls) == by_products
        calls.clear()
    whole = logit_gram(problem.lin, [*train, *test])
    assert closeness(logit_cross_gram(problem.lin, train, test), whole[: N * C, N * C :]) < 1e-12
    monkeypatch.setattr("tangentune.kernels.output_gram.LIMIT", 20)
    with pytest.raises(InputError, match=r"15 pictures x 3 outputs make a Gram matrix of 45 rows, above 20"):
        logit_cross_gram(problem.lin, train, test)


def test_what_cannot_be_explained_is_refused() -> None:
    problem = Problem(flip=False)
    with pytest.raises(InputError, match=r"15 pictures and 3 outputs need targets \(15, 3\)"):
        LogitExplanations.of(problem.lin, [problem.x], problem.targets[:4], DAMPING)
    with pytest.raises(InputError, match="only the squared loss is solved exactly"):
        explain(fit(loss="cross_entropy", solver="adam", epochs=1), small_backbone(), noise_pictures())
    vectors = Linearization(torch.nn.Linear(3, 2))
    with pytest.raises(InputError, match="leave flip off"):
        LogitExplanations.of(vectors, [torch.ones(4, 3)], torch.ones(4, 2), DAMPING, flip=True)
    bare, fitted = Pictures(noise_pictures().pixels, None, noise_pictures().ids), fit(solver="dual")
    with pytest.raises(InputError, match="class label"):
        explain(fitted, small_backbone(), bare)
    other = small_backbone().with_contract(replace(small_backbone().contract, interpolation="nearest"))
    with pytest.raises(InputError, match=r"prepares pictures otherwise than that of the fit \(interpolation\)"):
        explain(fitted, other, noise_pictures())
