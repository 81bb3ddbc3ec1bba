"""Balanced class weights: every leave-one-out answer against refits with weights taken anew from the labels left."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from reference import rebalanced
from refits import Refits, new_rows, random
from sklearn.utils.class_weight import compute_sample_weight
from torch import Tensor

from tangentune.solvers.balancing import influence, left_out_variance, unique_information, views, without
from tangentune.solvers.edits import remove
from tangentune.solvers.leave_out import loo
from tangentune.solvers.posterior import variance

CLASSES = torch.tensor([0] * 9 + [1] * 3 + [2] * 2 + [3])  # the last class is one picture
F64 = torch.float64


def problem(given: bool, zeros: bool = False) -> Refits:
    """Unequal classes; sample weights, perhaps, of which two are 0."""
    plain = random(len(CLASSES))
    weights = plain.weights if given else torch.ones_like(plain.weights)
    if zeros:
        weights[torch.tensor([2, 10])] = 0
    by_class = torch.from_numpy(compute_sample_weight("balanced", CLASSES.numpy()))
    targets = torch.nn.functional.one_hot(CLASSES, 4).double()
    return replace(plain, weights=weights * by_class, targets=targets)


def refit(world: Refits, *gone: int) -> tuple[Refits, Tensor]:
    """The problem with the weights of a fit without some pictures, and which rows stay."""
    kept = world.without(*gone)
    return world.edited(weights=rebalanced(world.weights, world.targets, kept)), kept


@pytest.mark.parametrize("zeros", [False, True])
@pytest.mark.parametrize("given", [False, True])
def test_leave_one_out_is_a_refit(given: bool, zeros: bool) -> None:
    world = problem(given, zeros)
    system, out = world.system(), torch.empty_like(world.targets)
    seen = []
    for members, other in views(system, CLASSES):
        out[members] = loo(other)[members]
        seen += members.tolist()
    assert sorted(seen) == list(range(len(CLASSES)))
    for i in range(len(CLASSES)):
        other, kept = refit(world, i)
        assert torch.allclose(out[i], other.predict(world.rows[i], kept), rtol=0, atol=1e-10)
    assert float((out - loo(system)).abs().max()) > 1e-3  # what it was with the weights held


@pytest.mark.parametrize("zeros", [False, True])
def test_influence_and_information_are_refits(zeros: bool) -> None:
    world, new = problem(True, zeros), new_rows(6)
    system, cross = world.system(), new @ world.rows.T
    found = influence(system, CLASSES, cross)
    on_new, in_norm = unique_information(system, CLASSES, cross), unique_information(system, CLASSES)
    whole = world.coefficients()
    for i in range(len(CLASSES)):
        other, kept = refit(world, i)
        change = world.predict(new) - other.predict(new, kept)
        assert torch.allclose(found[:, i], change, rtol=0, atol=1e-10)
        assert float(on_new[i]) == pytest.approx(float(change.square().sum(1).mean()), abs=1e-10)
        moved = (whole - other.coefficients(kept))[:-1]
        assert float(in_norm[i]) == pytest.approx(float(moved.square().sum()), abs=1e-10)


def test_error_bars_of_a_picture_left_out_are_those_of_a_refit() -> None:
    world = problem(True)
    found = left_out_variance(world.system(), CLASSES)
    for i in range(len(CLASSES)):
        other, kept = refit(world, i)
        left = replace(other, rows=other.rows[kept], targets=other.targets[kept], weights=other.weights[kept])
        own = world.rows[i : i + 1]
        expected = variance(left.system(), own @ left.rows.T, own.square().sum(1))
        assert float(found[i]) == pytest.approx(float(expected), rel=1e-8)


@pytest.mark.parametrize("gone", [[0], [14], [12, 13], [0, 4, 9, 14]], ids=str)
def test_a_problem_without_some_pictures_is_a_refit(gone: list[int]) -> None:
    world, new = problem(True), new_rows(6)
    where = torch.tensor(gone)
    other, kept = refit(world, *gone)
    left = remove(without(world.system(), CLASSES, where), where)
    predicted = new @ world.rows[kept].T @ left.dual + left.bias
    assert torch.allclose(predicted, other.predict(new, kept), rtol=0, atol=1e-10)


def test_weights_that_are_not_balanced_are_held() -> None:
    world, new = problem(True), new_rows(3)
    system, cross = world.system(), new @ world.rows.T
    ((members, same),) = views(system, None)
    assert same is system
    assert members.tolist() == list(range(len(CLASSES)))
    assert without(system, None, torch.tensor([1])) is system
    change = world.predict(new) - world.predict(new, world.without(1))
    assert torch.allclose(influence(system, None, cross)[:, 1], change, rtol=0, atol=1e-10)
