"""Networks and arguments that cannot make a backbone are refused with the reason."""

import json
import re
import threading
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from tangentune.errors import BackboneError
from tangentune.networks.backbone import Backbone

SIZE = (3, 8, 8)


class Quantised(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(3, 3, dtype=torch.int8), requires_grad=False)


def holding_a_lock():
    net: Any = nn.Linear(3, 2)
    net.lock = threading.Lock()
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
        (holding_a_lock, "Linear cannot be copied .*lock.*; take what cannot be copied off"),
        (
            lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, track_running_stats=False)),
            "track_running_stats=False.* at 1: .*batch mates",
        ),
    ],
)
def test_unusable_networks_are_refused(make, message):
    with pytest.raises(BackboneError, match=message):
        Backbone(make())


class Cached(nn.Linear):
    """Keeps a function of its weight, and perhaps calculates with it."""

    def __init__(self, used: bool):
        super().__init__(3, 2)
        self.used, self.cached = used, self.weight * 2

    def forward(self, input):
        return input @ self.cached.T if self.used else super().forward(input)


def test_what_is_left_of_an_earlier_pass_is_not_taken_along():
    x = torch.randn(2, 3)
    net = Cached(used=False)
    assert torch.equal(Backbone(net).features(x), net(x))
    with pytest.raises(BackboneError, match="NaN"):
        Backbone(Cached(used=True)).check(x)
    assert net.cached.grad_fn is not None


@pytest.mark.filterwarnings("ignore:.*weight_norm:FutureWarning")
def test_weights_that_a_hook_calculates_are_calculated_in_every_pass():
    x, net = torch.randn(2, 3), torch.nn.utils.weight_norm(nn.Linear(3, 2))
    backbone = Backbone(net)
    backbone.check(x)
    assert torch.equal(backbone.features(x), net(x))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_traced_network_is_refused():
    with pytest.raises(BackboneError, match="scripted or traced network hides its layers; give"):
        Backbone(scripted())
    with pytest.raises(BackboneError, match="scripted or traced network hides its layers at '1'; give"):
        Backbone(nn.Sequential(nn.Linear(3, 2), scripted()))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"input_size": (3, 0, 8)}, "must be three positive whole numbers"),
        ({"input_size": (3, 8.5, 8)}, r"must be .*\(channels, height, width\)"),
        ({"input_size": (8, 8)}, "must be three positive whole numbers"),
        ({"input_size": SIZE, "mean": (0.5,)}, "mean has 1 and std 0 values; each needs 3"),
        ({"mean": (0.5,) * 3}, "need input_size"),
        ({"input_size": SIZE, "std": (0.2, 0.0, 0.2)}, "must be positive"),
        ({"input_size": SIZE, "interpolation": "cubic"}, "one of nearest, bilinear, bicubic, lanczos"),
        ({"input_size": SIZE, "crop": 1.5}, r"crop=1\.5 must be in"),
    ],
)
def test_contract_that_cannot_be_meant_is_refused(arguments, message):
    with pytest.raises(BackboneError, match=message):
        Backbone(nn.Conv2d(3, 8, 3), **arguments)


@pytest.mark.parametrize(
    "x",
    [torch.zeros(2, 3, 8, 8, dtype=torch.uint8), torch.zeros(2, 1, 8, 8), torch.zeros(3, 8, 8)],
)
def test_inputs_that_do_not_fit_are_refused(x):
    with pytest.raises(BackboneError, match=rf"\(n, 3, 8, 8\), not {re.escape(str(tuple(x.shape)))}"):
        Backbone(nn.Conv2d(3, 8, 3), input_size=SIZE).features(x)


def test_numbers_of_numpy_are_taken_and_become_plain():
    size, mean = tuple(np.array([3, 8, 8])), np.array([0.5, 0.5, 0.5])
    contract = Backbone(nn.Conv2d(3, 8, 3), input_size=size, mean=tuple(mean), std=tuple(mean)).contract
    assert json.loads(json.dumps(contract.to_dict()))["input_size"] == [3, 8, 8]
