"""Sums over rows: they add and subtract, and answer as the n x n system and as real refits do."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from tangentune._files import write_tensors
from tangentune.errors import InputError, StoreError
from tangentune.solvers import ridge
from tangentune.solvers.sums import KIND, TangentSums

N, D, C = 30, 12, 3
GENERATOR = torch.Generator().manual_seed(0)
ROWS = torch.randn(N, D, generator=GENERATOR, dtype=torch.float64) + 2
TARGETS = F.one_hot(torch.arange(N) % C).double()
WEIGHTS = 0.2 + torch.rand(N, generator=GENERATOR, dtype=torch.float64)


def sums(places: Tensor | slice = slice(None), targets: Tensor = TARGETS, weights: Tensor = WEIGHTS) -> TangentSums:
    return TangentSums.of(ROWS[places], targets[places], "map", weights[places], classes="abc"[: targets.shape[1]])


def close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-8)


@pytest.mark.parametrize("damping", [1e-3, 0.3, 20.0])
@pytest.mark.parametrize("weighted", [False, True])
def test_the_solution_is_that_of_the_kernel(damping: float, weighted: bool) -> None:
    weights = WEIGHTS if weighted else torch.ones_like(WEIGHTS)
    new = ROWS[:5].flip(1)
    solution = ridge.solve(ridge.factor_ridge(ROWS @ ROWS.T, weights), TARGETS, damping)
    found = sums(weights=weights).fit(damping)
    close(found.predict(new), solution.intercept + new @ ROWS.T @ solution.dual)
    loo = sums(weights=weights).factor().leave_one_out(ROWS, TARGETS, damping, weights)
    close(loo, solution.loo)


def test_leave_one_out_is_that_of_refits() -> None:
    found = sums().factor().leave_one_out(ROWS, TARGETS, 0.3, WEIGHTS)
    for i in range(N):
        rest = torch.arange(N) != i
        close(found[i], sums(rest).fit(0.3).predict(ROWS[i : i + 1])[0])


def test_errors_along_the_dampings() -> None:
    dampings = torch.logspace(-2, 2, 5, dtype=torch.float64)
    found = sums().factor().loo_errors(ROWS, TARGETS.bool(), dampings, WEIGHTS)  # classes as a mask will do
    close(found, ridge.loo_errors(ridge.factor_ridge(ROWS @ ROWS.T, WEIGHTS), TARGETS, dampings))


@given(st.lists(st.integers(0, 3), min_size=N, max_size=N))
@settings(max_examples=20, deadline=None)
def test_shards_add_to_the_whole(shard: list[int]) -> None:
    place = torch.tensor(shard)
    parts = [sums(place == k) for k in range(4) if bool((place == k).any())]
    total = sum(parts[1:], parts[0])
    close(total.fit(0.3).coef, sums().fit(0.3).coef)
    assert total.counts.tolist() == [10, 10, 10]


def test_pictures_are_taken_out_relabelled_and_reweighted() -> None:
    """Whatever changes is taken out as it was and put in as it is; equal to sums made anew."""
    gone = torch.arange(N) < 4
    close((sums() - sums(gone)).fit(0.3).coef, sums(~gone).fit(0.3).coef)
    other = TARGETS.roll(1, 0)
    changed = torch.where(gone[:, None], other, TARGETS)
    close((sums() - sums(gone) + sums(gone, other)).fit(0.3).coef, sums(targets=changed).fit(0.3).coef)
    weights = torch.where(gone, 3 * WEIGHTS, WEIGHTS)
    close((sums() - sums(gone) + sums(gone, weights=3 * WEIGHTS)).fit(0.3).coef, sums(weights=weights).fit(0.3).coef)


def test_a_picture_of_weight_zero_does_not_count() -> None:
    weights = WEIGHTS.clone()
    weights[7] = 0
    rest = torch.arange(N) != 7
    close(sums(weights=weights).fit(0.3).coef, sums(rest).fit(0.3).coef)
    loo = sums(weights=weights).factor().leave_one_out(ROWS, TARGETS, 0.3, weights)
    close(loo[7], sums(rest).fit(0.3).predict(ROWS[7:8])[0])


def test_saved_and_loaded_bit_for_bit(tmp_path: Path) -> None:
    sums().save(tmp_path / "a.sums")
    loaded = TangentSums.load(tmp_path / "a.sums")
    assert (loaded.fingerprint, loaded.classes) == ("map", tuple("abc"))
    assert loaded.squares.equal(sums().squares)
    assert (loaded + sums()).counts.tolist() == [20, 20, 20]
    (tmp_path / "b.sums").write_bytes(b"nothing")
    with pytest.raises(StoreError, match="no sums of feature rows can be read"):
        TangentSums.load(tmp_path / "b.sums")


def test_classes_are_aligned_by_name() -> None:
    """A site without class b and one with a class of its own: sums and solution are those of all pictures at once."""
    first, rest = torch.arange(N) % C != 1, torch.arange(N) % C == 1
    names = torch.where(torch.arange(N) < 5, 3, torch.arange(N) % C)  # the first five are of another class, d
    whole = TangentSums.of(ROWS, F.one_hot(names, 4), "map", WEIGHTS, classes="abcd")
    parts = []
    for place, own in ((first, "acd"), (rest, "bd")):
        known = torch.tensor(["abcd".index(name) for name in own])
        targets = F.one_hot(names[place], 4)[:, known]
        parts.append(TangentSums.of(ROWS[place], targets, "map", WEIGHTS[place], classes=own))
    for total in (parts[0] + parts[1], parts[1] + parts[0]):
        assert total.classes == tuple("abcd")
        close(total.fit(0.3).coef, whole.fit(0.3).coef)
        assert total.counts.tolist() == whole.counts.tolist() == [8, 8, 9, 5]
    assert (whole - parts[1]).classes == tuple("acd")  # nobody has b any more
    close((whole - parts[1]).fit(0.3).coef, parts[0].fit(0.3).coef)
    assert (whole.pictures, parts[0].pictures) == (N, 20)


def test_numbers_count_every_picture() -> None:
    found = TangentSums.of(ROWS, TARGETS[:, :2] * 2.5, "map")
    assert (found.pictures, (found - found).pictures) == (N, 0)


def test_noise() -> None:
    """Symmetric, of the size asked for, another every time; what is counted stays."""
    one, other = sums().noised(0.3), sums().noised(0.3)
    assert not one.squares.equal(other.squares)
    assert sums().noised(0.3, seed=1).cross.equal(sums().noised(0.3, seed=1).cross)
    close(one.squares, one.squares.T)
    drawn = torch.stack([sums().noised(0.3, seed).squares - sums().squares for seed in range(200)])
    assert abs(float(drawn.std()) / 0.3 - 1) < 0.05
    assert abs(float(drawn.mean())) < 0.01
    assert one.counts.equal(sums().counts)
    assert torch.isfinite(one.fit(5.0).coef).all()


def test_what_no_sums_can_be_is_refused(tmp_path: Path) -> None:
    bad = sums()
    for name, tensors in (("few", {"rows": bad.rows}), ("shape", {**vars_of(bad), "counts": bad.rows.clone()})):
        write_tensors(tmp_path / name, KIND, {"fingerprint": "map", "classes": ["a", "b", "c"]}, tensors)
        with pytest.raises(StoreError, match="holds what no sums of feature rows can be"):
            TangentSums.load(tmp_path / name)


def vars_of(found: TangentSums) -> dict[str, Tensor]:
    return {name: value for name, value in vars(found).items() if isinstance(value, Tensor)}


@pytest.mark.parametrize(("make", "words"), [
    (lambda: sums() + TangentSums.of(ROWS, TARGETS, "other"), "different feature maps"),
    (lambda: sums() + TangentSums.of(ROWS, TARGETS, "map"), "some of these sums are of classes and some of numbers"),
    (lambda: TangentSums.of(ROWS, TARGETS, "map") + TangentSums.of(ROWS[:, :2], TARGETS, "map"), "other rows or"),
    (lambda: sums() + sums(targets=TARGETS[:, :1]).aligned([1]), "names of several types"),
    (lambda: TangentSums.of(ROWS, TARGETS, "map", classes="cab"), "not sorted"),
    (lambda: sums(slice(0, 3)) - sums(), "more is taken away"),
    (lambda: TangentSums.of(ROWS, TARGETS[:4], "map"), "30 rows, 4 targets"),
    (lambda: TangentSums.of(ROWS / 0, TARGETS, "map"), "must be finite"),
    (lambda: TangentSums.of(ROWS, TARGETS, "map", -WEIGHTS), "no weight negative"),
    (lambda: TangentSums.of(ROWS, TARGETS, "map", 0 * WEIGHTS).fit(1.0), "no picture of positive weight"),
    (lambda: sums().fit(0.0), "the damping is 0.0"),
    (lambda: sums().fit(float("nan")), "the damping is nan"),
])  # fmt: skip
def test_bad_input_is_one_sentence(make: Callable[[], object], words: str) -> None:
    with pytest.raises(InputError, match=words) as caught:
        make()
    assert "\n" not in str(caught.value)
