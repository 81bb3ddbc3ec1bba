"""Networks that are no fixed function of one picture are put right, or refused with the part named."""

import math
from typing import Any

import pytest
import torch
from net_cases import SIZE, Around, Lambda, small_net
from torch import nn
from torch.nn import functional as F

from tangentune.errors import BackboneError
from tangentune.networks.backbone import Backbone
from tangentune.networks.determinism import sample_input


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
    torch.manual_seed(1)  # one pair of passes in sixteen drops the same paths: a chance a test must not take
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


def test_made_up_pictures_show_dependence_on_batch_mates():
    net = nn.Sequential(nn.Conv2d(3, 4, 3), BatchNormalised())
    with pytest.raises(BackboneError, match=r"depend on the other pictures.*BatchNormalised"):
        Backbone(net, input_size=SIZE).check()


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
    with pytest.raises(BackboneError, match=r"1 of 4 pictures hold NaN or infinity .first at row 2"):
        Backbone(small_net(), input_size=SIZE).features(x)
    with pytest.raises(BackboneError, match=r"inputs given to check\(\) hold NaN"):
        Backbone(small_net(), input_size=SIZE).check(x)


def test_check_leaves_the_random_state_and_needs_no_pictures():
    backbone, before = Backbone(nn.Sequential(nn.Conv2d(3, 4, 3), DropPath()), input_size=SIZE), torch.get_rng_state()
    with pytest.raises(BackboneError, match="DropPath"):
        backbone.check()
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
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.GroupNorm(2, 4), nn.InstanceNorm2d(4), nn.Flatten(), nn.LayerNorm(144))
    Backbone(net, input_size=SIZE).check(x)


def test_made_up_picture_is_fixed_and_has_no_repeats():
    picture = sample_input((3, 20, 20), torch.zeros(1, dtype=torch.float64))
    assert picture.flatten()[:2].tolist() == pytest.approx([2 * math.cos(math.pi * (3 - 5**0.5) * i) for i in (1, 2)])
    assert len(picture.unique()) == 1200
