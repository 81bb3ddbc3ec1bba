"""`export`, `strip`, and networks of one's own by the name of a function."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from cli_cases import X, answer, digest, folder_of, refused, small

from tangentune import TangentClassifier
from tangentune.cli.app import main
from tangentune.estimators.model_directory import read_model
from tangentune.workbench.server import Serving

OWN = """
from small import MEAN, STD, network

from tangentune import Backbone

def made():
    return Backbone(network(), input_size=(3, 8, 8), mean=MEAN, std=STD)

bare = network

def broken():
    raise RuntimeError("no weights here")

number = int
"""


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A module in the current folder, that no other test has imported."""
    name = f"own_{abs(hash(str(tmp_path)))}"
    (tmp_path / f"{name}.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    return name


@pytest.mark.usefixtures("loadable")
def test_a_stripped_model_predicts_and_holds_no_picture(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before, out = digest(model), model.parent / "small"
    facts = answer(capsys, "strip", model, "--out", out)
    assert facts["bytes"]["after"] == sum(file.stat().st_size for file in out.iterdir())
    assert facts["bytes"]["before"] == sum(file.stat().st_size for file in model.iterdir())
    assert digest(model) == before
    assert "pixels" not in read_model(out)[1]
    whole, stripped = (TangentClassifier.from_pretrained(folder) for folder in (model, out))
    np.testing.assert_array_equal(stripped.decision_function(X[-5:]), whole.decision_function(X[-5:]))
    assert main(["strip", str(model), "--out", str(out)]) == 0
    assert "where the whole model has" in capsys.readouterr().out
    refused(capsys, "strip", model, "--out", model, words=("the model itself",))


@pytest.mark.usefixtures("loadable")
def test_what_no_file_can_be_is_refused(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    refused(capsys, "export", model, "--out", model.parent / "m.h5", words=(".onnx", ".pt2"))
    answer(capsys, "strip", model, "--out", model.parent / "small")
    bars = ("export", model.parent / "small", "--out", model.parent / "b.pt2", "--error-bar")
    refused(capsys, *bars, words=("without its pictures",))


def test_a_network_of_ones_own_is_named_again_and_never_imported_from_a_model(
    own: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pictures, name = folder_of(tmp_path / "p", list(range(20)), [i % 2 for i in range(20)]), f"{own}:made"
    settings = ("--metric-power", "0", "--outer-steps", "0", "--augment", "none")
    answer(capsys, "fit", pictures, "--out", "m", "--backbone", name, *settings)
    assert json.loads((tmp_path / "m" / "config.json").read_text())["backbone"]["origin"] is None
    sys.modules.pop(own)
    refused(capsys, "predict", "m", pictures, words=(name, "--backbone"))
    assert own not in sys.modules
    found = answer(capsys, "predict", "m", pictures, "--backbone", name)
    assert found["n"] == 20
    answer(capsys, "forget", "m", found["predictions"][0]["id"], "--backbone", name)
    assert answer(capsys, "predict", "m", pictures, "--backbone", name)["predictions"][0]["fitted_on"] is None
    refused(capsys, "predict", "m", pictures, "--backbone", "efficientnet_lite0", words=("other parameters",))
    monkeypatch.setattr(Serving, "run", Serving.close)
    refused(capsys, "serve", "m", words=(name, "--backbone"))
    assert main(["serve", "m", "--backbone", name, "-q"]) == 0
    assert capsys.readouterr().out.startswith("http://127.0.0.1:")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("bare", ("--size",)),
        ("broken", ("RuntimeError", "no weights here")),
        ("number", ("int", "torch module")),
        ("nothing", ("nothing", "failed")),
    ],
)
def test_what_a_name_does_not_give_is_said(
    name: str, words: tuple[str, ...], own: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pictures = folder_of(tmp_path / "p", list(range(4)), [0, 1, 0, 1])
    refused(capsys, "fit", pictures, "--out", "m", "--backbone", f"{own}:{name}", words=words)
    refused(capsys, "fit", pictures, "--out", "m", "--backbone", "not_there.at_all:net", words=("no module",))
    assert not (tmp_path / "m").exists()
    assert str(tmp_path) not in sys.path


def test_names_of_hubs_come_first() -> None:
    from tangentune.networks.own_code import is_own

    assert not any(map(is_own, ("timm:resnet18", "torchvision:resnet18", "hf:folder", "mobilenet_v2", "./a.py:net")))
    assert is_own("package.module:function")
    assert small().name == "small"
