"""Where features are: outputs, submodules and functions, and how they become one row a picture."""

import copy
from collections import namedtuple

import pytest
import torch
from net_cases import SIZE, Around, Lambda, small_net
from torch import nn

from tangentune.errors import BackboneError
from tangentune.networks.backbone import Backbone


def features_by_hand(net, x):
    with torch.no_grad():
        return copy.deepcopy(net).eval()[:6](x)


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
