"""Rows of passes under autocast: proved in float64 as ever, and to bfloat16's digits those that autograd has there."""

from __future__ import annotations

import pytest
import torch
from cases import CASES, Case
from reference import closeness, explicit_rows, looped_rows
from torch import Tensor, nn

from tangentune.jacobian.rows import RowPlan
from tangentune.jacobian.survey import survey
from tangentune.networks.features import FeatureFunction, own_output

pytestmark = [
    pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel:UserWarning"),
    pytest.mark.filterwarnings("ignore:Mismatch dtype between input and weight:UserWarning"),  # torch's, of rms_norm
]
ROUNDED = FeatureFunction(own_output, torch.bfloat16)


class Rounded(nn.Module):
    """A network whose forward pass runs under autocast."""

    def __init__(self, inner: nn.Module):
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return self.inner(x).float()


def surveyed(case: Case, features: FeatureFunction) -> RowPlan:
    network = case.network().float()
    x = case.batch(3, seed=9)
    names = [name for name, _ in network.named_parameters()]
    return survey(network, features, names, x.float() if x.is_floating_point() else x)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_rows_are_those_of_autograd_under_the_same_autocast(case: Case) -> None:
    plan, x = surveyed(case, ROUNDED), case.batch(4)
    x = x.float() if x.is_floating_point() else x
    width = plan(x, {}).shape[1]
    probes = torch.randn(2, width, generator=torch.Generator().manual_seed(1))
    rows = explicit_rows(plan, x, probes)
    truth = {name.removeprefix("inner."): own for name, own in looped_rows(Rounded(plan.module), x, probes).items()}
    for name, values in rows.items():
        assert values.dtype == torch.float32, name
        # Another batch, another order of the sum: a bit of bfloat16 more or less, which layers above carry on.
        assert closeness(values.double(), truth[name].double()) < 0.02, name


def test_the_ways_are_those_without_autocast() -> None:
    for case in CASES:
        plain, rounded = (surveyed(case, FeatureFunction(own_output, kind)) for kind in (None, torch.bfloat16))
        assert (plain.ruled, plain.generic) == (rounded.ruled, rounded.generic), case.name


def test_products_run_in_bfloat16_and_features_come_back_in_float32() -> None:
    seen = []
    network = nn.Sequential(nn.Linear(5, 7), nn.Linear(7, 4)).requires_grad_(False)
    network[0].register_forward_hook(lambda _module, _inputs, output: seen.append(output.dtype))
    x = torch.randn(3, 5, generator=torch.Generator().manual_seed(0))
    rounded = ROUNDED(network, x)
    assert seen == [torch.bfloat16]
    assert rounded.dtype == torch.float32
    assert 1e-5 < closeness(rounded, network(x)) < 0.02
