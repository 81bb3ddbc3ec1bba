"""Rows of every kind of parameter against `vmap(grad)`, and the loud refusal of what has no per-sample gradient."""

from __future__ import annotations

import pytest
import torch
from cases import CASES, GENERIC, RULED, Case, Seq, images, seeded, sequences
from reference import closeness, dense_rows, explicit_rows, forward, looped_rows
from torch import Tensor, nn

from tangentune.errors import LayerError
from tangentune.jacobian.layers import Pairs, Rows
from tangentune.jacobian.rows import RowPlan, batch_rows
from tangentune.jacobian.survey import survey
from tangentune.networks.parameters import used_parameters

pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel:UserWarning")


def surveyed(case: Case, network: nn.Module | None = None) -> RowPlan:
    network = case.network() if network is None else network
    names = [name for name, _ in network.named_parameters()]
    x = case.batch(3, seed=9)
    return survey(network, forward, names, x.to(next(network.parameters())) if x.is_floating_point() else x)


def random_probes(network: nn.Module, x: Tensor, count: int) -> Tensor:
    width = network(x).shape[1]
    return torch.randn(count, width, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def assert_rows_equal(rows: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float) -> None:
    assert set(rows) == set(expected)
    for name, truth in expected.items():
        assert rows[name].shape == truth.shape, name
        assert closeness(rows[name].double(), truth) < tolerance, name


@pytest.mark.parametrize("probes", [1, 3])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_rows_equal_vmap_grad(case: Case, probes: int) -> None:
    tangent, x = surveyed(case), case.batch(5)
    directions = random_probes(tangent.module, x, probes)
    assert_rows_equal(explicit_rows(tangent, x, directions), dense_rows(tangent.module, x, directions), 1e-10)


@pytest.mark.parametrize("case", GENERIC, ids=lambda case: case.name)
def test_generic_rows_equal_one_backward_pass_a_picture(case: Case) -> None:
    # The generic rule is itself vmap(grad): hold it against plain autograd.
    tangent, x = surveyed(case), case.batch(4)
    directions = random_probes(tangent.module, x, 2)
    assert_rows_equal(explicit_rows(tangent, x, directions), looped_rows(tangent.module, x, directions), 1e-10)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_two_views_are_averaged(case: Case) -> None:
    tangent, views = surveyed(case), [case.batch(4), case.batch(4, seed=5)]
    directions = random_probes(tangent.module, views[0], 2)
    per_view = [dense_rows(tangent.module, x, directions) for x in views]
    expected = {name: (per_view[0][name] + per_view[1][name]) / 2 for name in per_view[0]}
    both = batch_rows(tangent, views, directions)
    assert closeness(both.phi, (tangent.module(views[0]) + tangent.module(views[1])) / 2) < 1e-12
    got = {name: entry.explicit().reshape(expected[name].shape) for name, entry in both.entries.items()}
    assert_rows_equal(got, expected, 1e-10)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_float32_rows_are_close(case: Case) -> None:
    exact, x = case.network(), case.batch(5)
    directions = random_probes(exact, x, 2)
    expected = dense_rows(exact, x, directions)
    single = case.network().float()
    tangent = surveyed(case, single)
    inputs = x.float() if x.is_floating_point() else x
    rows = explicit_rows(tangent, inputs, directions.float())
    assert all(value.dtype == torch.float32 for value in rows.values())
    assert_rows_equal(rows, expected, 1e-4)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_sorting_is_as_expected(case: Case) -> None:
    tangent = surveyed(case)
    assert set(tangent.generic) == case.generic
    assert set(tangent.names) == {name for name, _ in tangent.module.named_parameters()}


def test_tables_cover_what_they_should() -> None:
    assert len({case.name for case in CASES}) == len(CASES) == len(RULED) + len(GENERIC)
    assert all(case.generic for case in GENERIC)
    assert not any(case.generic for case in RULED)


@pytest.mark.parametrize(
    "layer, x, kind",
    [
        (nn.Linear(30, 40), torch.zeros(2, 30), Pairs),  # one position: the layer form
        (nn.Linear(4, 5), torch.zeros(2, 9, 4), Rows),  # many positions: the row is smaller
        (nn.Conv2d(8, 16, 3, padding=1), torch.zeros(2, 8, 2, 2), Pairs),
        (nn.Conv2d(3, 4, 3, padding=1), torch.zeros(2, 3, 9, 9), Rows),
        (nn.Conv2d(40, 50, 1), torch.zeros(2, 40, 2, 2), Pairs),
        (nn.Conv2d(32, 32, 3, padding=1, groups=32), torch.zeros(2, 32, 2, 2), Rows),
    ],
)  # fmt: skip
def test_the_smaller_form_is_held(layer: nn.Module, x: Tensor, kind: type) -> None:
    network = seeded(Seq(layer))
    tangent = RowPlan(network, forward, ("0.weight",), ())
    entry = batch_rows(tangent, [x.double()], random_probes(network, x.double(), 1)).entries["0.weight"]
    assert type(entry) is kind
    held = entry.a.numel() + entry.g.numel() if isinstance(entry, Pairs) else entry.values.numel()
    assert held <= len(x) * layer.weight.numel()  # type: ignore[operator,union-attr]
    assert entry.width == layer.weight.numel()  # type: ignore[union-attr]
    assert entry.nbytes == 8 * held
    assert torch.allclose(entry.squared_norms(), entry.explicit().flatten(1).square().sum(1), rtol=1e-12)


class Centred(nn.Module):
    """Subtracts the mean of the batch: what every sample gives depends on the others."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.last = nn.Linear(6, 5), nn.Linear(5, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.inner(x)
        return self.last(torch.tanh(x - x.mean(0)))


def _norm(**options: bool) -> nn.Module:
    return Seq(nn.Conv2d(4, 5, 3), nn.BatchNorm2d(5, **options), nn.Tanh())


@pytest.mark.parametrize(
    "make, case, blamed",
    [
        (lambda: seeded(_norm()).train(), Case("", nn.Identity, images()), "0.weight"),
        (lambda: seeded(_norm(track_running_stats=False)), Case("", nn.Identity, images()), "0.weight"),
        (lambda: seeded(Centred()), Case("", nn.Identity, lambda n, gen: torch.randn(n, 6, generator=gen,
         dtype=torch.float64)), "inner.weight"),
    ],
    ids=["batchnorm_train", "batchnorm_without_statistics", "centred"],
)  # fmt: skip
def test_mixed_samples_are_refused(make, case: Case, blamed: str) -> None:
    with pytest.raises(LayerError, match="mixes samples") as caught:
        surveyed(case, make())
    assert blamed in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_lies_after_the_mixing_can_still_move() -> None:
    network = seeded(Centred())
    x = torch.randn(5, 6, dtype=torch.float64)
    tangent = survey(network, forward, ["last.weight", "last.bias"], x[:3])
    assert tangent.ruled == ("last.weight", "last.bias")
    probe = random_probes(network, x, 1)
    hidden = torch.tanh(network.inner(x) - network.inner(x).mean(0))  # type: ignore[operator]
    rows = explicit_rows(tangent, x, probe)
    assert closeness(rows["last.weight"][:, 0], probe[0][:, None] * hidden[:, None, :]) < 1e-12


def test_recurrent_layers_are_refused() -> None:
    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lstm = nn.LSTM(6, 4, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            return self.lstm(x)[0][:, -1]

    with pytest.raises(LayerError, match=r"lstm\."):
        surveyed(Case("lstm", Recurrent, sequences()))


def test_a_wrong_rule_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    from tangentune.jacobian.layers.linear import LinearUse

    case = next(case for case in CASES if case.name == "linear")
    honest = LinearUse.rows
    wrong = lambda use, role, g, n: honest(use, role, g.flip(0), n)  # rows of the wrong pictures
    monkeypatch.setattr(LinearUse, "rows", wrong)
    # The last layer's cotangent is the probe itself, the same for every picture: there nothing is wrong.
    assert set(surveyed(case).generic) == {"0.weight", "0.bias"}


def test_parameters_that_do_not_matter_are_left_out() -> None:
    network = seeded(Seq(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 4)))
    features = lambda module, x: module[1](module[0](x))
    names = [name for name, _ in network.named_parameters()]
    x = torch.randn(3, 6, dtype=torch.float64)
    assert survey(network, features, names, x).names == ("0.weight", "0.bias")
    assert used_parameters(network, features, x) == ["0.weight", "0.bias"]
    assert used_parameters(network, forward, x) == names


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("case", ["batchnorm", "groupnorm", "in_place"])
def test_any_memory_order_and_any_part_of_a_network(case: str, memory_format: torch.memory_format) -> None:
    """Norms alone, the rest frozen, channels last: torch's group_norm backward crashes there if asked carelessly."""
    chosen = next(c for c in CASES if c.name == case)
    network = chosen.network().to(memory_format=memory_format)  # type: ignore[call-overload]
    names = [name for name, p in network.named_parameters() if p.dim() == 1 and not name.startswith("0.")]
    x = chosen.batch(4).contiguous(memory_format=memory_format)
    tangent = survey(network, forward, names, x[:2])
    directions = random_probes(network, x, 2)
    expected = dense_rows(chosen.network(), chosen.batch(4), directions)
    assert_rows_equal(explicit_rows(tangent, x, directions), {name: expected[name] for name in names}, 1e-10)


@pytest.mark.parametrize("case", ["conv_groups", "depthwise", "depthwise_double", "conv_leftover", "conv_same"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_convolutions_in_channels_last_order(case: str, dtype: torch.dtype) -> None:
    """Groups of 3 x 3 weights have a way of their own there."""
    chosen = next(c for c in CASES if c.name == case)
    network = chosen.network().to(dtype=dtype, memory_format=torch.channels_last)  # type: ignore[call-overload]
    x = chosen.batch(5).to(dtype).contiguous(memory_format=torch.channels_last)
    directions = random_probes(chosen.network(), chosen.batch(5), 2)
    expected = dense_rows(chosen.network(), chosen.batch(5), directions)
    found = explicit_rows(surveyed(chosen, network), x, directions.to(dtype))
    assert_rows_equal(found, expected, 1e-10 if dtype == torch.float64 else 1e-4)


def test_the_network_is_left_as_it_was() -> None:
    case = next(case for case in CASES if case.name == "tokens")
    network = case.network()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    tangent = surveyed(case, network)
    x = case.batch(3)
    plain = network(x)
    batch_rows(tangent, [x], random_probes(network, x, 1))
    assert torch.equal(network(x), plain)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert not any(p.requires_grad or p.grad is not None for p in network.parameters())
