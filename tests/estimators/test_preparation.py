"""A saved model and the network that it meets: prepared as for the fit, from where it came, fitted again alike."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small import FIXED, MEAN, STD, network, pictures
from torch import nn

from tangentune import Backbone, TangentClassifier
from tangentune.errors import BackboneError, InputError, StoreError
from tangentune.networks.backbone import load_backbone
from tangentune.networks.features import Loaded, own_output
from tangentune.networks.packaged import NETWORKS
from tangentune.pictures.contract import DataContract

X, Y = pictures()
NEW, _ = pictures(7, seed=5)
STOCK = next(iter(NETWORKS))
HOW: dict[str, Any] = {"input_size": (3, 8, 8), "mean": MEAN, "std": STD, "interpolation": "bilinear", "crop": 0.8}


def fitted(**stated: Any) -> TangentClassifier:
    return TangentClassifier(Backbone(network(), **(HOW | stated)), **FIXED).fit(X, Y)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("prepared") / "m"
    fitted().save_pretrained(folder)
    return folder


@pytest.mark.parametrize("stated, told", [
    ({"input_size": (3, 8, 8)}, ()), ({"input_size": (3, 16, 12)}, ()), ({}, ()), (HOW, ()),
    (HOW | {"mean": (0.5,) * 3}, ("mean=(0.4, 0.5, 0.6) instead of (0.5, 0.5, 0.5)",)),
    (HOW | {"std": (), "crop": 0.5}, ("crop=0.8 instead of 0.5",)),
    (HOW | {"interpolation": "nearest", "std": 1.0}, ("std=", "interpolation=bilinear instead of nearest")),
], ids=str)  # fmt: skip
@pytest.mark.filterwarnings("error")
def test_pictures_are_prepared_as_for_the_fit(saved: Path, stated: dict[str, Any], told: tuple[str, ...]) -> None:
    given, expected = Backbone(network(), **stated), TangentClassifier.from_pretrained(saved, backbone=network())
    if told:
        with pytest.warns(UserWarning, match="prepared as for the fit") as caught:
            found = TangentClassifier.from_pretrained(saved, backbone=given)
        (one,) = caught
        assert all(words in str(one.message) for words in told)
    else:
        found = TangentClassifier.from_pretrained(saved, backbone=given)
    assert found.backbone_.contract.differences(expected.backbone_.contract) == []
    assert found.backbone_.contract.crop == 0.8
    assert np.array_equal(found.decision_function(NEW), expected.decision_function(NEW))
    again = found.fit(X, Y)  # and so is a fit like the first
    np.testing.assert_allclose(again.decision_function(NEW), expected.decision_function(NEW), rtol=0, atol=1e-12)


def test_a_bare_network_is_wrapped_where_the_features_were(tmp_path: Path) -> None:
    clf = fitted(features="7")
    clf.save_pretrained(tmp_path / "m")
    found = TangentClassifier.from_pretrained(tmp_path / "m", backbone=network())
    assert np.array_equal(found.decision_function(NEW), clf.decision_function(NEW))
    other = Backbone(network(), features="5")
    with pytest.raises(BackboneError, match="gives other features"):
        TangentClassifier.from_pretrained(tmp_path / "m", backbone=other)
    with pytest.raises(BackboneError, match="backbone is a dict"):
        TangentClassifier.from_pretrained(tmp_path / "m", backbone={})  # type: ignore[arg-type]
    own = fitted(features=lambda module, x: module(x)[:, :4])
    own.save_pretrained(tmp_path / "own")
    with pytest.raises(BackboneError, match="features"):
        TangentClassifier.from_pretrained(tmp_path / "own", backbone=network())


@pytest.mark.parametrize("name", ["mynet", STOCK, "timm:resnet18", "custom"])
def test_a_name_is_not_where_a_network_came_from(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is loaded by the name of a network of one's own: not by a reload, a refit, nor strict forgetting."""
    clf = fitted(name=name)
    clf.save_pretrained(tmp_path / "m")
    monkeypatch.setattr("tangentune.networks.backbone.load_network", None)  # nor looked for
    monkeypatch.setattr("tangentune.networks.hubs.load_from_hub", None)
    with pytest.raises(StoreError, match=rf"a network of your own \({name}, .*backbone=Backbone"):
        TangentClassifier.from_pretrained(tmp_path / "m")
    found = TangentClassifier.from_pretrained(tmp_path / "m", backbone=network())
    assert found.backbone_.name == name
    strict = fitted(name=name).forget([3], strict=True)
    np.testing.assert_allclose(
        found.forget([3], strict=True).decision_function(NEW), strict.decision_function(NEW), rtol=0, atol=1e-12
    )
    found.fit(X, Y)
    np.testing.assert_allclose(found.decision_function(NEW), clf.decision_function(NEW), rtol=0, atol=1e-12)


