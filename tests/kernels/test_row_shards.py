"""A fit on landmarks that was stopped goes on with the shards that it has, and ends with the same model."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from small import FIXED, backbone, pictures

from tangentune import TangentClassifier
from tangentune.errors import StoreError
from tangentune.kernels import landmark_fit, row_shards

X, Y = pictures(60)
OPTIONS: dict[str, Any] = FIXED | {"solver": "landmarks", "landmarks": 20}


@pytest.fixture(autouse=True)
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(landmark_fit, "SHARD", 16)


def fitted(work: Path | None = None) -> NDArray[np.float64]:
    return TangentClassifier(backbone(), **OPTIONS).fit(X, Y, work=work).loo_predictions_


class Stopped(BaseException):
    """As a signal would."""


def stopped_after(count: int, work: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of shards that a fit leaves which is stopped when it begins the next one."""
    made = row_shards.write_tensors
    with monkeypatch.context() as patch:

        def write(path: Any, *rest: Any) -> None:
            if len(list(work.glob("rows-*"))) == count:
                raise Stopped
            made(path, *rest)

        patch.setattr(row_shards, "write_tensors", write)
        with pytest.raises(Stopped):
            fitted(work)
    return sorted(os.listdir(work))


def test_a_fit_goes_on_where_it_was_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    work, whole, made = tmp_path / "work", fitted(), list[int]()
    left = stopped_after(2, work, monkeypatch)
    assert len(left) == 2
    again = landmark_fit.map_rows
    monkeypatch.setattr(landmark_fit, "map_rows", lambda *rest: made.append(rest[-1]) or again(*rest))
    assert np.array_equal(fitted(work), whole)
    assert made == [16, 12]  # two of the four shards
    assert not work.exists()


def test_damaged_shards_and_those_of_others_are_made_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    work, whole = tmp_path / "work", fitted()
    left = stopped_after(3, work, monkeypatch)
    (work / left[0]).write_bytes((work / left[0]).read_bytes()[:-40])
    seeded: dict[str, Any] = OPTIONS | {"random_state": 5}
    other = TangentClassifier(backbone(), **seeded).fit(X, Y).loo_predictions_
    found = TangentClassifier(backbone(), **seeded).fit(X, Y, work=work).loo_predictions_
    assert np.array_equal(found, other)
    stopped_after(3, work, monkeypatch)
    assert np.array_equal(fitted(work), whole)


def test_what_else_lies_there_stays(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("kept")
    fitted(tmp_path)
    assert os.listdir(tmp_path) == ["mine.txt"]


def test_a_file_is_no_directory(tmp_path: Path) -> None:
    (tmp_path / "work").write_text("a file")
    with pytest.raises(StoreError, match="cannot be a working directory"):
        fitted(tmp_path / "work")
