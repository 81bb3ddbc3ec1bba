"""Nothing of a forgotten picture is left on disk: every file of the model directory is searched, byte by byte."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from frozen import rows_of, scores
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import load_file
from small import FIXED, backbone, pictures

from tangentune import Pictures, TangentClassifier, TangentRegressor, write_report
from tangentune.pictures.checks import pictures_digest
from tangentune.reports.pages import thumbnail

BACKBONE = backbone()
X, Y = pictures(24)
NEW, _ = pictures(5, seed=5)
GONE = [4, 17]
NAMES = [f"ward-{i % 3}/patient-{7919 * (i + 3):06d}.png" for i in range(24)]
WEIGHTS = 1 + np.random.default_rng(2).random(24)
CLASSES = np.array(["ant", "bee", "cat", "dog"])[Y].astype("<U8")
CLASSES[GONE] = ["aye-aye", "zebra"]  # the only ones of their classes
NUMBERS = np.random.default_rng(3).normal(size=(24, 2)) * 100


def fitted(kind: Any, options: dict[str, Any]) -> Any:
    labels = CLASSES if kind is TangentClassifier else NUMBERS
    source = Pictures(torch.from_numpy(X), labels, NAMES)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tangentune.estimators.fit.warnings.warn", lambda *_, **__: None)  # of classes with one picture
        return kind(BACKBONE, **(FIXED | options)).fit(source, sample_weight=WEIGHTS)


def texts(model: Any) -> dict[str, bytes]:
    """What the forgotten pictures were called, and their labels as text."""
    words = [NAMES[i] for i in GONE] + [NAMES[i].split("/")[1][:-4] for i in GONE]
    if hasattr(model, "classes_"):
        words += ["aye-aye", "zebra"]
    return {word: word.encode() for word in words}


def pixels() -> dict[str, bytes]:
    """Every 16 pixels in a row of theirs."""
    rows = {i: X[i].tobytes() for i in GONE}
    return {f"pixels {i} {k}": rows[i][k : k + 16] for i in GONE for k in range(0, len(rows[i]) - 15, 16)}


def numbers(model: Any) -> NDArray[np.float64]:
    """Kernel rows, dual coefficients, leave-one-out rows, targets and weights of theirs."""
    found = [model.kernel_[GONE], model.dual_coef_[GONE], model.loo_predictions_[GONE], WEIGHTS[GONE]]
    found += [model.loo_proba_[GONE]] if hasattr(model, "classes_") else [NUMBERS[GONE]]
    values = np.unique(np.concatenate([part.ravel() for part in found]))
    return values[np.abs(values) > 1e-9]  # no other of its class: left out, a picture has exactly 0 for it


def files(folder: Path) -> dict[str, bytes]:
    """Everything below a folder, hidden or not."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def found_bytes(folder: Path, needles: dict[str, bytes]) -> set[str]:
    return {name for name, needle in needles.items() for data in files(folder).values() if needle in data}


