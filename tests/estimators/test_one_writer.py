"""Several writers of one model, and writers that are killed: no change is lost, nothing forgotten stays on the disk.

A child process is killed at every step that touches the disk in turn; whatever it leaves, the next edit clears away.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable
from copy import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from cli_cases import N, X, Y, answer, refused, small
from killing import child, dying, seen, wait
from small import FIXED

from tangentune import Pictures, TangentClassifier, write_report
from tangentune._files import exchange
from tangentune.cli.app import main
from tangentune.errors import StoreError
from tangentune.estimators.model_directory import check_destination, read_model
from tangentune.reports.pages import write_page

pytestmark = [
    pytest.mark.usefixtures("loadable"),
    pytest.mark.skipif(not hasattr(os, "fork"), reason="kills child processes"),
]
NAMES = [f"ward-{i % 3}/patient-{7919 * (i + 3):06d}.png" for i in range(N)]
SECRET, NEXT = NAMES[7], NAMES[3]
PIXELS = X[7].tobytes()[:64]


@pytest.fixture(scope="module")
def named(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose pictures have the names of people."""
    folder = tmp_path_factory.mktemp("named") / "m"
    TangentClassifier(small(), **FIXED).fit(Pictures(torch.from_numpy(X[:N]), Y[:N], NAMES)).save_pretrained(folder)
    return folder


@pytest.fixture
def place(named: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(named, tmp_path / "models" / "m"))


