"""Targets of classes: scaled one-hot rows, and what is refused."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from tangentune.errors import InputError
from tangentune.solvers.targets import one_hot_targets

POSITIONS = torch.tensor([2, 0, 1, 2])


def test_targets_are_scaled_one_hot_rows() -> None:
    targets = one_hot_targets(POSITIONS, 4, alpha=15.0)
    assert targets.dtype == torch.float64
    assert torch.equal(targets, 15 * F.one_hot(POSITIONS, 4).double())
    assert torch.equal(one_hot_targets(POSITIONS.to(torch.uint8), 4), F.one_hot(POSITIONS, 4).double())


def test_centred_targets_sum_to_zero_and_keep_the_gap_between_classes() -> None:
    centred = one_hot_targets(POSITIONS, 5, alpha=15.0, centred=True)
    torch.testing.assert_close(centred.sum(1), torch.zeros(4, dtype=torch.float64), atol=1e-14, rtol=0)
    assert centred[0, 2] - centred[0, 1] == 15


@pytest.mark.parametrize("alpha", [0.0, -1.0, float("nan"), float("inf")])
def test_alpha_out_of_range_is_refused(alpha: float) -> None:
    with pytest.raises(InputError, match="alpha is"):
        one_hot_targets(POSITIONS, 3, alpha=alpha)


@pytest.mark.parametrize(
    ("positions", "match"),
    [
        (torch.tensor([0, 3]), r"0 to 3, outside 0\.\.2"),
        (torch.tensor([-1, 1]), "-1 to 1"),
        (torch.tensor([0.0, 1.0]), "whole numbers"),
        (torch.tensor([True, False]), "whole numbers"),
        (torch.tensor([[0], [1]]), "whole numbers"),
    ],
)
def test_positions_that_are_no_classes_are_refused(positions: torch.Tensor, match: str) -> None:
    with pytest.raises(InputError, match=match):
        one_hot_targets(positions, 3)