def found_numbers(folder: Path, values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Those of some values that a tensor or the text of a file holds, to 12 digits."""
    held = [t.double().numpy().ravel() for path in folder.rglob("*.safetensors") for t in load_file(path).values()]
    written = re.compile(rb"-?\d+\.\d+(?:e-?\d+)?")
    held += [np.array([float(text) for text in written.findall(data)]) for data in files(folder).values()]
    everything = np.sort(np.concatenate(held))
    near = np.searchsorted(everything, values - 1e-12 * np.abs(values))
    near = np.minimum(near, len(everything) - 1)
    return values[np.abs(everything[near] - values) <= 1e-12 * np.abs(values)]


def shown(folder: Path) -> Iterator[bytes]:
    """Pictures inside the pages of a folder, decoded."""
    for name, data in files(folder).items():
        if name.endswith(".html"):
            for encoded in re.findall(rb"data:image/[a-z]+;base64,([A-Za-z0-9+/=]+)", data):
                yield np.asarray(Image.open(io.BytesIO(base64.b64decode(encoded))).convert("RGB")).tobytes()


def thumbnails(model: Any) -> set[bytes]:
    """The forgotten pictures as a report shows them."""
    found = [thumbnail(model.pictures_, i) for i in GONE]
    data = [base64.b64decode(one["uri"].split(",")[1]) for one in found if one]
    return {np.asarray(Image.open(io.BytesIO(one)).convert("RGB")).tobytes() for one in data}


KINDS = [(TangentClassifier, {"metric_power": 0.25}, False), (TangentRegressor, {"probe_space": "pca"}, True),
         (TangentClassifier, {"outer_steps": 1, "metric_power": 0.25}, True)]  # fmt: skip


@pytest.mark.parametrize(("kind", "options", "strict"), KINDS, ids=str)
def test_only_the_digest_remains(kind: Any, options: dict[str, Any], strict: bool, tmp_path: Path) -> None:
    """Load, forget, save in place: what the search finds before, it finds nowhere after, beside the model either."""
    folder = tmp_path / "models" / "m"
    model = fitted(kind, options)
    model.save_pretrained(folder)
    if not strict:  # one page is enough, and slow to draw
        write_report(model, folder / "report.html")
        assert thumbnails(model) <= set(shown(tmp_path))
    words, values, features = texts(model), numbers(model), rows_of(model, X[GONE]).numpy().ravel()
    assert found_bytes(tmp_path, words | pixels()) == set(words | pixels())  # the search can find
    assert np.array_equal(found_numbers(tmp_path, values), values)
    small = thumbnails(model)

    loaded = kind.from_pretrained(folder, backbone=BACKBONE)
    loaded.forget([NAMES[i] for i in GONE], strict=strict)
    loaded.save_pretrained(folder)
    assert sorted(files(tmp_path)) == [
        f"models/m/{name}" for name in ("README.md", "audit.jsonl", "config.json", "model.safetensors",
                                        "pictures.safetensors")
    ]  # fmt: skip
    if not strict:
        write_report(loaded, folder / "report.html")
        assert set(shown(tmp_path))
    assert [path.name for path in (tmp_path / "models").iterdir()] == ["m"]
    assert found_bytes(tmp_path, words | pixels()) == set()
    assert found_numbers(tmp_path, values).tolist() == []
    assert found_numbers(tmp_path, features[np.abs(features) > 1e-9]).tolist() == []
    assert not small & set(shown(tmp_path))
    for i in GONE:
        digest = pictures_digest(torch.from_numpy(X[i : i + 1]))[0].encode()
        assert [name for name, data in files(tmp_path).items() if digest in data] == ["models/m/audit.jsonl"]
    tensors = load_file(folder / "model.safetensors") | load_file(folder / "pictures.safetensors")
    assert len(tensors["pixels"]) == len(tensors["numbers"]) == len(tensors["kernel_"]) == 22
    assert not set(GONE) & set(tensors["numbers"].tolist())
    assert np.array_equal(scores(kind.from_pretrained(folder, backbone=BACKBONE), NEW), scores(loaded, NEW))


def test_nothing_remains_of_many_edits_either(tmp_path: Path) -> None:
    """Added, relabelled, weighed anew, undone: a picture forgotten in the end is gone from the directory."""
    model = fitted(TangentClassifier, {})
    secret = np.random.default_rng(9).integers(0, 255, (1, 3, 8, 8)).astype(np.uint8)
    model.add(Pictures(torch.from_numpy(secret), None, ["diary.png"]), ["unicorn"], [3.25], new_class=True)
    model.relabel("diary.png", "phoenix", new_class=True).reweight(np.r_[WEIGHTS, 2.75]).forget("diary.png").undo()
    column = model.kernel_[-1]
    model.save_pretrained(tmp_path / "m")
    needles = {word: word.encode() for word in ("diary", "unicorn", "phoenix")} | {"pixels": secret.tobytes()}
    assert found_bytes(tmp_path, needles) == {"diary", "phoenix", "pixels"}
    assert len(found_numbers(tmp_path, column)) == 25
    model.forget_class("phoenix").save_pretrained(tmp_path / "m")
    assert found_bytes(tmp_path, needles) == set()
    assert found_numbers(tmp_path, column).tolist() == []
    assert len(model.edits_) == 6
    model.save_pretrained(tmp_path / "m", pictures=False)
    assert sorted(files(tmp_path)) == [f"m/{name}" for name in ("README.md", "audit.jsonl", "config.json",
                                                                "model.safetensors")]  # fmt: skip


def test_an_interrupted_save_leaves_no_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = fitted(TangentClassifier, {})
    model.save_pretrained(tmp_path / "m")
    model.forget([NAMES[i] for i in GONE])

    def refuse(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("tangentune._files.put_in_place", refuse)
        with pytest.raises(ValueError, match="disk is full"):
            model.save_pretrained(tmp_path / "m")
    assert [path.name for path in tmp_path.iterdir()] == ["m"]
    assert found_bytes(tmp_path, pixels()) == set(pixels())  # the former model, whole
    monkeypatch.setattr("tangentune._files.exchange", lambda *_: False)  # two renames instead of a swap
    model.save_pretrained(tmp_path / "m")
    assert [path.name for path in tmp_path.iterdir()] == ["m"]
    assert found_bytes(tmp_path, pixels() | texts(model)) == set()
