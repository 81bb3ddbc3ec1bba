"""The function that files hold against the engine's, layer by layer and setting by setting; nothing is written here."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from small import FIXED, MEAN, STD, network, pictures
from torch import Tensor, nn
from torch.nn import functional as F

from tangentune import Backbone, TangentClassifier
from tangentune.deployment import plain_operators
from tangentune.deployment.forms import LinearRow, folded, pair_length, position_products, row_length
from tangentune.deployment.network_graph import network_graph
from tangentune.deployment.predictor import Predictor
from tangentune.errors import LayerError
from tangentune.kernels.feature_map import decision
from tangentune.kernels.metric import Whitening

SIZE = (3, 8, 8)


class Vision(nn.Module):
    """A transformer of pictures: class token, positions, attention that puts samples second."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 8, 4, 4)
        self.token, self.places = nn.Parameter(torch.randn(1, 1, 8)), nn.Parameter(torch.randn(1, 5, 8))
        layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, activation="gelu", norm_first=True)
        self.body, self.scale = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False), nn.Parameter(torch.ones(8))

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(len(x.shape) and x.shape[0], -1, -1), x], 1) + self.places
        return self.body(x)[:, 0] * self.scale


def pooled() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, 2, 1, bias=False), nn.BatchNorm2d(4), nn.SiLU(), nn.MaxPool2d(3, 2, 1), nn.Conv2d(4, 6, 2),
        nn.Hardswish(), nn.Conv2d(6, 6, 3, padding="same", groups=2), nn.Flatten(), nn.Linear(6, 5),
    )  # fmt: skip


def seeded(make: Any) -> nn.Module:
    torch.manual_seed(0)
    return make().eval()


@pytest.mark.parametrize("make", [network, pooled, Vision])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"normalize": True, "metric_power": 0.25, "augment": "flip"},
        {"metric_power": 0.5, "probes": 2, "normalize": True},
    ],
)
def test_the_function_of_a_file_is_the_engines(make: Any, options: dict[str, Any]) -> None:
    x, y = pictures(20)
    backbone = Backbone(seeded(make), input_size=SIZE, mean=MEAN, std=STD)
    model = TangentClassifier(backbone, **FIXED | options).fit(x, y).model_
    new = torch.randn(5, *SIZE).to(backbone.dtype)
    graph = network_graph(model.map.tangent.module, model.map.tangent.features, new[:3])
    wanted = decision(model, new)
    with torch.no_grad():
        got = Predictor(model, graph)(new)[0]
    tolerance = 1e-4 if backbone.dtype == torch.float32 else 1e-9
    assert (got - wanted).abs().max() <= tolerance * wanted.abs().max()


def test_each_way_to_a_product_and_a_length_gives_the_same() -> None:
    draw = torch.Generator().manual_seed(0)
    one = lambda *shape: torch.randn(*shape, generator=draw, dtype=torch.float64)
    linear, weights = LinearRow(one(3, 4, 5), one(3, 4, 6)), one(2, 30)
    row, metric = linear.positions(None), Whitening(one(1, 5, 4), one(1, 6, 3))
    whole = row.explicit()
    torch.testing.assert_close(position_products(row, weights), whole @ weights.T)
    moved, few = (metric.left.mT @ whole.unflatten(1, (1, 5, 6)) @ metric.right).flatten(1), weights[:, :12]
    torch.testing.assert_close(whole @ folded(few, metric).T, moved @ few.T)
    inside = linear.positions(metric)
    torch.testing.assert_close(inside.explicit(), moved)
    torch.testing.assert_close(pair_length(inside), row_length(whole, metric))


@pytest.mark.parametrize(
    ("call", "shape"),
    [
        (lambda x, w: F.conv2d(x, w, stride=2, padding=1), (4, 3, 3, 3)),
        (lambda x, w: F.conv2d(x, w, stride=3, dilation=2), (4, 3, 2, 2)),
        (lambda x, w: F.conv2d(x, w, padding=2, groups=3), (6, 1, 2, 3)),
    ],
)
def test_a_convolutions_backward_pass_is_a_convolution(call: Any, shape: tuple[int, ...]) -> None:
    x = torch.randn(2, 3, 9, 8, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(*shape, dtype=torch.float64)
    out = call(x, weight)
    g = torch.randn_like(out)
    (wanted,) = torch.autograd.grad(out, x, g)
    node = out.grad_fn
    settings = (node._saved_stride, node._saved_padding, node._saved_dilation)
    groups = node._saved_groups
    got = plain_operators.convolution_backward(
        g, x.detach(), weight, None, *settings, False, None, groups, (True, False, False)
    )[0]
    torch.testing.assert_close(got, wanted)


@pytest.mark.parametrize("pool", [nn.AdaptiveAvgPool2d((3, 2)), nn.AvgPool2d(3, 2, 1), nn.MaxPool2d(3, 2, 1)])
def test_pools_go_back_in_ordinary_operators(pool: nn.Module) -> None:
    from torch.fx.experimental.proxy_tensor import make_fx

    def gradient(x: Tensor) -> Tensor:
        x = x.requires_grad_()
        return torch.autograd.grad(pool(x).square().sum(), x)[0]

    x = torch.randn(2, 3, 7, 8, dtype=torch.float64)
    graph = make_fx(gradient, decomposition_table=plain_operators.plain_operators())(x)
    assert not [node for node in graph.graph.nodes if "pool" in str(node.target) and "backward" in str(node.target)]
    torch.testing.assert_close(graph(x), gradient(x.clone()))


def test_a_layer_without_a_rule_is_named() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.power = nn.Parameter(torch.ones(3, 8, 8))

        def forward(self, x: Tensor) -> Tensor:
            return torch.pow(x.abs() + 1, self.power).mean((2, 3))

    x, y = pictures(20)
    model = TangentClassifier(Backbone(Odd(), input_size=SIZE), **FIXED).fit(x, y).model_
    new = torch.rand(3, *SIZE)
    graph = network_graph(model.map.tangent.module, model.map.tangent.features, new)
    with pytest.raises(LayerError, match="power"):
        Predictor(model, graph)(new)
