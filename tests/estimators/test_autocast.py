"""The option `autocast`: the network's passes in mixed precision, all else as it is, and kept by the model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from reference import dense_solve, refit_loo
from small import FIXED, MEAN, STD, network, pictures

from tangentune import Backbone, TangentClassifier, TangentFeatures
from tangentune.errors import InputError, StoreError

X, Y = pictures()
NEW, NEW_Y = pictures(13, seed=5)
HALF: dict[str, Any] = {"autocast": "bfloat16"}
pytestmark = pytest.mark.filterwarnings("ignore:this processor has no instructions for bfloat16")


def single() -> Backbone:
    return Backbone(network().float(), input_size=(3, 8, 8), mean=MEAN, std=STD)


BACKBONE = single()


def fitted(**options: Any) -> TangentClassifier:
    return TangentClassifier(BACKBONE, **(FIXED | HALF | options)).fit(X, Y)


def test_passes_are_rounded_and_only_if_wanted() -> None:
    plain, rounded = fitted(autocast=None), fitted()
    differ = np.abs(plain.kernel_ - rounded.kernel_).max() / np.abs(plain.kernel_).max()
    assert 1e-5 < differ < 0.05
    assert (plain.predict(NEW) == rounded.predict(NEW)).mean() > 0.9
    assert "autocast" not in plain.backbone_.describe()  # so that fingerprints of maps stay as they were
    assert rounded.backbone_.describe()["autocast"] == "bfloat16"
    assert BACKBONE.feature_function.autocast is None


def test_leave_one_out_is_exact_for_the_rows_as_they_are() -> None:
    model = fitted(metric_power=0.25, normalize=True)
    kernel, targets = torch.from_numpy(model.kernel_), torch.eye(4, dtype=torch.float64)[torch.from_numpy(Y)]
    assert kernel.dtype == torch.float64
    assert_allclose(model.loo_predictions_, refit_loo(kernel, targets, model.damping_).numpy(), rtol=0, atol=1e-8)
    assert_allclose(model.dual_coef_, dense_solve(kernel, targets, model.damping_)[0].numpy(), rtol=0, atol=1e-8)


@pytest.mark.parametrize(
    "options", [{}, {"outer_steps": 2, "augment": "flip"}, {"solver": "landmarks", "landmarks": 20}]
)
def test_a_saved_model_predicts_the_same_by_the_same_passes(options: dict[str, Any], tmp_path: Path) -> None:
    model = fitted(**options)
    model.save_pretrained(tmp_path / "m")
    again = TangentClassifier.from_pretrained(tmp_path / "m", backbone=single())
    assert again.get_params()["autocast"] == "bfloat16"
    assert_array_equal(again.decision_function(NEW), model.decision_function(NEW))
    for one in (model, again):
        one.add(NEW[:3], NEW_Y[:3]).forget([1])
    assert_array_equal(again.decision_function(NEW), model.decision_function(NEW))


def test_added_pictures_have_rows_of_the_same_passes() -> None:
    order = np.arange(40)
    whole, part = fitted(), TangentClassifier(BACKBONE, **(FIXED | HALF)).fit(X[:32], Y[:32])
    grown = part.add(X[32:], Y[32:])
    plain = fitted(autocast=None)
    near = np.abs(grown.loo_predictions_ - whole.loo_predictions_[order]).max()
    assert near < 0.1 * np.abs(plain.loo_predictions_ - whole.loo_predictions_).max() + 1e-3


def test_a_map_under_autocast_is_another_map(tmp_path: Path) -> None:
    maps = {kind: TangentFeatures(BACKBONE, landmarks=15, autocast=kind).fit(X, Y) for kind in (None, "bfloat16")}
    assert maps[None].fingerprint_ != maps["bfloat16"].fingerprint_
    maps["bfloat16"].save(tmp_path / "map")
    again = TangentFeatures.load(tmp_path / "map", backbone=single())
    assert (again.fingerprint_, again.autocast) == (maps["bfloat16"].fingerprint_, "bfloat16")
    assert_array_equal(again.transform(NEW), maps["bfloat16"].transform(NEW))
    with pytest.raises(InputError, match="map"):
        maps[None].solve(again.sums(X, Y))


def test_what_cannot_be_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"autocast is 'float16'; it must be bfloat16, or be left out"):
        fitted(autocast="float16")
    double = Backbone(network(), input_size=(3, 8, 8))
    with pytest.raises(InputError, match="autocast is for networks in float32, and this one is in float64"):
        TangentClassifier(double, **(FIXED | HALF)).fit(X, Y)
    with pytest.raises(InputError, match="passes run under autocast, and files are in float32"):
        fitted().export(tmp_path / "m.pt2")
    fitted().save_pretrained(tmp_path / "m")
    assert json.loads((tmp_path / "m" / "config.json").read_text())["backbone"]["autocast"] == "bfloat16"


def test_a_processor_that_imitates_bfloat16_is_told_of(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: False, raising=False)
    with pytest.warns(UserWarning, match="has no instructions for bfloat16"):
        BACKBONE.with_autocast("bfloat16")


def test_linearisations_and_fingerprints_run_in_full() -> None:
    from tangentune import Linearization

    rounded, x = BACKBONE.with_autocast("bfloat16"), BACKBONE.sample()
    assert_array_equal(Linearization(rounded).f0(x).numpy(), BACKBONE.features(x).numpy())
    assert rounded.describe()["fingerprint"] == BACKBONE.describe()["fingerprint"]
    assert rounded != BACKBONE
    rounded.check()


def test_other_words_in_a_record_are_refused(tmp_path: Path) -> None:
    from forging import reseal

    fitted().save_pretrained(tmp_path / "m")
    config = json.loads((tmp_path / "m" / "config.json").read_text())
    config["backbone"]["autocast"] = "float8"
    reseal(tmp_path / "m", config)
    with pytest.raises(StoreError, match="autocast"):
        TangentClassifier.from_pretrained(tmp_path / "m", backbone=single())
