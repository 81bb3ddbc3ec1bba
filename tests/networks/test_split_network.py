"""A network cut in two gives the same features and derivatives; what lies below runs on no picture any more."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import pytest
import small
import torch
from cases import seeded
from reference import closeness
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from tangentune import Backbone
from tangentune.errors import BackboneError, InputError
from tangentune.jacobian.linearization import Linearization
from tangentune.networks.mobilenet_v2 import MobileNetV2
from tangentune.networks.split_network import parameters_above, split_network


class Residual(nn.Module):
    """A stem and sums in the forward's own code."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.layer1 = nn.Sequential(nn.ReLU(inplace=True), nn.Conv2d(4, 4, 3, padding=1))
        self.layer2 = nn.Sequential(nn.ReLU(inplace=True), nn.Conv2d(4, 4, 1))

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(torch.tanh(self.norm(self.stem(x))), 2)
        x = x + self.layer1(x.clone())
        return (2 * torch.tanh(self.layer2(x))).mean((2, 3))


def preactivation() -> nn.Module:
    """Blocks that begin by changing their input in place."""
    blocks = [nn.Sequential(nn.ReLU(inplace=True), nn.Conv2d(4, 4, 3)) for _ in range(2)]
    return nn.Sequential(nn.Conv2d(3, 4, 3), *blocks)


