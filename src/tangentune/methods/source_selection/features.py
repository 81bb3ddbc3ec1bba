"""Features from wherever they are: an array, a .npy file, or a folder of such files; and labels for them."""

from __future__ import annotations

import hashlib
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tangentune.errors import InputError
from tangentune.methods.source_selection.feature_source import ArrayFeatures, Features, JoinedFeatures, check_shape
from tangentune.methods.source_selection.read_ahead import Read
from tangentune.pictures.checks import label_array
from tangentune.pictures.names import readable

_PAGE, _PAGES = 4096, 256  # what `digest` reads of a file: 1 MiB at most


@final
@dataclass(frozen=True, eq=False)
class FileFeatures(Features):
    """Features in a .npy file (count, width) of float16, float32 or float64, read as plain bytes.

    A memory-mapped file would count its pages as memory of this process; this does not.

    Raises:
        InputError: no such file, no .npy file, another shape or type, columns before rows, or cut short.
    """

    path: Path
    shape: tuple[int, int] = field(init=False)
    dtype: np.dtype[Any] = field(init=False)
    offset: int = field(init=False)

    def __post_init__(self) -> None:
        shape, by_columns, dtype, offset = _header(self.path)
        name = readable(self.path)
        if dtype.kind != "f" or dtype.itemsize > 8:
            message = f"{name} holds values of type {dtype}; save features as float16, float32 or float64"
            raise InputError(message)
        check_shape(name, shape)
        if by_columns and 1 not in shape:
            message = f"{name} is stored column by column; save numpy.ascontiguousarray(features)"
            raise InputError(message)
        missing = offset + shape[0] * shape[1] * dtype.itemsize - self.path.stat().st_size
        if missing > 0:
            message = f"{name} is cut short: {missing} bytes are missing; write it again"
            raise InputError(message)
        for key, value in (("shape", shape), ("dtype", dtype), ("offset", offset)):
            object.__setattr__(self, key, value)

    @property
    def count(self) -> int:
        """Number of rows."""
        return self.shape[0]

    @property
    def width(self) -> int:
        """Numbers of a row."""
        return self.shape[1]

    @contextmanager
    def opened(self) -> Iterator[Read]:
        """Reads straight into the caller's array where the types agree."""
        with self.path.open("rb", buffering=0) as file:

            def read(start: int, out: NDArray[np.float32]) -> None:
                file.seek(self.offset + start * self.width * self.dtype.itemsize)
                if self.dtype == np.float32:
                    self._fill(file, out)
                    return
                stored = np.empty(out.shape, dtype=self.dtype)
                self._fill(file, stored)
                with np.errstate(over="ignore"):  # becomes infinity, which is refused by its row
                    np.copyto(out, stored, casting="same_kind")

            yield read

    def _fill(self, file: BinaryIO, out: NDArray[Any]) -> None:
        left = out.reshape(-1).view(np.uint8).data
        while len(left):
            got = file.readinto(left)  # type: ignore[attr-defined]  # a raw file has it
            if not got:
                message = f"{readable(self.path)} became shorter while it was read; start again"
                raise InputError(message)
            left = left[got:]

    def digest(self) -> str:
        """The sha256 of header, size, time of the last change and 256 pages spread over the file (all, up to 1 MiB).

        A change in place moves the time, a replaced file other pages too. Hashing everything would cost a third of
        a whole pass.
        """
        info = self.path.stat()
        seen = hashlib.sha256(f"{self.shape} {self.dtype} {info.st_size} {info.st_mtime_ns}".encode())
        pages = -(-info.st_size // _PAGE)
        with self.path.open("rb", buffering=0) as file:
            for page in np.unique(np.linspace(0, pages - 1, min(pages, _PAGES)).round().astype(np.int64)).tolist():
                file.seek(page * _PAGE)
                seen.update(file.read(_PAGE))
        return seen.hexdigest()


def _header(path: Path) -> tuple[Any, bool, np.dtype[Any], int]:
    """Shape, whether columns come first, type, and where the values begin."""
    try:
        with path.open("rb") as file:
            version = np.lib.format.read_magic(file)
            read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            shape, by_columns, dtype = read(file)
            return shape, by_columns, dtype, file.tell()
    except OSError as error:
        message = f"the features {readable(path)} cannot be opened ({error.strerror}); give a .npy file or a folder"
        raise InputError(message) from error
    except ValueError as error:
        message = f"{readable(path)} is no .npy file ({error}); write features with numpy.save"
        raise InputError(message) from error


def open_features(source: Any) -> Features:
    """Features as a source that is read in steps.

    Args:
        source: `Features` (returned as they are), an array or tensor (n, d), a `.npy` file, a folder of `.npy` shards
            of one width (joined in the order of their names), or a list of such files.

    Returns:
        Features. Cost: opening the files; no row is read.

    Raises:
        InputError: nothing is there, a part is empty or of another width, or it holds no floating-point table.

    Example:
        >>> open_features(np.zeros((4, 3), dtype=np.float16)).count
        4
    """
    if isinstance(source, Features):
        return source
    if isinstance(source, Tensor):
        return ArrayFeatures(source)
    if isinstance(source, str | os.PathLike):
        path = Path(source).expanduser()
        return _open_folder(path) if path.is_dir() else FileFeatures(path)
    if isinstance(source, list | tuple) and source and all(isinstance(part, str | os.PathLike) for part in source):
        return _join([Path(part).expanduser() for part in source])
    array = np.asarray(source)
    if array.dtype.kind != "f" or array.dtype.itemsize > 8:
        message = f"features of type {array.dtype} cannot be used; give numbers in float16, float32 or float64"
        raise InputError(message)
    with warnings.catch_warnings():  # of arrays that may not be written to; nothing here writes
        warnings.simplefilter("ignore", UserWarning)
        return ArrayFeatures(torch.from_numpy(np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("="))))


def _open_folder(folder: Path) -> Features:
    files = sorted(path for path in folder.glob("*.npy") if not path.name.startswith("."))
    if not files:
        message = f"the folder {readable(folder)} holds no .npy file; give the folder with the shards of features"
        raise InputError(message)
    return _join(files)


def _join(files: list[Path]) -> Features:
    names = tuple(readable(path) for path in files)
    return JoinedFeatures(tuple(FileFeatures(path) for path in files), names)


def read_labels(source: Any, count: int) -> NDArray[np.str_]:
    """Names of the classes of all rows.

    Args:
        source: a `.npy` file of integers or text (never pickled objects), or a list or array of them; (count,).
        count: of rows.

    Returns:
        (count,) text.

    Raises:
        InputError: the file cannot be read, or there is not exactly one label a row.

    Example:
        >>> read_labels([3, 3, 12], 3).tolist()
        ['3', '3', '12']
    """
    name = "the list of labels"
    if isinstance(source, str | os.PathLike):
        name = readable(source)
        try:
            source = np.load(source, allow_pickle=False)
        except (OSError, ValueError) as error:
            message = f"the labels {name} cannot be read ({error}); write integers or text with numpy.save"
            raise InputError(message) from error
    labels = label_array(source)
    if labels.shape != (count,):
        message = f"{name} has the shape {labels.shape} for {count} rows of features; give one label a row"
        raise InputError(message)
    if labels.dtype.kind == "f":
        message = f"{name} holds numbers with a fraction ({labels.dtype}); give classes as integers or text"
        raise InputError(message)
    return labels.astype(np.str_)
