"""Features of pictures in any number, in memory or in .npy files, read a few rows at a time; and labels for them."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm.auto import tqdm

from tangentune._files import user_path
from tangentune.errors import InputError
from tangentune.pictures.checks import label_array
from tangentune.pictures.names import readable

CHUNK = 8192  # rows of one step: 16 MiB of 512 features


@final
@dataclass(frozen=True, eq=False)
class Features:
    """`count` feature vectors of `width` numbers in a fixed order; they need not fit into memory."""

    parts: tuple[NDArray[Any] | Path, ...]  # (n_i, width) arrays and names of `.npy` files, one after the other
    ends: NDArray[np.int64]  # (P,) rows up to the end of each part
    width: int  # numbers of a row

    @property
    def count(self) -> int:
        """Number of rows."""
        return int(self.ends[-1])

    def rows(self, indices: Sequence[int] | NDArray[np.integer] | Tensor) -> Tensor:
        """Some rows, (m, width) float32 in the order asked for."""
        wanted = np.asarray(indices, dtype=np.int64).reshape(-1)
        found, place = np.empty((len(wanted), self.width), np.float32), np.searchsorted(self.ends, wanted, "right")
        for i in np.unique(place):
            own, part = place == i, self.parts[i]
            rows = part if isinstance(part, np.ndarray) else _mapped(part)
            with np.errstate(over="ignore"):  # becomes infinity, which is refused by its row
                found[own] = rows[wanted[own] - (self.ends[i] - len(rows))]
        return torch.from_numpy(found)


def open_features(source: Any) -> Features:
    """Features as a source that is read in steps; no row is read yet, but what is no table of floats is refused.

    They are `Features` (returned as they are), an array or tensor (n, d), a `.npy` file, a folder of `.npy` shards of
    one width (joined in the order of their names), or a list of such files.
    """
    if isinstance(source, Features):
        return source
    if isinstance(source, str | os.PathLike):
        path = user_path(source)
        if not path.is_dir():
            return _open_files([path])
        files = sorted(part for part in path.glob("*.npy") if not part.name.startswith("."))
        if not files:
            raise InputError(
                f"the folder {readable(path)} holds no .npy file; give the folder with the shards of features"
            )
        return _open_files(files)
    if isinstance(source, list | tuple) and source and all(isinstance(part, str | os.PathLike) for part in source):
        return _open_files([user_path(part) for part in source])
    if isinstance(source, Tensor):
        source = source.detach().cpu()
        source = source.float() if source.dtype == torch.bfloat16 else source
    array = np.asarray(source)
    _check_table("the feature array", array.shape, array.dtype)
    return Features((array,), np.array([len(array)]), array.shape[1])


def _open_files(files: Sequence[Path]) -> Features:
    """The files one after the other, once each is seen to hold a table of one width."""
    counts, widths = zip(*map(_shape, files), strict=True)
    for path, width in zip(files, widths, strict=True):
        if width != widths[0]:
            message = f"{readable(path)} has features of width {width}, but {readable(files[0])} of width {widths[0]}"
            message += "; give features of one backbone"
            raise InputError(message)
    return Features(tuple(files), np.cumsum(counts), widths[0])


def _shape(path: Path) -> tuple[int, int]:
    """Rows and width of a `.npy` file that can be mapped, from its header."""
    name = readable(path)
    try:
        with path.open("rb") as file:
            version = np.lib.format.read_magic(file)
            read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            shape, by_columns, dtype = read(file)
            missing = file.tell() + int(np.prod(shape)) * dtype.itemsize - path.stat().st_size
    except OSError as error:
        raise InputError(
            f"the features {name} cannot be opened ({error.strerror}); give a .npy file or a folder"
        ) from error
    except ValueError as error:
        raise InputError(f"{name} is no .npy file ({error}); write features with numpy.save") from error
    _check_table(name, shape, dtype)
    if by_columns and 1 not in shape:
        raise InputError(f"{name} is stored column by column; save numpy.ascontiguousarray(features)")
    if missing > 0:
        raise InputError(f"{name} is cut short: {missing} bytes are missing; write it again")
    return shape[0], shape[1]


def _check_table(name: str, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
    if dtype.kind != "f" or dtype.itemsize > 8:
        raise InputError(f"{name} holds values of type {dtype}; give numbers in float16, float32 or float64")
    if len(shape) != 2:
        raise InputError(f"{name} has the shape {shape}; features are a table (rows, width), one row a picture")
    if 0 in shape:
        raise InputError(f"{name} is empty (shape {shape}); give at least one row of features")


def _mapped(path: Path) -> NDArray[Any]:
    """The file as an array on disk; mapped anew for each step, as pages that stay mapped count as this process's."""
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError) as error:
        raise InputError(f"{readable(path)} became shorter or went away while it was read; start again") from error


def lengths(rows: Tensor, numbers: int | Tensor = 0) -> Tensor:
    """Euclidean lengths (m,) of feature vectors (m, d); those without a direction are refused.

    `numbers` are those of the rows in their source, for the message: of the first, or (m,) of all.
    """
    found = torch.linalg.vector_norm(rows, dim=1)
    broken = ~(torch.isfinite(found) & (found > 0))
    if not bool(broken.any()):
        return found
    place = int(broken.nonzero()[0])
    row = rows[place].double()
    if not bool(torch.isfinite(row).all()):
        problem = "hold NaN or infinity; correct them or leave the picture out"
    elif not bool(row.any()):
        problem = "are all zero, which has no direction; leave the picture out"
    else:
        problem = f"have the length {float(row.norm()):.3g}, which {rows.dtype} cannot square; rescale all features"
    number = numbers + place if isinstance(numbers, int) else int(numbers[place])
    raise InputError(f"the features of row {number} {problem}")


def stream(
    features: Features, what: str, *, chunk: int = CHUNK, verbose: int = 0
) -> Iterator[tuple[int, Tensor, Tensor]]:
    """All rows as `(first row, (m, d) float32 rows, (m,) their lengths)`, `chunk` at a time, of which the memory is.

    `what` names the pass on the progress bar; a row that is broken or has no direction is refused by its number.
    """
    settings: dict[str, Any] = {"desc": what, "unit": "row", "unit_scale": True, "delay": 1.0, "disable": not verbose}
    with tqdm(total=features.count, **settings) as bar:
        for first in range(0, features.count, chunk):
            rows = features.rows(np.arange(first, min(first + chunk, features.count)))
            yield first, rows, lengths(rows, first)
            bar.update(len(rows))


def read_labels(source: Any, count: int) -> NDArray[np.str_]:
    """Names (count,) of the classes of all rows, from a list or array of integers or text, exactly one a row."""
    labels = label_array(source)
    if labels.shape != (count,):
        raise InputError(
            f"the list of labels has the shape {labels.shape} for {count} rows of features; give one label a row"
        )
    if labels.dtype.kind == "f":
        raise InputError(
            f"the list of labels holds numbers with a fraction ({labels.dtype}); give classes as integers or text"
        )
    return labels.astype(np.str_)
