"""Backbone features of any number of pictures, read a few at a time: what every pass of the selection sees."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from bisect import bisect_right
from collections.abc import Generator, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from itertools import accumulate
from typing import final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tangentune.errors import InputError
from tangentune.methods.source_selection.read_ahead import Read, read_ahead

CHUNK = 8192  # rows of one step: 16 MiB of 512 features


class Features(ABC):
    """`count` feature vectors of `width` numbers in a fixed order; they need not fit into memory."""

    @property
    @abstractmethod
    def count(self) -> int:
        """Number of rows."""

    @property
    @abstractmethod
    def width(self) -> int:
        """Numbers of a row."""

    @abstractmethod
    def opened(self) -> AbstractContextManager[Read]:
        """While open, a function that fills a float32 array (m, width) with the rows from a position on."""

    @abstractmethod
    def digest(self) -> str:
        """Tells whether a stopped pass may go on: changes when the rows do; see each kind for what it reads."""

    def chunks(self, start: int = 0, size: int = CHUNK) -> Generator[tuple[int, Tensor]]:
        """The rows from `start` on as `(first row, (m, width) float32)`, `size` at a time, read in the background.

        A tensor is good until the next one is asked for. Memory: three times `size` rows, however many there are.
        """
        return read_ahead(self.opened, start, self.count, size, self.width)

    def rows(self, indices: Sequence[int] | NDArray[np.integer] | Tensor) -> Tensor:
        """Some rows, (m, width) float32 in the order asked for; neighbours are read at once, ascending."""
        wanted = np.asarray(indices, dtype=np.int64).reshape(-1)
        order = np.argsort(wanted, kind="stable")
        found = np.empty((len(wanted), self.width), dtype=np.float32)
        with self.opened() as read:
            for run in np.split(order, np.flatnonzero(np.diff(wanted[order]) != 1) + 1):
                if len(run):
                    part = np.empty((len(run), self.width), dtype=np.float32)
                    read(int(wanted[run[0]]), part)
                    found[run] = part
        return torch.from_numpy(found)


@final
@dataclass(frozen=True, eq=False)
class ArrayFeatures(Features):
    """Features in memory, (n, d) of any floating type; `digest` reads all of them (about 0.6 s a gigabyte).

    Raises:
        InputError: not two dimensions, no rows or no columns, or no floating type.

    Example:
        >>> features = ArrayFeatures(torch.arange(10.0).reshape(5, 2))
        >>> features.rows([3, 0]).tolist(), [first for first, _ in features.chunks(size=2)]
        ([[6.0, 7.0], [0.0, 1.0]], [0, 2, 4])
    """

    array: Tensor

    def __post_init__(self) -> None:
        check_shape("the feature array", tuple(self.array.shape))
        if not self.array.is_floating_point():
            message = f"the feature array is of {self.array.dtype}; give features in a floating type"
            raise InputError(message)

    @property
    def count(self) -> int:
        """Number of rows."""
        return self.array.shape[0]

    @property
    def width(self) -> int:
        """Numbers of a row."""
        return self.array.shape[1]

    def opened(self) -> AbstractContextManager[Read]:
        """Copies rows as float32."""

        def read(start: int, out: NDArray[np.float32]) -> None:
            # copied by numpy: torch would start threads of its own beside those that calculate
            np.copyto(out, self.array[start : start + len(out)].detach().float().cpu().numpy())

        return nullcontext(read)

    def digest(self) -> str:
        """The sha256 of shape, type and all values."""
        seen = hashlib.sha256(f"{tuple(self.array.shape)} {self.array.dtype}".encode())
        for rows in self.array.detach().split(CHUNK):
            seen.update(rows.cpu().contiguous().view(torch.uint8).numpy().data)
        return seen.hexdigest()


@final
@dataclass(frozen=True, eq=False)
class JoinedFeatures(Features):
    """Parts one after the other, of one width; at most one is open at a time in a pass.

    Raises:
        InputError: no parts, or their widths differ.

    Example:
        >>> joined = JoinedFeatures((ArrayFeatures(torch.zeros(2, 1)), ArrayFeatures(torch.ones(3, 1))))
        >>> joined.count, joined.rows(range(1, 4)).flatten().tolist()
        (5, [0.0, 1.0, 1.0])
    """

    parts: tuple[Features, ...]
    names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.parts:
            message = "there are no features: give at least one part"
            raise InputError(message)
        for i, part in enumerate(self.parts):
            if part.width != self.width:
                name, first = (self.names[i], self.names[0]) if self.names else (f"part {i}", "part 0")
                widths = f"{name} has features of width {part.width}, but {first} of width {self.width}"
                message = f"{widths}; give features of one backbone"
                raise InputError(message)

    @property
    def count(self) -> int:
        """Number of rows."""
        return sum(part.count for part in self.parts)

    @property
    def width(self) -> int:
        """Numbers of a row."""
        return self.parts[0].width

    @contextmanager
    def opened(self) -> Iterator[Read]:
        """Reads across the borders of parts."""
        ends = list(accumulate(part.count for part in self.parts))
        with ExitStack() as stack:
            current, reading = -1, None

            def read(start: int, out: NDArray[np.float32]) -> None:
                nonlocal current, reading
                done = 0
                while done < len(out):
                    place = bisect_right(ends, start + done)
                    if place != current:
                        stack.close()
                        current, reading = place, stack.enter_context(self.parts[place].opened())
                    assert reading is not None
                    take = min(len(out) - done, ends[place] - start - done)
                    within = start + done - (ends[place] - self.parts[place].count)
                    reading(within, out[done : done + take])
                    done += take

            yield read

    def digest(self) -> str:
        """The sha256 of the parts' digests."""
        return hashlib.sha256("\n".join(part.digest() for part in self.parts).encode()).hexdigest()


def check_shape(name: str, shape: tuple[int, ...]) -> None:
    """Refuse what is no table of features.

    Raises:
        InputError: not two dimensions, or one of them is empty.
    """
    if len(shape) != 2:
        message = f"{name} has the shape {shape}; features are a table (rows, width), one row a picture"
        raise InputError(message)
    if 0 in shape:
        message = f"{name} is empty (shape {shape}); give at least one row of features"
        raise InputError(message)


def lengths(rows: Tensor, numbers: int | Tensor = 0) -> Tensor:
    """Euclidean lengths of feature vectors, (m,); cost one pass over `rows`.

    Args:
        rows: (m, d).
        numbers: of the rows in their source, for the message: of the first, or (m,) of all.

    Raises:
        InputError: a row holds NaN or infinity, or has no direction (zero, or too long or short for its type).

    Example:
        >>> lengths(torch.tensor([[3.0, 4.0]])).tolist()
        [5.0]
    """
    found = torch.linalg.vector_norm(rows, dim=1)
    if bool(torch.isfinite(found).all()) and bool((found > 0).all()):
        return found
    place = int((~(torch.isfinite(found) & (found > 0))).nonzero()[0])
    row = rows[place].double()
    if not bool(torch.isfinite(row).all()):
        problem = "hold NaN or infinity; correct them or leave the picture out"
    elif not bool(row.any()):
        problem = "are all zero, which has no direction; leave the picture out"
    else:
        problem = f"have the length {float(row.norm()):.3g}, which {rows.dtype} cannot square; rescale all features"
    number = numbers + place if isinstance(numbers, int) else int(numbers[place])
    message = f"the features of row {number} {problem}"
    raise InputError(message)
