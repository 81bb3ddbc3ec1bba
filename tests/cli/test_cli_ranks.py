"""Commands shared among ranks: the same bits by one, two and four, and after a kill; one rank speaks and writes."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, partial
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from cli_cases import N, X, Y, folder_of, save_models, small
from killing import child, wait
from PIL import Image

from tangentune._files import load_tensors
from tangentune.cli.app import main
from tangentune.kernels import landmark_fit
from tangentune.methods.source_selection import extract
from tangentune.pictures import ranks, stream
from tangentune.workbench import suggest

FIT = ["--size", 8, "--outer-steps", 0, "--augment", "none", "--solver", "landmarks", "--landmarks", 12]
COMMANDS: dict[str, list[Any]] = {
    "predict": ["predict", "classes", "new", "--out", "HERE/out.csv"],
    "predict numbers": ["predict", "numbers", "new", "--no-unlike", "--out", "HERE/out.csv", "--on-error", "skip"],
    "evaluate": ["evaluate", "classes", "new", "--work", "HERE/work", "--json", "--page", "HERE/page.html"],
    "evaluate numbers": ["evaluate", "numbers", "new.csv", "--work", "HERE/work", "--json"],
    "fit": ["fit", "new", "--out", "HERE/model", *FIT],
    "suggest": ["suggest", "classes", "new", "--budget", 2, "--work", "HERE/work", "--json"],
    "select": [
        "select",
        "--cache",
        "HERE/c",
        "--target",
        "target",
        "--source",
        "new",
        "--budget",
        6,
        "--out",
        "HERE/m.json",
    ],
}
Found = dict[str, Any]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Saved models; labelled pictures of which the models know some, as folders and as a table; a target set.

    What reads pictures and draws pages is imported here, or every child would.
    """
    Image.init()
    import_module("tangentune.reports.figures")
    root = save_models(tmp_path_factory.mktemp("place"))
    new = list(range(12, 30))
    folder_of(root / "new", new, Y[new].tolist())
    folder_of(root / "target", list(range(10)), [f"t{one}" for one in Y[:10]])
    rows = [f"new/{Y[i]}/{i}.png,{X[i].mean()}" for i in new]
    (root / "new.csv").write_text("\n".join(["path,label", *rows]))
    return root


