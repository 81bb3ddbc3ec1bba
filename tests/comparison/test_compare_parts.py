"""The parts of a comparison: draws, plan, means and paired differences, nested measurements of memory."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from tangentune.comparison.measure import draw, split_test
from tangentune.comparison.plan import plan_cells
from tangentune.comparison.summary import Cell, pack_right, summarise_cells
from tangentune.errors import InputError
from tangentune.memory import Meter

LABELS = np.array(["ant"] * 20 + ["bee"] * 9 + ["cow"] * 31)


def test_test_part_is_stratified_and_fixed() -> None:
    train, test = split_test(LABELS, 0.3)
    assert sorted([*train, *test]) == list(range(60))
    assert dict(zip(*np.unique(LABELS[test], return_counts=True), strict=True)) == {"ant": 6, "bee": 3, "cow": 9}
    assert np.array_equal(split_test(LABELS, 0.3)[1], test)
    train, test = split_test(np.array(["a", "b", "b"]), 0.9)  # one of two at most, and never the only one
    assert (len(train), len(test)) == (2, 1)
    assert test[0] > 0
    with pytest.raises(InputError, match="no class has two"):
        split_test(np.array(["a", "b"]), 0.5)
    with pytest.raises(InputError, match="between 0 and 1"):
        split_test(LABELS, 1.0)


def test_draws_are_nested_and_differ_between_seeds() -> None:
    for seed in range(3):
        few, many, every = (draw(LABELS, shots, seed) for shots in (3, 12, None))
        assert set(few) < set(many) < set(every)
        assert np.unique(LABELS[few], return_counts=True)[1].tolist() == [3, 3, 3]
        assert np.unique(LABELS[many], return_counts=True)[1].tolist() == [12, 9, 12]  # there are only 9 bees
        assert len(every) == 60
    assert set(draw(LABELS, 3, 0)) != set(draw(LABELS, 3, 1))


def test_plan() -> None:
    assert plan_cells(["tangent", "probe"], ["all", 5, "10", 5], [3, 1]) == [
        (name, shots, seed) for seed in (3, 1) for shots in (5, 10, "all") for name in ("tangent", "probe")
    ]
    mistakes: list[tuple[tuple[Any, Any, Any], str]] = [
        ((["probe", "prob"], [5], 1), "no method 'prob'; there are .*tangent"),
        (([], [5], 1), "no method is named"),
        ((["probe"], [0], 1), "'0' is no number"),
        ((["probe"], [2.5], 1), "'2.5' is no number"),
        ((["probe"], [], 1), "at least one"),
        ((["probe"], [5], 0), "at least one"),
        ((["probe"], [5], [-1]), "0 or more"),
    ]
    for bad, words in mistakes:
        with pytest.raises(InputError, match=words):
            plan_cells(*bad)


def test_means_best_and_paired_difference() -> None:
    right = {"a": ["1101", "1001"], "b": ["0101", "0001"], "c": ["1111", ""]}
    cells = [
        Cell(
            name, 5, seed, 10, scores={"accuracy": bits.count("1") / 4, "nll": 0.5, "ece": 0.1, "brier": 0.2},
            right=pack_right(np.array([bit == "1" for bit in bits])), seconds=seed + 1.0, cpu_seconds=1.0,
            predict_seconds=1.0, peak_bytes=2**20, before_bytes=2**10,
        ) if bits else Cell(name, 5, seed, 10, failed="no memory")
        for name, both in right.items() for seed, bits in enumerate(both)
    ]  # fmt: skip
    a, b, c = summarise_cells(cells, ["a", "b"], 4)
    assert [row.method for row in (a, b, c)] == ["a", "b", "c"]
    assert (a.means["accuracy"].mean, a.means["accuracy"].error) == (0.625, pytest.approx(0.125))
    assert (a.means["seconds"].mean, a.means["seconds"].error) == (1.5, pytest.approx(0.5))
    assert a.best == ("nll", "ece", "brier")
    assert c.best == ("accuracy", "nll", "ece", "brier")
    assert c.means["accuracy"].error is None
    assert a.difference is not None
    assert b.difference is not None
    assert a.difference.other == b.difference.other == "c"
    assert a.difference.mean == -0.25  # over the one seed that both have: 1101 against 1111
    assert a.difference.error_draws is None
    assert a.difference.error_tests == pytest.approx(np.std([0, 0, -1, 0], ddof=1) / 2)
    a, b = summarise_cells(cells[:4], ["b"], 4)[::-1]
    assert a.difference is not None
    assert (a.difference.other, a.difference.mean, a.difference.error_draws) == ("b", 0.25, 0.0)
    assert a.difference.error_tests == pytest.approx(0.25)  # picture 0 differs in both seeds, the others never


def test_outer_stage_sees_the_peak_of_inner_stages() -> None:
    outer, inner = Meter(torch.device("cpu")), Meter(torch.device("cpu"))
    with outer.stage("all"):
        with inner.stage("large"):
            torch.ones(2**25)  # 128 MiB
        with inner.stage("small"):
            pass
    large, small = inner.stages
    assert outer.stages[0]["peak_bytes"] >= large["peak_bytes"] > small["peak_bytes"] + 100 * 2**20


def test_numbers_are_taken_as_people_write_them() -> None:
    plain = plan_cells(["probe"], [5, "all"], [0, 1])
    written: list[tuple[Any, Any]] = [(np.array([5]), np.int64(2)), ([np.int64(5)], 2.0), (5, torch.tensor([0, 1]))]
    for shots, seeds in written:
        assert plan_cells("probe", shots, seeds) == [cell for cell in plain if cell[1] == 5]
    seeds: Any = [0.0, 1]
    assert plan_cells("probe", "all", seeds) == [cell for cell in plain if cell[1] == "all"]
    for wrong in (True, 2.5, "2", [True], [0.5], None):
        with pytest.raises(InputError, match="seeds are whole numbers, 0 or more"):
            plan_cells(["probe"], [5], wrong)  # type: ignore[arg-type]
    for share in ("0.3", True, None, float("nan"), 1):
        with pytest.raises(InputError, match="it must be between 0 and 1"):
            split_test(np.arange(8) % 2, share)  # type: ignore[arg-type]
