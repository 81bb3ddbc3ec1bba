"""The site's own pages: tutorials and how-to pages run, commands and names exist, and no page is left off the map."""

from __future__ import annotations

import fnmatch
import re
import runpy
import shlex
import sys
from pathlib import Path
from typing import Any

import click
import pytest
from documents import DOCUMENTS, NOTEBOOKS, NUMBER, ROOT, blocks, cells, name_of, need_packages, prose, run_blocks

import tangentune
from tangentune.cli.app import cli

DOCS = ROOT / "docs"
HOW_TO = sorted(path for path in DOCS.glob("howto/*.md") if blocks(prose(path), "python"))
# Tutorials run at a smaller size, with less to choose, or on a part of a network; how-to pages with a network of two
# layers: they show the code.
SMALLER = {
    "input_size=64": "input_size=32, metric_power=0",
    "(3, 64, 64)": "(3, 32, 32)",
    "metric_power=0.25": "metric_power=0",
    "shots=[5]": "shots=[2]",
    'load_backbone("mobilenet_v2").module.features': 'load_backbone("mobilenet_v2").module.features[:2]',
    "nn.Linear(1280, 40)": "nn.Linear(16, 40)",
}
TINY = {
    'load_backbone("mobilenet_v2").contract.with_size(64)': "small().contract",
    '"mobilenet_v2", input_size=64': "small()",
}
CLASSES = r"(?:Actinoptychus|Bacillariophyceae|Ciliophora|Dinoflagellata|Noctilucales|Tripos)"


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MPLBACKEND", "agg")


def replaced(code: str, words: dict[str, str]) -> str:
    for there, here in words.items():
        code = code.replace(there, here)
    return code


def outline(text: str) -> list[str]:
    """What is printed, whatever the pictures, figures and units: two runs at different sizes agree in it."""
    text = re.sub(rf"{CLASSES}(?:/\d+\.jpg)?", "CLASS", text)
    text = re.sub(r"\b(?:[MG]i?B|seconds|minutes|s)\b", "UNIT", NUMBER.sub("#", text).replace("-#", "#"))
    return [" ".join(line.split()) for line in text.splitlines()]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=name_of)
@pytest.mark.usefixtures("short_network")
def test_a_tutorial_prints_what_it_shows(path: Path) -> None:
    need_packages()
    found = cells(path, "code")
    printed = run_blocks([replaced("".join(cell["source"]), SMALLER) for cell in found], path.name)
    for cell, new in zip(found, printed, strict=True):
        if "!tangentune" not in "".join(cell["source"]):  # whose tables are as wide as the terminal
            shown = "".join("".join(one["text"]) for one in cell["outputs"] if one.get("name") == "stdout")
            assert outline(new) == outline(shown), f"run python docs/run_tutorials.py {path.stem}"
    everything = "".join(printed)
    if path.stem == "plankton":
        assert int(re.findall(r"(\d) of our 5 mistakes", everything)[0]) >= 3
        before, after = map(float, re.findall(r"accuracy (\S+) before, (\S+) after", everything)[0])
        assert after > before, "corrections of planted mistakes pay"
        assert "Moved: " in everything
        assert (Path.cwd() / "plankton-report.html").stat().st_size > 10_000
    if path.stem == "engineer":
        assert "more than the memory budget" in everything
        assert float(re.findall(r"unseen pictures (\S+)", everything)[0]) > 0.5


@pytest.mark.parametrize("path", HOW_TO, ids=name_of)
def test_a_how_to_page_runs(path: Path) -> None:
    """From top to bottom; its assertions hold, and every number that it prints is a number."""
    need_packages()
    code = "from cli_cases import small\n" + replaced("\n".join(blocks(prose(path), "python")), TINY)
    assert "mobilenet_v2" not in code
    (printed,) = run_blocks([code], path.name)
    assert NUMBER.search(printed)
    assert "nan" not in printed


def commands(text: str) -> set[str]:
    """Lines for a terminal, and commands within the text, that start with `tangentune`."""
    lines = [line for block in blocks(text, "console") for line in block.splitlines()]
    found = {line.removeprefix("$ ").partition(" #")[0] for line in lines if line.startswith("$ tangentune ")}
    plain = re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)
    return found | {" ".join(one.split()) for one in re.findall(r"`(tangentune [a-z][^`]*)`", plain)}


def test_commands_on_the_pages_exist_with_their_options() -> None:
    seen = 0
    for path in DOCUMENTS:
        for line in commands(prose(path)):
            name, *words = shlex.split(line)[1:]
            assert name in cli.commands, f"{path.name}: there is no command {name!r}"
            options = [param for param in cli.commands[name].params if isinstance(param, click.Option)]
            known = {one for option in options for one in option.opts}
            for word in words:
                if re.match(r"--?[a-z]", word):
                    assert word in known | {"--help"}, f"{path.name}: tangentune {name} has no option {word}"
                    seen += 1
    assert seen > 20


def named_in_the_reference() -> set[str]:
    """Full public names that a directive of the reference describes; a module stands for its `__all__`."""
    found = set()
    for path in DOCS.glob("reference/*.md"):
        home = ""
        for kind, name in re.findall(r"^\.\. (\w+):: (\S+)$", path.read_text(encoding="utf-8"), re.MULTILINE):
            if kind == "currentmodule":
                home = name
            elif kind == "automodule":
                found |= {f"{name}.{one}" for one in module(name).__all__}
            elif kind.startswith("auto"):
                getattr(module(home), name)
                found.add(f"{home}.{name}")
    return found


def module(name: str) -> Any:
    return getattr(tangentune, name.partition(".")[2]) if "." in name else tangentune


def test_the_reference_has_every_public_name() -> None:
    modules = set(tangentune._MODULES)
    wanted = {f"tangentune.{name}" for name in tangentune.__all__ if name not in modules}
    wanted |= {f"tangentune.{name}.{one}" for name in modules for one in module(f"tangentune.{name}").__all__}
    assert wanted == named_in_the_reference()


def test_every_page_is_on_the_map(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", list(sys.path))
    contents = runpy.run_path(str(DOCS / "conf.py"))["CONTENTS"]
    patterns = ["index"]
    for page, parts in contents.items():
        assert (DOCS / f"{page}.md").exists(), page
        folder = page.rpartition("/")[0]
        named = [re.sub(r".*<(.*)>", r"\1", one) for pages in parts.values() for one in pages]
        patterns += [f"{folder}/{one}" if folder else one for one in named]
    pages = {path.relative_to(DOCS).with_suffix("").as_posix() for path in DOCUMENTS if DOCS in path.parents}
    lost = {page for page in pages if not any(fnmatch.fnmatchcase(page, pattern) for pattern in patterns)}
    assert not lost, "name it in CONTENTS of docs/conf.py"
    dead = {one for one in patterns if not any(fnmatch.fnmatchcase(page, one) for page in pages)}
    assert not dead
