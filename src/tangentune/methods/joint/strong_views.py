"""Strong random views of pictures: crop, light and colour, cutout; made on the batch where it lies.

The parts of RandAugment and Cutout that need no library of pictures (Cubuk et al. 2020, CVPR workshops; DeVries and
Taylor 2017, arXiv 1708.04552), with magnitudes drawn evenly for each picture alone.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tangentune.methods.fine_tuning.augment import random_views

LUMINANCE = (0.299, 0.587, 0.114)  # ITU-R BT.601, what greyscale pictures are usually made with
MIDDLE_GREY = 0.5


def strong_views(
    x: Tensor, generator: torch.Generator, *, flip: bool, crop: float, jitter: float, cutout: float
) -> Tensor:
    """A strong view of each picture: mirrored or not, cropped, its light and colour changed, a square cut out.

    Args:
        x: (n, C, H, W) pixel values in [0, 1].
        generator: a processor's, whatever the batch's device.
        flip: mirror left-right with probability 1/2.
        crop: smallest share of the area that is kept.
        jitter: reach of brightness, contrast and (of three channels) saturation.
        cutout: side of the grey square over the shorter side.

    Returns:
        (n, C, H, W) in [0, 1].

    Example:
        >>> x = torch.rand(2, 3, 8, 8)
        >>> strong_views(x, torch.Generator().manual_seed(0), flip=True, crop=0.5, jitter=0.4, cutout=0.5).shape
        torch.Size([2, 3, 8, 8])
    """
    x = random_views(x, generator, flip=flip, crop=crop)
    if jitter:
        x = jittered(x, 1 + jitter * (2 * torch.rand(3, len(x), generator=generator, dtype=torch.float64) - 1))
    if cutout:
        x = cut_out(x, torch.rand(2, len(x), generator=generator, dtype=torch.float64), cutout)
    return x


def jittered(x: Tensor, factors: Tensor) -> Tensor:
    """Brightness, contrast, saturation: distances from black, from the mean light and from grey times a factor.

    Args:
        x: (n, C, H, W) in [0, 1]; what leaves [0, 1] is clamped after each step.
        factors: (3, n); 1 changes nothing. Saturation acts on three channels only.
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

    Args:
        x: (n, C, H, W).
        centres: (2, n) in [0, 1): down and across, in shares of the picture.
        side: over the shorter side; rounded to whole pixels.
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
