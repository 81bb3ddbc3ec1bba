"""Rows read in a background thread while the caller calculates with those before them."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Generator
from contextlib import AbstractContextManager

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Read = Callable[[int, NDArray[np.float32]], None]

_BUFFERS = 3  # one in the caller's hands, one full, one being filled


def read_ahead(
    opened: Callable[[], AbstractContextManager[Read]], start: int, stop: int, size: int, width: int
) -> Generator[tuple[int, Tensor]]:
    """Rows `start` to `stop` as `(first row, (m, width) float32)`, `size` at a time, in order.

    Each tensor is good until the next one is asked for: three buffers go round. An error of the reading thread
    is raised here; closing the iterator ends the thread.

    Args:
        opened: gives, while it is open, the function that fills an array (m, width) with the rows from a position on.
        start: first row.
        stop: row after the last.
        size: rows at a time.
        width: of a row.

    Example:
        >>> from contextlib import nullcontext
        >>> def count_up(start, out):
        ...     out[:, 0] = np.arange(start, start + len(out))
        >>> [(first, rows[:, 0].tolist()) for first, rows in read_ahead(lambda: nullcontext(count_up), 1, 6, 3, 1)]
        [(1, [1.0, 2.0, 3.0]), (4, [4.0, 5.0])]
    """
    empty: queue.SimpleQueue[Tensor | None] = queue.SimpleQueue()
    full: queue.SimpleQueue[tuple[int, Tensor, Tensor] | BaseException | None] = queue.SimpleQueue()
    for _ in range(_BUFFERS):
        empty.put(torch.empty(min(size, max(stop - start, 0)), width))

    def work() -> None:
        try:
            with opened() as read:
                for first in range(start, stop, size):
                    buffer = empty.get()
                    if buffer is None:
                        return
                    rows = buffer[: stop - first]
                    read(first, rows.numpy())
                    full.put((first, rows, buffer))
            full.put(None)
        except BaseException as error:  # it belongs to the caller, whatever it is
            full.put(error)

    thread = threading.Thread(target=work, name="tangentune-read-ahead", daemon=True)
    thread.start()
    try:
        while (item := full.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            first, rows, buffer = item
            yield first, rows
            empty.put(buffer)
    finally:
        empty.put(None)
        thread.join()
