"""Settings and arrays that no fit leaves, in files whose checksums are right: a sentence each, nothing else is read."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from forging import reseal, with_arrays
from small import backbone

from tangentune import TangentClassifier, TangentRegressor
from tangentune.errors import StoreError

DATA = Path(__file__).parents[1] / "data"
BACKBONE = backbone()


def changed(folder: Path, place: str, value: Any) -> None:
    """Another value at a place in the settings, such as "fitted.ids_.0"; `...` takes it out."""
    config = json.loads((folder / "config.json").read_text())
    inside, *path = config, *place.split(".")
    for name in path[:-1]:
        inside = inside[int(name) if isinstance(inside, list) else name]
    last: Any = int(path[-1]) if isinstance(inside, list) else path[-1]
    if value is ...:
        del inside[last]
    else:
        inside[last] = value
    reseal(folder, config)


@pytest.fixture(params=["classifier", "regressor"])
def saved(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return Path(shutil.copytree(DATA / request.param, tmp_path / request.param))


def refused(folder: Path, *words: str) -> None:
    kind = TangentClassifier if folder.name == "classifier" else TangentRegressor
    with pytest.raises(StoreError) as caught:
        kind.from_pretrained(folder, backbone=BACKBONE)
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 400
    for word in (str(folder), *words):
        assert word in message


SETTINGS: list[tuple[str, Any]] = [
    ("parameters", []), ("parameters.damping", -1), ("parameters.probes", ...), ("parameters.probes", 2),
    ("parameters.verbose", "loud"), ("parameters.__class__", 1), ("parameters.memory_budget", "much"),
    ("parameters.likelihood", "maximum"), ("parameters.batch_size", 0), ("parameters.batch_size", 10**400),
    ("parameters.batch_size", {"a": 1}),
    ("parameters.n_jobs", 0), ("parameters.outer_steps", -1), ("parameters.outer_steps", "many"),
    ("parameters.device", 7), ("parameters.input_size", [8]),
    ("parameters.random_state", 2**64), ("backbone", None), ("backbone.contract.input_size", [3, 65536, 65536]),
    ("backbone.fingerprint.2", {}), ("backbone.contract.mean", "half"),
    ("map.ruled", ["6.weight", "10.bias"]), ("map.ruled.0", "99.weight"), ("map.block_scales", {}),
    ("map.mirrored", "no"), ("fitted.damping_", 0), ("fitted.damping_", 10**400), ("fitted.metric_power_", 0.3),
    ("fitted.block_scales_.head", -1), ("fitted.ids_.0", 3), ("fitted.ids_", []), ("fitted.fit_report_.stages", [1]),
    ("fitted.loo_score_", "high"), ("fitted.selection_", [{}]), ("fitted.more", 1), ("fitted", ...),
    ("fitted.long\n" + "x" * 9999, 1),
    ("targets", ...), ("targets.dtype", "<U400000000"), ("targets.dtype", "object"), ("targets.values.0", None),
    ("targets.values", [[[[1]]]]), ("targets.values.0", {}), ("skipped", [["a"]]), ("points.0", 3), ("points", [-1]),
    ("next_number", 1), ("next_number", None), ("seed", 0.5), ("source", {"classes": []}), ("estimator", "Other"),
    ("tensors.file", "../x"), ("pictures.file", "/etc/passwd"), ("tensors.names", 3), ("tensors.bytes", -1),
    ("edits.lines", "1"), ("edits", ...), ("card_sha256", 5),
]  # fmt: skip


@pytest.mark.parametrize(("place", "value"), SETTINGS, ids=lambda one: str(one)[:30])
def test_settings_out_of_their_range(saved: Path, place: str, value: Any) -> None:
    changed(saved, place, value)
    refused(saved)


@pytest.mark.parametrize(
    ("place", "value"),
    [("classes", None), ("classes.values", ["a", "b", "c"]), ("classes.dtype", "<U1"), ("fitted.temperature_", 0),
     ("fitted.temperature_", ...), ("parameters.class_weight", "../x"), ("parameters.class_weight", {"ant": "much"})],
)  # fmt: skip
def test_classes_out_of_their_range(tmp_path: Path, place: str, value: Any) -> None:
    folder = Path(shutil.copytree(DATA / "classifier", tmp_path / "classifier"))
    changed(folder, place, value)
    refused(folder)


ARRAYS: dict[str, Callable[[dict[str, torch.Tensor]], Any]] = {
    "missing": lambda arrays: arrays.pop("head"),
    "a body missing": lambda arrays: arrays.pop("body.6.weight"),
    "a row less": lambda arrays: arrays.update(kernel_=arrays["kernel_"][1:]),
    "a width": lambda arrays: arrays.update(head=arrays["head"][:, 1:]),
    "of another body": lambda arrays: arrays.update({"body.6.weight": arrays["body.6.weight"][:, 1:]}),
    "half a metric": lambda arrays: arrays.pop("metric.6.weight.left"),
    "another metric": lambda arrays: arrays.update({"metric.6.weight.left": torch.ones(1, 1, 1).double()}),
    "NaN": lambda arrays: arrays["body.6.bias"].fill_(torch.nan),
    "infinite": lambda arrays: arrays["intercept"].fill_(torch.inf),
    "half as exact": lambda arrays: arrays.update(kernel_=arrays["kernel_"].half()),
    "of another exactness than the network": lambda arrays: arrays.update(head=arrays["head"].float()),
    "whole numbers": lambda arrays: arrays.update(head=arrays["head"].int()),
    "a weight below 0": lambda arrays: arrays["sample_weight"].neg_(),
    "a number twice": lambda arrays: arrays["numbers"].zero_(),
    "no numbers": lambda arrays: arrays.update(numbers=arrays["numbers"].double()),
    "a step of nowhere": lambda arrays: arrays.update({"moved.99.weight": torch.ones(1)}),
}


@pytest.mark.parametrize("case", ARRAYS)
def test_arrays_that_do_not_fit(saved: Path, case: str) -> None:
    if saved.name == "regressor" and "metric" in case:
        saved = Path(shutil.copytree(DATA / "classifier", saved.parent / "classifier"))  # only this one has a metric
    with_arrays(saved, ARRAYS[case])
    refused(saved)


def test_pictures_that_do_not_fit(saved: Path) -> None:
    with_arrays(saved, lambda arrays: arrays.update(pixels=arrays["pixels"][1:]), "pictures")
    refused(saved, "pixels")


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a":' * 100_000, '{"format": NaN}', "1" * 5000, '"' + "\\ud800" * 9])
def test_text_that_is_no_settings(saved: Path, text: str) -> None:
    (saved / "config.json").write_text(text)
    refused(saved)


def test_a_log_that_is_nested_too_deep(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(DATA / "classifier", tmp_path / "classifier"))
    (folder / "audit.jsonl").write_text("[" * 100_000 + "\n")
    refused(folder, "audit.jsonl")


def test_nothing_outside_the_directory_is_read(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    outside = saved.parent / "x"
    shutil.copy(saved / "model.safetensors", outside)
    changed(saved, "tensors.file", "../x")
    opened: list[str] = []
    monkeypatch.setattr("tangentune._files.load_tensors", lambda file: opened.append(str(file)))
    refused(saved, "tensors.file", "'../x'")
    assert not opened
