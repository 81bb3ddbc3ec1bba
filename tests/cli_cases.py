"""Small float64 models on the disk, and the command line asked about them."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from small import FIXED, MEAN, STD, network, pictures

from tangentune import Backbone, TangentClassifier, TangentRegressor
from tangentune.cli.app import main
from tangentune.networks.backbone import parameter_digest

N = 20
X, Y = pictures(30)
SETTINGS = {**FIXED, "random_state": 3, "batch_size": 7}


def small(_: str = "small") -> Backbone:
    """The small network under a name, as if it could be loaded by that."""
    backbone = Backbone(network(), input_size=(3, 8, 8), mean=MEAN, std=STD, name="small")
    backbone._loaded = "small", parameter_digest(backbone.module)  # as `load_backbone` would leave it
    return backbone


def fitted(x: np.ndarray, y: np.ndarray) -> Any:
    kind = TangentRegressor if y.dtype.kind == "f" else TangentClassifier
    return kind(small(), **SETTINGS).fit(x, y)


def digest(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def answer(capsys: pytest.CaptureFixture[str], *arguments: object) -> dict[str, Any]:
    capsys.readouterr()
    assert main([*map(str, arguments), "--json", "-q"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    return json.loads(out)


def refused(capsys: pytest.CaptureFixture[str], *arguments: object, words: tuple[str, ...], quiet: bool = True) -> None:
    """Exit code 2, nothing on stdout, one sentence on stderr."""
    capsys.readouterr()
    assert main([*map(str, arguments), *(["-q"] if quiet else [])]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    (line,) = err.splitlines()
    assert line.startswith("error: ")
    for word in words:
        assert word in line


def same(folder: Path, x: np.ndarray, y: np.ndarray) -> Any:
    """The saved model, which must answer as one fitted to these pictures."""
    found, expected = type(fitted(x, y)).from_pretrained(folder), fitted(x, y)
    values = (m.decision_function(X[20:]) if hasattr(m, "classes_") else m.predict(X[20:]) for m in (found, expected))
    np.testing.assert_allclose(*values, rtol=0, atol=1e-8)
    np.testing.assert_allclose(found.loo_predictions_, expected.loo_predictions_, rtol=0, atol=1e-8)
    assert found.targets_.tolist() == y.tolist()
    return found


def folder_of(root: Path, rows: list[int], labels: list[Any]) -> Path:
    for i, label in zip(rows, labels, strict=True):
        (root / str(label)).mkdir(parents=True, exist_ok=True)
        Image.fromarray(X[i].transpose(1, 2, 0)).save(root / str(label) / f"{i}.png")
    return root


def save_models(folder: Path) -> Path:
    """A classifier of whole numbers, and a regressor, both fitted to arrays."""
    fitted(X[:N], Y[:N]).save_pretrained(folder / "classes")
    fitted(X[:N], X[:N].mean((1, 2, 3))).save_pretrained(folder / "numbers")
    return folder
