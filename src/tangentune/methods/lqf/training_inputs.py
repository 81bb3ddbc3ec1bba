"""Network inputs of the pictures a problem stands on, while some are forgotten and others added."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from itertools import chain
from typing import final

import torch
from torch import Tensor

from tangentune.errors import InputError
from tangentune.networks.network_function import Inputs


@final
@dataclass(frozen=True, eq=False)
class TrainingInputs(Collection[Inputs]):
    """Batches to be read as often as is needed, without the pictures that were left out.

    Attributes:
        sources: batches, and which of their pictures stay (k,).
    """

    sources: tuple[tuple[Collection[Inputs], Tensor], ...]

    @classmethod
    def of(cls, batches: Collection[Inputs]) -> TrainingInputs:
        """All pictures of some batches.

        Example:
            >>> inputs = TrainingInputs.of([torch.zeros(2, 3), torch.ones(1, 3)])
            >>> [len(x) for x in inputs.without(torch.tensor([0])).plus([torch.ones(4, 3)])]
            [1, 1, 4]
        """
        return cls(((batches, torch.ones(sum(map(count, batches)), dtype=torch.bool)),))

    @property
    def pictures(self) -> int:
        """How many stay."""
        return sum(int(stays.sum()) for _, stays in self.sources)

    def without(self, pictures: Tensor) -> TrainingInputs:
        """Leave out some of those that stay, by their positions among them."""
        whole = torch.cat([stays for _, stays in self.sources])
        whole[whole.nonzero().flatten()[pictures.cpu()]] = False
        parts = whole.split([len(stays) for _, stays in self.sources])
        return TrainingInputs(tuple((batches, part) for (batches, _), part in zip(self.sources, parts, strict=True)))

    def plus(self, batches: Collection[Inputs]) -> TrainingInputs:
        """Some more at the end."""
        return TrainingInputs((*self.sources, *TrainingInputs.of(batches).sources))

    def __iter__(self) -> Iterator[Inputs]:
        for batches, stays in self.sources:
            at = 0
            for x in batches:
                own = stays[at : at + count(x)]
                at += len(own)
                if bool(own.any()):
                    yield x if bool(own.all()) else _taken(x, own)

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def __contains__(self, x: object) -> bool:
        return any(x is batch for batch in self)


@final
class BothViews(Collection[Inputs]):
    """Batches, then their mirror images if `flip`."""

    def __init__(self, batches: Collection[Inputs], flip: bool) -> None:
        self.batches, self.flip = batches, flip

    def __iter__(self) -> Iterator[Inputs]:
        return chain(self.batches, map(_mirrored, self.batches)) if self.flip else iter(self.batches)

    def __len__(self) -> int:
        return len(self.batches) * (2 if self.flip else 1)

    def __contains__(self, x: object) -> bool:
        return any(x is batch for batch in self)


def count(x: Inputs) -> int:
    """Pictures of a batch."""
    return len(x) if isinstance(x, Tensor) else len(next(iter(x.values())))


def _taken(x: Inputs, own: Tensor) -> Inputs:
    return x[own.to(x.device)] if isinstance(x, Tensor) else {key: v[own.to(v.device)] for key, v in x.items()}


def _mirrored(x: Inputs) -> Tensor:
    if not isinstance(x, Tensor) or x.ndim != 4:
        message = "only pictures (n, channels, height, width) have mirror images; leave flip off"
        raise InputError(message)
    return x.flip(-1)
