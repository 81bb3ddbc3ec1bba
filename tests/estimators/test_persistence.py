"""Saved models: predictions bit for bit, every fitted attribute back, one sentence for what cannot be read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small import FIXED, backbone, network, pictures
from torch import nn

from tangentune import Backbone, TangentClassifier, TangentRegressor
from tangentune.errors import BackboneError, StoreError

BACKBONE = backbone()
X, Y = pictures()
NEW, NEW_Y = pictures(13, seed=5)
NAMES = np.array(["ant", "bée", "猫", "dog house"])

OPTIONS: list[dict[str, Any]] = [
    dict.fromkeys(("metric_power", "body_scale", "normalize", "damping"), "loo"),
    FIXED,
    FIXED | {"metric_power": 0.25, "normalize": True, "augment": "flip", "probes": 2, "probe_space": "pca"},
    FIXED | {"metric_power": 0.5, "subset": "last:2", "class_weight": "balanced"},
    FIXED | {"subset": "none", "random_state": np.random.RandomState(3)},
]


def fitted(options: dict[str, Any]) -> TangentClassifier:
    return TangentClassifier(BACKBONE, **options).fit(X, NAMES[Y])


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved") / "model"
    fitted(FIXED | {"metric_power": 0.25}).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("options", OPTIONS, ids=range(len(OPTIONS)))
def test_predictions_are_bit_equal(options: dict[str, Any], tmp_path: Path) -> None:
    clf = fitted(options)
    clf.save_pretrained(tmp_path / "m")
    again = TangentClassifier.from_pretrained(tmp_path / "m", backbone=backbone())
    assert np.array_equal(again.decision_function(NEW), clf.decision_function(NEW))
    assert np.array_equal(again.predict_proba(NEW), clf.predict_proba(NEW))
    assert np.array_equal(again.predict(NEW), clf.predict(NEW))
    assert again.score(NEW, NAMES[NEW_Y]) == clf.score(NEW, NAMES[NEW_Y])


def test_attributes_and_parameters_come_back(tmp_path: Path) -> None:
    clf = fitted(OPTIONS[2])
    clf.save_pretrained(tmp_path / "m")
    again = TangentClassifier.from_pretrained(tmp_path / "m", backbone=backbone())
    for key in ("loo_predictions_", "loo_proba_", "kernel_", "dual_coef_", "intercept_", "probes_", "classes_",
                "targets_"):  # fmt: skip
        assert np.array_equal(getattr(again, key), getattr(clf, key)), key
        assert getattr(again, key).dtype == getattr(clf, key).dtype, key
    for key in ("damping_", "relative_damping_", "metric_power_", "normalize_", "body_scale_", "block_scales_",
                "block_shares_", "loo_score_", "selection_", "temperature_", "softness_", "ids_",
                "fit_report_"):  # fmt: skip
        assert getattr(again, key) == getattr(clf, key), key
    assert list(again.block_scales_) == list(clf.block_scales_)
    for key, path in clf.damping_path_.items():
        assert np.array_equal(again.damping_path_[key], path)
    assert again.get_params(deep=False) | {"backbone": None} == clf.get_params(deep=False) | {"backbone": None}
    assert len(again.pictures_) == 40


def test_a_loaded_model_can_be_saved_and_fitted_again(saved: Path, tmp_path: Path) -> None:
    first = TangentClassifier.from_pretrained(saved, backbone=backbone())
    expected = first.decision_function(NEW)
    refitted = first.fit(X, NAMES[Y])
    assert np.allclose(refitted.decision_function(NEW), expected, rtol=0, atol=1e-12)
    refitted.save_pretrained(tmp_path / "again")
    second = TangentClassifier.from_pretrained(tmp_path / "again", backbone=backbone())
    assert np.array_equal(second.decision_function(NEW), refitted.decision_function(NEW))


@pytest.mark.parametrize("flat", [True, False])
def test_regressors_come_back(flat: bool, tmp_path: Path) -> None:
    y = X[:, 0].mean((1, 2)) if flat else X.mean((2, 3))
    reg = TangentRegressor(BACKBONE, **FIXED).fit(X, y)
    reg.save_pretrained(tmp_path / "m")
    again = TangentRegressor.from_pretrained(tmp_path / "m", backbone=backbone())
    assert np.array_equal(again.predict(NEW), reg.predict(NEW))
    assert again.predict(NEW).shape == ((13,) if flat else (13, 3))
    assert np.array_equal(again.targets_, reg.targets_)


def test_vectors_come_back(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = Backbone(nn.Sequential(nn.Linear(4, 9), nn.Tanh(), nn.Linear(9, 5)))
    x = np.random.default_rng(0).normal(size=(30, 4))
    clf = TangentClassifier(net).fit(x, x[:, 0] > 0)
    clf.save_pretrained(tmp_path / "m")
    again = TangentClassifier.from_pretrained(tmp_path / "m", backbone=net)
    assert np.array_equal(again.decision_function(x), clf.decision_function(x))
    assert again.classes_.dtype == bool


def test_the_card_is_for_people(saved: Path) -> None:
    card = (saved / "README.md").read_text()
    assert card.startswith(("---\n", "#"))
    assert "dog house" in card


@pytest.mark.parametrize("file", ["config.json", "model.safetensors"])
@pytest.mark.parametrize("damage", ["gone", "cut", "changed", "empty"])
def test_damage_is_told_in_a_sentence(saved: Path, tmp_path: Path, file: str, damage: str) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    for part in saved.iterdir():
        (folder / part.name).write_bytes(part.read_bytes())
    data = (folder / file).read_bytes()
    middle = len(data) // 2
    if damage == "gone":
        (folder / file).unlink()
    else:
        flipped = data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]
        (folder / file).write_bytes({"cut": data[:middle], "changed": flipped, "empty": b""}[damage])
    _refused(folder, str(folder))


def test_a_newer_version_is_told(saved: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    for part in saved.iterdir():
        (folder / part.name).write_bytes(part.read_bytes())
    config = json.loads((folder / "config.json").read_text())
    config["format_version"] += 1
    (folder / "config.json").write_text(json.dumps(config))
    _refused(folder, "newer")


def test_no_model_at_all_is_told(tmp_path: Path) -> None:
    _refused(tmp_path, str(tmp_path))
    _refused(tmp_path / "nowhere", "nowhere")


def _refused(folder: Path, words: str) -> None:
    with pytest.raises(StoreError) as caught:
        TangentClassifier.from_pretrained(folder, backbone=BACKBONE)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_network_must_be_the_same(saved: Path) -> None:
    other = network()
    next(other.parameters()).mul_(1.001)
    changed = Backbone(other, input_size=(3, 8, 8), mean=BACKBONE.contract.mean, std=BACKBONE.contract.std)
    with pytest.raises(BackboneError) as caught:
        TangentClassifier.from_pretrained(saved, backbone=changed)
    assert "\n" not in str(caught.value)
    with pytest.raises(StoreError, match="network of your own"):
        TangentClassifier.from_pretrained(saved)


def test_the_kind_must_be_the_same(saved: Path) -> None:
    with pytest.raises(StoreError, match="TangentClassifier"):
        TangentRegressor.from_pretrained(saved, backbone=BACKBONE)


def test_an_unfitted_estimator_cannot_be_saved(tmp_path: Path) -> None:
    from sklearn.exceptions import NotFittedError

    with pytest.raises(NotFittedError):
        TangentClassifier(BACKBONE).save_pretrained(tmp_path / "m")
    with pytest.raises(NotFittedError):
        TangentClassifier(BACKBONE).predict(NEW)
