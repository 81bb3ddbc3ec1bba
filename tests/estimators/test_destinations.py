"""What may lie where a model goes: nothing of somebody else's is lost, and what cannot be replaced is told first."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from cli_cases import N, X, Y, refused, small
from small import FIXED

from tangentune import Pictures, TangentClassifier, _files
from tangentune.cli.app import main
from tangentune.errors import StoreError
from tangentune.estimators.model_directory import check_destination, read_model

pytestmark = pytest.mark.usefixtures("loadable")


def test_a_card_that_was_edited_by_hand_is_not_overwritten(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    card = model / "README.md"
    card.write_text(mine := card.read_text() + "\nAsk Ann about the third class.\n")
    refused(capsys, "forget", model, "1", words=("'README.md'", "move it away"))
    assert card.read_text() == mine
    card.rename(model.parent / "mine.md")
    assert main(["forget", str(model), "1", "-q"]) == 0
    assert main(["forget", str(model), "2", "-q"]) == 0  # our own card is replaced


@pytest.mark.parametrize("name", ["README.md", "report.html", "audit.jsonl"])
def test_a_directory_of_that_name_stays_with_its_contents(
    name: str, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (model / name).unlink(missing_ok=True)
    (model / name).mkdir()
    (model / name / "mine.txt").write_text("mine")
    refused(capsys, "forget", model, "1", words=(repr(name), "move it away"))
    assert (model / name / "mine.txt").read_text() == "mine"


def test_a_model_of_links_is_read_and_not_changed(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The layout of a download cache: names that link to blobs, which an edit would leave with all their pixels."""
    (tmp_path / "blobs").mkdir()
    for i, file in enumerate(sorted(model.iterdir())):
        file.rename(tmp_path / "blobs" / str(i))
        file.symlink_to(tmp_path / "blobs" / str(i))
    before = [path.read_bytes() for path in sorted((tmp_path / "blobs").iterdir())]
    assert len(TangentClassifier.from_pretrained(model).ids_) == N
    refused(capsys, "forget", model, "1", words=("are links", "cp -rL"))
    refused(capsys, "relabel", model, "1", "2", words=("are links",))
    assert [path.read_bytes() for path in sorted((tmp_path / "blobs").iterdir())] == before
    shutil.copytree(model, tmp_path / "copy")
    assert main(["forget", str(tmp_path / "copy"), "1", "-q"]) == 0


MOUNTED = """
import sys
from pathlib import Path
from tangentune._files import check_exchangeable
for name in ("disk", "same disk", "disk/m", "elsewhere"):
    try:
        check_exchangeable(Path(sys.argv[1]) / name)
    except OSError as error:
        print(f"{name}: {error.strerror}")
"""


def test_a_mount_point_is_refused_before_the_work(tmp_path: Path) -> None:
    for name in ("disk", "same disk", "elsewhere"):
        (tmp_path / name).mkdir()
    mounts = 'mount -t tmpfs none "$1/disk" && mount --bind "$1/elsewhere" "$1/same disk" && exec "$2" -c "$3" "$1"'
    command = ["unshare", "-rm", "sh", "-c", mounts, "sh", str(tmp_path), sys.executable, MOUNTED]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    try:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        pytest.skip("this system has no unshare")
    if "unshare" in done.stderr or "mount" in done.stderr:
        pytest.skip("this user may mount nothing")
    said = "it is a mount point, which no new directory can replace"
    assert done.stdout.splitlines() == [f"disk: {said}", f"same disk: {said}"]


def test_commands_ask_for_the_place_first(
    model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(_files, "is_mount", lambda path: path == model)
    monkeypatch.setattr(TangentClassifier, "fit", lambda *_: pytest.fail("the fit has begun"))
    monkeypatch.setattr(TangentClassifier, "from_pretrained", lambda *_: pytest.fail("the model was read"))
    refused(capsys, "forget", model, "1", words=("mount point", "mount the one above it"))
    refused(capsys, "fit", model.parent, "--out", model, words=("mount point", "name a folder in it"))


def test_a_busy_directory_is_one_sentence(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def busy(*_: object) -> None:
        raise OSError(errno.EBUSY, "Device or resource busy")

    monkeypatch.setattr(_files, "exchange", lambda *_: False)
    monkeypatch.setattr(os, "rename", busy)
    with pytest.raises(StoreError, match=r"cannot write .* \(Device or resource busy\); nothing was changed"):
        TangentClassifier.from_pretrained(model).forget("1").save_pretrained(model)
    assert len(read_model(model).settings["points"]) == N
    assert [path.name for path in model.parent.iterdir()] == [model.name]


@pytest.mark.parametrize("name", ["x" * 240, "x" * 5000, "a\0b"])
def test_names_that_no_disk_takes_are_refused_before_the_work(name: str, tmp_path: Path) -> None:
    for place in (tmp_path / name, tmp_path / "new" / name):
        with pytest.raises(StoreError, match="cannot write a model to") as caught:
            check_destination(place)
        assert "\n" not in str(caught.value)


def test_no_trace_of_a_forgotten_class_is_saved(tmp_path: Path) -> None:
    """Nor in the options, nor in the names of pictures in its folder that could not be read."""
    labels = [["ant", "zebra", "cat"][y % 3] for y in Y[:N]]
    names = [f"{label}/{i}.png" for i, label in enumerate(labels)]
    unread = [("zebra/broken.png", "cut"), ("cat/bad.png", "cut")]
    pictures = Pictures(torch.from_numpy(X[:N]), np.array(labels), names, unread)
    weights = {"ant": 1.5, "zebra": 2.0, "cat": 1.0}
    model = TangentClassifier(small(), **FIXED, class_weight=weights).fit(pictures)
    model.forget_class("zebra").save_pretrained(tmp_path / "m")
    assert not [path for path in (tmp_path / "m").iterdir() if b"zebra" in path.read_bytes()]
    again = TangentClassifier.from_pretrained(tmp_path / "m")
    assert again.get_params(deep=False)["class_weight"] == {"ant": 1.5, "cat": 1.0}
    assert json.loads((tmp_path / "m" / "config.json").read_text())["skipped"] == [["cat/bad.png", "cut"]]
    assert model.class_weight == weights
    assert model.undo().classes_.tolist() == ["ant", "cat", "zebra"]
