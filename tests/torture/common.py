"""What all trials share: a model, pictures and commands of a small network, and what must hold of every answer."""

from __future__ import annotations

import atexit
import contextlib
import io
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable
from functools import cache
from pathlib import Path
from unittest.mock import patch

import numpy as np
import torch
from cli_cases import folder_of, small
from killing import wait
from small import FIXED, pictures

import tangentune.estimators.saving
import tangentune.networks.backbone
from tangentune import Pictures, TangentClassifier
from tangentune.cli.app import main

N = 16
X, Y = pictures(30)
CLASSES = ("benign", "malign", "unclear", "rarissima")
LABELS = np.array(CLASSES)[Y]
NAMES = [f"ward-{i % 3}/patient-{7919 * (i + 3):06d}.png" for i in range(N)]
SECRET, PIXELS, RARE = NAMES[7], X[7].tobytes()[:64], CLASSES[3]  # the picture is of that class
CHOICES = ["--damping", "1", "--body-scale", "1", "--metric-power", "0", "--normalize", "yes", "--n-jobs", "1"]
CHOICES += ["--outer-steps", "0", "--augment", "none"]
SECONDS = 60  # after which a command hangs
Outcomes = Counter[str]
Trial = Callable[[int, Path], Outcomes]


class Failed(Exception):
    """What should not have happened."""


@cache
def template() -> Path:
    """A saved model, pictures to add and pictures to fit, which trials copy.

    Every command runs once here, so that its modules are there for the children, which are copies of this process.
    """
    folder = Path(tempfile.mkdtemp(prefix="torture-"))
    atexit.register(_remove, folder, os.getpid())
    source = Pictures(torch.from_numpy(X[:N]), LABELS[:N], NAMES)
    TangentClassifier(small(), **FIXED).fit(source).save_pretrained(folder / "models" / "m")
    folder_of(folder / "new", [20, 22], LABELS[[20, 22]].tolist())
    folder_of(folder / "all", list(range(8, 20)), LABELS[8:20].tolist())
    shutil.copytree(folder / "models", folder / "warm")
    for name, arguments in commands(folder / "warm" / "m", folder).items():
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()) as said:
            code = command(*arguments)
        if code:
            message = f"{name} does not even work undisturbed: {said.getvalue()}"
            raise RuntimeError(message)
        shutil.rmtree(folder / "warm")
        shutil.copytree(folder / "models", folder / "warm")
    return folder


def _remove(folder: Path, process: int) -> None:
    if os.getpid() == process:
        shutil.rmtree(folder, ignore_errors=True)


def commands(model: Path, yard: Path) -> dict[str, list[object]]:
    """Every command that writes, by its name; pages go to a folder of their own, where nobody looks for a picture."""
    pages, one = model.parents[1] / "pages", ["--n-jobs", "1"]
    choice = ["--target", yard / "new", "--source", yard / "all", "--budget", "4"]
    return {
        "forget": ["forget", model, SECRET],
        "forget --strict": ["forget", model, SECRET, "--strict"],
        "forget --class": ["forget", model, "--class", RARE],
        "relabel": ["relabel", model, SECRET, CLASSES[0]],
        "add": ["add", model, yard / "new", *one],
        "fit": ["fit", yard / "all", "--out", model, *CHOICES],
        "report": ["report", model],
        "suspects": ["suspects", model, "--out", pages / "suspects.html"],
        "explain": ["explain", model, yard / "new", "--out", pages / "why.html", *one],
        "select": ["select", *choice, "--out", pages / "chosen.json", "--page", pages / "chosen.html", *one],
    }


def model_in(place: Path) -> Path:
    """A copy of the saved model."""
    shutil.copytree(template() / "models", place / "models", dirs_exist_ok=True)
    return place / "models" / "m"


def command(*arguments: object) -> int:
    """The command line with the small network."""
    with (
        patch.object(tangentune.estimators.saving, "load_backbone", small),
        patch.object(tangentune.networks.backbone, "load_backbone", small),
    ):
        return main([str(one) for one in arguments])


def ended(number: int, told: Path) -> int:
    """The exit code of a command, which says one sentence if it is a mistake, and does not hang."""
    code, text = wait(number, SECONDS), told.read_text(errors="replace")
    if "Traceback" in text or code not in (0, 2, 9, 130, -1, -2, -9, -15, 129, 143):
        raise Failed(f"a command ended with {code}: {text[-300:]}")
    if code == 2 and sum(line.startswith("error: ") for line in text.splitlines()) != 1:
        raise Failed(f"not one sentence: {text[-300:]!r}")
    return code


def one_sentence(text: str) -> None:
    """What a refusal says."""
    if not text.strip() or "\n" in text or "Traceback" in text or len(text) > 3000:
        raise Failed(f"not one sentence: {text[:300]!r}")
