"""Products with the Fisher matrix against explicit Jacobians."""

from __future__ import annotations

import copy

import pytest
import torch
from cases import seeded
from reference import closeness
from test_ntk_kernel import jacobian
from torch import Tensor, nn

from tangentune.errors import InputError
from tangentune.jacobian.linearization import Linearization
from tangentune.jacobian.task_vector import flatten
from tangentune.methods.ntk import fisher_vector_product


def problem() -> tuple[nn.Module, Linearization, Tensor, dict[str, Tensor]]:
    net = seeded(nn.Sequential(nn.Conv2d(2, 3, 2), nn.Tanh(), nn.Flatten(), nn.Linear(27, 4)))
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(5, 2, 4, 4, generator=generator, dtype=torch.float64)
    v = {name: torch.randn(p.shape, generator=generator, dtype=torch.float64) for name, p in net.named_parameters()}
    return net, Linearization(net), x, v


def dense(net: nn.Module, x: Tensor, likelihood: str, noise: float) -> Tensor:
    """The Fisher matrix by its definition, `sum_i J_i^T H_i J_i`; H of softmax from its samples' scores."""
    rows, p = jacobian(net, x), net(x).softmax(1)
    if likelihood == "gaussian":
        return torch.einsum("icp,icq->pq", rows, rows) / noise
    score = torch.eye(4, dtype=torch.float64)[None] - p[:, None]  # (n, class drawn, output)
    slopes = torch.einsum("ikc,icp->ikp", score, rows)
    return torch.einsum("ik,ikp,ikq->pq", p, slopes, slopes)


@pytest.mark.parametrize("likelihood", ["gaussian", "categorical"])
def test_exact_products(likelihood) -> None:
    net, lin, x, v = problem()
    before = copy.deepcopy(net.state_dict())
    expected = dense(net, x, likelihood, 0.3) @ flatten(v)
    found = fisher_vector_product(lin, x, v, likelihood=likelihood, noise=0.3)
    assert list(found) == list(lin.names)
    assert closeness(flatten(found), expected) < 1e-12
    assert all(torch.equal(before[name], value) for name, value in lin.function.network.body.state_dict().items())


def test_unused_parameters_get_zeros_and_chosen_ones_alone_are_moved() -> None:
    net, _, x, v = problem()
    lin = Linearization(net, ["3.weight"])
    found = fisher_vector_product(lin, x, v)
    assert list(found) == ["3.weight"]
    columns = slice(24 + 3, 24 + 3 + 108)
    expected = dense(net, x, "categorical", 1)[columns, columns] @ v["3.weight"].flatten()
    assert closeness(found["3.weight"].flatten(), expected) < 1e-12


def test_what_cannot_be_used_is_refused() -> None:
    _, lin, x, v = problem()
    zero = {name: torch.zeros_like(t) for name, t in v.items()}
    assert not bool(flatten(fisher_vector_product(lin, x, zero)).any())
    with pytest.raises(InputError, match="likelihood is 'poisson'; use one of"):
        fisher_vector_product(lin, x, v, likelihood="poisson")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="the vector has no '0.bias'"):
        fisher_vector_product(lin, x, {"0.weight": v["0.weight"]})
    with pytest.raises(InputError, match="noise is 0"):
        fisher_vector_product(lin, x, v, noise=0)
