"""The journal: no edit is lost, none comes back, and one workbench at a time."""

from __future__ import annotations

import json
import os
import shutil
import stat
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from killing import child, dying, steps_of, wait
from numpy.testing import assert_allclose
from small import FIXED, backbone, pictures

from tangentune import Pictures, TangentClassifier
from tangentune.errors import InputError, StoreError
from tangentune.workbench.edits import Edit
from tangentune.workbench.session import Session

BACKBONE = backbone()
X, Y = pictures(24)
NEW, _ = pictures(3, seed=5)
NAMES = np.array(["ant", "bee", "cat", "dog"])[Y]
IDS = [f"ward/patient-{7919 * (i + 3):06d}.png" for i in range(24)]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bytes of a saved model, to be copied."""
    folder = tmp_path_factory.mktemp("saved") / "m"
    TangentClassifier(BACKBONE, **FIXED).fit(Pictures(torch.from_numpy(X), NAMES, IDS)).save_pretrained(folder)
    return folder


@pytest.fixture
def model(saved: Path, tmp_path: Path) -> Path:
    (tmp_path / "m").mkdir()
    for file in saved.iterdir():
        (tmp_path / "m" / file.name).write_bytes(file.read_bytes())
    return tmp_path / "m"


def opened(model: Path) -> Session:
    return Session.open(model, backbone=BACKBONE)


def digest(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def worked_on(model: Path) -> Any:
    """A session that died after six edits: what it showed."""
    session = opened(model)
    session.take(Edit("relabel", (3,), "bee", why="a wing"))
    session.take(Edit("forget", (0, 5)))
    session.add(NEW, "emu", new_class=True)
    session.undo()
    session.redo()
    session.take(Edit("keep", (7,)))
    shown = session.figures(), session.classes, session.estimator.loo_predictions_, session.numbers
    assert session._journal is not None
    session._journal.close()
    return shown


def test_a_crash_loses_no_edit(model: Path) -> None:
    figures, classes, loo, numbers = worked_on(model)
    journal = model.parent / ".m.tangentune-journal"
    assert stat.S_IMODE(journal.stat().st_mode) == 0o600
    text = journal.read_text()
    assert "patient" not in text
    with opened(model) as session:
        pending = session.pending()
        assert pending is not None
        assert (pending.edits, pending.usable) == (6, True)
        with pytest.raises(InputError, match="6 unsaved edits .* replay or discard"):
            session.take(Edit("forget", (1,)))
        with pytest.raises(InputError, match="replay or discard"):
            session.save()
        assert session.replay() == figures
        assert session.pending() is None
        assert (session.classes, session.numbers) == (classes, numbers)
        assert_allclose(session.estimator.loo_predictions_, loo, rtol=0, atol=1e-12)
        session.undo()
        session.undo()
        assert "emu" not in session.classes
        session.redo()
        session.redo()
        assert session.figures() == figures
        session.save()
        assert not journal.exists()
        assert session.numbers == numbers
        with pytest.raises(InputError, match="no edit to undo"):
            session.undo()
    assert [path.name for path in model.parent.iterdir()] == ["m"]
    everything = b"".join(digest(model).values())
    assert not any(IDS[i].encode() in everything for i in (0, 5))
    with opened(model) as session:
        assert session.pending() is None
        assert 7 not in [row.number for row in session.suspects(99)]
        assert len(session.suspects(99)) == len(numbers) - 1


def test_a_line_that_was_cut_off_counts_for_nothing(model: Path) -> None:
    worked_on(model)
    journal = model.parent / ".m.tangentune-journal"
    journal.write_bytes(journal.read_bytes()[:-9])
    with opened(model) as session:
        pending = session.pending()
        assert pending is not None
        assert pending.edits == 5
        session.replay()
        session.take(Edit("forget", (1,)))
        figures = session.figures()
    with opened(model) as session:
        assert session.replay() == figures
    journal.write_bytes(journal.read_bytes().replace(b'"kind": "forget"', b'"kind": "burn"'))
    with pytest.raises(StoreError, match="line 3 of .* is damaged"):
        opened(model)


def test_a_first_line_that_was_cut_off_is_written_again(model: Path) -> None:
    journal = model.parent / ".m.tangentune-journal"
    journal.write_bytes(b'{"format": "tang')
    for _ in range(2):
        with opened(model) as session:
            if session.pending() is not None:
                session.replay()
            session.take(Edit("forget", (1 + session.unsaved,)))
    with opened(model) as session:
        session.replay()
        assert len(session.numbers) == 22
    journal.write_text('{"format": "diary", "version": "1"}\n')
    with pytest.raises(StoreError, match="line 1 of .* is damaged"):
        opened(model)


def test_unwanted_edits_go(model: Path) -> None:
    worked_on(model)
    before = digest(model)
    with opened(model) as session:
        session.discard()
        assert session.pending() is None
        assert session.figures() == session.opening
        session.take(Edit("forget", (1,)))
        session.undo()
        session.redo()
        session.discard()
        assert (session.figures(), session.unsaved, session.can_redo) == (session.opening, 0, 0)
    assert digest(model.parent) == {f"m/{name}": data for name, data in before.items()}


def test_a_killed_save_leaves_the_model_before_or_after(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed before the new model is in its place the edits are offered again; after it they are in the model."""
    before = digest(model)

    def killed(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    for where, left in (("tangentune._files.put_in_place", 2), ("tangentune.workbench.journal.Journal.remove", 0)):
        session = opened(model)
        session.take(Edit("forget", (0, 5)))
        session.take(Edit("relabel", (3,), "bee"))
        with monkeypatch.context() as patch:
            patch.setattr(where, killed)
            with pytest.raises(KeyboardInterrupt):
                session.save()
        session.close()
        assert (digest(model) == before) == bool(left)
        assert (model.parent / ".m.tangentune-journal").exists()
        with opened(model) as again:
            pending = again.pending()
            assert (0 if pending is None else pending.edits) == left
            assert (0 in again.numbers) == bool(left)
            again.discard()
    assert [path.name for path in model.parent.iterdir()] == ["m"]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="kills child processes")
