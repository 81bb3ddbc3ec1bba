"""Options of any type come back from the disk as they were; what could not is refused before the fit."""

from __future__ import annotations

import json
from collections import OrderedDict, defaultdict
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.base import clone
from torch import nn

from tangentune import Backbone, TangentClassifier
from tangentune.errors import InputError
from tangentune.estimators.packing import pack, unpack

X = np.random.default_rng(0).integers(0, 256, (12, 16, 16, 3), dtype=np.uint8)
Y = np.arange(12) % 3


def backbone() -> Backbone:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return Backbone(net, input_size=(3, 16, 16), mean=(0.5,) * 3, std=(0.25,) * 3)


QUICK: dict[str, Any] = {"metric_power": 0, "body_scale": 0.5, "normalize": False, "damping": 0.1, "outer_steps": 0}

plain = st.none() | st.booleans() | st.integers() | st.floats() | st.text()
keys = st.integers() | st.text() | st.booleans() | st.floats(allow_nan=False)
nested = st.recursive(
    plain | st.builds(Path, st.text("ab/", min_size=1)) | st.just(torch.device("cpu", 0)),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(keys | st.just("tangentune"), inner, max_size=3)
    ),
    max_leaves=8,
)


@settings(max_examples=200, deadline=None)
@given(nested)
def test_values_and_their_types_survive_json(value: Any) -> None:
    found = unpack(json.loads(json.dumps(pack(value, "value"), allow_nan=False)))
    assert repr(found) == repr(value)  # NaN, True and 1, 1 and 1.0 are told apart


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (np.float32(0.5), 0.5),
        (np.int64(3), 3),
        (np.bool_(True), True),
        (np.str_("a"), "a"),
        ({np.int64(1): np.float64(2)}, {1: 2.0}),
        (OrderedDict(b=1, a=2), {"b": 1, "a": 2}),
        (defaultdict(float, {0: 1.0}), {0: 1.0}),
    ],
)
def test_numbers_of_numpy_come_back_as_equal_ones(value: Any, expected: Any) -> None:
    found = unpack(json.loads(json.dumps(pack(value, "value"))))
    assert repr(found) == repr(expected)
    assert found == value


BAD: list[Any] = [{"tangentune": "code", "value": 1}, {"tangentune": "dict"}, {"tangentune": ["x"]}]
BAD += [{"tangentune": "dict", "value": [[[], 1]]}, {"tangentune": "device", "value": "x"}]


@pytest.mark.parametrize("value", BAD)
def test_values_of_unknown_kinds_are_refused(value: Any) -> None:
    with pytest.raises(ValueError, match="no value of a known kind"):
        unpack(value)


@pytest.mark.parametrize(
    "options",
    [
        {"class_weight": {0: 1.0, 1: 2.0, 2: 1.0}},
        {"class_weight": {np.int64(0): np.float32(1), np.int64(1): np.float64(2), np.int64(2): 1}},
        {"input_size": (20, 20), "device": torch.device("cpu"), "batch_size": np.int64(5)},
        {"memory_budget": np.int64(2**35), "damping": np.float32(0.25), "normalize": np.bool_(True)},
        {"memory_budget": 1e11, "outer_steps": np.int32(0), "random_state": np.int64(4)},
    ],
    ids=lambda options: "-".join(options),
)
def test_what_fits_is_saved_and_read(options: dict[str, Any], tmp_path: Path) -> None:
    clf = TangentClassifier(backbone(), **(QUICK | options)).fit(X, Y)
    clf.save_pretrained(tmp_path / "m")
    again = TangentClassifier.from_pretrained(tmp_path / "m", backbone=backbone())
    for name, value in options.items():
        assert getattr(again, name) == value
        assert isinstance(getattr(again, name), type(value.item() if isinstance(value, np.generic) else value))
    assert np.array_equal(again.predict_proba(X), clf.predict_proba(X))
    unfitted: Any = clone(again)
    refit = unfitted.fit(X, Y)  # the options are those of an estimator that fits
    np.testing.assert_allclose(refit.loo_predictions_, clf.loo_predictions_, rtol=0, atol=1e-12)
    assert np.array_equal(again.forget(0).targets_, Y[1:])


def test_a_random_state_is_kept_as_the_seed_it_gave(tmp_path: Path) -> None:
    clf = TangentClassifier(backbone(), **QUICK, random_state=np.random.RandomState(3)).fit(X, Y)
    clf.save_pretrained(tmp_path / "m")
    again = TangentClassifier.from_pretrained(tmp_path / "m", backbone=backbone())
    assert again.random_state == again.fitted_.seed == clf.fitted_.seed
    unfitted: Any = clone(again)
    assert np.array_equal(unfitted.fit(X, Y).probes_, clf.probes_)
    free = TangentClassifier(backbone(), **QUICK, random_state=None).fit(X, Y)
    free.save_pretrained(tmp_path / "n")
    assert TangentClassifier.from_pretrained(tmp_path / "n", backbone=backbone()).random_state is None


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"damping": Fraction(1, 10)}, "damping holds a Fraction"),
        ({"class_weight": {0: 1.0, 1: Fraction(2), 2: 1.0}}, "class_weight holds a Fraction"),
        ({"verbose": np.datetime64("2020-01-01")}, "verbose holds a"),
        ({"random_state": "seven"}, "random_state is"),
    ],
)
def test_options_no_saved_model_could_hold_are_refused_before_the_fit(
    options: dict[str, Any], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tangentune.estimators.fit.fit_tangent", lambda *_, **__: pytest.fail("it fitted"))
    with pytest.raises(InputError) as caught:
        TangentClassifier(backbone(), **(QUICK | options)).fit(X, Y)
    assert words in str(caught.value)


@pytest.mark.parametrize("labels", [np.array([b"a", b"b"] * 6), np.array(["2020", "2021"] * 6, "datetime64[Y]")])
def test_labels_no_saved_model_could_hold_are_refused_before_the_fit(labels: np.ndarray) -> None:
    vectors = np.random.default_rng(0).normal(size=(12, 4)).astype(np.float32)
    network = Backbone(nn.Sequential(nn.Linear(4, 8), nn.Tanh()))
    with pytest.raises(InputError, match="labels have the type"):
        TangentClassifier(network, **QUICK).fit(vectors, labels)
