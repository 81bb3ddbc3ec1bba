"""Room for pixels: in memory, or in an unnamed temporary file once there are many."""

from __future__ import annotations

import math
import os
import tempfile

import numpy as np
import torch
from torch import Tensor

from tangentune.errors import BudgetError

RAM_LIMIT = 1 << 30
"""Bytes of pixels kept in memory; what is larger goes to a memory-mapped file."""

_STEP_BYTES = 64 << 20
_DTYPES = {torch.uint8: np.uint8, torch.float32: np.float32, torch.float64: np.float64, torch.int64: np.int64}


def allocate(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """An uninitialised tensor; over `RAM_LIMIT` bytes it lies in an unnamed temporary file.

    The file is in the folder that `tempfile` picks (set TMPDIR to move it) and vanishes with the tensor.

    Raises:
        BudgetError: the disk has no room for the file.

    Example:
        >>> allocate((2, 3), torch.uint8).shape
        torch.Size([2, 3])
    """
    size = math.prod(shape) * dtype.itemsize
    if size <= RAM_LIMIT:
        return torch.empty(shape, dtype=dtype)
    with tempfile.TemporaryFile(prefix="tangentune-") as file:
        try:
            if hasattr(os, "posix_fallocate"):  # a full disk must fail here, not crash at the first write
                os.posix_fallocate(file.fileno(), 0, size)
            mode = "r+" if file.seek(0, os.SEEK_END) else "w+"
            pixels = np.memmap(file, dtype=_DTYPES[dtype], mode=mode, shape=shape)
        except OSError as error:
            message = (
                f"No room for {size / 2**30:.1f} GiB of pixels in {tempfile.gettempdir()} "
                f"({error.strerror}); set TMPDIR to a larger disk, or use fewer or smaller pictures."
            )
            raise BudgetError(message) from error
    return torch.from_numpy(pixels)


def take_rows(pixels: Tensor, rows: Tensor) -> Tensor:
    """A copy of the given rows (int64 indices), in memory or in a file as their size demands."""
    taken = allocate((len(rows), *pixels.shape[1:]), pixels.dtype)
    step = max(1, _STEP_BYTES // max(1, pixels[:1].nbytes))
    for start in range(0, len(rows), step):
        taken[start : start + step] = pixels[rows[start : start + step]]
    return taken
