"""Strong random views of pictures: crop, light and colour, cutout; made on the batch where it lies.

The parts of RandAugment and Cutout that need no library of pictures (Cubuk et al. 2020, CVPR workshops; DeVries and
Taylor 2017, arXiv 1708.04552), with magnitudes drawn evenly for each picture alone.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tangentune.methods.fine_tuning.augment import random_views
from tangentune.methods.joint.settings import PseudoLabels

LUMINANCE = (0.299, 0.587, 0.114)  # ITU-R BT.601, what greyscale pictures are usually made with
MIDDLE_GREY = 0.5


def strong_views(x: Tensor, generator: torch.Generator, flip: bool, choices: PseudoLabels) -> Tensor:
    """A strong view of each picture: mirrored or not, cropped, its light and colour changed, a square cut out.

    From and to (n, C, H, W) in [0, 1]; the generator is a processor's, whatever the batch's device.
    """
    x = random_views(x, generator, flip=flip, crop=choices.crop)
    if choices.jitter:
        x = jittered(x, 1 + choices.jitter * (2 * torch.rand(3, len(x), generator=generator, dtype=torch.float64) - 1))
    if choices.cutout:
        x = cut_out(x, torch.rand(2, len(x), generator=generator, dtype=torch.float64), choices.cutout)
    return x


def jittered(x: Tensor, factors: Tensor) -> Tensor:
    """Brightness, contrast, saturation: distances from black, from the mean light and from grey times (3, n) factors.

    What leaves [0, 1] is clamped after each step; saturation acts on three channels only.
    """
    brightness, contrast, saturation = factors.to(x)[:, :, None, None, None]
    x = (x * brightness).clamp(0, 1)
    middle = _grey(x).mean((1, 2, 3), keepdim=True)
    x = (middle + (x - middle) * contrast).clamp(0, 1)
    if x.shape[1] == 3:
        grey = _grey(x)
        x = (grey + (x - grey) * saturation).clamp(0, 1)
    return x


def cut_out(x: Tensor, centres: Tensor, side: float) -> Tensor:
    """A grey square in each picture, its centre anywhere; what lies beyond the border is lost.

    Centres (2, n) are in shares of the picture, down and across; the side, of the shorter one, is in whole pixels.
    """
    height, width = x.shape[2:]
    length = round(side * min(height, width))
    down, across = (
        (torch.arange(size) - (place[:, None] * size).floor() + length // 2).to(x.device)
        for size, place in ((height, centres[0]), (width, centres[1]))
    )
    rows, columns = ((offset >= 0) & (offset < length) for offset in (down, across))
    return x.masked_fill((rows[:, :, None] & columns[:, None, :])[:, None], MIDDLE_GREY)


def _grey(x: Tensor) -> Tensor:
    """(n, 1, H, W): luminance of three channels, else their mean."""
    if x.shape[1] != 3:
        return x.mean(1, keepdim=True)
    return (x * x.new_tensor(LUMINANCE)[:, None, None]).sum(1, keepdim=True)
