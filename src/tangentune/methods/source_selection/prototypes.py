"""Class means of features of length one, in a single pass that can be split, merged and stopped."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tangentune.errors import InputError, StoreError
from tangentune.methods.source_selection.feature_source import CHUNK, lengths
from tangentune.methods.source_selection.features import open_features, read_labels
from tangentune.methods.source_selection.state_file import Checkpoint, read_state, write_state
from tangentune.methods.source_selection.stream import stream

_SUMS, _PASS = "tangentune class sums 1", "tangentune class pass 1"


@final
@dataclass(frozen=True, eq=False)
class ClassSums:
    """Sums of unit features by class. However rows are split over them, merged sums agree but for float64 rounding.

    Attributes:
        names: of the classes, sorted.
        sums: (C, d) float64, of every feature divided by its length.
        counts: (C,) int64 rows of each class.

    Example:
        >>> empty = ClassSums.empty(2)
        >>> one = empty.update(torch.tensor([[2.0, 0.0], [0.0, 3.0]]), ["dog", "cat"])
        >>> both = one.merge(empty.update(torch.tensor([[0.0, 5.0]]), ["dog"]))
        >>> both.names, both.counts.tolist(), [round(v, 4) for v in both.prototypes()[1].tolist()]
        (('cat', 'dog'), [1, 2], [0.7071, 0.7071])
    """

    names: tuple[str, ...]
    sums: Tensor
    counts: Tensor

    @classmethod
    def empty(cls, width: int) -> ClassSums:
        """No classes yet."""
        return cls((), torch.zeros(0, width, dtype=torch.float64), torch.zeros(0, dtype=torch.int64))

    def update(self, features: Tensor, labels: Sequence[str] | NDArray[np.str_]) -> ClassSums:
        """The sums with more rows; cost `m d + C d`.

        Args:
            features: (m, d), of any length but zero.
            labels: (m,) names of their classes.

        Raises:
            InputError: a row holds NaN or infinity or is zero, or the widths differ.
        """
        names, places = np.unique(np.asarray(labels, dtype=np.str_), return_inverse=True)
        unit = features.double()
        unit = unit / lengths(unit)[:, None]
        places = torch.from_numpy(places.reshape(-1))
        sums = torch.zeros(len(names), features.shape[1], dtype=torch.float64).index_add_(0, places, unit.cpu())
        return self.merge(ClassSums(tuple(names.tolist()), sums, torch.bincount(places, minlength=len(names))))

    def merge(self, other: ClassSums) -> ClassSums:
        """The sums of both sets of rows; classes are united by name.

        Raises:
            InputError: the widths differ.
        """
        if self.sums.shape[1] != other.sums.shape[1]:
            widths = f"{self.sums.shape[1]} and {other.sums.shape[1]}"
            message = f"class sums of widths {widths} cannot be merged; give features of one backbone"
            raise InputError(message)
        names = tuple(sorted({*self.names, *other.names}))
        place = {name: i for i, name in enumerate(names)}
        sums = torch.zeros(len(names), self.sums.shape[1], dtype=torch.float64)
        counts = torch.zeros(len(names), dtype=torch.int64)
        for part in (self, other):
            rows = torch.tensor([place[name] for name in part.names], dtype=torch.int64)
            sums.index_add_(0, rows, part.sums)
            counts.index_add_(0, rows, part.counts)
        return ClassSums(names, sums, counts)

    def prototypes(self, centre: Tensor | None = None) -> Tensor:
        """Mean directions of the classes, (C, d) float64 of length one.

        Args:
            centre: (d,) what is taken off the mean unit features first.

        Raises:
            InputError: there are no classes, or the features of one cancel out.
        """
        if not self.names:
            message = "there are no class means, because no features were given"
            raise InputError(message)
        sums = self.sums if centre is None else self.sums - self.counts[:, None] * centre
        norms = sums.norm(dim=1)
        cancelled = (norms <= 1e-12 * self.counts).nonzero().flatten().tolist()
        if cancelled:
            name = self.names[cancelled[0]]
            message = f"the features of class {name!r} cancel out, so their mean has no direction; split the class"
            raise InputError(message)
        return sums / norms[:, None]

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write to one file (safetensors), for another process to merge.

        Raises:
            StoreError: if it cannot be written.
        """
        write_state(path, _SUMS, {}, {"sums": self.sums, "counts": self.counts}, names=self.names)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> ClassSums:
        """What `save` wrote.

        Raises:
            StoreError: the file is missing, damaged or something else.
        """
        state = read_state(path, _SUMS, None)
        if state is None:
            message = f"{path} does not exist; write it with ClassSums.save"
            raise StoreError(message)
        return _from_state(*state)


def class_sums(
    source: Any,
    labels: Any,
    *,
    checkpoint: str | os.PathLike[str] | None = None,
    every: float = 10.0,
    chunk: int = CHUNK,
    verbose: int = 0,
) -> ClassSums:
    """Sums of unit features by class, in one pass over features of any number.

    Args:
        source: what `open_features` takes.
        labels: what `read_labels` takes, one a row.
        checkpoint: file to go on from after a stop; it stays until the caller removes it.
        every: seconds between two writes of it.
        chunk: rows read at a time; the sums do not depend on it but for float64 rounding.
        verbose: 1 shows a progress bar with the time left.

    Returns:
        ClassSums. Cost: reading the features once; memory three chunks and the sums.

    Raises:
        InputError: labels do not fit, or a row has no direction.
        StoreError: the checkpoint is of other features or labels.

    Example:
        >>> class_sums([[1.0, 0.0], [0.0, 2.0]], ["a", "b"]).prototypes().tolist()
        [[1.0, 0.0], [0.0, 1.0]]
    """
    features = open_features(source)
    names = read_labels(labels, features.count)
    kept = Checkpoint.of(checkpoint, _PASS, lambda: {"features": features.digest(), "labels": _digest(names)})
    state = kept.read()
    start, found = (0, ClassSums.empty(features.width)) if state is None else (state[1]["done"], _from_state(*state))

    def save(done: int) -> None:
        kept.write({"sums": found.sums, "counts": found.counts}, names=found.names, done=done)

    for first, rows, _ in stream(
        features, "class means", start=start, chunk=chunk, save=save, every=every, verbose=verbose
    ):
        found = found.update(rows, names[first : first + len(rows)])
    if start < features.count:
        save(features.count)
    return found


def class_prototypes(features: Tensor, labels: Sequence[str] | NDArray[Any]) -> tuple[tuple[str, ...], Tensor, Tensor]:
    """Class means of features in memory.

    Args:
        features: (n, d).
        labels: (n,) integers or text.

    Returns:
        Names of the classes, sorted as text; their (C, d) float64 unit means; (C,) counts.

    Raises:
        InputError: as `class_sums`.

    Example:
        >>> names, means, counts = class_prototypes(torch.tensor([[2.0, 0.0], [3.0, 0.0], [0.0, 1.0]]), [7, 7, 3])
        >>> names, means.tolist(), counts.tolist()
        (('3', '7'), [[0.0, 1.0], [1.0, 0.0]], [1, 2])
    """
    sums = class_sums(features, labels)
    return sums.names, sums.prototypes(), sums.counts


def _digest(names: NDArray[np.str_]) -> str:
    return hashlib.sha256("\n".join(names.tolist()).encode()).hexdigest()


def _from_state(tensors: dict[str, Tensor], book: dict[str, Any]) -> ClassSums:
    return ClassSums(tuple(book["names"]), tensors["sums"], tensors["counts"])
