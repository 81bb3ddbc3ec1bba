"""Rows of the training pictures in a file of a saved model, mapped into memory.

    MODEL/rows.safetensors     features and Jacobian rows of every training picture, in the model's own metric

Optional, and large: some hundred kilobytes a picture. With it a loaded model explains new pictures, and predicts after
an edit, without its network passing over the training pictures again. The header names the version of the model, by the
checksum of its settings, and the pictures; a file of another version is none. A save makes a new model directory, so
that the rows of what was forgotten go with the old one; they are written anew for the rest.
"""

from __future__ import annotations

import errno
import json
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tangentune import _files
from tangentune.errors import StoreError
from tangentune.estimators.model_directory import ROWS, Version, check_version
from tangentune.estimators.training_set import RowReader, TrainingSet
from tangentune.jacobian.layers import Entry, Pairs, Rows
from tangentune.kernels.feature_map import FeatureRows, KeptRows, row_parts

KIND = "tangentune rows"
_TYPES = {torch.float32: ("F32", np.float32), torch.float64: ("F64", np.float64)}
_BLANK = "0" * 64


@torch.no_grad()
def write_rows(version: Version, training: TrainingSet, chosen: Tensor, reader: RowReader) -> Iterator[int]:
    """Write the rows of the chosen pictures (n,) of a training set beside the arrays of its model; tells how many are.

    From memory where they are there, else by the network, batch by batch. Nothing is left where it is not finished.
    Cost: one pass over the pictures, and their bytes.

    Raises:
        StoreError: the disk is full, the rows are of a type that the file cannot hold, or the model has changed.
    """
    path, part = version.directory / ROWS, version.directory / f".{ROWS}.{secrets.token_hex(6)}.part"
    try:
        maps: dict[str, NDArray] | None = None
        done, start = 0, 0
        for index, rows in _parts(training, chosen, reader):
            tensors = _named(rows)
            if maps is None:
                start = _begin(part, version, training.numbers[chosen.numpy()], tensors, len(chosen))
                maps = _map(part, "r+")
            for name, tensor in tensors.items():
                maps[name][index.numpy()] = tensor.cpu().numpy()
            done += len(index)
            yield done
        del maps
        _seal(part, start)
        with _files.locked(version.directory):
            check_version(version.directory, version)
            os.replace(part, path)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise StoreError(f"the rows cannot be written to {path}: {reason}") from error
    finally:
        with suppress(OSError):
            part.unlink(missing_ok=True)


def read_rows(version: Version, training: TrainingSet) -> KeptRows | None:
    """The rows of a whole training set, mapped; None where there are none of this version, or they are damaged.

    Cost: a checksum, about a second a gigabyte; what is not used then takes no memory.
    """
    path = version.directory / ROWS
    try:
        header, start = _header(path)
        facts = header["__metadata__"]
        ours = facts["kind"] == KIND and facts["version"] == version.seal
        if not ours or json.loads(facts["numbers"]) != training.numbers.tolist():
            return None
        if facts["sha256"] != _files.file_digest(path, start):
            return None
        maps = _map(path, "c")
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return KeptRows((_joined({name: torch.from_numpy(array) for name, array in maps.items()}),), mapped=1)


def rows_bytes(training: TrainingSet, reader: RowReader) -> int:
    """What the file takes, from the row of one picture."""
    return reader.one_row_bytes(training.pictures, training.points) * len(training)


def _parts(training: TrainingSet, chosen: Tensor, reader: RowReader) -> Iterator[tuple[Tensor, FeatureRows]]:
    """Places among the chosen pictures, and their rows."""
    if training.rows is not None:
        for places in torch.arange(len(chosen)).split(256):
            yield places, training.rows.select(chosen[places])
        return
    pictures, points = training.pictures.select(chosen.numpy()), tuple(training.points[i] for i in chosen.tolist())
    yield from row_parts(None, reader.feature_map, partial(reader.portions, pictures, points))


def _named(rows: FeatureRows) -> dict[str, Tensor]:
    """Tensors by name, double ones first, so that all lie aligned."""
    tensors = {"phi": rows.phi, "lengths": rows.lengths}
    for name, entry in rows.entries.items():
        sides = {"a": entry.a, "g": entry.g} if isinstance(entry, Pairs) else {"values": entry.values}
        tensors |= {f"{side}.{name}": tensor for side, tensor in sides.items()}
    return tensors


def _joined(tensors: dict[str, Tensor]) -> FeatureRows:
    """What `_named` took apart."""
    entries: dict[str, Entry] = {}
    for key, tensor in tensors.items():
        side, _, name = key.partition(".")
        if side == "values":
            entries[name] = Rows(tensor)
        elif side == "a":
            entries[name] = Pairs(tensor, tensors[f"g.{name}"])
    return FeatureRows(tensors["phi"], entries, tensors["lengths"])


def _begin(part: Path, version: Version, numbers: NDArray, tensors: dict[str, Tensor], count: int) -> int:
    """A file of the right size with its header; where the arrays start. The checksum comes at the end."""
    if odd := [str(tensor.dtype) for tensor in tensors.values() if tensor.dtype not in _TYPES]:
        raise ValueError(f"rows of {odd[0].removeprefix('torch.')} have no file; use a network of float32 or float64")
    header: dict[str, Any] = {
        "__metadata__": {
            "kind": KIND,
            "version": version.seal,
            "numbers": json.dumps(numbers.tolist()),
            "sha256": _BLANK,
        }
    }
    end = 0
    for name, tensor in tensors.items():
        shape = [count, *tensor.shape[1:]]
        size = prod(shape) * tensor.element_size()
        header[name] = {"dtype": _TYPES[tensor.dtype][0], "shape": shape, "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    if shutil.disk_usage(part.parent).free < end:
        raise OSError(errno.ENOSPC, f"{end / 2**20:.0f} MiB are needed")
    with part.open("xb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)
        if hasattr(os, "posix_fallocate"):  # a full disk must fail here, not crash at the first write
            os.posix_fallocate(file.fileno(), 0, 8 + len(text) + end)
    return 8 + len(text)


def _seal(part: Path, start: int) -> None:
    """Put the checksum of the arrays into the header, and all on the disk."""
    digest = _files.file_digest(part, start)
    with part.open("r+b") as file:
        head = file.read(start)
        file.seek(0)
        file.write(head.replace(_BLANK.encode(), digest.encode(), 1))
        file.flush()
        os.fsync(file.fileno())


def _header(path: Path) -> tuple[dict[str, Any], int]:
    """The header of a safetensors file, and where its arrays start."""
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        if not 0 < size < 2**27:
            raise ValueError(size)
        return _files.from_json(file.read(size)), 8 + size


def _map(path: Path, mode: Any) -> dict[str, NDArray]:
    """Every array of the file, mapped."""
    header, start = _header(path)
    kinds = dict(_TYPES.values())
    return {
        name: np.memmap(path, kinds[one["dtype"]], mode, start + one["data_offsets"][0], tuple(one["shape"]))
        for name, one in header.items()
        if name != "__metadata__"
    }
