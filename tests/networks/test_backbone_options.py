"""A backbone's options as people write them, and the device that it goes to: taken where clear, else one sentence."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from net_cases import SIZE, small_net
from torch import nn

from tangentune.errors import BackboneError, InputError
from tangentune.networks.backbone import Backbone, as_backbone, load_backbone, usable_device
from tangentune.networks.leaky import leaky
from tangentune.pictures.contract import DataContract

PLAIN = DataContract(SIZE, (0.5,) * 3, (0.25,) * 3, "bilinear", 0.875)


@pytest.mark.parametrize("size", [np.array(SIZE), torch.tensor(SIZE), torch.Size(SIZE), [3.0, 8, np.int64(8)]], ids=str)
@pytest.mark.parametrize("half", [0.5, np.float32(0.5), [0.5] * 3, torch.full((3,), 0.5)], ids=str)
def test_numbers_of_every_kind_make_the_same_contract(size: Any, half: Any) -> None:
    how: dict[str, Any] = {"interpolation": SimpleNamespace(value="bilinear"), "crop": np.float32(0.875)}
    contract = Backbone(small_net(), input_size=size, mean=half, std=0.25, **how).contract
    assert contract.differences(PLAIN) == []
    assert DataContract.from_dict(json.loads(json.dumps(contract.to_dict()))) == contract


@pytest.mark.parametrize("options, words", [
    ({"input_size": 64}, "such as (3, 64, 64)"), ({"input_size": (48, 64)}, "such as (3, 48, 64)"),
    ({"input_size": True}, "input_size=True must be"), ({"input_size": "big"}, "input_size='big' must be"),
    ({"input_size": [8]}, "input_size=[8] must be"), ({"input_size": (3, 8, 8, 8)}, "must be"),
    ({"input_size": SIZE, "mean": "grey"}, "mean='grey' must be one number a channel"),
    ({"input_size": SIZE, "std": (None, 1, 1)}, "must be one number a channel"),
    ({"input_size": SIZE, "crop": "7/8"}, "crop='7/8' must be in"), ({"input_size": SIZE, "crop": True}, "crop=True"),
], ids=str)  # fmt: skip
def test_what_is_not_clear_is_one_sentence(options: dict[str, Any], words: str) -> None:
    with pytest.raises(BackboneError) as caught:
        Backbone(small_net(), **options)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("size", [np.int64(20), 20.0, torch.tensor(20), (20, 20), [20.0, 20], (3, 20, 20)], ids=str)
def test_another_size_is_a_side_two_or_all_three(size: Any) -> None:
    assert Backbone(small_net(), input_size=SIZE).with_size(size).contract.input_size == (3, 20, 20)


def test_sizes_that_do_not_fit_are_one_sentence() -> None:
    sized, bare = Backbone(small_net(), input_size=SIZE), Backbone(small_net())
    assert bare.with_size((3, 20, 20)).contract.input_size == (3, 20, 20)
    cases: list[tuple[Backbone, Any, str]] = [
        (sized, (1, 20, 20), "has 1 channels, but the backbone takes 3"), (bare, 20, "such as (3, 20, 20)"),
        (sized, 20.5, "must be"), (sized, "20", "must be"), (sized, (), "must be"), (sized, float("nan"), "must be"),
    ]  # fmt: skip
    for backbone, size, words in cases:
        with pytest.raises(BackboneError, match=r"^[^\n]*input_size[^\n]*$") as caught:
            backbone.with_size(size)
        assert words in str(caught.value)


def test_a_bare_network_is_wrapped() -> None:
    net = small_net()
    assert as_backbone(net) == Backbone(net)
    with pytest.warns(UserWarning, match=r"sees pixels as they are.*mean="):
        assert as_backbone(net, (3, 8, 8)).contract.input_size == SIZE
    sized = Backbone(net, input_size=SIZE)
    assert as_backbone(sized) == sized
    with pytest.raises(BackboneError, match="backbone is a dict; give a name or"):
        as_backbone({})


@pytest.mark.parametrize("device", ["cuda:99", "mps", "abacus", "cuda:x", "meta", 3.5, "CPU"])
def test_a_device_that_is_not_here_is_one_sentence(device: Any) -> None:
    with pytest.raises(
        InputError, match=rf"^--device {device} cannot be used here \([^\n]{{,60}}\); there is cpu[^\n]*$"
    ):
        usable_device(device, "--device")
    with pytest.raises(InputError, match=f"device {device} cannot be used here"):
        Backbone(small_net()).to(device)


def test_the_device_that_is_here_is_taken() -> None:
    backbone = Backbone(small_net())
    assert backbone.to("cpu") is backbone
    assert backbone.to(torch.device("cpu", 0)) is backbone


def test_auto_is_a_gpu_where_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert usable_device("auto") == torch.device("cpu")
    backbone = Backbone(small_net())
    assert backbone.to("auto") is backbone
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    asked: list[torch.device] = []
    monkeypatch.setattr("torch.empty", lambda *_, device, dtype: asked.append(device) or torch.zeros(1, dtype=dtype))
    usable_device("auto", dtype=torch.float64)
    assert asked == [torch.device("cuda")]


def test_where_a_network_came_from_is_not_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """The origin is that of the very parameters that were loaded; what changes them makes a network of one's own."""
    from tangentune.networks import packaged
    from tangentune.networks.features import Loaded, own_output

    def load(_: str) -> Loaded:
        return Loaded(small_net(), PLAIN, own_output)

    monkeypatch.setattr("tangentune.networks.backbone.load_network", load)
    name = next(iter(packaged.NETWORKS))
    loaded = load_backbone(name)
    assert loaded.describe()["origin"] == name
    assert loaded.with_size(16).describe()["origin"] == name
    assert Backbone(small_net(), input_size=SIZE, name=name).describe()["origin"] is None
    assert leaky(loaded, 0.1).network.describe()["origin"] is None  # under the same parameters another function
    trained = loaded.to("cpu").with_contract(PLAIN)
    with torch.no_grad():
        next(trained.module.parameters()).mul_(1.5)
    assert trained.describe()["origin"] is None


@pytest.mark.parametrize("features, told", [(None, None), ("5", "5"), (lambda module, x: module[:6](x), "<function>")])
def test_where_the_features_are_is_described(features: Any, told: str | None) -> None:
    assert Backbone(nn.Sequential(*small_net()), input_size=SIZE, features=features).describe()["features"] == told


@pytest.mark.parametrize("error, reason", [
    (RuntimeError("CUDA error: invalid ordinal\nCUDA kernel errors might"), "CUDA error: invalid ordinal"),
    (TypeError("Cannot convert a MPS Tensor to float64 dtype"), "it has no float64, which solutions need"),
    (NotImplementedError("Could not run 'aten::empty' [CPU, CUDA, ..."), "this torch knows no such device"),
])  # fmt: skip
def test_each_kind_of_device_fails_in_its_own_way(
    error: Exception, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> Any:
        raise error

    monkeypatch.setattr(torch, "empty", fail)
    with pytest.raises(InputError) as caught:
        usable_device("cuda:7", dtype=torch.float64)
    assert str(caught.value) == f"device cuda:7 cannot be used here ({reason}); there is cpu"
