"""Pictures in the one form in which the library keeps them, the room they lie in, and how a network gets them."""

from __future__ import annotations

import math
import mmap
import os
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, final

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from tangentune.errors import BudgetError, InputError
from tangentune.pictures.checks import pictures_digest
from tangentune.pictures.contract import DataContract
from tangentune.pictures.names import some

RAM_LIMIT = 1 << 30
"""Bytes of pixels kept in memory; what is larger goes to a memory-mapped file."""

_STEP_BYTES = 64 << 20
_MAPPING = "tangentune_mapping"  # what a tensor of `allocate` knows its file by
_DTYPES = {torch.uint8: np.uint8, torch.float32: np.float32, torch.float64: np.float64, torch.int64: np.int64}


@final
@dataclass(frozen=True, eq=False, repr=False)
class Pictures:
    """Pictures (or vectors) in a fixed order, ready for a network.

    Attributes:
        pixels: (n, C, H, W) uint8 at the contract's size; float32 or float64 where float arrays were
            given; (n, k) for vectors. Over 1 GiB it lies in an unnamed temporary file.
        labels: (n,) text, integers or floats as given ((n, k) targets are allowed), or None.
        ids: n names: the path relative to the source's root, or the position.
        skipped: `(id, reason)` of pictures that could not be read.

    Example:
        >>> pictures = Pictures(torch.zeros(2, 3, 4, 4, dtype=torch.uint8), None, ["a.png", "b.png"])
        >>> len(pictures), pictures.select([1]).ids
        (2, ['b.png'])
    """

    pixels: Tensor
    labels: NDArray[Any] | None
    ids: list[str]
    skipped: list[tuple[str, str]] = field(default_factory=list)

    def __post_init__(self) -> None:
        set_aside(self.pixels)
        counts = {len(self.pixels), len(self.ids), len(self.pixels if self.labels is None else self.labels)}
        if len(counts) > 1:
            raise InputError(f"pixels, ids and labels must have the same length; they have {sorted(counts)}.")

    def __len__(self) -> int:
        return len(self.ids)

    def __repr__(self) -> str:
        sides = " x ".join(map(str, self.pixels.shape[1:]))
        return f"Pictures({len(self)} of {sides}, {'without labels' if self.labels is None else 'labelled'})"

    @cached_property
    def digests(self) -> list[str]:
        """The sha256 of every picture's pixels, `pictures_digest`; made once, so leave the pixels as they are."""
        found = pictures_digest(self.pixels)
        set_aside(self.pixels)
        return found

    def __array__(self, *_: Any, **__: Any) -> NDArray[Any]:  # what scikit-learn's tools ask for
        raise InputError(
            "Pictures are no array: give such a tool pictures.pixels.numpy() and pictures.labels; "
            "predictions for K folds, exact and without refitting, are leave_out(K) of a fitted model."
        )

    def batches(
        self,
        contract: DataContract,
        batch_size: int = 32,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> Iterator[Tensor]:
        """Normalised network inputs in their fixed order, `batch_size` at a time.

        Raises:
            InputError: the pixels are not of the contract's size, or the batch size is below 1.
        """
        if batch_size < 1:
            raise InputError(f"batch_size is {batch_size}; it must be at least 1.")
        shape = tuple(self.pixels.shape[1:])
        if contract.input_size is not None and shape != tuple(contract.input_size):
            raise InputError(f"The pictures are {shape}, but the backbone takes {contract.input_size}; reload them.")
        for start in range(0, len(self), batch_size):
            yield normalise(self.pixels[start : start + batch_size].to(device), contract, dtype)
            set_aside(self.pixels)

    def pixels_at(self, rows: Tensor) -> Tensor:
        """A copy of the pixels at some positions, int64."""
        taken = self.pixels[rows]
        set_aside(self.pixels)
        return taken

    def select(self, indices: Any) -> Pictures:
        """A copy of some pictures: positions, a boolean mask, or a slice; `skipped` is kept."""
        rows = np.arange(len(self))
        rows = np.atleast_1d(rows[indices] if isinstance(indices, slice) or np.size(indices) else rows[:0])
        labels = None if self.labels is None else self.labels[rows]
        pixels = take_rows(self.pixels, torch.from_numpy(rows))
        made = vars(self).get("digests")
        found = Pictures(pixels, labels, [self.ids[i] for i in rows], list(self.skipped))
        return found._known_by(made and [made[i] for i in rows])

    def relabelled(self, labels: NDArray[Any] | None) -> Pictures:
        """The same pictures with other labels."""
        return replace(self, labels=labels)._known_by(vars(self).get("digests"))

    def joined(self, other: Pictures) -> Pictures:
        """Other pictures of this kind behind these, without labels."""
        both = Pictures(torch.cat([self.pixels, other.pixels]), None, self.ids + other.ids, self.skipped)
        return both._known_by(self.digests + other.digests)

    def _known_by(self, digests: list[str] | None) -> Pictures:
        """These pictures, digests that were made before kept as `cached_property` keeps them."""
        if digests:
            vars(self)["digests"] = digests
        return self

    def thumbnail(self, position: int) -> Image.Image | None:
        """One picture for people to look at, as the network sees it; None for vectors."""
        if self.pixels.ndim != 4:
            return None
        picture = self.pixels[position]
        picture = picture[:3] if len(picture) >= 3 else picture[:1]
        if picture.dtype != torch.uint8:
            picture = (picture.clamp(0, 1) * 255).round().to(torch.uint8)
        array = picture.permute(1, 2, 0).numpy()
        return Image.fromarray(np.ascontiguousarray(array[:, :, 0] if array.shape[2] == 1 else array))

    def skip_report(self) -> str:
        """One sentence that counts and names the pictures left out; empty when there are none."""
        return skip_sentence(self.skipped, len(self))


def skip_sentence(skipped: Sequence[tuple[str, str]], remain: int) -> str:
    """One sentence that counts and names the pictures left out, with the reasons; empty when there are none."""
    if not skipped:
        return ""
    named = some([f"{name} ({reason})" for name, reason in skipped])
    were = "picture was" if len(skipped) == 1 else "pictures were"
    return f"{len(skipped)} {were} left out, {remain} remain: {named}."


def normalise(pixels: Tensor, contract: DataContract, dtype: torch.dtype = torch.float32) -> Tensor:
    """Pixels as a network wants them: `(x / 255 - mean) / std` for uint8, `(x - mean) / std` for floats.

    Vectors (a contract without a picture size) only change their dtype. Half precisions are rounded once, at the end.
    An InputError: mean or std fits neither 1 nor the number of channels, or there are bytes but no picture size.
    """
    if contract.input_size is None or len(contract.input_size) != 3:
        if pixels.ndim == 4 and pixels.dtype == torch.uint8:
            size = f"input_size={tuple(pixels.shape[1:])}, mean=..., std=..."
            raise InputError(
                f"the backbone does not state how pictures are prepared; make it with Backbone(module, {size})"
            )
        return pixels.to(dtype, copy=True)
    exact = torch.promote_types(dtype, torch.float32)
    values = pixels.to(exact, copy=True)
    if pixels.dtype == torch.uint8:
        values /= 255
    for name, numbers in (("mean", contract.mean), ("std", contract.std)):
        if len(numbers) not in (0, 1, pixels.shape[1]):
            raise InputError(f"The contract's {name} has {len(numbers)} numbers for {pixels.shape[1]} channels.")
    if contract.mean:
        values -= values.new_tensor(contract.mean)[:, None, None]
    if contract.std:
        values /= values.new_tensor(contract.std)[:, None, None]
    return values.to(dtype)


def allocate(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """An uninitialised tensor; over `RAM_LIMIT` bytes it lies in an unnamed temporary file, which vanishes with it.

    The file is in the folder that `tempfile` picks (set TMPDIR to move it); a disk without room for it is a
    BudgetError.
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
            raise BudgetError(
                f"No room for {size / 2**30:.1f} GiB of pixels in {tempfile.gettempdir()} "
                f"({error.strerror}); set TMPDIR to a larger disk, or use fewer or smaller pictures."
            ) from error
    found = torch.from_numpy(pixels)
    setattr(found, _MAPPING, pixels.base)
    return found


def set_aside(pixels: Tensor) -> None:
    """Of pixels in a temporary file, let go of the memory that reading or writing them took; they stay in the file.

    Pages of a file that a process has looked at count as its memory until somebody else wants it, so that a set larger
    than the memory budget would break it merely by being read. Where the system has no such call, they stay.
    """
    mapping = getattr(pixels, _MAPPING, None)
    if mapping is not None and hasattr(mmap, "MADV_DONTNEED"):
        mapping.madvise(mmap.MADV_DONTNEED)


def take_rows(pixels: Tensor, rows: Tensor) -> Tensor:
    """A copy of the given rows (int64 indices), in memory or in a file as their size demands."""
    taken = allocate((len(rows), *pixels.shape[1:]), pixels.dtype)
    step = max(1, _STEP_BYTES // max(1, pixels[:1].nbytes))
    for start in range(0, len(rows), step):
        taken[start : start + step] = pixels[rows[start : start + step]]
        set_aside(pixels)
        set_aside(taken)
    return taken
