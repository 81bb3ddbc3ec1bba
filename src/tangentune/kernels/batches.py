"""Pictures as the stages of a fit, and predictions, take them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tangentune.memory import progress
from tangentune.networks.backbone import Backbone
from tangentune.pictures.load import Pictures


@dataclass(frozen=True)
class Portion:
    """A batch `x` of one pass: the positions of its pictures in the pass, and the expansion point of their rows."""

    rows: Tensor
    point: int | None
    x: Tensor


Batches = Callable[[], Iterable[Portion]]


def portions(batches: Iterable[Tensor], point: int | None = None, places: Tensor | None = None) -> Iterator[Portion]:
    """Batches that follow one another, as portions: of the first pictures, or of those at `places`."""
    start = 0
    for x in batches:
        stop = start + len(x)
        rows = torch.arange(start, stop, device=x.device) if places is None else places[start:stop].to(x.device)
        yield Portion(rows, point, x)
        start += len(x)


@dataclass(frozen=True)
class PictureBatches:
    """Pictures as network inputs: `batches(positions or None)` gives them in order, afresh at every call."""

    count: int
    batches: Callable[[list[int] | None], Iterable[Tensor]]
    points: tuple[int, ...] | None = None  # expansion point of each picture's rows, -1 being the network, as None is
    batch: int = 32  # pictures at a time, at most

    def portions(self, index: list[int] | None) -> Iterator[Portion]:
        """Batches of all pictures or some, those of one expansion point together."""
        if self.points is None or len(set(self.points)) == 1:
            point = None if self.points is None or self.points[0] < 0 else self.points[0]
            yield from portions(self.batches(index), point)
            return
        chosen = range(self.count) if index is None else index
        for point in sorted(set(self.points)):
            places = [i for i, position in enumerate(chosen) if self.points[position] == point]
            if places:
                at = None if point < 0 else point
                yield from portions(self.batches([chosen[i] for i in places]), at, torch.tensor(places))

    def part(self, index: list[int]) -> PictureBatches:
        """Some of the pictures, as a set of their own."""

        def batches(chosen: list[int] | None) -> Iterable[Tensor]:
            return self.batches(index if chosen is None else [index[i] for i in chosen])

        points = None if self.points is None else tuple(self.points[i] for i in index)
        return PictureBatches(len(index), batches, points, self.batch)


def picture_batches(
    pictures: Pictures, backbone: Backbone, batch: int, points: tuple[int, ...] | None = None
) -> PictureBatches:
    """Pictures as network inputs, in the memory order convolutions like best."""

    def batches(index: list[int] | None) -> Any:
        chosen = pictures if index is None else pictures.select(index)
        for x in chosen.batches(backbone.contract, batch, backbone.dtype, backbone.device):
            yield x.contiguous(memory_format=torch.channels_last) if x.dim() == 4 else x

    return PictureBatches(len(pictures), batches, points, batch)


def with_progress(
    pictures: PictureBatches, verbose: int, label: str = "predicting", index: list[int] | None = None
) -> Iterator[Tensor]:
    """Batches of all pictures or some, in order, with a progress bar where there are several."""
    total = pictures.count if index is None else len(index)
    with progress(label=label, total=total, unit="picture", verbose=verbose and total > 1) as bar:
        for x in pictures.batches(index):
            yield x
            bar.update(len(x))
