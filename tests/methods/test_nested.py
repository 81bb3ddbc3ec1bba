"""Masses of classes divided between their pictures: the dense calculation, budgets, quotas and small cost scales."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from test_choose import MEMBERS, NAMES, UOT, C, K, N, chosen, dense_masses, dense_plan

from tangentune.errors import InputError
from tangentune.methods.source_selection.picking import _grouped_logsumexp


def parts(a: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What each picture has of its class's mass, its shares, and the plan's row sums."""
    plan, v = dense_plan(a, np.ones(K))
    mass, shares = dense_masses(v)
    own = np.array([mass[c == MEMBERS].sum() for c in range(C)])
    return plan.sum(1)[MEMBERS] * mass / own[MEMBERS], shares, plan.sum(1)


@pytest.mark.parametrize("marginals", ["uniform", "counts"])
def test_it_is_the_dense_calculation(marginals: str) -> None:
    counts = np.bincount(MEMBERS)
    part, shares, rows = parts(np.ones(C) if marginals == "uniform" else counts / counts.mean())
    order = np.argsort(-part, kind="stable")
    manifest = chosen(budget=35, granularity="nested", marginals=marginals, **UOT).manifest
    assert manifest.ids == tuple(map(str, order[:35]))
    np.testing.assert_allclose(np.exp(manifest.scores), part[order[:35]], rtol=1e-5)
    np.testing.assert_allclose(manifest.weights, part[order[:35]] / part[order[:35]].mean(), rtol=1e-5)
    np.testing.assert_allclose(manifest.shares, shares[order[:35]], rtol=0, atol=1e-5)
    given = part[:, None] * shares
    covered = [row["covered"] for row in manifest.coverage]
    np.testing.assert_allclose(covered, given[order[:35]].sum(0) / given.sum(0), rtol=1e-5)
    every = chosen(budget=N, granularity="nested", marginals=marginals, **UOT).manifest
    masses, classes = np.exp(every.scores), np.array(every.classes)
    for c in range(C):  # the plan between the classes stays as it is
        assert masses[classes == f"s{c}"].sum() == pytest.approx(rows[c], rel=1e-5)
    alone = chosen(budget=35, marginals=marginals, **UOT).manifest
    assert set(alone.ids) != set(manifest.ids)
    by_default = chosen(budget=35, granularity=None, marginals=marginals, **UOT).manifest
    assert by_default.ids == manifest.ids


def test_budgets_of_mass() -> None:
    part, _, rows = parts(np.ones(C))
    order = np.argsort(-part, kind="stable")
    needed = int(np.searchsorted(np.cumsum(part[order]), 0.4 * rows.sum())) + 1
    found = chosen(budget=0.4, unit="mass", granularity="nested", **UOT).manifest
    assert found.ids == tuple(map(str, order[:needed]))
    assert len(chosen(budget=1, unit="mass", granularity="nested", **UOT).manifest) == N


def test_by_default_every_target_gets_its_share() -> None:
    even = chosen(budget=24, granularity="nested", quota=None, **UOT).manifest
    assert even.settings["quota"] == 24 // K
    assert even.ids == chosen(budget=24, granularity="nested", quota=24 // K, **UOT).manifest.ids
    assert chosen(budget=24, quota=None, **UOT).manifest.settings["quota"] == 0


def test_quotas_are_exact() -> None:
    part, shares, _ = parts(np.ones(C))
    order = np.argsort(-part, kind="stable")
    best = shares.argmax(1)
    plain = chosen(budget=24, granularity="nested", **UOT).manifest
    assert min(row["pictures"] for row in plain.coverage) < 7
    kept = chosen(budget=24, granularity="nested", quota=7, **UOT).manifest
    reserved = {int(row) for k in range(K) for row in order[best[order] == k][:7]}
    rest = [int(row) for row in order if row not in reserved][: 24 - len(reserved)]
    assert {int(name) for name in kept.ids} == {*reserved, *rest}
    held = np.bincount(best, minlength=K)
    few = int(held.argmin())
    with pytest.raises(InputError, match="quota"):
        chosen(budget=10, granularity="nested", quota=7, **UOT)
    noted = chosen(budget=N, granularity="nested", quota=int(held[few]) + 1, **UOT).manifest
    assert noted.notes[0].endswith(f"all of them are taken: {NAMES[few]}")


@pytest.mark.parametrize("settings", [{"cost_scale": 0.002}, {"clusters": 4}])
def test_clusters_and_small_scales(settings: dict[str, Any]) -> None:
    manifest = chosen(budget=30, granularity="nested", **settings)
    assert np.isfinite(manifest.manifest.scores).all()
    assert manifest.manifest.weights.mean() == pytest.approx(1, rel=1e-8)
    covered = [row["covered"] for row in manifest.manifest.coverage]
    assert all(0 <= value <= 1 for value in covered if value is not None)


def test_methods_without_masses_are_refused() -> None:
    with pytest.raises(InputError, match="'nested' divides masses of classes, which the method 'nearest' has none of"):
        chosen(budget=3, method="nearest", granularity="nested")
    with pytest.raises(InputError, match="a budget of classes takes whole classes"):
        chosen(budget=3, unit="classes", granularity="nested")


def test_logarithms_of_sums_by_group() -> None:
    values = torch.tensor([-1e4, 3.0, -1e4 + 1, 2.0], dtype=torch.float64)
    found = _grouped_logsumexp(values, torch.tensor([0, 1, 0, 1]), 2)
    expected = [values[[0, 2]].logsumexp(0), values[[1, 3]].logsumexp(0)]
    assert torch.allclose(found, torch.stack(expected), rtol=1e-14, atol=0)
