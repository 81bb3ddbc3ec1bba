"""The tangent kernel against explicit Jacobians: all outputs modes, both memory orders, groups, and what is refused."""

from __future__ import annotations

import pytest
import torch
from cases import CASES, Case, Narrow, Seq, images, seeded
from reference import closeness, explicit_jacobian
from torch import Tensor, nn

from tangentune.errors import InputError
from tangentune.jacobian.layers import Pairs
from tangentune.jacobian.linearization import Linearization
from tangentune.jacobian.rows import memory_groups
from tangentune.kernels.output_gram import hold_rows
from tangentune.methods.ntk import TangentRows, kernel_diagonal, survey_rows, tangent_kernel

MODES = ("full", "independent", "shared")


def jacobian(network: nn.Module, x: Tensor) -> Tensor:
    """(n, C, p)."""
    n, outputs = network(x).shape
    return torch.cat([rows.reshape(n, outputs, -1) for rows in explicit_jacobian(network, x).values()], 2)


def dense(left: Tensor, right: Tensor, mode: str) -> Tensor:
    """The kernel as it is defined, (problems, N, M)."""
    if mode == "full":
        return (left.flatten(0, 1) @ right.flatten(0, 1).T)[None]
    blocks = torch.einsum("icp,jcp->cij", left, right)
    return blocks if mode == "independent" else blocks.mean(0, keepdim=True)


def network() -> nn.Module:
    """A convolution with few positions after one with many, a shared-out head."""
    return seeded(
        Seq(
            nn.Conv2d(3, 4, 3, padding=1),
            nn.Tanh(),
            nn.Conv2d(4, 9, (3, 2), stride=(2, 1), dilation=(1, 2)),
            nn.BatchNorm2d(9),
            nn.ReLU(),
            nn.Conv2d(9, 12, 2),
            nn.AdaptiveAvgPool2d(2),
            nn.Flatten(),
            nn.Linear(48, 3),
        )
    )


def problem(n: int = 7) -> tuple[nn.Module, TangentRows, Tensor]:
    x = images(3, 8, 7)(n, torch.Generator().manual_seed(3))
    return network(), survey_rows(network(), x), x


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel:UserWarning")
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_kernel_of_every_kind_of_layer_is_the_jacobians_product(case: Case) -> None:
    x, y = case.batch(4), case.batch(3, seed=1)
    net = Narrow(case.network(), x)
    rows, left, right = survey_rows(net, x), jacobian(net, x), jacobian(net, y)
    assert closeness(tangent_kernel(rows, x), dense(left, left, "full")) < 1e-12
    assert closeness(tangent_kernel(rows, x, y), dense(left, right, "full")) < 1e-12
    assert closeness(rows.explicit(rows.prepare(x)), left) < 1e-12


@pytest.mark.parametrize("mode", MODES)
def test_kernel_and_diagonal_in_every_mode(mode) -> None:
    net, rows, x = problem()
    left, right = jacobian(net, x), jacobian(net, x[:4] * 0.7)
    own = dense(left, left, mode)
    assert rows.channels_last
    assert closeness(tangent_kernel(rows, x, outputs=mode, batch_size=3), own) < 1e-12
    assert closeness(tangent_kernel(rows, x, x[:4] * 0.7, outputs=mode, batch_size=3), dense(left, right, mode)) < 1e-12
    diagonal = kernel_diagonal(rows, x, outputs=mode, batch_size=4)
    expected = own.diagonal(dim1=1, dim2=2)
    assert closeness(diagonal, expected.reshape(len(x), -1) if mode == "full" else expected.T) < 1e-12


def test_pairs_and_rows_both_occur_and_rows_are_in_the_parameters_order() -> None:
    net, rows, x = problem()
    entries = rows.entries(rows.prepare(x))
    assert isinstance(entries["8.weight"], Pairs)
    assert {type(entry).__name__ for entry in entries.values()} == {"Pairs", "Rows"}
    assert closeness(rows.explicit(rows.prepare(x)), jacobian(net, x)) < 1e-12


@pytest.mark.parametrize("mode", MODES)
def test_groups_and_held_rows_give_the_same(mode) -> None:
    _, rows, x = problem()
    whole = tangent_kernel(rows, x, x[:3], outputs=mode)
    assert len(memory_groups(rows.held, len(x), 20_000)) > 2
    assert closeness(tangent_kernel(rows, x, x[:3], outputs=mode, memory_bytes=20_000), whole) < 1e-12
    held = hold_rows(rows, x, 2, 10**9)
    assert held is not None
    assert closeness(tangent_kernel(rows, x, x[:3], outputs=mode, held=held), whole) < 1e-12
    assert hold_rows(rows, x, 2, 1000) is None


