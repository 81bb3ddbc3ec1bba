"""Rows of the training pictures in a file: asked for once, mapped ever after, and rid of what was forgotten."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from numpy.typing import NDArray
from reference import kernel_of
from safetensors.torch import load_file
from small import FIXED, backbone, pictures

from tangentune import Pictures, TangentClassifier
from tangentune.errors import StoreError
from tangentune.estimators.training_set import RowReader
from tangentune.workbench.edits import Edit
from tangentune.workbench.session import Session

BACKBONE = backbone()
X, Y = pictures(24)
NEW, _ = pictures(3, seed=5)
NAMES = np.array(["ant", "bee", "cat", "dog"])[Y]
IDS = [f"{i}.png" for i in range(24)]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """With explicit rows and pairs, in a metric."""
    clf = TangentClassifier(BACKBONE, **(FIXED | {"metric_power": 0.25, "normalize": True, "augment": "flip"}))
    clf.fit(Pictures(torch.from_numpy(X), NAMES, IDS)).save_pretrained(tmp_path / "m")
    return tmp_path / "m"


def opened(model: Path) -> Session:
    return Session.open(model, backbone=BACKBONE)


def no_pass(*_: object) -> int:
    """Instead of looking how much room the rows would take, which is where taking them begins."""
    pytest.fail("the network passes over the training pictures")


def everything(model: Path) -> NDArray[np.float64]:
    """All numbers of the file."""
    return np.concatenate([one.numpy().ravel() for one in load_file(model / "rows.safetensors").values()])


def test_rows_are_kept_once_and_mapped_ever_after(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with opened(model) as session:
        expected = session.estimator.influence(NEW)
        assert not session.rows_kept
    seen: list[tuple[int, int]] = []
    with opened(model) as session:
        session.keep_rows(lambda done, of: seen.append((done, of)))
        assert session.rows_kept
        assert seen[-1] == (24, 24)
        size = (model / "rows.safetensors").stat().st_size
        assert size == pytest.approx(session.rows_bytes(), abs=4096)
    monkeypatch.setattr(RowReader, "one_row_bytes", no_pass)
    with opened(model) as session:
        assert_allclose(session.estimator.influence(NEW), expected, rtol=0, atol=1e-12)
        session.take(Edit("forget", (0, 5)))
        session.add(NEW[:1], "ant")
        before = session.estimator.predict_proba(NEW)
        assert session.answer_new(NEW[1:])[0].supports
        session.save()
        assert session.rows_kept
        assert_allclose(session.estimator.influence(NEW[1:]).shape, (2, 23, 4))
    with opened(model) as session:
        session.take(Edit("relabel", (3,), "dog"))
        assert session.estimator.fitted_.primal is None
        session.estimator.predict_proba(NEW)
        session.undo()
        assert_allclose(session.estimator.predict_proba(NEW), before, rtol=0, atol=1e-8)
        assert session.estimator.fitted_.training.rows is not None
        session.discard()


def test_rows_of_forgotten_pictures_are_gone_from_the_disk(model: Path) -> None:
    with opened(model) as session:
        session.keep_rows()
        rows, kernel = session.estimator.fitted_.training.rows, session.estimator.kernel_
        assert rows is not None
        needles = rows.parts[0].phi[[4, 17]].flatten().numpy().copy()
        assert np.isin(needles, everything(model)).all()
        session.take(Edit("forget", (4, 17)))
        session.save()
        assert session.rows_kept
        assert not np.isin(needles, everything(model)).any()
        training = session.estimator.fitted_.training
        assert len(training) == len(training.pictures) == 22
        rest = np.delete(np.arange(24), [4, 17])
        assert_allclose(kernel_of(training), kernel[rest][:, rest], rtol=0, atol=1e-12)
    assert sorted(path.name for path in model.iterdir() if path.name.startswith((".", "rows"))) == ["rows.safetensors"]
    clf = TangentClassifier.from_pretrained(model, backbone=BACKBONE)
    clf.forget(3).save_pretrained(model)
    assert not (model / "rows.safetensors").exists()


@pytest.mark.parametrize("harm", ["flipped", "cut", "of another version", "empty"])
def test_a_file_that_does_not_fit_is_not_used(model: Path, harm: str) -> None:
    file = model / "rows.safetensors"
    with opened(model) as session:
        expected = session.estimator.influence(NEW)
        session.keep_rows()
    data = file.read_bytes()
    version = TangentClassifier.from_pretrained(model, backbone=BACKBONE).fitted_.version
    assert version is not None
    changed = {
        "flipped": data[:-9] + bytes([data[-9] ^ 1]) + data[-8:],
        "cut": data[:-64],
        "of another version": data.replace(version.seal.encode(), b"0" * 64),
        "empty": b"",
    }
    file.write_bytes(changed[harm])
    with opened(model) as session:
        assert_allclose(session.estimator.influence(NEW), expected, rtol=0, atol=1e-12)
        rows = session.estimator.fitted_.training.rows
        assert rows is not None
        assert rows.mapped == 0


def test_rows_that_cannot_be_written_leave_nothing(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = {path.name: path.read_bytes() for path in model.iterdir()}
    with opened(model) as session:
        with monkeypatch.context() as patch:
            patch.setattr("os.replace", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
            with pytest.raises(StoreError, match="No space left"):
                session.keep_rows()
        TangentClassifier.from_pretrained(model, backbone=BACKBONE).save_pretrained(model)
    with opened(model) as session:
        TangentClassifier.from_pretrained(model, backbone=BACKBONE).forget(3).save_pretrained(model)
        with pytest.raises(StoreError, match="changed by another process"):
            session.keep_rows()
    assert {path.name for path in model.iterdir()} == set(before) | {"audit.jsonl"}
