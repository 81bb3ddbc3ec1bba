"""Fits on landmarks from the command line: options, what is told, edits of the model that comes of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from cli_cases import X, Y, answer, folder_of, refused, small

FIT = ["--size", "8", "--outer-steps", "0", "--augment", "none", "--solver", "landmarks", "--landmarks", "12"]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Pictures in class folders, and a small network under any name."""
    for home in ("networks.backbone", "estimators.saving"):
        monkeypatch.setattr(f"tangentune.{home}.load_backbone", small)
    return folder_of(tmp_path / "pictures", list(range(len(X))), Y.tolist())


def fitted(folder: Path, capsys: pytest.CaptureFixture[str], *more: object) -> dict[str, Any]:
    return answer(capsys, "fit", folder, "--out", folder.parent / "model", *FIT, *more)


def test_a_fit_on_landmarks_is_told_saved_and_edited(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, work = folder.parent / "model", folder.parent / "work"
    made = fitted(folder, capsys, "--work", work)
    assert made["settings"]["landmarks"] == 12
    assert not work.exists()
    doubtful = answer(capsys, "suspects", model)["suspects"][0]["id"]
    assert answer(capsys, "forget", model, doubtful)["n"]["after"] == len(X) - 1
    assert len(answer(capsys, "predict", model, folder)["predictions"]) == len(X)


def test_what_does_not_fit_together_is_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place = folder.parent / "model"
    others = [*FIT[:-4], "--solver", "dual", "--landmarks", "12"]
    refused(capsys, "fit", folder, "--out", place, *others, words=("landmarks", "leave it out"))
    (folder.parent / "file").write_text("in the way")
    refused(capsys, "fit", folder, "--out", place, *FIT, "--work", folder.parent / "file", words=("file",))
    assert not place.exists()
