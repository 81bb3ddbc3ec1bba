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
