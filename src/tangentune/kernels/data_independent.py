"""A feature map that no picture enters: its metric comes from seeded noise with the spectrum of natural pictures.

For owners none of whom may show a picture to another. What a fit would choose by leave-one-out takes usual values.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tangentune.jacobian.rows import RowPlan
from tangentune.kernels.batches import PictureBatches
from tangentune.kernels.choice import FixedChoices, block_scales
from tangentune.kernels.collect import collect, kronecker_factors, restrict
from tangentune.kernels.feature_map import TangentMap
from tangentune.kernels.metric import whitening
from tangentune.networks.parameters import block_of, group_blocks

POWER, NORMALIZE, BODY_SCALE = 0.25, True, 0.5  # where nothing is given
FIRST = 0.5  # share of the blocks that stay where they are: early ones only add to the error of a sketch
NOISE = 64  # pictures of noise


def pink_noise(count: int, shape: tuple[int, int, int], seed: int) -> Tensor:
    """(count, channels, height, width) uint8 noise whose amplitude falls as 1/frequency, as that of photographs does.

    Channels share most of it, so that the noise is nearly grey. Source: Field (1987), the spectra of natural images.
    """
    channels, height, width = shape
    generator = torch.Generator().manual_seed(seed)
    white = torch.randn(count, channels + 1, height, width, generator=generator, dtype=torch.float64)
    frequency = (torch.fft.fftfreq(height)[:, None] ** 2 + torch.fft.rfftfreq(width) ** 2).double().sqrt()
    frequency[0, 0] = frequency.flatten()[1:].min()  # the brightness varies too
    pink = torch.fft.irfft2(torch.fft.rfft2(white) / frequency, s=(height, width))
    pink = pink / pink.std(dim=(0, 2, 3), keepdim=True)
    mixed = 0.9 * pink[:, :1] + 0.4 * pink[:, 1:]
    return (127.5 + 60 * mixed).round().clamp(0, 255).to(torch.uint8)


def data_independent_map(
    tangent: RowPlan, noise: PictureBatches, probes: Tensor, fixed: FixedChoices, power: float | None, mirrored: bool
) -> TangentMap:
    """The frozen map; cost one forward and backward pass over the noise, and a metric."""
    power = POWER if power is None else power
    scale = BODY_SCALE if fixed.body_scale is None else fixed.body_scale
    blocks = list(group_blocks(tangent.names))
    moving = set(blocks[int(FIRST * len(blocks)) :] if scale > 0 else ())
    tangent = restrict(tangent, [name for name in tangent.names if block_of(name) in moving])
    rows = collect(tangent, lambda: noise.portions(None), noise.count, probes, mirrored)
    factors = kronecker_factors(rows) if power > 0 else {}
    metric = {name: whitening(own, power, kept=1) for name, own in factors.items()}
    scales = block_scales(list(group_blocks(tangent.names)), 0.0)
    normalize = NORMALIZE if fixed.normalize is None else fixed.normalize
    return TangentMap(tangent, probes, mirrored, metric, scales, scale, normalize, scales)
