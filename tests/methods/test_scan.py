"""The second pass: equal to ranking everything in float64, however it is cut, killed and started again."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from tangentune.errors import InputError, StoreError
from tangentune.methods.source_selection.directions import unit_rows
from tangentune.methods.source_selection.rankings import random_scores
from tangentune.methods.source_selection.scan import Scanned, row_shares, scan
from tangentune.methods.source_selection.scorer import (
    Scorer,
    kernel_sum_scorer,
    mean_cosine_scorer,
    nearest_scorer,
    uot_scorer,
)
from tangentune.methods.source_selection.top import TopPerTarget, TopRows, top_rows

COUNT, WIDTH, TARGETS = 1000, 16, 6
GENERATOR = torch.Generator().manual_seed(0)
MEANS = torch.randn(12, WIDTH, generator=GENERATOR)
ROWS = (MEANS[torch.randint(12, (COUNT,), generator=GENERATOR)] + torch.randn(COUNT, WIDTH, generator=GENERATOR)) * (
    0.1 + 9 * torch.rand(COUNT, 1, generator=GENERATOR)
)
TARGET_MEANS = MEANS[:TARGETS] + 0.5 * torch.randn(TARGETS, WIDTH, generator=GENERATOR)

SCORERS: dict[str, Scorer] = {
    "uot": uot_scorer(MEANS, TARGET_MEANS)[0],
    "uot, small scale": uot_scorer(MEANS, TARGET_MEANS, cost_scale=0.005)[0],
    "uot, free source": uot_scorer(MEANS, TARGET_MEANS, tau_source=0, tau_target=math.inf, cost_scale=0.01)[0],
    "kernel_sum": kernel_sum_scorer(TARGET_MEANS),
    "nearest": nearest_scorer(TARGET_MEANS),
    "mean_cosine": mean_cosine_scorer(TARGET_MEANS),
}


def dense(scorer: Scorer) -> tuple[Tensor, Tensor, Tensor]:
    """Scores, shares and what each row gives each target, of all rows at once in float64."""
    exact = replace(scorer, prototypes=scorer.prototypes.double(), log_weights=scorer.log_weights.double())
    cosines = unit_rows(ROWS.double(), "source") @ exact.prototypes.T
    shares, scores = exact.shares(cosines), exact.scores(cosines.clone())
    masses = shares * scores.exp()[:, None] if scorer.method in ("uot", "kernel_sum") else shares
    return scores, shares, masses


@pytest.mark.parametrize("name", SCORERS)
def test_the_pass_equals_ranking_everything_in_float64(name: str) -> None:
    scorer = SCORERS[name]
    scores, shares, masses = dense(scorer)
    found = scan(ROWS, scorer, k=50, chunk=64)
    assert found.count == COUNT
    tolerance = 1e-6 if scorer.method in ("nearest", "mean_cosine") else 2e-6 / scorer.temperature
    kept = torch.sort(scores, descending=True).values[:50]
    torch.testing.assert_close(found.scores.double(), kept, rtol=0, atol=tolerance)
    torch.testing.assert_close(scores[found.indices], kept, rtol=0, atol=tolerance)
    assert len(set(found.indices.tolist())) == 50
    torch.testing.assert_close(found.shares.double(), shares[found.indices], rtol=0, atol=10 * tolerance)
    torch.testing.assert_close(found.log_target_mass.exp(), masses.sum(0), rtol=10 * tolerance, atol=0)
    chosen = masses[found.indices].sum(0) / masses.sum(0)
    torch.testing.assert_close(found.coverage, chosen, rtol=20 * tolerance, atol=1e-12)


@pytest.mark.parametrize("name", ["uot", "nearest"])
def test_quotas_are_the_best_rows_of_each_target(name: str) -> None:
    scorer = SCORERS[name]
    _, _, masses = dense(scorer)
    value = masses if name == "uot" else unit_rows(ROWS.double(), "source") @ scorer.prototypes.double().T
    found = scan(ROWS, scorer, k=5, quota_per_target=7, chunk=90).per_target
    assert found is not None
    assert found.shape == (TARGETS, 7)
    for target, rows in enumerate(found):
        best = torch.sort(value[:, target], descending=True).values[:7]
        torch.testing.assert_close(value[rows, target], best, rtol=1e-4, atol=1e-6)
    few = scan(ROWS[:3], scorer, k=5, quota_per_target=7).per_target
    assert few is not None
    assert few.sort(1).values.tolist() == [[0, 1, 2]] * TARGETS


def test_ties_go_to_the_first_row_however_the_rows_are_cut() -> None:
    rng = np.random.default_rng(0)
    for _ in range(100):
        count, k = int(rng.integers(1, 60)), int(rng.integers(1, 20))
        scores = torch.from_numpy(rng.integers(0, 6, count).astype(np.float32))
        cuts = np.sort(rng.integers(0, count + 1, 4)).tolist()
        top, resumed = TopRows(k), TopRows(k)
        table = torch.from_numpy(rng.integers(0, 4, (count, 3)).astype(np.float32))
        per_target, begun = TopPerTarget(3, k), TopPerTarget(3, k)
        for begin, end in zip([0, *cuts], [*cuts, count], strict=True):
            if begin == end:
                continue
            top.add(begin, scores[begin:end])
            resumed.add(begin, scores[begin:end])
            resumed = TopRows(k, *resumed.best())
            per_target.add(begin, table[begin:end])
            begun.add(begin, table[begin:end])
            begun = TopPerTarget(3, k, begun.state())
        expected = sorted(range(count), key=lambda i: (-float(scores[i]), i))[:k]
        assert top.best()[0].tolist() == resumed.best()[0].tolist() == expected
        assert top.best()[1].tolist() == scores[expected].tolist()
        best = [sorted(range(count), key=lambda i: (-float(table[i, t]), i))[:k] for t in range(3)]
        assert per_target.best().tolist() == begun.best().tolist() == best


def test_the_result_does_not_depend_on_steps_or_shards(tmp_path: Path) -> None:
    scorer = SCORERS["uot"]
    for i, part in enumerate(ROWS.split([1, 300, 699])):
        np.save(tmp_path / f"{i}.npy", part.numpy())
    first = scan(ROWS, scorer, k=40, quota_per_target=3)
    for source, chunk in ((ROWS, 37), (tmp_path, 512), (tmp_path, 1)):
        other = scan(source, scorer, k=40, quota_per_target=3, chunk=chunk)
        assert torch.equal(first.indices, other.indices)
        torch.testing.assert_close(first.scores, other.scores, rtol=0, atol=1e-5)
        torch.testing.assert_close(first.log_target_mass, other.log_target_mass, rtol=0, atol=1e-5)
        assert torch.equal(torch.as_tensor(first.per_target), torch.as_tensor(other.per_target))


def test_everything_is_kept_where_k_is_larger() -> None:
    found = scan(ROWS, SCORERS["uot"], k=10**6)
    assert sorted(found.indices.tolist()) == list(range(COUNT))
    torch.testing.assert_close(found.coverage, torch.ones(TARGETS, dtype=torch.float64), rtol=0, atol=1e-5)


def test_random_rows_need_no_features() -> None:
    rows, scores = top_rows(200_000, lambda rows: random_scores(rows, 3), 20)
    everything = random_scores(torch.arange(200_000), 3)
    assert torch.equal(rows, everything.argsort(descending=True)[:20])
    assert torch.equal(scores, everything[rows])
    shares = row_shares(ROWS, SCORERS["uot"], torch.tensor([999, 4, 4]))
    _, expected, _ = dense(SCORERS["uot"])
    torch.testing.assert_close(shares.double(), expected[[999, 4, 4]], rtol=0, atol=1e-4)


def same(left: Scanned, right: Scanned) -> bool:
    fields = ("indices", "scores", "shares", "per_target", "log_target_mass", "log_chosen_mass")
    return all(torch.equal(getattr(left, name), getattr(right, name)) for name in fields)


SCRIPT = """
import sys, time
from safetensors.torch import load_file, save_file
from tangentune.methods.source_selection import scan as module
from tangentune.methods.source_selection.scorer import Scorer

