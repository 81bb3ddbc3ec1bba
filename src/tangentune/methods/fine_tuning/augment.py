"""Random views of pictures, made on the batch where it lies.

A crop is the usual random resized crop (Szegedy et al. 2015, CVPR, section 6): a box of a random share of the area
and a random shape, bilinear to the whole size. Boxes never leave the picture, so nothing is padded.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

LARGEST_RATIO = 4 / 3
LUMINANCE = (0.299, 0.587, 0.114)  # ITU-R BT.601, what greyscale pictures are usually made with
MIDDLE_GREY = 0.5


def random_views(x: Tensor, generator: torch.Generator, *, flip: bool, crop: float) -> Tensor:
    """Each picture (n, C, H, W) mirrored with probability 1/2, then cropped to `crop` of its area at least.

    Vectors (n, k) are returned as they are. The generator is a processor's whatever the batch's device; nothing is
    drawn for what is not asked for.
    """
    if x.ndim != 4:
        return x
    if flip:
        mirrored = torch.rand(len(x), generator=generator).to(x.device) < 0.5
        x = torch.where(mirrored[:, None, None, None], x.flip(-1), x)
    if crop < 1:  # grid_sample loses the layout in which convolutions are a quarter faster
        x = cut(x, crop_boxes(len(x), crop, generator)).contiguous(memory_format=torch.channels_last)
    return x


def crop_boxes(n: int, smallest: float, generator: torch.Generator) -> Tensor:
    """Boxes (n, 4) as left, top, width, height, all in shares of the picture, float64.

    The area is uniform in [smallest, 1]; width over height (of a square picture) is log-uniform in [3/4, 4/3], as far
    as a box of that area has room; the place is uniform.
    """
    draws = torch.rand(n, 4, generator=generator, dtype=torch.float64)
    area = smallest + (1 - smallest) * draws[:, 0]
    reach = (-area.log()).clamp_max(math.log(LARGEST_RATIO))
    ratio = (reach * (2 * draws[:, 1] - 1)).exp()
    size = torch.stack([(area * ratio).sqrt(), (area / ratio).sqrt()], 1).clamp_max(1)
    return torch.cat([(1 - size) * draws[:, 2:], size], 1)


def cut(x: Tensor, boxes: Tensor) -> Tensor:
    """The part of each picture in its box, bilinear to the picture's size; (n, C, H, W) in, the same out."""
    place, size = boxes.to(x).split(2, dim=1)
    affine = torch.diag_embed(size)  # grid_sample's coordinates run from -1 to 1
    grid = F.affine_grid(torch.cat([affine, (2 * place + size - 1)[:, :, None]], 2), list(x.shape), align_corners=False)
    return F.grid_sample(x, grid, padding_mode="border", align_corners=False)


def strong_views(
    x: Tensor, generator: torch.Generator, *, flip: bool, crop: float, jitter: float, cutout: float
) -> Tensor:
    """A strong view of each picture: mirrored or not, cropped, its light and colour changed, a square cut out.

    From and to (n, C, H, W) in [0, 1]. The parts of RandAugment and Cutout that need no library of pictures (Cubuk et
    al. 2020, CVPR workshops; DeVries and Taylor 2017, arXiv 1708.04552), their magnitudes drawn for each picture alone.
    """
    x = random_views(x, generator, flip=flip, crop=crop)
    if jitter:
        x = jittered(x, 1 + jitter * (2 * torch.rand(3, len(x), generator=generator, dtype=torch.float64) - 1))
    if cutout:
        x = cut_out(x, torch.rand(2, len(x), generator=generator, dtype=torch.float64), cutout)
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