def test_edits_at_the_same_time_all_count(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    commands = [["forget", NAMES[i]] for i in (2, 7, 9)] + [["relabel", NAMES[4], "3"]]
    children = [child(lambda c=c: main([c[0], str(place), *c[1:], "-q"])) for c in commands]
    assert [wait(number) for number in children] == [0] * 4
    model = TangentClassifier.from_pretrained(place)
    assert model.ids_ == [name for i, name in enumerate(NAMES) if i not in (2, 7, 9)]
    assert model.targets_[model.ids_.index(NAMES[4])] == 3
    assert len(model.edits_) == 4
    assert [path.name for path in place.parent.iterdir()] == ["m"]


def test_a_place_may_be_looked_at_while_others_write_there(place: Path, tmp_path: Path) -> None:
    """Two versions, whose files have other names, exchanged again and again: neither is something foreign."""
    other = Path(shutil.copytree(place, tmp_path / "other"))
    assert main(["forget", str(other), NAMES[2], "-q"]) == 0
    number = child(lambda: [(exchange(place, other), time.sleep(0.008)) for _ in range(150)] and 0)
    try:
        for _ in range(2000):
            assert check_destination(place) == place.resolve()
    finally:
        assert wait(number) == 0


def test_a_held_model_is_refused_after_a_while(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from tangentune import _files

    ready, go = os.pipe()

    def hold() -> None:
        with _files.locked(place):
            os.write(go, b"x")
            os.read(os.pipe()[0], 1)  # for ever

    number = child(hold)
    os.read(ready, 1)
    monkeypatch.setattr(_files, "PATIENCE", 0.1)
    try:
        refused(capsys, "forget", place, SECRET, words=("another process is changing", str(place)))
        assert answer(capsys, "suspects", place)["suspects"]  # who only reads need not wait
    finally:
        os.kill(number, 9)
        wait(number)
    assert answer(capsys, "forget", place, SECRET)["n"]["after"] == N - 1  # the dead hold nothing


def test_a_disk_without_locks_is_told(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def none(*_: Any, **__: Any) -> None:
        raise OSError(37, "No locks available")

    monkeypatch.setattr("filelock.FileLock.acquire", none)
    refused(capsys, "forget", place, SECRET, words=("No locks available", "use a disk that has locks"))
    assert SECRET in TangentClassifier.from_pretrained(place).ids_


def test_a_loaded_model_does_not_undo_what_others_did(place: Path) -> None:
    first, second = (TangentClassifier.from_pretrained(place) for _ in range(2))
    first.forget(SECRET).save_pretrained(place)
    with pytest.raises(StoreError, match="changed by another process"):
        second.relabel(NEXT, 2).save_pretrained(place)
    assert not seen(place.parent, SECRET.encode(), PIXELS)
    first.relabel(NEXT, 2).save_pretrained(place)  # who changed it last goes on
    second.save_pretrained(place.parent / "other")


def test_a_fit_over_a_model_that_was_edited_meanwhile_goes_beside_it(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from cli_cases import folder_of

    real = TangentClassifier.fit

    def meanwhile(self: TangentClassifier, *arguments: Any, **more: Any) -> Any:
        TangentClassifier.from_pretrained(place).forget(SECRET).save_pretrained(place)
        return real(self, *arguments, **more)

    monkeypatch.setattr("tangentune.networks.backbone.load_backbone", small)
    monkeypatch.setattr(TangentClassifier, "fit", meanwhile)
    source = folder_of(tmp_path / "p", list(range(12)), [str(y) for y in Y[:12]])
    choices = ["--damping", "1", "--body-scale", "1", "--metric-power", "0", "--normalize", "yes", "--n-jobs", "1"]
    choices += ["--probe-space", "isotropic", "--outer-steps", "0"]
    facts = answer(capsys, "fit", source, "--out", place, *choices)
    assert facts["model"] == f"{place}-2"
    assert SECRET not in TangentClassifier.from_pretrained(place).ids_
    assert len(TangentClassifier.from_pretrained(f"{place}-2").ids_) == 12


def test_a_page_of_a_model_that_was_edited_meanwhile_is_not_placed(place: Path) -> None:
    before = TangentClassifier.from_pretrained(place)
    TangentClassifier.from_pretrained(place).forget(SECRET).save_pretrained(place)
    with pytest.raises(StoreError, match="changed by another process"):
        write_page(f"a page with {SECRET}", place / "report.html", before.fitted_.version)
    with pytest.raises(StoreError, match="changed by another process"):
        write_page("a page of no saved model", place / "report.html")
    assert not seen(place.parent, SECRET.encode())
    write_page("a page elsewhere", place.parent / "report.html")


EDITS: dict[str, Callable[[Any], Any]] = {
    "forget": lambda model: model.forget(SECRET), "relabel": lambda model: model.relabel(NEXT, 2),
}  # fmt: skip


@pytest.mark.parametrize(("edit", "swap"), [("forget", True), ("relabel", False)])
def test_killed_at_any_step_of_a_save_nothing_forgotten_stays(
    edit: str, swap: bool, place: Path, named: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not swap:
        monkeypatch.setattr("tangentune._files.exchange", lambda *_: False)
    changed = EDITS[edit](TangentClassifier.from_pretrained(place))
    following = TangentClassifier.from_pretrained(named).forget([SECRET, NEXT])
    for model in (changed, following):
        assert model.model_  # summed once, not in every child
    codes, step = [], 0
    while not codes or codes[-1] == 9:
        step += 1
        codes.append(wait(child(dying(lambda: changed.save_pretrained(place), step, place.parent))))
        if not place.exists():  # between the two renames of a system that cannot swap
            assert not swap
            with pytest.raises(StoreError, match="rename it back") as caught:
                read_model(place)
            former = next(path for path in place.parent.iterdir() if path.name in str(caught.value))
            former.rename(place)
        assert len(read_model(place).edits) in (0, 1)  # the old one or the new one, whole
        copy(following).save_pretrained(place)
        assert not seen(place.parent, SECRET.encode(), NEXT.encode(), PIXELS)
        assert [path.name for path in place.parent.iterdir()] == ["m"]
        shutil.rmtree(place)
        shutil.copytree(named, place)
    assert codes[-1] == 0
    assert step > 15


def test_killed_at_any_step_of_a_page_it_does_not_stop_the_next_edit(place: Path, named: Path) -> None:
    model = TangentClassifier.from_pretrained(place)
    page, codes, left = f"<p>{SECRET}", [], []

    def work() -> None:
        write_page(page, place / "report.html", model.fitted_.version)

    while not codes or codes[-1] == 9:
        codes.append(wait(child(dying(work, len(codes) + 1, place.parent))))
        left += [path.name for path in place.iterdir() if path.name.endswith(".part")]
        TangentClassifier.from_pretrained(place).forget(SECRET).save_pretrained(place)
        assert not seen(place.parent, SECRET.encode(), PIXELS)
        shutil.rmtree(place)
        shutil.copytree(named, place)
    assert left
    assert codes[-1] == 0


def test_what_cannot_be_removed_is_named_and_no_success_is_told(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real = os.unlink

    def stubborn(path: Any, **more: Any) -> None:
        if os.fspath(path) == "pictures.safetensors":
            raise PermissionError(1, "Operation not permitted", path)
        real(path, **more)

    with monkeypatch.context() as patch:
        patch.setattr(os, "unlink", stubborn)
        refused(
            capsys, "forget", place, SECRET, words=("the model is written, but", ".tangentune-partial", "remove it")
        )
        refused(capsys, "forget", place, NEXT, words=("an older version of", ".tangentune-partial"))
    assert seen(place.parent, PIXELS)
    assert NEXT in TangentClassifier.from_pretrained(place).ids_
    answer(capsys, "forget", place, NEXT)
    assert not seen(place.parent, SECRET.encode(), NEXT.encode(), PIXELS)


def test_another_model_with_a_longer_name_keeps_what_its_writer_writes(place: Path) -> None:
    other = place.parent / ".m.v2.0123456789ab.tangentune-partial"
    other.mkdir()
    TangentClassifier.from_pretrained(place).forget(SECRET).save_pretrained(place)
    assert other.exists()


def test_what_an_earlier_version_left_of_a_page_goes_with_the_next_edit(place: Path) -> None:
    (place / ".report.html.partial").write_text(SECRET, encoding="utf-8")
    TangentClassifier.from_pretrained(place).forget(SECRET).save_pretrained(place)
    assert not seen(place.parent, SECRET.encode())


def test_a_report_of_the_model_itself_is_written(place: Path) -> None:
    model = TangentClassifier.from_pretrained(place).forget(SECRET)
    model.save_pretrained(place)
    assert SECRET not in write_report(model, place / "report.html").read_text(encoding="utf-8")
    assert [path.name for path in place.parent.iterdir()] == ["m"]
