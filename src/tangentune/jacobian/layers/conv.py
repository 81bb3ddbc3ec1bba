"""Convolutions in one and two dimensions: any stride, dilation, groups and padding."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.grad import conv2d_weight

from tangentune.jacobian.layers.entry import Entry, Pairs, Rows
from tangentune.jacobian.layers.use import Use, by_sample, pairs_or_rows, roles, rule, thinned, vector_rows

PATCH_BYTES = 2 * 2**20  # patches of some pictures that stay in the cache between copy and product


class ConvUse(Use):
    """`conv2d`; one-dimensional calls arrive as height 1. Padding is applied before, so it is zero here."""

    def __init__(self, x: Tensor, weight: Tensor, bias: Tensor | None, geometry: dict[str, Any]):
        self.held, self.roles = x.detach(), roles(weight=weight, bias=bias)
        self.stride, self.dilation, self.groups = geometry["stride"], geometry["dilation"], geometry["groups"]
        self.padding, self.kernel = geometry["padding"], geometry["kernel"]

    def _padded(self) -> Tensor:
        (top, bottom), (left, right) = self.padding
        x = self.x
        return F.pad(x, (left, right, top, bottom)) if top or bottom or left or right else x

    def _pointwise(self) -> Tensor:
        """Inputs of a 1x1 convolution at its output positions, as an image: no unfold."""
        return self._padded()[:, :, :: self.stride[0], :: self.stride[1]]

    def rows(self, role: str, g: Tensor, n: int) -> Entry:
        """Bias: sum over positions. 1x1: pairs, no unfold. Few positions: patches. Else one grouped convolution."""
        g = g.unsqueeze(-2) if g.dim() == 3 else g
        if role == "bias":
            return vector_rows(by_sample(g.sum((2, 3)), n).reshape(n, -1, g.shape[1]).sum(1))
        positions, fan_in = g.shape[2] * g.shape[3], self.held.shape[1] * self.kernel[0] * self.kernel[1]
        if self.groups == 1 and self.kernel == (1, 1):
            return pairs_or_rows(_positions(self._pointwise(), n), _positions(g, n))
        folded = positions * g.shape[0] // n
        if self.groups == 1 and folded * (fan_in + g.shape[1]) <= fan_in * g.shape[1]:
            return pairs_or_rows(_positions(self._unfold(self._padded(), (1, 1), g), n), _positions(g, n))
        values = self._correlate(g)
        return Rows(values.unflatten(0, (n, -1)).sum(1)[:, None])

    def _correlate(self, g: Tensor) -> Tensor:
        """Rows (n, groups, o, i k k) as one convolution of inputs with cotangents, samples as groups."""
        if g.shape[2:] == (1, 1):  # one product each, for which the convolution takes up to a hundred times as long
            patches = self._unfold(self._padded(), (1, 1), g).reshape(len(g), self.groups, 1, -1)
            return patches * g.reshape(len(g), self.groups, -1, 1)
        # Plain memory order and symmetric padding keep this on the library's fast path.
        symmetric = all(before == after for before, after in self.padding)
        x = self.x if symmetric else self._padded()
        padding = tuple(before for before, _ in self.padding) if symmetric else (0, 0)
        n, channels, groups = g.shape[0], g.shape[1], self.groups
        if self._is_weight_gradient(g):
            # Of one picture that has the channels of all samples, each with groups of its own.
            x, g = (t.permute(2, 3, 0, 1).flatten(2)[None].permute(0, 3, 1, 2) for t in (x, g))
            size = (n * channels, x.shape[1] // n // groups, *self.kernel)
            rows = conv2d_weight(x, size, g, self.stride, padding, groups=n * groups)  # type: ignore[arg-type]
            return rows.reshape(n, groups, channels // groups, -1)
        inputs, outputs = x.shape[1] // groups, channels // groups
        image = x.contiguous().reshape(n * groups, inputs, *x.shape[2:]).transpose(0, 1)
        kernel = g.contiguous().reshape(n * channels, 1, *g.shape[2:])
        # The original step becomes the spacing of the kernel and the other way round.
        out = F.conv2d(image, kernel, padding=padding, stride=self.dilation, dilation=self.stride, groups=n * groups)
        out = out[:, :, : self.kernel[0], : self.kernel[1]].reshape(inputs, n, groups, outputs, -1)
        return out.permute(1, 2, 3, 0, 4).reshape(n, groups, outputs, -1)

    def _is_weight_gradient(self, g: Tensor) -> bool:
        """Where the library's own weight gradient is the faster way: measured 1.3 to 3 times, else down to a tenth."""
        channels_last = self.held.is_contiguous(memory_format=torch.channels_last)
        small = self.kernel == (3, 3) and self.dilation == (1, 1) and self.groups > 1
        return small and channels_last and g.device.type == "cpu"

    def _unfold(self, x: Tensor, thin: tuple[int, int], g: Tensor) -> Tensor:
        """Patches (n, C k k, h, w) at every `thin`-th output position."""
        stride = (self.stride[0] * thin[0], self.stride[1] * thin[1])
        height, width = -(-g.shape[2] // thin[0]), -(-g.shape[3] // thin[1])
        patches = F.unfold(x, self.kernel, dilation=self.dilation, stride=stride)
        reach = [(x.shape[2 + d] - self.dilation[d] * (self.kernel[d] - 1) - 1) // stride[d] + 1 for d in (0, 1)]
        return patches.unflatten(-1, reach)[..., :height, :width]

    def shares(self, role: str) -> bool:
        """The weight of an ungrouped convolution with a kernel above 1 x 1, of channels-last inputs."""
        channels_last = self.held.is_contiguous(memory_format=torch.channels_last)
        return role == "weight" and self.groups == 1 and self.kernel != (1, 1) and channels_last

    def rows_together(self, role: str, cotangents: list[Tensor], n: int) -> Entry:
        """Rows of the weight, in its own order, from cotangents (N, o, h, w), one a probe; pairs where smaller.

        Cost n T R o i k^2 multiply-adds for R probes, and one copy of the patches in long runs: twice to three times
        as fast as a grouped convolution of plain pictures with their cotangents.
        """
        images = [g.unsqueeze(-2) if g.dim() == 3 else g for g in cotangents]
        probes, outputs = len(images), images[0].shape[1]
        inputs = self.held.shape[1] * self.kernel[0] * self.kernel[1]
        windows = self._windows(images[0])
        by_position = [by_sample(g.permute(0, 2, 3, 1).flatten(1, 2), n) for g in images]
        g = by_position[0] if probes == 1 else torch.cat(by_position, 2)
        positions = g.shape[1]
        if positions * (inputs + outputs) <= inputs * outputs:
            patches = windows.permute(0, 1, 2, 5, 3, 4).reshape(len(windows), -1, inputs)
            return Pairs(by_sample(patches, n), g.unflatten(2, (probes, outputs)))
        rows = _contract(windows, g)
        in_order = rows.view(n, probes, outputs, *self.kernel, -1).permute(0, 1, 2, 5, 3, 4)
        return Rows(in_order.reshape(n, probes, 1, outputs, inputs))

    def _windows(self, g: Tensor) -> Tensor:
        """Overlapping view (N, h, w, k, k, channels) of the padded inputs; nothing is copied but the padding.

        Output position (p, q) and kernel place (i, j) meet at input pixel (s p + d i, s q + d j), for step s and
        dilation d. So one more p is s rows on and one more i is d rows on: the same memory with two strides for each
        axis of the picture, which `as_strided` names directly. The last pixel touched is s (h - 1) + d (k - 1), within
        the padded input by the definition of h.
        """
        x = self._padded().permute(0, 2, 3, 1)
        (sy, sx), (dy, dx) = self.stride, self.dilation
        picture, row, column, channel = x.stride()
        strides = (picture, sy * row, sx * column, dy * row, dx * column, channel)
        return x.as_strided((len(x), *g.shape[2:], *self.kernel, x.shape[3]), strides)

    def matrix(self, role: str) -> tuple[int, int, int] | None:
        """One matrix a group, applied to patches."""
        if role == "bias":
            return None
        weight = self.roles[role]
        return self.groups, len(weight) // self.groups, weight[0].numel()

    def inputs(self, role: str, g: Tensor, n: int, most: int | None = None) -> Tensor:
        """Patches; for 1x1 the pixels themselves."""
        g = g.unsqueeze(-2) if g.dim() == 3 else g
        if self.groups == 1 and self.kernel == (1, 1):
            return thinned(_positions(self._pointwise(), n), most)
        return self._grouped(self._unfold(self._padded(), _thinning(g, most), g))

    def cotangents(self, role: str, g: Tensor, n: int, most: int | None = None) -> Tensor:
        """Of the output pixels."""
        g = g.unsqueeze(-2) if g.dim() == 3 else g
        if self.groups == 1 and self.kernel == (1, 1):
            return thinned(_positions(g, n), most)
        thin = _thinning(g, most)
        return self._grouped(g[:, :, :: thin[0], :: thin[1]])

    def _grouped(self, image: Tensor) -> Tensor:
        """(N, groups k, h, w) -> (groups, N h w, k), positions side by side in memory."""
        return image.flatten(2).unflatten(1, (self.groups, -1)).permute(1, 2, 0, 3).flatten(2).mT


def _positions(image: Tensor, n: int) -> Tensor:
    """(N, C, h, w) -> (n, T, C)."""
    return by_sample(image.flatten(2).transpose(1, 2), n)


def _thinning(g: Tensor, most: int | None) -> tuple[int, int]:
    """Steps along height and width that leave at most `most` of the grid."""
    height, width = g.shape[2:]
    thin = [1, 1]
    while most is not None and -(-height // thin[0]) * -(-width // thin[1]) > most:
        axis = 0 if height / thin[0] >= width / thin[1] else 1
        thin[axis] += 1
    return thin[0], thin[1]


def _contract(windows: Tensor, cotangents: Tensor) -> Tensor:
    """`sum_t g_t a_t^T` of every sample (n, o, k k channels), some samples' patches at a time."""
    n, positions, outputs = cotangents.shape
    repeats, inputs = len(windows) // n, windows[0, 0, 0].numel()
    rows = cotangents.new_empty(n, outputs, inputs)
    step = min(n, max(1, PATCH_BYTES // (positions * inputs * rows.element_size())))
    patches = rows.new_empty(step * repeats, *windows.shape[1:])
    for low in range(0, n, step):
        part = windows[low * repeats : (low + step) * repeats]
        held = patches[: len(part)].copy_(part).view(-1, positions, inputs)
        torch.bmm(cotangents[low : low + step].mT, held, out=rows[low : low + step])
    return rows


def _pair(value: Any, height: int | None) -> tuple[int, int]:
    """Along height and width; a call in one dimension has its height given."""
    first, last = (value, value) if isinstance(value, int) else (value[0], value[-1])
    return int(first) if height is None else height, int(last)


@rule(torch.conv2d, torch.conv1d)
def convolution(
    input: Tensor, weight: Tensor, bias: Tensor | None = None, stride: Any = 1, padding: Any = 0, dilation: Any = 1,
    groups: int = 1,
) -> Use:  # fmt: skip
    """Parse `torch.conv2d`, which every `nn.Conv2d` ends in after its own padding; `torch.conv1d` has height 1."""
    one = 1 if weight.dim() == 3 else None
    x, kernel = (input, tuple(weight.shape[2:])) if one is None else (input.unsqueeze(-2), (1, weight.shape[2]))
    dilation = _pair(dilation, one)
    if padding == "same":
        total = [dilation[d] * (kernel[d] - 1) for d in (0, 1)]
        around = tuple((t // 2, t - t // 2) for t in total)
    else:
        around = tuple((t, t) for t in _pair(0 if padding == "valid" else padding, None if one is None else 0))
    geometry = {"stride": _pair(stride, one), "dilation": dilation, "groups": groups, "kernel": kernel}
    return ConvUse(x, weight, bias, geometry | {"padding": around})