@pytest.mark.parametrize("size", [None, 8, (3, 12, 8)])
@pytest.mark.parametrize("before", [8, (8, 12)])
def test_a_loaded_network_is_loaded_again_and_a_refit_equals_the_fit(
    size: Any, before: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the picture size was the backbone's, not the estimator's."""
    contract = DataContract((3, 10, 10), MEAN, STD)
    monkeypatch.setattr("tangentune.networks.backbone.load_network", lambda _: Loaded(network(), contract, own_output))
    clf = TangentClassifier(load_backbone(STOCK).with_size(before), **FIXED, input_size=size).fit(X, Y)
    clf.save_pretrained(tmp_path / "m")
    found = TangentClassifier.from_pretrained(tmp_path / "m")
    assert isinstance(found.backbone, str) == (size is not None)
    assert found.backbone_.contract == clf.backbone_.contract
    found.fit(X, Y)
    np.testing.assert_allclose(found.decision_function(NEW), clf.decision_function(NEW), rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", [STOCK, "mynet", "custom"])
def test_models_written_before_have_the_name_alone(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def before(self: Backbone) -> dict[str, Any]:
        return {key: value for key, value in describe(self).items() if key not in ("origin", "features")}

    describe, contract = Backbone.describe, DataContract((3, 8, 8), MEAN, STD)
    monkeypatch.setattr("tangentune.networks.backbone.load_network", lambda _: Loaded(network(), contract, own_output))
    given = Backbone(network(), **HOW, name=name) if name != STOCK else load_backbone(name)
    clf = TangentClassifier(given, **FIXED).fit(X, Y)
    monkeypatch.setattr(Backbone, "describe", before)
    clf.save_pretrained(tmp_path / "m")
    if name != STOCK:
        with pytest.raises(StoreError, match="a network of your own"):
            TangentClassifier.from_pretrained(tmp_path / "m")
    own = None if name == STOCK else network()
    found = TangentClassifier.from_pretrained(tmp_path / "m", backbone=own)
    assert np.array_equal(found.decision_function(NEW), clf.decision_function(NEW))


# -- options of the estimators -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "size", [np.int64(10), 10.0, (10, 10), [10, np.float32(10)], (3, 10, 10), torch.Size([3, 10, 10])]
)
def test_a_size_is_taken_in_every_form(size: Any) -> None:
    found = TangentClassifier(Backbone(network(), **HOW), **FIXED, input_size=size).fit(X, Y)
    assert found.backbone_.contract.input_size == (3, 10, 10)
    assert found.predict(NEW).shape == (7,)


def test_numbers_are_taken_in_every_form() -> None:
    plain: dict[str, Any] = FIXED | {"probes": 2, "batch_size": 7, "memory_budget": 4 * 10**9, "random_state": 3}
    told: dict[str, Any] = {"metric_power": np.float32(0), "body_scale": np.float64(0.3), "damping": np.float64(0.05)}
    told |= {"batch_size": np.float64(7), "outer_steps": 0.0, "memory_budget": np.float64(4e9), "random_state": 3.0}
    told |= {"normalize": np.bool_(False), "n_jobs": 1.0, "verbose": np.int64(0), "probe_space": "isotropic"}
    told |= {"probes": 2.0, "augment": "none"}
    one, other = (TangentClassifier(Backbone(network(), **HOW), **options).fit(X, Y) for options in (plain, told))
    assert np.array_equal(one.decision_function(NEW), other.decision_function(NEW))
    drawn = TangentClassifier(Backbone(network(), **HOW), random_state=np.random.default_rng(0), **FIXED).fit(X, Y)
    assert drawn.predict(NEW).shape == (7,)


@pytest.mark.parametrize("options, words", [
    ({"batch_size": True}, "batch_size is True"), ({"batch_size": "8"}, "batch_size is '8'"),
    ({"batch_size": None}, "batch_size is None"), ({"outer_steps": True}, "outer_steps is True"),
    ({"random_state": True}, "random_state is True"), ({"random_state": "7"}, "random_state is '7'"),
    ({"random_state": 0.5}, "random_state is 0.5"), ({"verbose": "yes"}, "verbose is 'yes'"),
    ({"memory_budget": True}, "memory size True"), ({"memory_budget": "4.5.1GiB"}, "memory size '4.5.1GiB'"),
    ({"damping": True}, "damping is True"), ({"input_size": True}, "input_size=True"),
    ({"input_size": 20.5}, "input_size=20.5"), ({"input_size": (1, 8, 8)}, "has 1 channels"),
    ({"device": "cuda:77"}, "device cuda:77 cannot be used here"), ({"device": "abacus"}, "device abacus cannot"),
], ids=str)  # fmt: skip
def test_what_is_not_clear_is_refused_in_a_sentence(options: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError) as caught:
        TangentClassifier(Backbone(network(), **HOW), **(FIXED | options)).fit(X, Y)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_batch_size_set_later_is_read_with_the_same_care() -> None:
    clf = fitted().set_params(batch_size=np.float64(3))
    assert clf.predict(NEW).shape == (7,)
    with pytest.raises(InputError, match="batch_size is 'all'"):
        clf.set_params(batch_size="all").predict(NEW)


def test_a_network_is_wrapped() -> None:
    vectors = np.random.default_rng(0).normal(size=(20, 4))
    net = nn.Sequential(nn.Linear(4, 9), nn.Tanh(), nn.Linear(9, 5)).double()
    bare, wrapped = (
        TangentClassifier(given, **FIXED).fit(vectors, vectors[:, 0] > 0) for given in (net, Backbone(net))
    )
    assert np.array_equal(bare.decision_function(vectors), wrapped.decision_function(vectors))
    with pytest.warns(UserWarning, match="sees pixels as they are"):
        found = TangentClassifier(network(), **FIXED, input_size=(3, 8, 8)).fit(X, Y)
    assert found.backbone_.contract.input_size == (3, 8, 8)
    with pytest.raises(BackboneError, match=r"such as \(3, 8, 8\)"):
        TangentClassifier(network(), **FIXED, input_size=8).fit(X, Y)


@pytest.mark.parametrize(
    "given", ["folder", X, list(X), X[:, 0], "missing.csv"], ids=["folder", "n", "list", "grey", "csv"]
)
def test_pictures_for_a_network_without_a_size_are_told_what_it_needs(given: Any, tmp_path: Path) -> None:
    given = tmp_path if isinstance(given, str) and given == "folder" else given
    for backbone in (network(), Backbone(network())):
        with pytest.raises(InputError, match=r"takes no pictures; make it with Backbone\(module, input_size="):
            TangentClassifier(backbone, **FIXED).fit(given, Y)


def test_the_usual_backbone_is_that_of_the_command_line() -> None:
    from tangentune.cli.fit import fit

    default = next(option.default for option in fit.params if option.name == "backbone")
    assert TangentClassifier().backbone == default
