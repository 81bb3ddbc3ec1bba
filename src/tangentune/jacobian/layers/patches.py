"""Gradient rows of convolutions over channels-last pictures: patches are copied in long runs, then multiplied."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from tangentune.jacobian.layers import Entry, Pairs, Rows
from tangentune.jacobian.layers.conv import ConvUse
from tangentune.jacobian.layers.use import by_sample

PATCH_BYTES = 2 * 2**20  # patches of some pictures that stay in the cache between copy and product


def covers(use: ConvUse, role: str) -> bool:
    """Whether this is the weight of an ungrouped convolution with channels-last inputs and a kernel above 1 x 1."""
    return (
        role == "weight"
        and use.groups == 1
        and use.kernel != (1, 1)
        and use.x.is_contiguous(memory_format=torch.channels_last)
    )


def patch_rows(use: ConvUse, cotangents: list[Tensor], n: int) -> Entry:
    """Rows of the weight, in the weight's own order, from cotangents (N, o, h, w) of the output, one a probe.

    Position pairs where they are smaller. Cost n T R o i k^2 multiply-adds for R probes, and one copy of the patches;
    twice to three times as fast as a grouped convolution of plain pictures with their cotangents.
    """
    images = [g.unsqueeze(-2) if g.dim() == 3 else g for g in cotangents]
    probes, outputs = len(images), images[0].shape[1]
    inputs = use.x.shape[1] * use.kernel[0] * use.kernel[1]
    windows = _windows(use, images[0])
    by_position = [by_sample(g.permute(0, 2, 3, 1).flatten(1, 2), n) for g in images]
    g = by_position[0] if probes == 1 else torch.cat(by_position, 2)
    positions = g.shape[1]
    if positions * (inputs + outputs) <= inputs * outputs:
        patches = windows.permute(0, 1, 2, 5, 3, 4).reshape(len(windows), -1, inputs)
        return Pairs(by_sample(patches, n), g.unflatten(2, (probes, outputs)))
    rows = _contract(windows, g)
    in_order = rows.view(n, probes, outputs, *use.kernel, -1).permute(0, 1, 2, 5, 3, 4)
    return Rows(in_order.reshape(n, probes, 1, outputs, inputs))


def _windows(use: ConvUse, g: Tensor) -> Tensor:
    """Overlapping view (N, h, w, k, k, channels) of the padded inputs; nothing is copied but the padding."""
    (top, bottom), (left, right) = use.padding
    x = use.x.permute(0, 2, 3, 1)
    x = F.pad(x, (0, 0, left, right, top, bottom)) if top or bottom or left or right else x
    s = x.stride()
    strides = (s[0], use.stride[0] * s[1], use.stride[1] * s[2], use.dilation[0] * s[1], use.dilation[1] * s[2], s[3])
    return x.as_strided((len(x), *g.shape[2:], *use.kernel, x.shape[3]), strides)


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
