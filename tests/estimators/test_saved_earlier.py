"""Models in `tests/data` were written before the estimators were rebuilt: they load, answer and go on as they did."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from numpy.testing import assert_allclose
from small import backbone, pictures

from tangentune import TangentClassifier, TangentRegressor
from tangentune.estimators.outer_steps import RATE

DATA = Path(__file__).parents[1] / "data"
TOLD = json.loads((DATA / "saved_models.json").read_text())
NEW, _ = pictures(5, 3, seed=5)


def close(found: Any, expected: Any) -> None:
    assert_allclose(found, expected, rtol=1e-9, atol=1e-10)


def test_a_classifier_with_an_edit_in_its_log() -> None:
    told = TOLD["classifier"]
    clf = TangentClassifier.from_pretrained(DATA / "classifier", backbone=backbone())
    close(clf.decision_function(NEW), told["decision_function"])
    close(clf.predict_proba(NEW), told["predict_proba"])
    close(clf.influence(NEW).sum(1), told["influence"])
    close(clf.loo_predictions_, told["loo_predictions"])
    assert clf.ids_ == told["ids"]
    assert clf.classes_.tolist() == ["ant", "bée", "cat"]
    assert [line["seal"] for line in clf.edits_] == told["seals"]
    close(clf.forget([7]).decision_function(NEW), told["after_forgetting_7"])


def test_a_regressor_of_two_numbers() -> None:
    told = TOLD["regressor"]
    reg = TangentRegressor.from_pretrained(DATA / "regressor", backbone=backbone())
    mean, std = reg.predict(NEW, return_std=True)
    close(mean, told["predict"])
    close(std, told["std"])
    close(reg.loo_predictions_, told["loo_predictions"])


@pytest.mark.parametrize("kind", [TangentClassifier, TangentRegressor])
def test_what_is_written_has_the_same_entries(kind: Any, tmp_path: Path) -> None:
    folder = DATA / ("classifier" if kind is TangentClassifier else "regressor")
    kind.from_pretrained(folder, backbone=backbone()).save_pretrained(tmp_path / "m")
    before, after = (json.loads((place / "config.json").read_text()) for place in (folder, tmp_path / "m"))
    before["backbone"] |= {"origin": None, "features": None}  # written since
    before["fitted"] |= {"outer_rate_": RATE}
    before["parameters"] |= {"landmarks": None, "solver": "auto", "autocast": None}
    prints = [told["backbone"].pop("fingerprint") for told in (before, after)]
    assert_allclose(*prints, rtol=1e-12)  # taken anew, and rounded as this machine does
    assert list(after) == [*list(before)[:-1], "card_sha256", "config_sha256"]
    for key in before:
        if key != "config_sha256":
            assert after[key] == before[key], key
    for name in ("model.safetensors", "pictures.safetensors"):
        assert (tmp_path / "m" / name).read_bytes() == (folder / name).read_bytes()
