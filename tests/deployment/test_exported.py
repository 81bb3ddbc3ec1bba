"""Exported files against the model, and in processes that have nothing of it."""

from __future__ import annotations

import json
import subprocess
import sys
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cli_cases import answer
from numpy.typing import NDArray
from small import FIXED, MEAN, STD, pictures
from torch import nn

from tangentune import Backbone, TangentClassifier, TangentRegressor
from tangentune.deployment import export as exporting
from tangentune.deployment import formats
from tangentune.deployment.formats import FORMATS
from tangentune.errors import InputError, LayerError

pytest.importorskip("onnxruntime")
NEW = pictures(7, seed=5)[0]
RUN = """
import json, sys
sys.modules.update(dict.fromkeys(("torch", "tangentune", "onnx"), None))
import numpy, onnxruntime
session = onnxruntime.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
facts = json.loads(session.get_modelmeta().custom_metadata_map["tangentune"])
answers = [session.run(None, {"pixels": part}) for part in numpy.split(numpy.load(sys.argv[2]), [1, 3])]
numpy.savez(sys.argv[3], *[numpy.concatenate(parts) for parts in zip(*answers)])
print(json.dumps(facts))
"""


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.AdaptiveAvgPool2d(2), nn.Flatten(),
        nn.Linear(16, 5),
    ).eval()  # fmt: skip


def fitted(**options: Any) -> TangentClassifier:
    x, y = pictures(20)
    names = np.array(["ant", "bee", "cat", "dog"])[y]
    return TangentClassifier(Backbone(network(), input_size=(3, 8, 8), mean=MEAN, std=STD), **FIXED | options).fit(
        x, names
    )


def scores(model: TangentClassifier, x: NDArray) -> NDArray:
    return model.decision_function(x)


@pytest.mark.skipif(not formats.WRITES_ONNX, reason="this torch is too old to write ONNX")
def test_a_process_with_nothing_but_onnxruntime_and_numpy_gives_the_models_answers(tmp_path: Path) -> None:
    model = fitted(normalize=True, metric_power=0.25, augment="flip")
    made = model.export(tmp_path / "m.onnx")
    assert made.outputs == ("scores", "probabilities")
    assert made.difference < 1e-5
    assert made.ratio > 0
    assert [path.name for path in tmp_path.iterdir()] == ["m.onnx"]
    content = (tmp_path / "m.onnx").read_bytes()
    assert made.bytes == len(content)
    assert b"site-packages" not in content  # no line of code with the folders of this machine
    np.save(tmp_path / "x.npy", NEW)
    command = [sys.executable, "-c", RUN, *(str(tmp_path / name) for name in ("m.onnx", "x.npy", "y.npz"))]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    assert done.stderr == ""  # ONNX Runtime warns of what it cannot see through
    facts = json.loads(done.stdout)
    assert facts["classes"] == ["ant", "bee", "cat", "dog"]
    assert facts["input"]["shape"] == ["n", 3, 8, 8]
    found = np.load(tmp_path / "y.npz")
    np.testing.assert_allclose(found["arr_0"], scores(model, NEW), atol=1e-5)
    np.testing.assert_allclose(found["arr_1"], model.predict_proba(NEW), atol=1e-4)


def test_a_file_for_torch_by_the_command_line_holds_the_same_function_of_numbers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    x, y = pictures(20)
    options: dict[str, Any] = FIXED | {"probes": 2}
    model = TangentRegressor(Backbone(network(), input_size=(3, 8, 8)), **options).fit(x, y * 1.5)
    model.save_pretrained(tmp_path / "m")
    monkeypatch.chdir(Path(__file__).parent)
    command = (
        "export",
        tmp_path / "m",
        "--out",
        tmp_path / "m.pt2",
        "--backbone",
        "test_exported:network",
        "--error-bar",
    )
    facts = answer(capsys, *command)
    assert facts["outputs"] == ["values", "std"]
    assert facts["difference"] < 1e-4
    assert abs(facts["excess"]) < 1e-4  # 20 pictures have 21 directions, and all are there
    assert facts["bytes"] == (tmp_path / "m.pt2").stat().st_size
    extra = {"tangentune": ""}
    program = torch.export.load(tmp_path / "m.pt2", extra_files=extra).module()
    got, std = program(torch.from_numpy(NEW))
    np.testing.assert_allclose(got[:, 0].detach().numpy(), model.predict(NEW), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(std[:, 0].detach().numpy(), model.predict(NEW, return_std=True)[1], rtol=1e-3)
    assert json.loads(extra["tangentune"])["outputs"] == ["values", "std"]


@pytest.mark.parametrize(
    ("options", "name", "words"),
    [
        ({}, "m.bin", ".onnx"),
        ({"likelihood": "laplace"}, "m.pt2", "training pictures"),
        ({}, "there", "neither"),
    ],
)
def test_what_no_file_can_answer_is_refused(options: dict[str, Any], name: str, words: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=words):
        fitted(**options).export(tmp_path / name)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("off", "at"), [(2e-4, slice(0, 3)), (0.02, slice(0, 1)), (float("nan"), slice(0, 1))])
def test_a_file_that_answers_otherwise_is_not_put_in_place(
    off: float, at: slice, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the file would say is made up here: the model's own scores, moved for some pictures."""
    model, target = fitted(), tmp_path / "m.pt2"
    target.write_bytes(b"former")

    def run(pixels: NDArray) -> list[NDArray]:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = [model.decision_function(pixels), model.predict_proba(pixels)]
        found[0][at] += off
        return found

    kind = replace(FORMATS[".pt2"], write=lambda *_: b"new", open=lambda _: run, plain=lambda *_: run)
    monkeypatch.setattr(exporting, "format_of", lambda _: kind)
    monkeypatch.setattr(exporting, "traced", lambda *_: None)
    with pytest.raises(LayerError, match="differ"):
        model.export(target)
    assert target.read_bytes() == b"former"
    assert [path.name for path in tmp_path.iterdir()] == ["m.pt2"]
    at = slice(0, 2)
    off = 2e-4
    model.export(target)
    assert target.read_bytes() == b"new"


def test_a_torch_that_writes_no_onnx_is_told_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(formats, "WRITES_ONNX", False)
    with pytest.raises(InputError, match=r"too old to write ONNX; name a .pt2 file, or update torch"):
        fitted().export(tmp_path / "m.onnx")
