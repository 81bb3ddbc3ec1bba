"""The pilot looks at early blocks only while they are the best so far."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import nn

from tangentune import TangentRegressor
from tangentune.kernels import pilot


class Narrow(nn.Module):
    """Eight blocks; what comes behind `narrow` sees one number of an input."""

    def __init__(self, narrow: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        widths = [10] + [1 if i == narrow else 12 for i in range(8)]
        self.blocks = nn.Sequential(*(nn.Linear(a, b) for a, b in pairwise(widths)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            x = torch.tanh(block(x))
        return x


@pytest.mark.parametrize(("narrow", "firsts"), [(0, {4, 5, 6}), (3, {0, 2, 4, 5, 6})])
def test_early_blocks_are_looked_at_only_where_late_ones_see_little(narrow: int, firsts: set[int]) -> None:
    x = torch.randn(300, 10, generator=torch.Generator().manual_seed(1))
    y = (x[:, :3] ** 2).sum(1) if narrow else x[:, 0]
    model = TangentRegressor(Narrow(narrow), outer_steps=0, augment=None).fit(x, y.numpy())
    tried = [row for row in model.selection_ if row["pictures"] == pilot.PILOT_PICTURES and row["body_scale"] > 0]
    assert {int(row["first_block"].split(".")[-1]) for row in tried} == firsts
