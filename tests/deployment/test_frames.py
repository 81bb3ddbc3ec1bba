"""Rows of kernels from flat frames against autograd, and norms that become part of the convolution before them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from small import network
from torch import nn
from torch.nn import functional as F

from tangentune.deployment.forms import ConvolutionRow, LinearRow, row_length, side_by_side
from tangentune.deployment.frames import Convolution, framed
from tangentune.deployment.network_graph import network_graph
from tangentune.deployment.norms import clipped, folded_norms
from tangentune.kernels.metric import Whitening


def one(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(len(shape)), dtype=torch.float64)


@pytest.mark.parametrize("size", [(9, 8), (5, 30)])  # 30 columns are moved otherwise than 8
@pytest.mark.parametrize(
    ("kernel", "stride", "padding", "dilation", "groups", "outputs"),
    [
        ((3, 3), (1, 1), (1, 1), (1, 1), 6, 6),
        ((3, 3), (2, 2), (1, 1), (1, 1), 6, 6),
        ((5, 3), (1, 2), (2, 0), (1, 2), 6, 6),
        ((3, 2), (2, 1), (1, 1), (2, 1), 1, 4),
        ((1, 1), (2, 2), (0, 0), (1, 1), 1, 4),
        ((3, 3), (2, 2), (0, 1), (1, 1), 2, 4),
    ],
)
def test_rows_of_kernels_are_autograds(
    size: Any, kernel: Any, stride: Any, padding: Any, dilation: Any, groups: int, outputs: int
) -> None:
    """Three pictures, each seen twice."""
    x, weight = one(6, 6, *size), one(outputs, 6 // groups, *kernel).requires_grad_()
    way = Convolution(kernel, stride, padding, dilation, groups)
    y = F.conv2d(x, weight, None, stride, padding, dilation, groups)
    g = one(1, 1, 1, 1) + torch.arange(y.numel(), dtype=torch.float64).sin().reshape(y.shape)
    wanted = [torch.autograd.grad(y[i::3], weight, g[i::3], retain_graph=True)[0] for i in range(3)]
    row = ConvolutionRow(g, x, way, lambda t: t.unflatten(0, (2, 3)).permute(1, 2, 0, 3).flatten(2), 2)
    whole = torch.stack(wanted).flatten(1)
    torch.testing.assert_close(row.explicit(), whole)
    if groups == 1:
        for few in (1, 3):  # of each side in turn is the narrow one
            metric = Whitening(one(1, outputs, 4 - few), one(1, weight[0].numel(), few))
            moved = (metric.left.mT @ whole.unflatten(1, (1, outputs, -1)) @ metric.right).flatten(1)
            positions, early = row.positions(metric), row.one_side_first(metric)
            assert positions is not None
            torch.testing.assert_close(positions.explicit(), moved)
            if early is not None:
                torch.testing.assert_close(early, moved)


def test_a_frame_holds_every_entry_at_its_place() -> None:
    t = one(2, 3, 4, 30)
    wide = framed(t, (1, 2), (7, 35), (1, 1))
    torch.testing.assert_close(wide[:, :, 1:5, 2:32], t)
    assert wide.count_nonzero() == t.count_nonzero()
    assert framed(t, (0, 0), (4, 30), (1, 1)) is not None
    torch.testing.assert_close(framed(t, (0, 1), (8, 61), (2, 2))[:, :, ::2, 1::2], t)


def test_small_metrics_side_by_side_are_the_same_metric() -> None:
    metric, rows = (
        Whitening(one(6, 1, 1), one(6, 9, 9)),
        LinearRow(one(2, 1, 6), one(2, 1, 9)).positions(None).explicit(),
    )
    joined = side_by_side(metric)
    assert len(joined.left) < 6
    torch.testing.assert_close(row_length(rows, joined), row_length(rows, metric))


def test_norms_are_folded_unless_their_weight_vanishes() -> None:
    module, x = network(), torch.randn(3, 3, 8, 8, dtype=torch.float64)
    norm = next(layer for layer in module.modules() if isinstance(layer, nn.BatchNorm2d))
    made = lambda: folded_norms(network_graph(module, lambda m, v: m(v), x))
    (folded,) = made().values()
    assert folded.shown.target is torch.ops.aten.relu.default
    torch.testing.assert_close(folded.way(x, folded.scaled, folded.offset), norm(module[0](x)))  # type: ignore[index]
    with torch.no_grad():
        norm.weight[0] = 0
    assert not made()


def test_relu6_goes_back_where_it_is_between() -> None:
    x = torch.tensor([-1.0, 0.0, 1e-6, 3.0, 6.0, 7.0], requires_grad=True)
    (got,) = torch.autograd.grad(clipped(x, 0, 6).sum(), x)
    (wanted,) = torch.autograd.grad(F.relu6(x).sum(), x)
    torch.testing.assert_close(got, wanted)
