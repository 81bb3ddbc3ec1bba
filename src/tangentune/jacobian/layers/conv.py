"""Convolutions in one and two dimensions: any stride, dilation, groups and padding."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from tangentune.jacobian.layers.entry import Entry, Rows
from tangentune.jacobian.layers.use import (
    FactorSample,
    Use,
    by_sample,
    matrix_factors,
    pairs_or_rows,
    roles,
    rule,
    vector_rows,
)


class ConvUse(Use):
    """`conv2d`; one-dimensional calls arrive as height 1. Padding is applied before, so it is zero here."""

    def __init__(self, x: Tensor, weight: Tensor, bias: Tensor | None, geometry: dict[str, Any]):
        self.x, self.roles = x.detach(), roles(weight=weight, bias=bias)
        self.stride, self.dilation, self.groups = geometry["stride"], geometry["dilation"], geometry["groups"]
        self.padding, self.kernel = geometry["padding"], geometry["kernel"]

    def _padded(self) -> Tensor:
        (top, bottom), (left, right) = self.padding
        return F.pad(self.x, (left, right, top, bottom)) if top or bottom or left or right else self.x

    def _pointwise(self) -> Tensor:
        """Inputs of a 1x1 convolution at its output positions, as an image: no unfold."""
        return self._padded()[:, :, :: self.stride[0], :: self.stride[1]]

    def rows(self, role: str, g: Tensor, n: int) -> Entry:
        """Bias: sum over positions. 1x1: pairs, no unfold. Few positions: patches. Else one grouped convolution."""
        g = g.unsqueeze(-2) if g.dim() == 3 else g
        if role == "bias":
            return vector_rows(by_sample(g.sum((2, 3)), n).reshape(n, -1, g.shape[1]).sum(1))
        positions, fan_in = g.shape[2] * g.shape[3], self.x.shape[1] * self.kernel[0] * self.kernel[1]
        if self.groups == 1 and self.kernel == (1, 1):
            return pairs_or_rows(_positions(self._pointwise(), n), _positions(g, n))
        folded = positions * g.shape[0] // n
        if self.groups == 1 and folded * (fan_in + g.shape[1]) <= fan_in * g.shape[1]:
            return pairs_or_rows(_positions(self._unfold(self._padded(), (1, 1), g), n), _positions(g, n))
        values = self._correlate(g)
        return Rows(values.unflatten(0, (n, -1)).sum(1)[:, None])

    def _correlate(self, g: Tensor) -> Tensor:
        """Rows (n, groups, o, i k k) as one convolution of inputs with cotangents, samples as groups.

        Plain memory order and symmetric padding keep this on the library's fast path.
        """
        symmetric = all(before == after for before, after in self.padding)
        x = (self.x if symmetric else self._padded()).contiguous()
        padding = tuple(before for before, _ in self.padding) if symmetric else (0, 0)
        n, channels, groups = g.shape[0], g.shape[1], self.groups
        inputs, outputs = x.shape[1] // groups, channels // groups
        image = x.reshape(n * groups, inputs, *x.shape[2:]).transpose(0, 1)
        kernel = g.contiguous().reshape(n * channels, 1, *g.shape[2:])
        # The original step becomes the spacing of the kernel and the other way round.
        out = F.conv2d(image, kernel, padding=padding, stride=self.dilation, dilation=self.stride, groups=n * groups)
        out = out[:, :, : self.kernel[0], : self.kernel[1]].reshape(inputs, n, groups, outputs, -1)
        return out.permute(1, 2, 3, 0, 4).reshape(n, groups, outputs, -1)

    def _unfold(self, x: Tensor, thin: tuple[int, int], g: Tensor) -> Tensor:
        """Patches (n, C k k, h, w) at every `thin`-th output position."""
        stride = (self.stride[0] * thin[0], self.stride[1] * thin[1])
        height, width = -(-g.shape[2] // thin[0]), -(-g.shape[3] // thin[1])
        patches = F.unfold(x, self.kernel, dilation=self.dilation, stride=stride)
        reach = [(x.shape[2 + d] - self.dilation[d] * (self.kernel[d] - 1) - 1) // stride[d] + 1 for d in (0, 1)]
        return patches.unflatten(-1, reach)[..., :height, :width]

    def matrix(self, role: str) -> tuple[int, int, int] | None:
        """One matrix a group, applied to patches."""
        if role == "bias":
            return None
        weight = self.roles[role]
        return self.groups, len(weight) // self.groups, weight[0].numel()

    def inputs(self, role: str, g: Tensor) -> Tensor:
        """Patches; for 1x1 the pixels themselves."""
        g = g.unsqueeze(-2) if g.dim() == 3 else g
        pointwise = self.groups == 1 and self.kernel == (1, 1)
        return self._grouped(self._pointwise() if pointwise else self._unfold(self._padded(), (1, 1), g))

    def cotangents(self, role: str, g: Tensor) -> Tensor:
        """Of every output pixel."""
        return self._grouped(g.unsqueeze(-2) if g.dim() == 3 else g)

    def _grouped(self, image: Tensor) -> Tensor:
        """(N, groups k, h, w) -> (groups, N h w, k)."""
        return image.flatten(2).unflatten(1, (self.groups, -1)).permute(1, 0, 3, 2).flatten(1, 2)

    def factors(self, role: str, g: Tensor, n: int, positions: int) -> FactorSample | None:
        """Second moments of patches and cotangents, group by group, at evenly spaced positions."""
        if role == "bias":
            return None
        g = g.unsqueeze(-2) if g.dim() == 3 else g
        if self.groups == 1 and self.kernel == (1, 1):
            return matrix_factors(_positions(self._pointwise(), n), _positions(g, n), positions)
        thin = _thinning(g.shape[2], g.shape[3], positions)
        patches = self._unfold(self._padded(), thin, g)
        a = patches.reshape(len(g), self.groups, -1, patches.shape[2] * patches.shape[3])
        a = a.permute(1, 2, 0, 3).flatten(2)
        cotangents = g[:, :, :: thin[0], :: thin[1]].flatten(2)
        cotangents = cotangents.reshape(len(g), self.groups, -1, cotangents.shape[2]).permute(1, 2, 0, 3).flatten(2)
        return FactorSample(a @ a.transpose(1, 2), cotangents @ cotangents.transpose(1, 2), a.shape[2], a.shape[2])


def _positions(image: Tensor, n: int) -> Tensor:
    """(N, C, h, w) -> (n, T, C)."""
    return by_sample(image.flatten(2).transpose(1, 2), n)


def _thinning(height: int, width: int, positions: int) -> tuple[int, int]:
    """Steps along height and width that leave at most `positions` of the grid."""
    thin = [1, 1]
    while -(-height // thin[0]) * -(-width // thin[1]) > positions:
        axis = 0 if height / thin[0] >= width / thin[1] else 1
        thin[axis] += 1
    return thin[0], thin[1]


def _pair(value: Any) -> tuple[int, int]:
    return (int(value), int(value)) if isinstance(value, int) else (int(value[0]), int(value[-1]))


def _padding(padding: Any, kernel: tuple[int, int], dilation: tuple[int, int]) -> tuple[tuple[int, int], ...]:
    """Explicit (before, after) padding for height and width."""
    if padding == "valid":
        return ((0, 0), (0, 0))
    if padding == "same":
        total = [dilation[d] * (kernel[d] - 1) for d in (0, 1)]
        return tuple((t // 2, t - t // 2) for t in total)
    height, width = _pair(padding)
    return ((height, height), (width, width))


@rule(torch.conv2d)
def conv2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Use:
    """Parse `torch.conv2d`, which every `nn.Conv2d` ends in after its own padding."""
    kernel, dilation = (weight.shape[2], weight.shape[3]), _pair(dilation)
    geometry = {
        "stride": _pair(stride),
        "dilation": dilation,
        "groups": groups,
        "kernel": kernel,
        "padding": _padding(padding, kernel, dilation),
    }
    return ConvUse(input, weight, bias, geometry)


def _single(value: Any) -> int:
    return int(value) if isinstance(value, int) else int(value[0])


@rule(torch.conv1d)
def conv1d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Use:
    """Parse `torch.conv1d` as a convolution of height 1."""
    kernel, dilation = (1, weight.shape[2]), (1, _single(dilation))
    padding = padding if isinstance(padding, str) else (0, _single(padding))
    geometry = {
        "stride": (1, _single(stride)),
        "dilation": dilation,
        "groups": groups,
        "kernel": kernel,
        "padding": _padding(padding, kernel, dilation),
    }
    return ConvUse(input.unsqueeze(-2), weight, bias, geometry)
