"""Leaky ReLU and ReLU6: every way they are written, in value and in every kind of derivative."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from leaky_cases import SLOPE, Written, Z, pushed, relu6_by_hand, relu_by_hand
from net_cases import Lambda
from torch import Tensor, nn
from torch.nn import functional as F

from tangentune.networks.leaky import LeakyReLU6, leaky, leaky_relu6

# torch's own forward mode scripts its decompositions at first use.
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.*is deprecated:DeprecationWarning")


class Ignoring(nn.Module):
    """Uses an activation for what it does to its input, as `self.act(z)` on a line of its own does."""

    def __init__(self, act: nn.Module):
        super().__init__()
        self.act = act

    def forward(self, z: Tensor) -> Tensor:
        z = z * 1
        self.act(z)
        return z


def in_place(function: Callable[..., Tensor], *args: Any) -> Callable[[Tensor], Tensor]:
    def call(z: Tensor) -> Tensor:
        function(z, *args)  # what is returned is not used
        return z

    return call


RELUS: dict[str, Any] = {
    "module": nn.ReLU(),
    "module in place": Ignoring(nn.ReLU(inplace=True)),
    "hidden in a closure": Written(in_place(nn.ReLU(inplace=True))),
    "F.relu": F.relu,
    "F.relu in place": in_place(lambda z: F.relu(z, inplace=True)),
    "torch.relu": lambda z: torch.relu(input=z),
    "torch.relu_": in_place(torch.relu_),
    "Tensor.relu": lambda z: z.relu(),
    "Tensor.relu_": in_place(lambda z: z.relu_()),
}
RELU6S: dict[str, Any] = {
    "module": nn.ReLU6(),
    "module in place": Ignoring(nn.ReLU6(inplace=True)),
    "Hardtanh module": nn.Hardtanh(0, 6),
    "F.relu6": F.relu6,
    "F.relu6 in place": in_place(lambda z: F.relu6(z, inplace=True)),
    "F.hardtanh": lambda z: F.hardtanh(z, min_val=0, max_val=6),
    "F.hardtanh in place": in_place(lambda z: F.hardtanh(z, 0, 6, inplace=True)),
    "F.hardtanh_": in_place(lambda z: F.hardtanh_(z, 0, 6)),
}
WRITTEN = [(name, use, relu_by_hand) for name, use in RELUS.items()]
WRITTEN += [(name, use, relu6_by_hand) for name, use in RELU6S.items()]


@pytest.mark.parametrize(("name", "use", "expected"), WRITTEN, ids=[name for name, *_ in WRITTEN])
def test_every_way_to_write_it_leaks_in_value_and_derivative(name: str, use: Any, expected: Any) -> None:
    network = use if isinstance(use, nn.Module) else Written(use)
    values = use(Z.clone())
    assert not torch.equal(values, expected(Z)), "it does not leak by itself"
    result = leaky(network, SLOPE)
    torch.testing.assert_close(result.network(Z.clone()), expected(Z), atol=1e-14, rtol=0)
    assert (len(result.modules) == 1) == ("module" in name)
    inside = torch.tensor([-3.0, 2.0, 9.0], dtype=torch.float64, requires_grad=True)
    (grad,) = torch.autograd.grad(result.network(inside * 1).sum(), inside)
    above = SLOPE if expected is relu6_by_hand else 1.0
    torch.testing.assert_close(grad, torch.tensor([SLOPE, 1.0, above], dtype=torch.float64))
    assert torch.equal(use(Z.clone()), values), "the given network stays"


def test_relu6_has_the_slope_at_its_kinks_in_every_kind_of_derivative() -> None:
    z = torch.tensor([0.0, 6.0], dtype=torch.float64, requires_grad=True)
    (grad,) = torch.autograd.grad(leaky_relu6(z, SLOPE).sum(), z)
    tangent = pushed(lambda t: leaky_relu6(t["z"], SLOPE), {"z": z.detach()}, {"z": torch.ones_like(z)})
    assert grad.tolist() == tangent.tolist() == [SLOPE, SLOPE]
    inner = torch.linspace(-9, 15, 11, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda t: leaky_relu6(t, SLOPE), inner)
    assert torch.autograd.gradcheck(lambda t: leaky_relu6(t * 1, SLOPE, inplace=True), inner)


@pytest.mark.parametrize("make", [nn.GELU, nn.SiLU, nn.Hardswish, nn.Hardsigmoid, nn.ELU, nn.Hardtanh])
def test_other_activations_are_left_alone(make: Any) -> None:
    network = nn.Sequential(make(), Lambda(lambda z: F.gelu(z) + F.hardtanh(z) + F.elu(z)))
    result = leaky(network, SLOPE)
    assert torch.equal(result.network(Z), network(Z))
    assert (result.modules, result.unreached) == ((), ())


def test_whole_numbers_keep_their_relu() -> None:
    network = Written(lambda z: torch.relu(z.long()).double())
    assert leaky(network, SLOPE).network(Z).tolist() == [0, 0, 0, 0, 0, 6, 7, 100]


def test_leaky_relu6_prints_its_slope() -> None:
    assert repr(LeakyReLU6(0.1)) == "LeakyReLU6(leaky_slope=0.1, inplace=False)"
