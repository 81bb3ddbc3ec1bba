"""The short part of the fault run: `make torture` tries a hundred times as much."""

from __future__ import annotations

import os

import pytest
from torture.run import KINDS, run

SHARES = {
    "damaged pictures": 0.005, "damaged models": 0.02, "forged models": 0.04, "kills at each step": 0.02,
    "kills at any moment": 0.01, "races": 0.01, "signals": 0.02, "full disks": 0.02, "hostile names": 0.005,
    "small budgets": 0.04,
}  # fmt: skip


@pytest.mark.skipif(not hasattr(os, "fork"), reason="tries everything in child processes")
@pytest.mark.parametrize("kind", KINDS)
def test_nothing_fails(kind: str) -> None:
    counts = run({}, [kind], SHARES[kind], 60, lambda _: None)
    assert counts[kind]["cases"]
    assert not counts[kind]["failures"]
