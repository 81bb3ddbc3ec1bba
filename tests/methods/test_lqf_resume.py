"""A killed LQF run goes on from its checkpoint and ends where it would have ended."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from lqf_dense import noise_pictures, small_backbone
from safetensors.torch import save_file
from torch import nn

from tangentune.errors import StoreError
from tangentune.methods.lqf import LQF, LQFSettings, fit_lqf
from tangentune.methods.lqf.checkpoint import Checkpoint
from tangentune.pictures.pictures import Pictures

BASE: dict[str, Any] = {"epochs": 3, "batch_size": 4, "measure_every": 2}


class Killed(BaseException):
    """Stands for a signal."""


def run(path: Path | None, **fields: Any) -> LQF:
    return fit_lqf(small_backbone(), noise_pictures(), LQFSettings(**{**BASE, **fields}), checkpoint=path)


def killed_after(writes: int, monkeypatch: pytest.MonkeyPatch, path: Path, **fields: Any) -> None:
    """Run until a number of checkpoints are written, and stop there."""
    whole, count = Checkpoint.write, 0

    def write(self: Checkpoint, *args: Any) -> None:
        nonlocal count
        whole(self, *args)
        count += 1
        if count == writes:
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoint, "write", write)
        with pytest.raises(Killed):
            run(path, **fields)


CASES: dict[str, tuple[dict[str, Any], int]] = {
    "adam": ({"solver": "adam", "learning_rate": 1e-2}, 2),
    "sgd": ({"solver": "sgd", "head": "cross_fitted"}, 1),
    "kfac": ({"solver": "kfac", "exact_optimum": True, "flip": False}, 2),
    "between linearisations": ({"solver": "kfac", "outer_steps": 2}, 4),
    "in the second linearisation": ({"solver": "adam", "outer_steps": 2, "learning_rate": 1e-2}, 6),
    "conjugate gradients": ({"solver": "pcg", "epochs": 30, "preconditioner": "none", "tolerance": 1e-12}, 1),
    "dual": ({"solver": "dual", "outer_steps": 2}, 2),
}


@pytest.mark.parametrize("case", CASES)
def test_a_killed_run_ends_bit_for_bit_where_an_uninterrupted_one_does(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fields, writes = CASES[case]
    path = tmp_path / "run.safetensors"
    killed_after(writes, monkeypatch, path, **fields)
    resumed, whole = run(path, **fields), run(tmp_path / "other.safetensors", **fields)
    assert resumed.tangent.keys() == whole.tangent.keys()
    for name, value in whole.tangent.items():
        assert torch.equal(resumed.tangent[name], value), name
        assert bool(value.any())
    own, others = (
        [replace(r, points=tuple(replace(p, passes=0) for p in r.points)) for r in m.records] for m in (resumed, whole)
    )
    assert own == others
    assert resumed.damping == whole.damping
    assert torch.equal(resumed.logits(noise_pictures()), whole.logits(noise_pictures()))


def test_a_finished_run_is_taken_from_its_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "deep" / "run.safetensors"
    whole = run(path, solver="kfac")
    monkeypatch.setattr("tangentune.methods.lqf.solving.train", None)
    again = run(path, solver="kfac")
    assert torch.equal(again.logits(noise_pictures()), whole.logits(noise_pictures()))
    assert again.records == whole.records
    assert again.seconds > whole.seconds, "the time of both runs counts"
    assert [p.name for p in path.parent.iterdir()] == ["run.safetensors"]


def test_without_a_checkpoint_the_result_is_the_same(tmp_path: Path) -> None:
    one, other = run(None, solver="sgd"), run(tmp_path / "run.safetensors", solver="sgd")
    assert torch.equal(one.logits(noise_pictures()), other.logits(noise_pictures()))


def test_checkpoints_of_other_runs_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "run.safetensors"
    run(path, epochs=1)
    before = path.read_bytes()
    with pytest.raises(StoreError, match=r"run.safetensors is of a run with other settings \(epochs was 1 and is 3\)"):
        run(path)
    pictures = noise_pictures()
    settings = LQFSettings(**{**BASE, "epochs": 1})
    assert pictures.labels is not None
    relabelled = Pictures(pictures.pixels, pictures.labels[::-1].copy(), pictures.ids)
    repainted = Pictures(255 - pictures.pixels, pictures.labels, pictures.ids)
    for others in (relabelled, repainted):
        with pytest.raises(StoreError, match="other pictures or labels"):
            fit_lqf(small_backbone(), others, settings, checkpoint=path)
    backbone = small_backbone()
    with torch.no_grad():
        backbone.module.get_parameter("0.weight").add_(1)
    with pytest.raises(StoreError, match="another network"):
        fit_lqf(backbone, pictures, settings, checkpoint=path)
    assert path.read_bytes() == before


def test_what_is_no_checkpoint_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "run.safetensors"
    path.write_bytes(b"not a checkpoint")
    with pytest.raises(StoreError, match="cannot be read"):
        run(path)
    save_file({"weight": nn.Linear(2, 2).weight.detach()}, path)
    with pytest.raises(StoreError, match="no checkpoint of an LQF run"):
        run(path)
    run(tmp_path / "good", epochs=1)
    path.write_bytes((tmp_path / "good").read_bytes()[:-40])
    with pytest.raises(StoreError, match="delete it to start over"):
        run(path, epochs=1)