class Transformer(nn.Module):
    """Patches, a class token and positions outside any block, then attention blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, 8, 4, stride=4)
        self.cls_token, self.positions = nn.Parameter(torch.zeros(1, 1, 8)), nn.Parameter(torch.zeros(1, 5, 8))
        layers = [nn.TransformerEncoderLayer(8, 2, 9, batch_first=True, norm_first=True) for _ in range(3)]
        self.blocks, self.norm = nn.ModuleList(layers), nn.LayerNorm(8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], 1) + self.positions
        for block in self.blocks:
            x = block(x)
        return self.norm(x)[:, 0]


class Skipping(nn.Module):
    """The input also reaches the end by a way around the middle; `mode` says which."""

    def __init__(self, mode: str) -> None:
        super().__init__()
        self.mode = mode
        self.low, self.gate, self.top = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.low(x))
        if self.mode == "keyword":
            return self.top(input=h)
        if self.mode == "transposed":
            return self.top(h[:, None].transpose(0, 1))[0]
        if self.mode == "by hand":
            return F.linear(h, self.top.weight, self.top.bias)
        if self.mode == "around":
            return self.top(h) + self.gate(x)
        return self.top(torch.tanh(self.top(h)))  # used twice: the first use is the cut


class TiedEnds(nn.Module):
    """The top layer's weight is also the bottom's."""

    def __init__(self) -> None:
        super().__init__()
        self.low, self.top = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.top(torch.tanh(F.linear(x, self.top.weight) + self.low(x)))


def pictured(module: nn.Module, features: str | Callable[[nn.Module, Tensor], Tensor] | None = None) -> Backbone:
    return Backbone(seeded(module), input_size=(3, 8, 8), features=features)


def pooled(module: nn.Module, x: Tensor) -> Tensor:
    return module.pooled(x)  # type: ignore[operator]


@cache
def mobile() -> Backbone:
    return pictured(MobileNetV2(10), features=pooled)


NETWORKS = {
    "sequential": (small.backbone, ["0", "3", "5", "10"]),
    "residual": (lambda: pictured(Residual()), ["norm", "layer2.1"]),
    "preactivation": (lambda: pictured(preactivation()), ["1", "2"]),
    "transformer": (lambda: pictured(Transformer()), ["blocks.0", "blocks.2", "norm"]),
    "features_by_name": (lambda: pictured(small.network(), features="7"), ["1", "5"]),
    "features_by_function": (mobile, ["features.14"]),
    "used_twice": (lambda: Backbone(seeded(Skipping("twice")), input_size=None), ["top"]),
}
CUTS = [(name, cut) for name, (_, cuts) in NETWORKS.items() for cut in cuts]


def inputs(backbone: Backbone, n: int = 4) -> Tensor:
    shape = backbone.contract.input_size or (4,)
    return torch.randn(n, *shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@pytest.mark.parametrize(("name", "cut"), CUTS, ids=[f"{name}-{cut}" for name, cut in CUTS])
def test_both_parts_together_are_the_network(name: str, cut: str) -> None:
    backbone = NETWORKS[name][0]()
    x = inputs(backbone)
    names = parameters_above(backbone, cut, x)
    parts = split_network(backbone, names, x[:2])
    assert parts.block == cut
    z = parts.below(x)
    kept = z.clone()
    whole = backbone.features(x)
    assert closeness(parts.above.features(z), whole) < 1e-12
    assert torch.equal(z, kept)
    assert closeness(parts.above.features(z[2:3]), whole[2:3]) < 1e-12
    above, full = Linearization(parts.above, names), Linearization(backbone, names)
    generator = torch.Generator().manual_seed(2)
    v = {key: torch.randn(t.shape, generator=generator, dtype=t.dtype) for key, t in full.zeros().items()}
    r = torch.randn(whole.shape, generator=generator, dtype=torch.float64)
    assert closeness(above.jvp(z, v), full.jvp(x, v)) < 1e-12
    pulled = full.vjp(x, r)
    for key, value in above.vjp(z, r).items():
        assert torch.allclose(value, pulled[key], rtol=1e-10, atol=1e-12), key
    assert torch.equal(z, kept)
    assert not any(m._forward_pre_hooks for m in backbone.module.modules())


def test_every_operation_is_done_once() -> None:
    backbone = mobile()
    x = inputs(backbone)
    parts = split_network(backbone, parameters_above(backbone, "features.14", x), x[:2])
    z = parts.below(x)

    def operations(function: Callable[[Tensor], Tensor], given: Tensor) -> int:
        with FlopCounterMode(display=False) as counter:
            function(given)
        return counter.get_total_flops()

    below, above = operations(parts.below, x), operations(parts.above.features, z)
    assert min(below, above) > 0
    assert below + above == operations(backbone.features, x)


def test_behind_the_features() -> None:
    backbone = small.backbone()
    x = inputs(backbone)
    parts = split_network(backbone, [], x[:2])
    assert parts.block == ""
    assert torch.equal(parts.below(x), backbone.features(x))
    assert torch.equal(parts.above.features(parts.below(x)), backbone.features(x))


@pytest.mark.parametrize(
    ("network", "reason"),
    [
        (Skipping("keyword"), "top is not called with a tensor of one row a picture"),
        (Skipping("transposed"), "top is not called with a tensor of one row a picture"),
        (Skipping("by hand"), "calls no block that holds top.weight"),
        (Skipping("around"), "cannot go on from top alone"),
        (TiedEnds(), "top.weight is also used below top"),
    ],
    ids=["keyword", "transposed", "by_hand", "around", "tied"],
)
def test_a_network_that_cannot_be_cut_is_refused(network: nn.Module, reason: str) -> None:
    backbone = Backbone(seeded(network), input_size=None)
    x = inputs(backbone, 3)
    names = [name for name in parameters_above(backbone, "top", x) if name.startswith("top")]
    with pytest.raises(BackboneError, match=reason):
        split_network(backbone, names, x)
    assert not any(m._forward_pre_hooks for m in backbone.module.modules())


def test_a_sum_around_the_block_is_noticed() -> None:
    backbone = pictured(Residual())  # x + layer1(x), where the convolution's block is layer1.1
    x = inputs(backbone, 2)
    with pytest.raises(BackboneError, match=r"cannot go on from layer1\.1 alone"):
        split_network(backbone, parameters_above(backbone, "layer1.1", x), x)


def test_parameters_from_a_block_on() -> None:
    backbone = mobile()
    x = inputs(backbone, 2)
    names = parameters_above(backbone, "features.16", x)
    assert {name.split(".")[1] for name in names} == {"16", "17", "18"}
    assert parameters_above(backbone, "last:3", x) == names
    for wrong in ("features.99", "classifier.1", "last:0", "last:x"):
        with pytest.raises(InputError, match=r"features\.|subset"):
            parameters_above(backbone, wrong, x)
