"""Selections against the same calculation done densely, and what is refused."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from tangentune.errors import InputError, TangentuneError
from tangentune.methods.source_selection.select import Selection, select_source

RNG = np.random.default_rng(0)
K, C, D, N = 3, 5, 12, 200
CENTRES = RNG.normal(size=(C, D))
MEMBERS = RNG.integers(0, C, N)
SOURCE = CENTRES[MEMBERS] + 0.8 * RNG.normal(size=(N, D))
TARGET = (CENTRES[:K] + 0.4 * RNG.normal(size=(K, D))).repeat(6, 0) + 0.8 * RNG.normal(size=(6 * K, D))
TARGET_LABELS = np.array(["ape", "bee", "cow"]).repeat(6)
SOURCE_LABELS = np.array([f"s{i}" for i in MEMBERS])
NAMES = ["ape", "bee", "cow"]
SCALE, EPS, TAU_S, TAU_T = 0.3, 0.7, 1.5, 30.0
UOT: dict[str, Any] = {"cost_scale": SCALE, "eps": EPS, "tau_source": TAU_S, "tau_target": TAU_T}


def chosen(**settings: Any) -> Selection:
    """Pictures one by one and without quota, unless other settings are asked for."""
    settings.setdefault("quota", 0)
    if settings.get("unit") != "classes":
        settings.setdefault("granularity", "pictures")
    return select_source(
        torch.from_numpy(TARGET),
        torch.from_numpy(SOURCE),
        None,
        target_labels=TARGET_LABELS,
        source_labels=SOURCE_LABELS,
        **settings,
    )


def unit(rows: NDArray) -> NDArray:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def geometry(centred: bool) -> tuple[NDArray, NDArray]:
    """Cosines of classes (C, K) and of pictures (N, K) with the target classes."""
    source, target = (unit(rows.astype(np.float32).astype(float)) for rows in (SOURCE, TARGET))  # stored so
    centre = (source.mean(0) + target.mean(0)) / 2 if centred else 0.0
    targets, classes = (
        unit(np.stack([rows[labels == name].mean(0) for name in np.unique(labels)]) - centre)
        for rows, labels in ((target, TARGET_LABELS), (source, SOURCE_LABELS))
    )
    return classes @ targets.T, unit(source - centre) @ targets.T


GEOMETRY = geometry(centred=True)
COSINES = GEOMETRY[1]


def dense_plan(a: NDArray, b: NDArray, cosines: NDArray = GEOMETRY[0]) -> tuple[NDArray, NDArray]:
    """Plan between the classes by plain iteration, and v."""
    kernel = np.exp(-(1 - cosines) / SCALE / EPS)
    u, v = np.ones(C), np.ones(K)
    for _ in range(3000):
        u = (a / (kernel @ v)) ** (TAU_S / (TAU_S + EPS))
        v = (b / (kernel.T @ u)) ** (TAU_T / (TAU_T + EPS))
    return u[:, None] * kernel * v, v


def dense_masses(v: NDArray, cosines: NDArray = COSINES) -> tuple[NDArray, NDArray]:
    """Row mass of every picture of mass 1, and its shares."""
    parts = np.exp(-(1 - cosines) / SCALE / EPS) * v
    return parts.sum(1) ** (EPS / (TAU_S + EPS)), parts / parts.sum(1, keepdims=True)


@pytest.mark.parametrize("marginals, centre", [("uniform", True), ("counts", True), ("uniform", False)])
def test_transport_of_pictures_is_the_dense_calculation(marginals: str, centre: bool) -> None:
    classes, pictures = geometry(centre)
    counts = np.bincount(MEMBERS).astype(float)
    a = np.ones(C) if marginals == "uniform" else counts / counts.mean()
    plan, v = dense_plan(a, np.ones(K), classes)
    mass, shares = dense_masses(v, pictures)
    best = np.argsort(-mass, kind="stable")[:40]
    found = chosen(budget=40, marginals=marginals, centre=centre, **UOT)
    manifest = found.manifest
    assert manifest.ids == tuple(map(str, best))
    np.testing.assert_allclose(np.exp(manifest.scores), mass[best], rtol=2e-7)  # lengths of features are float32
    np.testing.assert_allclose(manifest.weights, mass[best] / mass[best].mean(), rtol=2e-7)
    np.testing.assert_allclose(manifest.shares, shares[best], rtol=0, atol=6e-7)
    assert manifest.targets == tuple(NAMES[k] for k in shares[best].argmax(1))
    assert manifest.classes == tuple(SOURCE_LABELS[best])
    to_targets = mass[:, None] * shares
    covered = [row["covered"] for row in manifest.coverage]
    np.testing.assert_allclose(covered, to_targets[best].sum(0) / to_targets.sum(0), rtol=1e-6)  # sums in float32
    np.testing.assert_allclose([row["mass"] for row in manifest.class_table], plan.sum(1) / plan.sum(), rtol=2e-7)
    np.testing.assert_allclose(found.ranking.scores.exp().numpy(), plan.sum(1), rtol=2e-7)
    weight = mass[best] / mass[best].sum()
    for k, row in enumerate(manifest.coverage):
        mine = shares[best].argmax(1) == k
        assert row["pictures"] == mine.sum()
        assert row["share"] == pytest.approx(float(weight @ shares[best, k]), rel=1e-6)
        assert row["similarity"] == pytest.approx(float(pictures[best[mine], k].mean()), rel=2e-7)
    assert {row["class"]: (row["chosen"], row["of"]) for row in manifest.class_table} == {
        f"s{c}": (int((MEMBERS[best] == c).sum()), int(counts[c])) for c in range(C)
    }


def test_a_budget_of_mass_takes_as_few_as_hold_it() -> None:
    _, v = dense_plan(np.ones(C), np.ones(K))
    mass, _ = dense_masses(v)
    best = np.argsort(-mass, kind="stable")
    needed = int(np.searchsorted(np.cumsum(mass[best]), 0.6 * mass.sum())) + 1
    assert 20 < needed < N
    found = chosen(budget=0.6, unit="mass", **UOT)
    assert found.manifest.ids == tuple(map(str, best[:needed]))
    assert len(chosen(budget=0.25, unit="mass", method="nearest").manifest) == N // 4


def test_rivals_choose_what_they_say() -> None:
    manifest, scores = chosen(budget=30, method="nearest").manifest, COSINES.max(1)
    best = np.argsort(-scores, kind="stable")[:30]
    assert manifest.ids == tuple(map(str, best))
    np.testing.assert_allclose(manifest.scores, scores[best], rtol=2e-7)
    assert manifest.weights.tolist() == [1.0] * 30
    assert manifest.shares.tolist() == np.eye(K)[COSINES[best].argmax(1)].tolist()
    assert {row["mass"] for row in manifest.class_table} == {None}
    everything = chosen(method="all").manifest
    assert everything.ids == tuple(map(str, range(N)))
    assert [row["covered"] for row in everything.coverage] == [1.0] * K
    draws = [set(chosen(budget=30, method="random", seed=seed).manifest.ids) for seed in (0, 0, 1)]
    assert draws[0] == draws[1]
    assert len(draws[0] & draws[2]) < 15


@pytest.mark.parametrize("method", ["uot", "nearest", "random"])
def test_whole_classes(method: str) -> None:
    found = chosen(budget=2, unit="classes", method=method)
    best = [found.source_classes[i] for i in found.ranking.order[:2]]
    members = [np.flatnonzero(name == SOURCE_LABELS) for name in best]
    assert found.manifest.ids == tuple(map(str, np.concatenate(members)))
    assert found.manifest.weights.mean() == pytest.approx(1, rel=1e-8)
    cut = chosen(budget=len(members[0]) + 7, granularity="classes", method=method)
    part = cut.manifest.ids[len(members[0]) :]
    assert len(part) == 7
    assert cut.manifest.ids[: len(members[0])] == found.manifest.ids[: len(members[0])]
    assert set(part) < set(map(str, members[1]))
    if method == "nearest":
        top = members[1][np.argsort(-COSINES[members[1]].max(1), kind="stable")[:7]]
        assert part == tuple(map(str, np.sort(top)))


@pytest.mark.parametrize("method", ["uot", "nearest", "random"])
def test_quotas(method: str) -> None:
    plain = chosen(budget=24, method=method, cost_scale=0.05).manifest
    kept = chosen(budget=24, method=method, cost_scale=0.05, quota=7).manifest
    assert min(row["pictures"] for row in kept.coverage) >= 7
    assert len(kept) == len(plain) == 24
    assert kept.notes == ()
    every = chosen(budget=N, method=method, cost_scale=0.05).manifest
    assert every.ids[:24] == plain.ids
    best = [[name for name, t in zip(every.ids, every.targets, strict=True) if t == k][:7] for k in NAMES]
    reserved = {name for names in best for name in names}
    rest = [name for name in every.ids if name not in reserved][: 24 - len(reserved)]
    assert set(kept.ids) == {*reserved, *rest}


def test_a_quota_that_cannot_be_had_is_told_by_name() -> None:
    nearest = geometry(centred=False)[1].argmax(1)  # a centre would move with the rows
    few, lonely = np.flatnonzero(nearest != 2)[:50], np.flatnonzero(nearest == 2)[:1]
    rows = np.concatenate([few, lonely])
    found = select_source(
        TARGET, SOURCE[rows], None, target_labels=TARGET_LABELS, source_labels=SOURCE_LABELS[rows], budget=20,
        method="nearest", quota=3, centre=False,
    )  # fmt: skip
    (note,) = found.manifest.notes
    assert note == "1 target class has fewer candidates than the quota of 3; all of them are taken: cow"
    assert found.manifest.coverage[2]["pictures"] == 1
    with pytest.raises(InputError, match="quota of 9 .* budget of 20"):
        chosen(budget=20, quota=9)


def test_unlabelled_sources_are_divided_into_clusters() -> None:
    found = select_source(TARGET, SOURCE, None, target_labels=TARGET_LABELS, budget=30, clusters=C, seed=1)
    manifest = found.manifest
    assert {name.split()[0] for name in manifest.classes} == {"cluster"}
    assert sum(row["of"] for row in manifest.class_table) == N
    assert len(manifest.class_table) == C
    named = select_source(
        TARGET, SOURCE, None, target_labels=TARGET_LABELS, source_labels=SOURCE_LABELS, budget=30, clusters=C, seed=1
    )  # its own labels are not used
    assert named.manifest.classes == manifest.classes
    for one in np.unique(manifest.classes):
        truth = MEMBERS[[int(i) for i, name in zip(manifest.ids, manifest.classes, strict=True) if name == one]]
        assert np.bincount(truth).max() >= 0.7 * len(truth)  # the clusters are the generating ones, mostly


def broken(value: float) -> NDArray:
    rows = SOURCE.copy()
    rows[7, 3] = value
    return rows


@pytest.mark.parametrize(
    "change, words",
    [
        ({"target_labels": ["ape"] * 18}, r"one class only \(ape\)"),
        ({"target_labels": None}, "target's pictures have no labels"),
        ({"source_labels": None}, "source's pictures have no labels; give clusters"),
        ({"source_labels": ["a"] * 3}, "give one label a row"),
        ({"source": broken(math.nan)}, "^the source cannot be used: the features of row 7 hold NaN"),
        ({"source": SOURCE[:, :5]}, "source features have 5 numbers and target features 12"),
        ({"source": SOURCE[:0]}, "is empty"),
        ({"budget": 0}, "whole number of at least 1"),
        ({"budget": 1.5, "unit": "mass"}, "share of it, above 0 and up to 1"),
        ({"budget": None}, "the method 'uot' needs a budget"),
        ({"method": "all"}, "takes every picture; leave the budget out"),
        ({"method": "best"}, "method is 'best'; use one of"),
        ({"quota": -1}, "quota is -1"),
        ({"clusters": 1}, "clusters is 1"),
        ({"cost_scale": 0}, "cost_scale is 0"),
        ({"tau_source": math.inf}, "tau_source is inf"),
        ({"unit": "classes", "granularity": "pictures"}, "a budget of classes takes whole classes"),
        ({"granularity": "files"}, "granularity is 'files'"),
        ({"colour": 1}, "there is no setting 'colour'"),
        ({"source": "nowhere.npy"}, "nowhere.npy cannot be opened"),
    ],
)
def test_refusals(change: dict[str, Any], words: str) -> None:
    arguments: dict[str, Any] = {
        "target": TARGET, "source": SOURCE, "backbone": None, "target_labels": TARGET_LABELS,
        "source_labels": SOURCE_LABELS, "budget": 5, **change,
    }  # fmt: skip
    with pytest.raises(TangentuneError, match=words) as error:
        select_source(**arguments)
    assert "\n" not in str(error.value)
