"""Pictures as the stages of a fit, and predictions, take them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from tangentune.kernels.stages import Source
from tangentune.networks.backbone import Backbone
from tangentune.pictures.load import Pictures


def picture_source(pictures: Pictures, backbone: Backbone, batch: int, points: tuple[int, ...] | None = None) -> Source:
    """Pictures as network inputs, in the memory order convolutions like best."""

    def batches(index: list[int] | None) -> Any:
        chosen = pictures if index is None else pictures.select(index)
        for x in chosen.batches(backbone.contract, batch, backbone.dtype, backbone.device):
            yield x.contiguous(memory_format=torch.channels_last) if x.dim() == 4 else x

    return Source(len(pictures), batches, points)


def with_progress(
    source: Source, verbose: int, label: str = "predicting", index: list[int] | None = None
) -> Iterator[Tensor]:
    """Batches of all pictures or some, in order, with a progress bar where there are several."""
    total = source.count if index is None else len(index)
    with tqdm(total=total, desc=label, unit="picture", delay=1.0, disable=not verbose or total == 1) as bar:
        for x in source.batches(index):
            yield x
            bar.update(len(x))