@pytest.fixture(autouse=True)
def small_shards(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for home in ("networks.backbone", "estimators.saving"):
        monkeypatch.setattr(f"tangentune.{home}.load_backbone", small)
    monkeypatch.setattr(stream, "PORTION", 5)
    monkeypatch.setattr(landmark_fit, "SHARD", 4)
    monkeypatch.setattr(suggest, "PORTION", 4)
    monkeypatch.setattr(extract, "extract_features", partial(extract.extract_features, shard_size=4))
    monkeypatch.chdir(place)


def start(here: Path, command: str, count: int, pause: float = 0.0) -> list[int]:
    """The processes of a command, of which each takes a while for a shard."""
    here.mkdir(exist_ok=True)
    words = [str(word).replace("HERE", str(here)) for word in COMMANDS[command]]

    @contextmanager
    def slow(file: Path) -> Iterator[bool]:
        with claimed(file) as mine:
            time.sleep(pause if mine and not file.exists() else 0)
            yield mine

    def work(number: int) -> Callable[[], int]:
        def run() -> int:
            os.environ |= {"RANK": str(number), "WORLD_SIZE": str(count)}
            ranks.claimed = slow
            return main([*words, "--n-jobs", "1"])

        return run

    claimed = ranks.claimed
    return [child(work(i), here / f"said-{i}") for i in range(count)]


def result(here: Path) -> Found:
    """All that was written, and what the rank that leads has said; the others are silent."""
    every = [one for one in here.rglob("*") if one.is_file() and here / "c" not in one.parents]
    files = {str(one.relative_to(here)): one for one in every}
    said = {name: files.pop(name).read_text() for name in list(files) if name.startswith("said-")}
    assert not any(text for name, text in said.items() if name != "said-0")
    assert not list(here.glob(".*.parts")) + list(here.glob("work/*"))
    found: Found = {"said": said["said-0"].replace(str(here), "").splitlines()}
    for name, file in files.items():
        if file.suffix == ".safetensors":
            found |= {f"{name}/{key}": value.numpy().tobytes() for key, value in load_tensors(file)[1].items()}
        elif "model" not in name:  # whose settings have times
            found[name] = file.read_bytes().replace(str(here).encode(), b"")
    return found


def plain(found: Found) -> Found:
    """Of what was said the documents alone: bars and seconds differ."""
    return found | {"said": [line for line in found["said"] if line.strip() and line[:1] in " {}[]"]}


def made_by(count: int, command: str, here: Path) -> Found:
    """What that many processes make of a command."""
    assert [wait(one) for one in start(here, command, count)] == [0] * count
    made = result(here)
    assert not any("another map" in line for line in made["said"])  # a fit's rows were shared, not made twice
    return plain(made)


@pytest.fixture(scope="module")
def alone(place: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Found]:
    """What one process makes of a command, done once for each."""
    return cache(lambda command: made_by(1, command, tmp_path_factory.mktemp("alone") / command))


@pytest.mark.parametrize("command", COMMANDS)
def test_any_number_of_processes_does_the_same(
    place: Path, tmp_path: Path, command: str, alone: Callable[[str], Found]
) -> None:
    """Four here, and two in the next test."""
    found = alone(command)
    assert len(found) > 1 or len(found["said"]) > 10
    assert made_by(4, command, tmp_path / "by4") == found


@pytest.mark.parametrize("command", ["predict", "evaluate", "fit", "suggest", "select"])
def test_a_killed_run_goes_on(place: Path, tmp_path: Path, command: str, alone: Callable[[str], Found]) -> None:
    """One rank dies, torchrun ends the other; the second start takes what is there."""
    here = tmp_path / "killed"
    both = start(here, command, 2, pause=0.4)

    def done() -> set[Path]:
        places = [*here.glob(".*.parts/*"), *here.glob("work/*/*"), *here.glob("c/features-*/features-*.npy")]
        return {one for one in places if one.suffix in ("", ".npy", ".safetensors") and not one.name.startswith(".")}

    ends = time.monotonic() + 60
    while not done():
        assert time.monotonic() < ends
        time.sleep(0.01)
    for one in reversed(both):
        os.kill(one, signal.SIGKILL)
        assert wait(one) == -signal.SIGKILL
    kept = {one: one.stat().st_mtime_ns for one in done()}
    assert kept
    assert [wait(one) for one in start(here, command, 2)] == [0, 0]
    assert all(one.stat().st_mtime_ns == at for one, at in kept.items() if one.exists())  # features stay, the rest goes
    assert plain(result(here)) == alone(command)


def refused(here: Path, words: list[Any], sentence: str) -> None:
    """By the rank that leads alone; the other ends quietly."""
    COMMANDS["refused"] = words
    codes = [wait(one) for one in start(here, "refused", 2)]
    said = [(here / f"said-{i}").read_text() for i in range(2)]
    assert codes == [2, 0]
    assert sentence in said[0]
    assert said[0].count("\n") == 1
    assert said[1] == ""


def test_what_cannot_be_shared_is_refused_once(place: Path, tmp_path: Path) -> None:
    beside = "several processes share their answers in a folder beside the table; give --out FILE"
    refused(tmp_path, ["predict", "classes", "new", "-q"], beside)
    refused(tmp_path, ["predict", "classes", "new", "--out", "-", "-q"], beside)
    for words in (["evaluate", "classes", "new"], ["suggest", "classes", "new", "--budget", 2]):
        where = f"several processes share {words[0]} in a folder that all of them see; give --work DIR"
        refused(tmp_path, [*words, "-q"], where)
    cache = ["select", "--target", "target", "--source", "new", "--budget", 3, "--out", tmp_path / "m", "-q"]
    refused(tmp_path, cache, "in a folder that all see; give --cache DIR")
    whole = [*FIT[:-4], "--solver", "dual"]
    sentence = "a fit that compares every picture with every other is not shared among processes"
    refused(tmp_path, ["fit", "new", "--out", tmp_path / "model", *whole, "-q"], sentence)
    assert not (tmp_path / "model").exists()


def test_of_other_commands_one_process_does_the_work(place: Path, tmp_path: Path) -> None:
    COMMANDS["explain"] = ["explain", "classes", "new", "--json"]
    assert [wait(one) for one in start(tmp_path, "explain", 2)] == [0, 0]
    assert "explanations" in (tmp_path / "said-0").read_text()
    assert (tmp_path / "said-1").read_text() == ""


def test_unreadable_pictures_are_told_as_by_one(place: Path, tmp_path: Path) -> None:
    folder = tmp_path / "some"
    folder.mkdir()
    for i in range(N - 8, N):
        Image.fromarray(X[i].transpose(1, 2, 0)).save(folder / f"{i}.png")
        (folder / f"{i}x.png").write_text("no picture")
    COMMANDS["unreadable"] = ["predict", "classes", folder, "--out", "HERE/out.csv", "--on-error", "skip", "--json"]
    found = []
    for count in (1, 2):
        assert [wait(one) for one in start(tmp_path / f"by{count}", "unreadable", count)] == [0] * count
        found.append(result(tmp_path / f"by{count}"))
    assert found[0]["out.csv"] == found[1]["out.csv"]
    assert found[0]["out.csv"].count(b"\n") == 9
    assert "".join(found[0]["said"]).count("no picture") == "".join(found[1]["said"]).count("no picture")
