"""Leaky ReLU in a copy of a network: what is replaced, what is reported, what stays as it was."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from cases import seeded
from leaky_cases import SLOPE, Written, Z, pushed, relu6_by_hand, relu_by_hand
from net_cases import SIZE, Around
from reference import closeness, dense_rows, explicit_rows
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from tangentune.errors import BackboneError, InputError, MissingExtraError
from tangentune.jacobian.survey import survey
from tangentune.networks.backbone import Backbone, load_backbone
from tangentune.networks.leaky import Leak, leaky

# torch's own forward mode scripts its decompositions at first use.
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.*is deprecated:DeprecationWarning")


class Residual(nn.Module):
    """Functional and module uses, in a method that is not forward too; one ReLU module used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.act = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3, padding=1), nn.ReLU(inplace=True)
        self.head = nn.Linear(4, 5)

    def pooled(self, x: Tensor) -> Tensor:
        x = F.relu6(self.first(x) * 4, inplace=True)
        return self.act(x + self.act(self.second(x))).relu().mean((2, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.pooled(x))


def residual_by_hand(net: Any, x: Tensor) -> Tensor:
    x = relu6_by_hand(net.first(x) * 4)
    return relu_by_hand(relu_by_hand(x + relu_by_hand(net.second(x)))).mean((2, 3))


def pooled(module: nn.Module, x: Tensor) -> Tensor:
    """At top level, so that a Backbone of it pickles."""
    assert isinstance(module, Residual)
    return module.pooled(x)


def residual() -> Backbone:
    return Backbone(seeded(Residual()), input_size=SIZE, features=pooled, name="residual")


def test_a_backbone_leaks_in_its_features_and_in_its_forward(x: Tensor) -> None:
    original = residual()
    result = leaky(original, SLOPE)
    network: Any = result.network.module
    assert isinstance(network, Residual)
    expected = residual_by_hand(network, x.double())
    torch.testing.assert_close(result.network.features(x), expected)
    torch.testing.assert_close(network(x.double()), network.head(expected))
    assert result.modules == ("act",)
    assert str(result) == "slope 0.1: 1 modules and all functional uses within reach replaced"
    assert result.network.name == "residual, leaky 0.1"
    assert result.network != original
    with pytest.raises(BackboneError, match="other features"):
        result.network.verify(original.describe())


def test_names_values_hooks_and_the_original_stay(x: Tensor) -> None:
    original = residual()
    seen: list[Any] = []
    original.module.get_submodule("act").register_forward_hook(lambda *_: seen.append(1))
    before = original.features(x)
    seen.clear()
    changed = leaky(original, SLOPE).network
    assert seen == [], "hooks of the user's ran"
    old, new = original.module.state_dict(), changed.module.state_dict()
    assert list(old) == list(new)
    assert all(torch.equal(old[name], new[name]) and old[name] is not new[name] for name in old)
    assert torch.equal(original.features(x), before)
    changed.features(x)
    assert len(seen) == 4


@pytest.mark.parametrize("twin", [copy.deepcopy, lambda network: pickle.loads(pickle.dumps(network))])
def test_copies_and_pickles_leak_too(twin: Any, x: Tensor) -> None:
    changed = leaky(residual(), SLOPE).network
    again = twin(changed)
    assert again == changed
    assert torch.equal(again.features(x), changed.features(x))
    assert torch.equal(again.module(x.double()), changed.module(x.double()))


def test_slope_zero_is_the_identity(x: Tensor) -> None:
    original = residual()
    result = leaky(original, 0.0)
    assert torch.equal(result.network.features(x), original.features(x))
    assert result.network == original
    assert (result.modules, result.unreached) == ((), ())
    for slope in (1e-300, 1e-9):
        torch.testing.assert_close(leaky(original, slope).network.features(x), original.features(x))


def test_blocks_of_the_network_leak_when_called_alone() -> None:
    network = nn.Sequential(nn.Identity(), Written(F.relu), nn.Sequential(Written(F.relu6)))
    result: Any = leaky(network, SLOPE)
    torch.testing.assert_close(result.network[1](Z), relu_by_hand(Z))
    torch.testing.assert_close(result.network[2](Z), relu6_by_hand(Z))


def test_transformer_layers_leak_although_torch_has_a_fast_path_for_them() -> None:
    layer: Any = seeded(nn.TransformerEncoderLayer(4, 2, 8, batch_first=True))
    network = nn.Sequential(layer)
    x = torch.randn(2, 3, 4, dtype=torch.float64)
    result = leaky(network, SLOPE)
    layer.activation = relu_by_hand
    layer.activation_relu_or_gelu = 0
    with torch.no_grad():
        torch.testing.assert_close(result.network(x), network(x))


def test_what_is_out_of_reach_is_said() -> None:
    scripted: Any = torch.jit.trace(nn.Sequential(nn.ReLU(), nn.Sequential(nn.ReLU())), Z)
    patched: Any = Written(F.relu)
    patched.forward = F.relu
    network = nn.ModuleDict({"a": scripted, "b": nn.RNN(2, 2, nonlinearity="relu"), "c": patched, "d": nn.RNN(2, 2)})

    def forward(body: Any, x: Tensor) -> Tensor:
        return body["a"](x)

    result = leaky(Around(network, forward), SLOPE)
    told = "\n".join(result.unreached)
    assert len(result.unreached) == 3, told
    for part in ("body.a (", "is scripted or traced", "body.b (RNN) has its ReLU inside", "body.c"):
        assert part in told
    with pytest.raises(BackboneError, match="scripted or traced"):
        leaky(scripted, SLOPE)


@pytest.mark.parametrize("slope", [-0.1, 1.0, float("nan")])
def test_slopes_that_are_no_leak_are_refused(slope: float) -> None:
    with pytest.raises(InputError, match="slope is"):
        leaky(nn.ReLU(), slope)


def test_a_leaky_network_is_not_given_a_second_slope() -> None:
    networks: list[Any] = [residual(), Written(F.relu), nn.Sequential(nn.ReLU6())]
    for network in networks:
        with pytest.raises(InputError, match="leaks already"):
            leaky(leaky(network, SLOPE).network, 0.2)


def test_an_error_or_an_interrupt_inside_ends_the_leak() -> None:
    for error in (ValueError, KeyboardInterrupt):

        def broken(_z: Tensor, error: type[BaseException] = error) -> Tensor:
            raise error

        with pytest.raises(error):
            leaky(Written(broken), SLOPE).network(Z)
        assert torch.equal(F.relu(Z), Z.clamp(min=0))


def test_leaky_networks_have_no_dead_rows_and_exact_ones(x: Tensor) -> None:
    """Rows of the recorder, of vmap over grad, and of forward mode are those of the network written by hand."""
    changed = leaky(residual(), SLOPE).network
    inputs, probes = x.double(), torch.eye(4, dtype=torch.float64)
    names = [name for name, _ in changed.module.named_parameters() if not name.startswith("head")]
    tangent = survey(changed.module, changed.feature_function, names, inputs)
    rows = explicit_rows(tangent, inputs, probes)
    by_hand = dense_rows(Around(changed.module, residual_by_hand), inputs, probes)
    params = {name: p.detach() for name, p in changed.module.named_parameters()}
    for name in names:
        assert closeness(rows[name], by_hand[f"body.{name}"]) < 1e-10
    directions = {name: torch.randn_like(p) for name, p in params.items()}
    moved = pushed(lambda p: functional_call(changed.module, p, (inputs,)), params, directions)
    net = Around(changed.module, lambda body, x: body.head(residual_by_hand(body, x)))
    prefixed = [{f"body.{name}": value for name, value in d.items()} for d in (params, directions)]
    expected = pushed(lambda p: functional_call(net, p, (inputs,)), *prefixed)
    torch.testing.assert_close(moved, expected)


def test_a_dead_unit_has_no_rows_and_a_leaky_one_has_some() -> None:
    dead: Any = nn.Sequential(nn.Linear(2, 1), nn.ReLU()).double()
    with torch.no_grad():
        dead[0].weight.fill_(-1.0)
        dead[0].bias.zero_()
    x, probe = torch.tensor([[1.0, 2.0]], dtype=torch.float64), torch.ones(1, 1, dtype=torch.float64)
    assert not dense_rows(dead, x, probe)["0.weight"].any()
    assert dense_rows(leaky(dead, SLOPE).network, x, probe)["0.weight"].flatten().tolist() == [SLOPE, 2 * SLOPE]


@pytest.mark.parametrize(("name", "modules"), [("mobilenet_v2", 35), ("efficientnet_lite0", 0)])
def test_every_activation_of_the_networks_defined_here_is_replaced(name: str, modules: int) -> None:
    try:
        backbone = load_backbone(name).with_size(64)
    except MissingExtraError as missing:
        pytest.skip(str(missing))
    result = leaky(backbone)
    assert len(result.modules) == modules
    assert result.unreached == ()
    result.network.check()
    x = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with Leak(0.01):
        expected = backbone.features(x)
    torch.testing.assert_close(result.network.features(x), expected)
    assert not torch.allclose(expected, backbone.features(x))
