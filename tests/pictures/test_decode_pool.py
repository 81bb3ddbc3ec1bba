"""Decoding in worker processes: same results, same limits, clear ends."""

from __future__ import annotations

import os
import time
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from picture_cases import colours
from PIL import Image

from tangentune.errors import PictureError
from tangentune.pictures import decode_pool
from tangentune.pictures.contract import IMAGENET_MEAN, IMAGENET_STD, DataContract
from tangentune.pictures.load import Pictures, load_pictures

CONTRACT = DataContract(input_size=(3, 8, 8), mean=IMAGENET_MEAN, std=IMAGENET_STD)


@pytest.fixture
def many(tmp_path: Path) -> list[str]:
    """Seventy pictures of several sizes, the fifth and the sixtieth unreadable."""
    paths = []
    for i in range(70):
        paths.append(str(tmp_path / f"{i:02d}.png"))
        Image.fromarray(colours(1, 10 + i % 7, seed=i)[0]).save(paths[-1])
    (tmp_path / "05.png").write_bytes(b"no picture")
    (tmp_path / "60.png").write_bytes(b"no picture")
    return paths


def test_workers_change_nothing(many: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def load(n_jobs: int | None) -> Pictures:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="2 pictures were left out")
            return load_pictures(many, range_labels, contract=CONTRACT, n_jobs=n_jobs, on_error="skip")

    range_labels = list(range(70))
    alone, two = load(1), load(2)
    monkeypatch.setattr(decode_pool, "_WORTH_WORKERS_S", 0.0)
    monkeypatch.setattr(decode_pool, "cpu_count", lambda: 2)
    for other in (two, load(None), load(-1)):  # None: the first eight here, the rest in workers
        assert torch.equal(alone.pixels, other.pixels)
        assert alone.skipped == other.skipped
        assert alone.ids == other.ids
        assert alone.labels is not None
        assert other.labels is not None
        assert alone.labels.tolist() == other.labels.tolist()
    for n_jobs in (1, 2):  # all are named, in their order, whichever is met first
        with pytest.raises(
            PictureError, match=r"2 of 70 .*05\.png \(it is not a picture in a known format\), .*60\.png"
        ):
            load_pictures(many, range_labels, contract=CONTRACT, n_jobs=n_jobs)


def test_workers_use_this_process_limits(many: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 12 * 12)
    results = list(decode_pool.decode_files(many, CONTRACT, 2))
    large = [i for i in range(70) if 10 + i % 7 > 12 and i not in (5, 60)]
    assert [i for i, r in enumerate(results) if isinstance(r, str) and "over-large" in r] == large


def test_dead_worker_is_a_clear_error(many: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def die(*_: Any) -> None:
        os._exit(1)

    monkeypatch.setattr(decode_pool, "_decode_chunk", die)
    with pytest.raises(PictureError, match="A process that decodes pictures died .*use n_jobs=1"):
        list(decode_pool.decode_files(many, CONTRACT, 2))
    monkeypatch.undo()
    assert len(list(decode_pool.decode_files(many, CONTRACT, 2))) == 70  # and the next call works


def test_stopping_early_leaves_the_rest_undone(
    many: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, folder = decode_pool._decode_chunk, tmp_path / "done"
    folder.mkdir()

    def leave_a_mark(paths: Any, *rest: Any) -> Any:
        (folder / Path(paths[0]).name).touch()
        time.sleep(0.05)
        return real(paths, *rest)

    monkeypatch.setattr(decode_pool, "_decode_chunk", leave_a_mark)
    monkeypatch.setattr(decode_pool, "_CHUNK", 2)
    results = decode_pool.decode_files(many, CONTRACT, 2)
    next(results)
    results.close()
    assert 1 <= len(list(folder.iterdir())) < 20  # of 35


def test_worker_count() -> None:
    assert decode_pool.worker_count(3) == 3
    assert decode_pool.worker_count(-1) == decode_pool.cpu_count()
    assert decode_pool.worker_count(-1000) == 1