rows, state, out, pause = sys.argv[1:]
adding = module._Found.add
def slowly(self, *args):
    time.sleep(float(pause))
    adding(self, *args)
module._Found.add = slowly
scorer = Scorer("uot", *load_file(out + "/scorer").values(), temperature=0.05, power=0.5)
for name, checkpoint in ("again", state), ("whole", None):
    found = module.scan(rows, scorer, k=40, quota_per_target=3, checkpoint=checkpoint, every=0, chunk=50)
    names = ("indices", "scores", "shares", "per_target", "log_target_mass", "log_chosen_mass")
    save_file({name: getattr(found, name) for name in names}, f"{out}/{name}")
"""


def rows_done(checkpoint: Path) -> int:
    try:
        with safe_open(checkpoint, framework="pt") as file:
            return json.loads(file.metadata()["book"])["done"]
    except (FileNotFoundError, SafetensorError):
        return 0


def test_a_scan_killed_half_way_gives_the_identical_file(tmp_path: Path) -> None:
    np.save(tmp_path / "rows.npy", ROWS.numpy())
    scorer, state = SCORERS["uot"], tmp_path / "state"
    assert (scorer.temperature, scorer.power) == (0.05, 0.5)
    # safetensors gives tensors in the order of their names
    save_file({"1": scorer.prototypes, "2": scorer.log_weights}, tmp_path / "scorer")

    def start(pause: float) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-c", SCRIPT, *map(str, (tmp_path / "rows.npy", state, tmp_path, pause))]
        return subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1"})

    process = start(0.05)
    while rows_done(state) < COUNT // 2 and process.poll() is None:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert COUNT // 2 <= rows_done(state) < COUNT
    assert not (tmp_path / "again").exists()
    assert start(0).wait() == 0
    again, whole = ((tmp_path / name).read_bytes() for name in ("again", "whole"))
    assert again == whole
    best = scan(ROWS, scorer, k=40).scores
    torch.testing.assert_close(load_file(tmp_path / "again")["scores"], best, rtol=0, atol=1e-5)


def test_a_checkpoint_is_read_only_for_the_same_scan(tmp_path: Path) -> None:
    state, scorer = tmp_path / "state", SCORERS["uot"]
    settings: dict[str, Any] = {"k": 40, "quota_per_target": 3, "chunk": 50}
    whole = scan(ROWS, scorer, checkpoint=state, **settings)
    kept = state.read_bytes()
    assert same(whole, scan(ROWS, scorer, checkpoint=state, **settings))  # finished: nothing is scored again
    assert state.read_bytes() == kept
    other = ROWS.clone()
    other[-1, -1] += 1
    for rows, method, fields, message in (
        (other, scorer, {}, "other features"),
        (ROWS, SCORERS["kernel_sum"], {}, "other targets or method"),
        (ROWS, scorer, {"k": 41}, "other k"),
        (ROWS, scorer, {"k": 41, "chunk": 49}, "other k and chunk"),
        (ROWS, scorer, {"quota_per_target": 0}, "other quota_per_target"),
    ):
        with pytest.raises(StoreError, match=f"was written with {message}; delete it to start over"):
            scan(rows, method, checkpoint=state, **{**settings, **fields})
    assert state.read_bytes() == kept
    state.write_bytes(kept[: len(kept) // 2])
    with pytest.raises(StoreError, match="cannot be read .* delete it"):
        scan(ROWS, scorer, checkpoint=state, **settings)


def test_a_finished_checkpoint_spares_the_pass(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = scan(ROWS, SCORERS["uot"], k=9, quota_per_target=2, checkpoint=tmp_path / "state")
    monkeypatch.setattr("tangentune.methods.source_selection.scan._Found.add", None)
    assert same(first, scan(ROWS, SCORERS["uot"], k=9, quota_per_target=2, checkpoint=tmp_path / "state"))


def test_what_cannot_be_scanned_is_refused_in_one_sentence(tmp_path: Path) -> None:
    scorer, broken = SCORERS["uot"], ROWS.clone()
    broken[700] = torch.nan
    with pytest.raises(InputError, match="row 700 hold NaN"):
        scan(broken, scorer, k=5, chunk=64, checkpoint=tmp_path / "state")
    with pytest.raises(InputError, match="k is 0"):
        scan(ROWS, scorer, k=0)
    with pytest.raises(InputError, match="quota_per_target is -1"):
        scan(ROWS, scorer, k=1, quota_per_target=-1)
    with pytest.raises(InputError, match="source features have 15 numbers and target features 16"):
        scan(ROWS[:, :15], scorer, k=5)
    with pytest.raises(InputError, match="is empty"):
        scan(ROWS[:0], scorer, k=5)
    assert list(tmp_path.iterdir()) == []


def test_no_mass_is_lost_where_float32_would_overflow() -> None:
    """Rows far nearer to the targets than the sources that the plan was solved for."""
    scorer, _ = uot_scorer(-TARGET_MEANS, TARGET_MEANS, tau_source=0, tau_target=math.inf, cost_scale=0.005)
    found = scan(ROWS, scorer, k=10)
    assert bool(torch.isfinite(found.log_target_mass).all())
    assert float(found.log_target_mass.max()) > 100  # exp of it is beyond float32
    scores, shares, _ = dense(scorer)
    expected = torch.logsumexp(shares.log() + scores[:, None], 0)
    torch.testing.assert_close(found.log_target_mass, expected, rtol=0, atol=1e-3)
