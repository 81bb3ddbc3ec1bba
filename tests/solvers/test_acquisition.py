"""Greedy choices of what to label next, against slow dense ones; each rank-one update against a solve anew."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from tangentune.errors import InputError
from tangentune.solvers import acquisition
from tangentune.solvers.posterior import covariance
from tangentune.solvers.system import System, build

N, M, CLASSES, DAMPING = 7, 25, 3, 0.3


@pytest.fixture
def problem() -> tuple[Tensor, Tensor, Tensor]:
    """Kernel of N labelled and M unlabelled rows, weights and targets of the labelled ones."""
    draw = torch.Generator().manual_seed(3)
    rows = torch.randn(N + M, 12, generator=draw, dtype=torch.float64)
    rows[N + 5] = rows[N + 6]  # an equal pair
    return rows @ rows.T, torch.rand(N, generator=draw) + 0.5, torch.randn(N, CLASSES, generator=draw)


def solved(kernel: Tensor, weights: Tensor, targets: Tensor, chosen: list[int]) -> tuple[System, Tensor]:
    """The problem with some unlabelled rows labelled, solved anew, and the covariance of all unlabelled rows."""
    kept = [*range(N), *(N + j for j in chosen)]
    more = torch.zeros(len(chosen), CLASSES)
    given = torch.cat([weights, torch.ones(len(chosen))])
    system = build(kernel[kept][:, kept], torch.cat([targets, more]), DAMPING, given)
    return system, covariance(system, kernel[N:][:, kept], kernel[N:, N:])


def test_every_update_is_a_solve_anew(problem: tuple[Tensor, Tensor, Tensor]) -> None:
    _, found = solved(*problem, [])
    chosen: list[int] = []
    for picture in (4, 6, 5, 20, 0):  # 5 equals 6
        acquisition.observe(found, DAMPING, picture)
        chosen.append(picture)
        torch.testing.assert_close(found, solved(*problem, chosen)[1], rtol=0, atol=1e-8)


def slowly(
    problem: tuple[Tensor, Tensor, Tensor], count: int, worth: Callable[[Tensor, Tensor, int], Tensor]
) -> list[int]:
    """The picture whose label is worth most, by solving anew with each of the others; and again."""
    chosen: list[int] = []
    for _ in range(count):
        now = solved(*problem, chosen)[1]
        scores = {j: float(worth(now, solved(*problem, [*chosen, j])[1], j)) for j in range(M) if j not in chosen}
        chosen.append(max(scores, key=scores.__getitem__))
    return chosen


def test_variance_and_doubt_are_reduced_most(problem: tuple[Tensor, Tensor, Tensor]) -> None:
    kernel, *_ = problem
    system, _ = solved(*problem, [])
    margins = torch.rand(M, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    doubt, cross, own = 1 - margins, kernel[N:, :N], kernel[N:, N:]
    expected = slowly(problem, 6, lambda now, after, _: (now - after).diagonal().sum())
    assert acquisition.next_pictures(system, cross, own, 6, "variance") == expected
    wanted = slowly(problem, 6, lambda now, after, j: doubt[j] * (doubt @ (now - after).diagonal()))
    assert acquisition.next_pictures(system, cross, own, 6, "doubt", margins) == wanted
    assert wanted != expected
    assert acquisition.next_pictures(system, cross, own, 6, "doubt") == expected  # numbers have no margins


def test_typical_pictures_cover_the_others(problem: tuple[Tensor, Tensor, Tensor]) -> None:
    kernel, *_ = problem
    lengths = kernel.diagonal()
    apart = (lengths[:, None] + lengths - 2 * kernel).clamp_min(0).sqrt()
    chosen: list[int] = []
    for _ in range(5):
        covers = {
            j: float(apart[N:][:, [*range(N), *(N + i for i in [*chosen, j])]].min(1).values.sum())
            for j in range(M)
            if j not in chosen
        }
        chosen.append(min(covers, key=covers.__getitem__))
    system, _ = solved(*problem, [])
    assert acquisition.next_pictures(system, kernel[N:, :N], kernel[N:, N:], 5, "typical") == chosen
    groups = torch.tensor([0.0, 0.1, 0.2, 5.0, 5.1, 5.2, 9.0])
    assert acquisition.typical((groups[:, None] - groups).abs(), None, 3) == [3, 1, 6]


def test_none_is_chosen_twice(problem: tuple[Tensor, Tensor, Tensor]) -> None:
    kernel, *_ = problem
    system, found = solved(*problem, [])
    for stage in ("typical", "variance", "doubt"):
        chosen = acquisition.next_pictures(system, kernel[N:, :N], kernel[N:, N:], M, stage, torch.ones(M))
        assert sorted(chosen) == list(range(M))
    equal = acquisition.reducing(found, DAMPING, 6)
    assert len({5, 6} & set(equal)) < 2, "the second of two equal pictures has little to add"


def test_skill_and_the_switch() -> None:
    labels = torch.tensor([0, 0, 0, 0, 1, 2])
    always = torch.nn.functional.one_hot(torch.zeros(6, dtype=torch.long), 3).double()
    assert acquisition.skill(always, labels) == pytest.approx(0)  # a large class is no skill
    assert acquisition.skill(torch.nn.functional.one_hot(labels).double(), labels) == 1
    assert acquisition.stage_of(0.29) == "typical"
    assert acquisition.stage_of(0.31) == "doubt"
    assert acquisition.stage_of(0.31, doubts=False) == "variance"


@pytest.mark.parametrize("count", [0, M + 1])
def test_no_more_than_there_are(count: int, problem: tuple[Tensor, Tensor, Tensor]) -> None:
    found = solved(*problem, [])[1]
    for choose in (
        lambda: acquisition.reducing(found, DAMPING, count),
        lambda: acquisition.typical(found, None, count),
    ):
        with pytest.raises(InputError, match=f"{count} of {M}"):
            choose()
    with pytest.raises(InputError, match="square"):
        acquisition.reducing(found[:3], DAMPING, 1)
