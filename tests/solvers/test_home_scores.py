"""Scores made at home add up to leave-one-out of all pictures at one place."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from tangentune._files import write_tensors
from tangentune.errors import InputError, StoreError
from tangentune.solvers.home_scores import KIND, HomeScores, Judge
from tangentune.solvers.sums import TangentSums

N, D = 36, 8
GENERATOR = torch.Generator().manual_seed(1)
LABELS = torch.arange(N) % 3
ROWS = torch.randn(N, D, generator=GENERATOR, dtype=torch.float64)
ROWS[torch.arange(N), LABELS] += 1.0
TARGETS = F.one_hot(LABELS).double()
NORTH = (torch.arange(N) < 20) & (LABELS != 1)  # has no b
JUDGE = Judge.of(TangentSums.of(ROWS, TARGETS, "map", classes="abc"))


def both() -> HomeScores:
    north = JUDGE.score(ROWS[NORTH], TARGETS[NORTH][:, [0, 2]], "ac")
    return north + JUDGE.score(ROWS[~NORTH], TARGETS[~NORTH], "abc")


def test_owners_add_up_to_all_pictures_left_out_by_refits() -> None:
    found = both()
    loo = torch.empty(N, 3, dtype=torch.float64)
    for i in range(N):
        rest = torch.arange(N) != i
        loo[i] = TangentSums.of(ROWS[rest], TARGETS[rest], "map").fit(found.damping).predict(ROWS[i : i + 1])[0]
    told = found.summary()
    assert told["pictures"] == N
    assert told["error"] == pytest.approx(float((loo - TARGETS).square().sum(1).mean()), abs=1e-10)
    assert told["accuracy"] == float((loo.argmax(1) == LABELS).double().mean())
    assert found.temperature is not None
    chosen = torch.log_softmax(loo / found.temperature, 1)[torch.arange(N), LABELS]
    assert told["nll"] == pytest.approx(-float(chosen.mean()), abs=1e-10)
    assert 0 < found.best < len(found.dampings) - 1


def test_numbers_have_no_classes() -> None:
    judge = Judge.of(TangentSums.of(ROWS, ROWS[:, :2] ** 2, "map"))
    found = judge.score(ROWS, ROWS[:, :2] ** 2, ())
    assert (found.temperature, set(found.summary())) == (None, {"pictures", "error"})


def test_saved_and_loaded(tmp_path: Path) -> None:
    both().save(tmp_path / "a.scores")
    again = HomeScores.load(tmp_path / "a.scores")
    assert again.summary() == both().summary()
    assert again.judge == JUDGE.digest
    write_tensors(tmp_path / "bad", KIND, {"judge": "x", "pictures": [3]}, {"errors": torch.ones(3)})
    with pytest.raises(StoreError, match="holds what no scores can be"):
        HomeScores.load(tmp_path / "bad")
    TangentSums.of(ROWS, TARGETS, "map").save(tmp_path / "sums")
    with pytest.raises(StoreError, match="holds no scores of pictures at home"):
        HomeScores.load(tmp_path / "sums")


@pytest.mark.parametrize(("make", "words"), [
    (lambda: JUDGE.score(ROWS, TARGETS, "abd"), "the merged sums have no class 'd', so these pictures are not in them"),
    (lambda: JUDGE.score(ROWS, TARGETS, ()), "some of these sums are of classes and some of numbers"),
    (lambda: both() + Judge.of(TangentSums.of(ROWS, TARGETS, "other", classes="abc")).score(ROWS, TARGETS, "abc"),
     "made with different sums"),
])  # fmt: skip
def test_what_does_not_fit_is_refused(make: Callable[[], object], words: str) -> None:
    with pytest.raises(InputError, match=words):
        make()
