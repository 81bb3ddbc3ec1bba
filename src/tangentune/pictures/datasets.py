"""Pictures held by a torch Dataset or a list: Pillow pictures, arrays or tensors, with or without labels."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from tangentune.errors import InputError
from tangentune.pictures.arrays import load_array
from tangentune.pictures.contract import DataContract
from tangentune.pictures.decode import prepare_picture

_PICTURE_KEYS = ("image", "img", "picture", "pixel_values")
_LABEL_KEYS = ("label", "labels", "target")


def is_item(entry: Any) -> bool:
    """True for what a list of pictures holds: a picture, an array, or a (picture, label) pair."""
    picture = entry[0] if isinstance(entry, tuple) and len(entry) == 2 else entry
    return isinstance(picture, Image.Image) or (isinstance(picture, (np.ndarray, Tensor)) and picture.ndim > 0)


def count_items(source: Any) -> int:
    """The length of a map-style dataset; what has none or cannot be indexed (a DataLoader) is an InputError."""
    try:
        count = len(source) if hasattr(source, "__getitem__") and not isinstance(source, Mapping) else None
    except (TypeError, NotImplementedError):
        count = None
    if count is None:
        raise InputError(
            f"{type(source).__name__} cannot be used as pictures; give a folder, paths, an array, or a "
            "map-style Dataset with len() and indexing (not an iterable one, not a DataLoader)."
        )
    if count == 0:
        raise InputError(f"The {type(source).__name__} given holds no pictures.")
    return count


def read_items(source: Any, contract: DataContract) -> Iterator[tuple[Tensor | Exception, Any]]:
    """Yield every item's `(pixels at the contract's size, label or None)`; of an unreadable one its exception."""
    for position in range(count_items(source)):
        try:
            picture, label = _split(source[position])
            yield one_picture(picture, contract), label
        except Exception as error:  # a dataset's own code may raise anything
            yield error, None


def one_picture(picture: Any, contract: DataContract) -> Tensor:
    """A Pillow picture, (H, W), (C, H, W) or (H, W, C) array, or vector, at the contract's size; else an InputError."""
    if isinstance(picture, Image.Image):
        return torch.from_numpy(prepare_picture(picture, contract))
    if not isinstance(picture, (np.ndarray, Tensor)) or picture.ndim == 0:
        raise InputError(f"it is {type(picture).__name__}; give a Pillow picture, an array or a tensor")
    floats = picture.is_floating_point() if isinstance(picture, Tensor) else picture.dtype.kind == "f"
    if floats and not (picture.isfinite() if isinstance(picture, Tensor) else np.isfinite(picture)).all():
        raise InputError("it holds NaN or inf")
    return load_array(picture[None], contract)[0]


def warn_if_random(source: Any, contract: DataContract) -> None:
    """Read the first item twice: a dataset that augments at random gives other pixels the second time."""
    try:
        first, second = (one_picture(_split(source[0])[0], contract) for _ in range(2))
    except Exception:  # it will be reported when the items are read in order
        return
    if not torch.equal(first, second):
        message = (
            "The Dataset gives other pixels each time item 0 is read; one draw of each picture is used, "
            "so remove its random transforms for a result that can be repeated."
        )
        warnings.warn(message, stacklevel=4)


def _split(item: Any) -> tuple[Any, Any]:
    """The picture and the label (None when there is none) of one item."""
    if isinstance(item, Mapping):
        pictures = [item[key] for key in _PICTURE_KEYS if key in item]
        labels = [item[key] for key in _LABEL_KEYS if key in item]
        if not pictures:
            raise InputError(f"it is a dict without {' or '.join(_PICTURE_KEYS)}")
        return pictures[0], labels[0] if labels else None
    if isinstance(item, (tuple, list)):
        if not item:
            raise InputError("it is empty")
        return item[0], item[1] if len(item) > 1 else None
    return item, None
