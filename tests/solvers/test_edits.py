"""Forgetting, adding, relabelling and reweighting against problems solved anew, one by one and in long sequences."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from reference import closeness, inverse_of, kernel_of
from refits import VARIANTS, Refits, new_rows, random
from torch import Tensor

from tangentune.errors import InputError
from tangentune.solvers import edits
from tangentune.solvers.edits import add_square, append, remove, retarget, reweight, submatrix
from tangentune.solvers.system import System, build, design, fitted, refresh, residual, spot_check

Edit = Callable[[System, Refits, torch.Generator], tuple[System, Refits]]


def same_as_refit(system: System, problem: Refits, tolerance: float = 1e-9) -> None:
    x = new_rows(5)
    assert closeness(design(system, x @ problem.rows.T) @ system.unknowns, problem.predict(x)) < tolerance
    assert closeness(fitted(system), problem.predict(problem.rows)) < tolerance
    anew = refresh(system)
    assert closeness(inverse_of(system), inverse_of(anew)) < tolerance
    assert closeness(system.dual, anew.dual) < tolerance
    inverse = inverse_of(system)
    assert torch.equal(inverse, inverse.T) or closeness(inverse, inverse.T) < 1e-14
    assert residual(system)[0] < 1e-11


def kept(problem: Refits, *gone: int) -> Refits:
    rows = problem.without(*gone)
    return problem.edited(rows=problem.rows[rows], targets=problem.targets[rows], weights=problem.weights[rows])


@pytest.mark.parametrize("width, intercept, zeros", VARIANTS)
@pytest.mark.parametrize("count", [1, 4, 12, 30])
def test_removing_is_fitting_the_rest(count: int, width: int, intercept: bool, zeros: bool) -> None:
    problem = random(40, width=width, intercept=intercept, zeros=zeros)
    gone = torch.randperm(40, generator=torch.Generator().manual_seed(count))[:count]
    same_as_refit(remove(problem.system(), gone), kept(problem, *gone.tolist()))


@pytest.mark.parametrize("width, intercept, zeros", VARIANTS)
@pytest.mark.parametrize("count", [1, 12, 30])
def test_appending_is_fitting_all(count: int, width: int, intercept: bool, zeros: bool) -> None:
    whole = random(40, width=width, intercept=intercept, zeros=zeros)
    part = kept(whole, *range(40 - count, 40))
    old, new = part.rows, whole.rows[len(part.rows) :]
    system = append(part.system(), new @ old.T, new @ new.T, whole.targets[len(old) :], whole.weights[len(old) :])
    same_as_refit(system, whole)


def test_new_pictures_weigh_one_unless_told() -> None:
    problem = random(20)
    x = new_rows(2)
    system = append(problem.system(), x @ problem.rows.T, x @ x.T, torch.ones(2, 4))
    assert system.weights[20:].tolist() == [1, 1]


@pytest.mark.parametrize("width, intercept, zeros", VARIANTS)
def test_new_targets_are_a_new_fit(width: int, intercept: bool, zeros: bool) -> None:
    problem = random(20, width=width, intercept=intercept, zeros=zeros)
    targets = new_rows(20 * width)[:, :7]
    same_as_refit(retarget(problem.system(), targets), problem.edited(targets=targets))


@pytest.mark.parametrize("width, intercept, zeros", VARIANTS)
@pytest.mark.parametrize("count", [0, 1, 3])
def test_few_new_targets_are_a_new_fit(count: int, width: int, intercept: bool, zeros: bool) -> None:
    problem = random(40, width=width, intercept=intercept, zeros=zeros)
    targets, system = problem.targets.clone(), problem.system()
    targets[3 : 3 + count] += 1
    changed = retarget(system, targets)
    assert changed.inverse is system.inverse
    same_as_refit(changed, problem.edited(targets=targets))


def test_two_problems_share_what_is_left_of_a_kernel() -> None:
    """Of any number of pictures, the upper strips and the mirrored ones alike."""
    problem = random(300)
    system, other = problem.system(), problem.edited().system()
    for gone in ([0], [299, 150], list(range(100, 140)), list(range(0, 300, 9))):
        left = remove(system, torch.tensor(gone))
        again = remove(other, torch.tensor(gone), left.kernel)
        assert again.kernel is left.kernel
        assert torch.equal(inverse_of(again), inverse_of(left))
        same_as_refit(left, kept(problem, *gone))


@pytest.mark.parametrize("width, intercept, zeros", VARIANTS)
def test_a_spot_check_finds_what_a_whole_one_finds(width: int, intercept: bool, zeros: bool) -> None:
    system = random(40, width=width, intercept=intercept, zeros=zeros).system()
    assert spot_check(system) < 1e-12
    noise = torch.randn(inverse_of(system).shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    bad = replace(system, inverse=inverse_of(system) + 1e-8 * (noise + noise.T))
    assert 1e-9 < spot_check(bad) < 1e-5
    assert 1e-9 < residual(bad)[0] < 1e-5
    assert residual(bad, inverse=False)[0] < 1e-12


@pytest.mark.parametrize("width, intercept, zeros", VARIANTS)
@pytest.mark.parametrize("count", [1, 5, 20])
def test_new_weights_are_a_new_fit(count: int, width: int, intercept: bool, zeros: bool) -> None:
    problem = random(40, width=width, intercept=intercept, zeros=zeros)
    weights = problem.weights.clone()
    weights[-count:] = torch.linspace(0, 2, count).double()
    weights[1] = 0.7
    same_as_refit(reweight(problem.system(), weights), problem.edited(weights=weights))


def test_weight_zero_is_removal() -> None:
    problem = random(40)
    weights = problem.weights.clone()
    weights[[3, 17, 22]] = 0
    x = new_rows(5)
    gone = remove(problem.system(), torch.tensor([3, 17, 22]))
    rest = kept(problem, 3, 17, 22)
    weightless = reweight(problem.system(), weights)
    expected = design(gone, x @ rest.rows.T) @ gone.unknowns
    assert closeness(design(weightless, x @ problem.rows.T) @ weightless.unknowns, expected) < 1e-12


@pytest.mark.parametrize("width", [1, 3])
def test_a_class_is_forgotten_with_its_column(width: int) -> None:
    problem = random(40, width=width)
    gone = list(range(0, 40, 4))
    system = remove(problem.system(), torch.tensor(gone))
    rest = kept(problem, *gone)
    columns = rest.targets[:, 1:] if width == 1 else rest.targets
    same_as_refit(retarget(system, columns), rest.edited(targets=columns))


def test_nearly_all_weight_can_go_and_few_pictures_can_stay() -> None:
    problem = random(40)
    weights = torch.full((40,), 1e-7).double()
    weights[:3] = 1
    heavy = problem.edited(weights=weights)
    same_as_refit(remove(heavy.system(), torch.tensor([0, 1, 2])), kept(heavy, 0, 1, 2), 1e-8)
    changed = weights.clone()
    changed[:3] = 1e-7
    same_as_refit(reweight(heavy.system(), changed), heavy.edited(weights=changed), 1e-8)
    same_as_refit(remove(problem.system(), torch.arange(38)), kept(problem, *range(38)))


def test_no_edit_is_no_change() -> None:
    problem = random(20)
    system = problem.system()
    none = torch.zeros(0, dtype=torch.int64)
    assert remove(system, none) is system
    assert reweight(system, problem.weights) is system
    assert append(system, torch.zeros(0, 20), torch.zeros(0, 0), torch.zeros(0, 4)) is system
    assert len(remove(system, torch.tensor([3, 3, 3])).kernel) == 19


def test_edits_leave_the_old_system_as_it_was() -> None:
    problem = random(30)
    system, fresh = problem.system(), problem.system()
    weights = problem.weights.clone()
    weights[:2] = 0.5
    remove(system, torch.tensor([1, 5]))
    reweight(system, weights)
    append(system, torch.ones(1, 30), torch.full((1, 1), 20.0), torch.ones(1, 4))
    for name in ("kernel", "inverse", "targets", "weights", "dual", "bias"):
        assert torch.equal(getattr(system, name), getattr(fresh, name))


def removed(system: System, problem: Refits, generator: torch.Generator) -> tuple[System, Refits]:
    gone = torch.randperm(problem.pictures, generator=generator)[: int(torch.randint(1, 4, (), generator=generator))]
    return remove(system, gone), kept(problem, *gone.tolist())


def appended(system: System, problem: Refits, generator: torch.Generator) -> tuple[System, Refits]:
    count = problem.width * int(torch.randint(1, 4, (), generator=generator))
    x = torch.randn(count, 12, generator=generator, dtype=torch.float64)
    targets = torch.randn(count, problem.targets.shape[1], generator=generator, dtype=torch.float64)
    weights = torch.randint(0, 3, (count,), generator=generator).double()
    system = append(system, x @ problem.rows.T, x @ x.T, targets, weights)
    pairs = (problem.rows, x), (problem.targets, targets), (problem.weights, weights)
    rows, targets, weights = (torch.cat(pair) for pair in pairs)
    return system, problem.edited(rows=rows, targets=targets, weights=weights)


def relabelled(system: System, problem: Refits, generator: torch.Generator) -> tuple[System, Refits]:
    targets = problem.targets.clone()
    targets[int(torch.randint(0, len(targets), (), generator=generator))] *= -1
    return retarget(system, targets), problem.edited(targets=targets)


def reweighted(system: System, problem: Refits, generator: torch.Generator) -> tuple[System, Refits]:
    weights = problem.weights.clone()
    some = torch.randint(0, len(weights), (3,), generator=generator)
    weights[some] = torch.randint(0, 3, (3,), generator=generator).double()
    return reweight(system, weights), problem.edited(weights=weights)


@pytest.mark.parametrize("width, intercept", [(1, True), (1, False), (3, False)])
def test_five_hundred_edits_in_a_row_stay_on_the_refit(width: int, intercept: bool) -> None:
    problem = random(40, width=width, intercept=intercept)
    system = problem.system()
    generator = torch.Generator().manual_seed(7)
    choices: list[Edit] = [removed, appended, relabelled, reweighted]
    repairs = 0
    for step in range(500):
        forced = removed if problem.pictures > 50 else appended if problem.pictures < 30 else None
        edit = forced or choices[int(torch.randint(0, 4, (), generator=generator))]
        system, problem = edit(system, problem, generator)
        if residual(system)[0] > 1e-10:
            system, repairs = refresh(system), repairs + 1
        if step % 25 == 0 or step == 499:
            anew = problem.system()
            assert closeness(system.dual, anew.dual) < 1e-8
            assert closeness(inverse_of(system), inverse_of(anew)) < 1e-8
            kernel = kernel_of(system)
            assert torch.equal(kernel, kernel.T) or closeness(kernel, kernel_of(anew)) < 1e-12
    assert repairs < 50


def test_squares_and_submatrices_in_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(edits, "TILE", 7)
    strip = new_rows(3).repeat(1, 2)
    matrix = torch.zeros(24, 24, dtype=torch.float64)
    add_square(matrix, strip, -2.0 / 2)
    assert closeness(matrix, -strip.T @ strip) < 1e-14
    assert torch.equal(matrix, matrix.T)
    kept_rows = torch.tensor([0, 3, 4, 9])
    assert torch.equal(submatrix(matrix, kept_rows), matrix[kept_rows][:, kept_rows])


@pytest.mark.parametrize(
    "edit, message",
    [
        (lambda s: remove(s, torch.arange(10)), "at least 2 pictures with positive weight, 0 would be left; keep more"),
        (lambda s: remove(s, torch.arange(9)), "1 would be left"),
        (lambda s: remove(s, torch.tensor([10])), "there is no picture 10; positions go from 0 to 9"),
        (lambda s: remove(s, torch.tensor([-1, 3])), "there is no picture -1"),
        (lambda s: remove(s, torch.tensor([0.0])), "as integers, not by torch.float32"),
        (lambda s: remove(s, torch.ones(10) > 0), "as integers, not by torch.bool"),
        (lambda s: retarget(s, torch.ones(9, 2)), r"finite and \(10, C\), not \(9, 2\)"),
        (lambda s: retarget(s, torch.full((10, 2), torch.nan)), "finite"),
        (lambda s: reweight(s, torch.ones(9)), r"10 finite numbers, one a row, not \(9,\)"),
        (lambda s: reweight(s, -torch.ones(10)), "must not be negative"),
        (lambda s: reweight(s, torch.zeros(10)), "0 would be left"),
        (lambda s: append(s, torch.ones(2, 9), torch.eye(2), torch.ones(2, 4)), r"kernels \(k, 10\) and \(k, k\)"),
        (lambda s: append(s, torch.ones(1, 10), torch.full((1, 1), torch.nan), torch.ones(1, 4)), "must be finite"),
        (lambda s: append(s, torch.ones(1, 10), torch.eye(1), torch.ones(1, 4), -torch.ones(1)), "not be negative"),
    ],
)
def test_edits_that_cannot_be_done_are_refused(edit: Callable[[System], System], message: str) -> None:
    system = random(10).system()
    with pytest.raises(InputError, match=message):
        edit(system)


def test_rows_of_half_a_picture_are_refused() -> None:
    system = random(10, width=3, intercept=False).system()
    with pytest.raises(InputError, match="k a multiple of 3"):
        append(system, torch.ones(2, 30), torch.eye(2), torch.ones(2, 1))


def test_a_duplicate_of_a_picture_counts_twice() -> None:
    problem = random(20)
    row: Tensor = problem.rows[4:5]
    system = append(problem.system(), row @ problem.rows.T, row @ row.T, problem.targets[4:5], problem.weights[4:5])
    weights = problem.weights.clone()
    weights[4] *= 2
    twice = build(problem.rows @ problem.rows.T, problem.targets, problem.damping, weights)
    assert closeness(fitted(system)[:20], fitted(twice)) < 1e-11
