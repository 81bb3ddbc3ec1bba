"""Frozen maps on the disk give the same rows in every bit; the data-independent one has no picture in it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from forging import with_arrays
from numpy.testing import assert_allclose, assert_array_equal
from small import backbone, normalised, pictures
from torch import nn

from tangentune import Backbone, TangentFeatures
from tangentune.errors import BackboneError, InputError, StoreError
from tangentune.estimators.model_directory import CONFIG
from tangentune.kernels.feature_map import decision

BACKBONE = backbone()
X, Y = pictures()
NEW, NEW_Y = pictures(13, seed=5)
KINDS: dict[str, dict[str, Any]] = {
    "landmarks": {"landmarks": 15, "augment": "flip", "random_state": 1},
    "sketch": {"landmarks": None, "width": 60, "metric_power": 0.5},
    "head": {"landmarks": None, "body_scale": 0},
}


@pytest.fixture(scope="module", params=KINDS)
def features(request: pytest.FixtureRequest) -> TangentFeatures:
    return TangentFeatures(BACKBONE, **KINDS[request.param]).fit(X, Y)


def test_a_loaded_map_gives_the_same_bits(features: TangentFeatures, tmp_path: Path) -> None:
    features.save(tmp_path / "map")
    again = TangentFeatures.load(tmp_path / "map", backbone=BACKBONE)
    assert (again.fingerprint_, again.landmarks_) == (features.fingerprint_, features.landmarks_)
    assert again.damping_ == features.damping_
    assert again.get_params()["landmarks"] == features.landmarks
    assert_array_equal(again.transform(NEW), features.transform(NEW))
    total = again.sums(NEW, NEW_Y) + features.sums(X, Y)
    assert total.pictures == 53
    again.save(tmp_path / "map")  # over itself
    assert TangentFeatures.load(tmp_path / "map", backbone=BACKBONE).fingerprint_ == features.fingerprint_
    shown = (tmp_path / "map" / "README.md").read_text()
    assert ("15 **landmark pictures**" in shown) == bool(features.landmarks_)
    assert ("No picture had part in it" in shown) != bool(features.landmarks_)


def test_no_picture_enters_a_data_independent_map() -> None:
    given, other = (TangentFeatures(BACKBONE, landmarks=None, width=60).fit(x) for x in (X, None))
    assert given.fingerprint_ == other.fingerprint_
    assert given.fingerprint_ != TangentFeatures(BACKBONE, landmarks=None, width=60, random_state=1).fit().fingerprint_
    assert other.get_feature_names_out().shape == (other.transform(X).shape[1],)
    assert other.frozen_.landmarks is None
    assert other.transform(X).shape[1] <= 6 + 60


def test_vectors(tmp_path: Path) -> None:
    x = np.random.default_rng(0).normal(size=(40, 4)).astype("float32")
    net = Backbone(nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 8)))
    for landmarks in (None, 10):
        features = TangentFeatures(net, landmarks=landmarks, width=50).fit(x, x[:, 0] > 0)
        features.save(tmp_path / "map")
        again = TangentFeatures.load(tmp_path / "map", backbone=net)
        assert_array_equal(again.transform(x), features.transform(x))
        with pytest.raises(ValueError, match="expecting 4 features"):
            again.transform(x[:, :3])


def test_maps_that_are_none_are_refused(features: TangentFeatures, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="not fitted yet; call fit first, or load a saved map"):
        TangentFeatures(BACKBONE).save(tmp_path / "map")
    features.save(tmp_path / "map")
    with pytest.raises(StoreError, match="network of your own"):
        TangentFeatures.load(tmp_path / "map")
    other = backbone()
    with torch.no_grad():
        next(other.module.parameters()).add_(1)
    with pytest.raises(BackboneError, match="has other parameters"):
        TangentFeatures.load(tmp_path / "map", backbone=other)
    if features.landmarks_:
        features.model_.save_pretrained(tmp_path / "model")
        with pytest.raises(StoreError, match="holds a TangentClassifier, no feature map"):
            TangentFeatures.load(tmp_path / "model", backbone=BACKBONE)
    config = json.loads((tmp_path / "map" / CONFIG).read_text())
    (tmp_path / "map" / CONFIG).write_text(json.dumps(config | {"damping": 1.0}))
    with pytest.raises(StoreError, match="damaged or was edited by hand"):
        TangentFeatures.load(tmp_path / "map", backbone=BACKBONE)


def test_the_function_of_coefficients_needs_no_map(features: TangentFeatures) -> None:
    """Folded into primal weights, coefficients give what the rows do."""
    frozen = features.frozen_
    generator = torch.Generator().manual_seed(0)
    coef = torch.randn(frozen.finite.width, 3, generator=generator, dtype=torch.float64)
    expected = features.transform(NEW) @ coef.numpy() + 2
    model = frozen.model(coef, torch.full((3,), 2.0, dtype=torch.float64))
    assert_allclose(decision(model, normalised(NEW)).numpy(), expected, rtol=0, atol=1e-8)


def test_arrays_of_another_map_are_refused(features: TangentFeatures, tmp_path: Path) -> None:
    """A file whose checksums are right, and whose arrays do not fit."""
    features.save(tmp_path / "map")
    wrong: dict[str, Callable[[dict[str, torch.Tensor]], Any]] = {
        "probes": lambda arrays: arrays.update(probes=arrays["probes"][0]),
        "root": lambda arrays: arrays.update({name: value[:-1] for name, value in arrays.items() if name == "root"}),
        "left": lambda arrays: arrays.update({n: v[:-1] for n, v in arrays.items() if n.startswith("left.")}),
    }
    changed = (
        "left" if features.landmarks is None and features.width == 60 else "root" if features.landmarks else "probes"
    )
    with_arrays(tmp_path / "map", wrong[changed])
    with pytest.raises(StoreError, match="its arrays do not fit one another and the network"):
        TangentFeatures.load(tmp_path / "map", backbone=BACKBONE)