def test_float32_is_right_to_a_millionth() -> None:
    _, rows, x = problem(20)
    single = survey_rows(network().float(), x.float())
    truth, found = tangent_kernel(rows, x)[0], tangent_kernel(single, x.float())[0]
    assert 0 < float((found - truth).norm() / truth.norm()) < 1e-6


def test_backbones_linearizations_and_chosen_parameters() -> None:
    net, _, x = problem()
    chosen = ["0.weight", "8.bias"]
    left = jacobian(net, x)
    shapes = {name: p.numel() for name, p in net.named_parameters()}
    starts = dict(zip(shapes, torch.tensor([0, *shapes.values()]).cumsum(0).tolist(), strict=False))
    columns = torch.cat([torch.arange(starts[name], starts[name] + shapes[name]) for name in chosen])
    expected = dense(left[..., columns], left[..., columns], "full")
    lin = Linearization(net, chosen)
    for rows in (survey_rows(net, x, chosen), survey_rows(lin, x)):
        assert closeness(tangent_kernel(rows, x), expected) < 1e-12
    weight = lin.point()["0.weight"]
    assert weight.is_contiguous(), "a given Linearization keeps its memory order"


def test_parameters_without_use_cost_nothing() -> None:
    class Idle(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer, self.idle, self.dropped = nn.Linear(3, 2), nn.Parameter(torch.ones(5)), nn.Linear(3, 1)

        def forward(self, x):
            self.dropped(x)
            return self.layer(x)

    net, x = seeded(Idle()), torch.randn(4, 3, dtype=torch.float64)
    rows = survey_rows(net, x)
    assert set(rows.held) == {"layer.weight", "layer.bias"}
    assert rows.explicit(x).shape == (4, 2, 17)
    assert closeness(tangent_kernel(rows, x), dense(jacobian(net, x), jacobian(net, x), "full")) < 1e-12
    assert closeness(rows.explicit(x), jacobian(net, x)) < 1e-12


def test_what_cannot_be_used_is_refused() -> None:
    net, rows, x = problem()
    broken = x.clone()
    broken[2, 0, 0, 0] = float("nan")
    for call in (lambda: tangent_kernel(rows, broken), lambda: kernel_diagonal(rows, broken)):
        with pytest.raises(InputError, match="input 2 holds NaN or infinite values"):
            call()
    with pytest.raises(InputError, match="overflows on these inputs"):
        tangent_kernel(survey_rows(nn.Linear(2, 1).double(), torch.ones(3, 2)), torch.ones(3, 2).double() * 1e200)
    with pytest.raises(InputError, match="outputs='some' is not known; use one of 'full', 'independent', 'shared'"):
        tangent_kernel(rows, x, outputs="some")  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"turns 3 inputs into \(3, 4, .*must return \(n, outputs\)"):
        survey_rows(nn.Sequential(*list(net.children())[:2]), x)
    with pytest.raises(InputError, match=r"inputs have shape \(7,\)"):
        rows.prepare(torch.ones(7))


class Frames(nn.Module):
    """Several frames a sample, folded into the batch of two convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(2, 5, 3), nn.Conv2d(5, 4, 2, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.second(torch.tanh(self.first(x.flatten(0, 1))))
        return y.unflatten(0, x.shape[:2]).flatten(3).sum((1, 3))


@pytest.mark.parametrize(
    ("net", "shape"),
    [
        (Frames(), (3, 2, 7, 6)),
        (Seq(nn.Conv1d(1, 4, 3, padding=1), nn.Tanh(), nn.Conv1d(4, 2, 5, stride=2)), (1, 9)),
        (Seq(nn.Conv2d(1, 4, (2, 3), stride=(1, 2), padding=(0, 2), dilation=(2, 1)), nn.Tanh()), (1, 6, 5)),
        (Seq(nn.Conv2d(4, 6, 3, groups=2), nn.Tanh(), nn.Conv2d(6, 3, 3, padding="same")), (4, 6, 5)),
        (Seq(nn.Conv2d(3, 4, 2), nn.GroupNorm(2, 4), nn.Tanh()), (3, 4, 4)),
    ],
    ids=["frames", "conv1d", "one channel", "groups", "group norm"],
)
def test_convolutions_of_all_kinds(net: nn.Module, shape: tuple[int, ...]) -> None:
    x = torch.randn(3, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    net = Narrow(seeded(net), x)
    rows = survey_rows(net, x)
    assert not rows.ways.generic + rows.ways.single
    assert closeness(rows.explicit(rows.prepare(x)), jacobian(net, x)) < 1e-12


def test_cotangents_of_many_outputs_are_contracted_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    net, rows, x = problem()
    monkeypatch.setattr("tangentune.jacobian.rows.WAITING_BYTES", 1)
    monkeypatch.setattr("tangentune.jacobian.layers.conv.PATCH_BYTES", 1)
    assert closeness(rows.explicit(rows.prepare(x)), jacobian(net, x)) < 1e-12
