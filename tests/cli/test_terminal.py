"""Names from anywhere do not steer the terminal: errors, notes, tables and sentences show them escaped."""

from __future__ import annotations

import signal
from pathlib import Path

import numpy as np
import pytest
from cli_cases import SETTINGS, X, folder_of, small
from PIL import Image

from tangentune import TangentClassifier
from tangentune.cli.app import main
from tangentune.cli.run import run
from tangentune.errors import InputError, StoreError, shown

pytestmark = pytest.mark.usefixtures("loadable")

STEERING = "\x1b[2J\x07\u202e\u2066\x9b\x7f"


def test_errors_are_escaped_wherever_they_come_from() -> None:
    for kind in (InputError, StoreError):
        assert str(kind(f"no {STEERING} here")) == r"no \x1b[2J\x07\u202e\u2066\x9b\x7f here"
    assert shown("Möwe 日本 😀 a\u200db\u00a0c") == "Möwe 日本 😀 a\u200db\u00a0c"
    assert shown("a\nb\tc\u2028\ud800") == r"a\nb\tc\u2028\ud800"


def test_names_on_the_terminal_are_escaped(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = [f"{i}{STEERING}.png" for i in range(4)]
    for name, pixels in zip(names, X, strict=False):
        Image.fromarray(pixels.transpose(1, 2, 0)).save(tmp_path / name)
    (tmp_path / "t.csv").write_text("path\n" + "\n".join(names) + "\n", encoding="utf-8")
    labels = np.array([f"cat{STEERING}", f"dog{STEERING}", "eel"])[np.arange(9) % 3]
    ids = [f"{i}{STEERING}" for i in range(9)]
    model = TangentClassifier(small(), **SETTINGS).fit(X[:9], labels)
    model.fitted_.training.pictures.ids[:] = ids
    model.save_pretrained(tmp_path / "m")
    (tmp_path / names[3]).write_bytes(b"no picture")
    for arguments in (
        ["predict", "m", "t.csv", "--on-error", "skip"],
        ["predict", "m", "t.csv"],
        ["predict", "m", ".", "--on-error", "skip"],
        ["suspects", "m"],
        ["explain", "m", "t.csv", "--on-error", "skip"],
        ["forget", "m", f"x{STEERING}"],
        ["forget", "m", "--class", f"dog{STEERING}"],
        [f"m{STEERING}"],
        ["predict", f"m{STEERING}", "t.csv"],
    ):
        here = [str(tmp_path / word) if word in ("m", "t.csv", ".") else word for word in arguments]
        capsys.readouterr()
        main(here)
        said = "".join(capsys.readouterr())
        assert r"\x1b[2J" in said, arguments
        assert not {c for c in STEERING if not c.isprintable()} & set(said), arguments


def test_the_places_that_commands_write_to_are_escaped(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tangentune.networks.backbone.load_backbone", small)
    pictures = folder_of(tmp_path / "p", list(range(8)), [str(i % 2) for i in range(8)])
    model, page = tmp_path / f"m{STEERING}", tmp_path / f"p{STEERING}.html"
    others = ["--target", pictures, "--source", pictures, "--budget", "4", "--out", tmp_path / f"s{STEERING}.json"]
    for arguments in (
        ["fit", pictures, "--out", model, "--damping", "1", "--outer-steps", "0", "--n-jobs", "1"],
        ["report", model],
        ["report", model, "--out", page],
        ["suspects", model, "--out", page],
        ["explain", model, pictures, "--out", page, "--n-jobs", "1"],
        ["relabel", model, "0/0.png", "1"],
        ["select", *others, "--page", page, "--n-jobs", "1"],
    ):
        capsys.readouterr()
        assert main([str(word) for word in arguments]) == 0
        said = "".join(capsys.readouterr())
        assert r"\x1b[2J" in said, arguments
        assert not {c for c in STEERING if not c.isprintable()} & set(said), arguments


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_an_error_of_compiled_code_that_was_interrupted_is_an_interruption(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    def work() -> None:
        try:
            signal.raise_signal(getattr(signal, name))
        except KeyboardInterrupt as error:
            message = "could not determine the shape"  # as torch said when a read was interrupted
            raise ValueError(message) from error

    before = signal.getsignal(signal.SIGINT)
    assert run(work) == 130
    assert capsys.readouterr().err == "error: interrupted\n"
    assert signal.getsignal(signal.SIGINT) is before
    with pytest.raises(ValueError, match="ours"):
        run(lambda: int("ours"))