def test_killed_at_any_step_nothing_is_lost(model: Path, tmp_path: Path) -> None:
    """A child takes an edit and saves, and is killed at a step that touches the disk: at many of them, one by one."""

    def work() -> None:
        session = opened(model)
        session.take(Edit("forget", (0, 5)))
        session.take(Edit("relabel", (3,), "bee"))
        session.save()

    before, whole = digest(model), {path.name: path.read_bytes() for path in model.iterdir()}
    steps = steps_of(work, tmp_path, tmp_path / "told")
    (tmp_path / "told").unlink()
    outcomes = set()
    for step in np.linspace(1, steps, 10).round().astype(int).tolist():
        shutil.rmtree(model)
        model.mkdir()
        for name, data in whole.items():
            (model / name).write_bytes(data)
        assert wait(child(dying(work, step, tmp_path))) == 9
        with opened(model) as session:
            pending, numbers = session.pending(), session.numbers
            left = 0 if pending is None else pending.edits
            outcomes.add((0 in numbers, left))
            assert (digest(model) == before) == (0 in numbers)
            if left:
                session.replay()
            if left == 2 or 0 not in numbers:
                assert session.members("bee") == [1, 3, 9, 13, 17, 21]
                session.take(Edit("keep", (1,)))
                session.save()
                assert not any(IDS[i].encode() in data for i in (0, 5) for data in digest(tmp_path).values())
            session.discard()
        assert [path.name for path in tmp_path.iterdir()] == ["m"]
    assert outcomes >= {(True, 2), (False, 0)}
    assert outcomes <= {(True, 0), (True, 1), (True, 2), (False, 0)}


def test_edits_of_another_version_are_not_taken(model: Path) -> None:
    worked_on(model)
    clf = TangentClassifier.from_pretrained(model, backbone=BACKBONE)
    clf.forget([1]).save_pretrained(model)
    with opened(model) as session:
        pending = session.pending()
        assert pending is not None
        assert not pending.usable
        with pytest.raises(StoreError, match="changed since .* discard"):
            session.replay()
        session.discard()
        session.take(Edit("forget", (0,)))


def test_one_workbench_at_a_time(model: Path) -> None:
    with opened(model), pytest.raises(StoreError, match="another workbench is open"):
        opened(model)
    opened(model).close()


def test_an_edit_that_cannot_be_noted_is_not_taken(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with opened(model) as session:
        session.take(Edit("forget", (1,)))
        journal = model.parent / ".m.tangentune-journal"
        before, shown = journal.read_bytes(), session.figures()

        def full(*_: Any) -> int:
            raise OSError(28, "No space left on device")

        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", full)
            with pytest.raises(StoreError, match=r"No space left.*nothing was changed"):
                session.take(Edit("forget", (2,)))
        assert (journal.read_bytes(), session.figures(), session.version) == (before, shown, 1)
        session.take(Edit("forget", (2,)))
        assert [json.loads(line).get("kind") for line in journal.read_text().splitlines()] == [None, "forget", "forget"]
        session.discard()


def test_a_model_without_pictures_says_so(model: Path) -> None:
    clf = TangentClassifier.from_pretrained(model, backbone=BACKBONE)
    clf.save_pretrained(model, pictures=False)
    with opened(model) as session:
        assert "saved without its pictures" in str(session.notice)
        assert session.figures() == session.opening
        assert len(session.suspects(5)) == 5
        with pytest.raises(InputError, match="without its pictures"):
            session.picture(3)
        with pytest.raises(InputError, match="without its pictures"):
            session.take(Edit("forget", (3,)))
        assert not (model.parent / ".m.tangentune-journal").exists()
