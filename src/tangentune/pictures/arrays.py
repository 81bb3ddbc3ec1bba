"""Pictures that are already arrays: layout, checks, channels and size."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from tangentune.errors import InputError
from tangentune.memory import progress
from tangentune.pictures.contract import DataContract
from tangentune.pictures.decode import MOST_PIXELS, picture_shape, prepare_picture, resize_plan
from tangentune.pictures.pictures import allocate

_CHUNK_BYTES = 32 << 20
_LUMA = (0.299, 0.587, 0.114)  # ITU-R 601, as Pillow's conversion to grey


def load_array(source: Any, contract: DataContract, verbose: int = 0, alone: bool = False) -> Tensor:
    """Copy an array of pictures (or vectors), checked and at the contract's size, into a tensor of its own.

    Pictures: (n, C, H, W), (n, H, W, C) or grey (n, H, W). uint8 stays uint8 and is resized by Pillow; uint16 is scaled
    to 8 bits; other integers must lie in 0..255; floats are [0, 1] pixel values, stay float32 or float64, and are
    resized by torch with antialias. Pictures already of the contract's size are not cropped. With an `input_size` of
    None, or not of three numbers, rows are passed on as they come. `alone`: no labels say how many pictures there are,
    so (3, H, W) could be one colour picture. NaN, an ambiguous layout, and a type or shape of no use are an InputError.
    """
    array = _as_array(source)
    if array.ndim < 2 or len(array) == 0:
        raise InputError(f"An array of shape {tuple(array.shape)} holds no pictures; give (n, ...), one row each.")
    if contract.input_size is None or len(contract.input_size) != 3:
        return _copy_rows(array, contract, verbose)
    pictures = _channels_first(array, contract, alone)
    channels, rows, columns = picture_shape(contract)
    dtype = _stored_dtype(pictures, torch.uint8)
    pixels = allocate((len(pictures), channels, rows, columns), dtype)
    for start, chunk in _chunks(pictures, pixels, verbose):
        if dtype.is_floating_point:
            ready = _fit_float(torch.from_numpy(chunk), contract)
        else:
            ready = torch.from_numpy(_fit_uint8(_to_uint8(chunk, start), contract))
        pixels[start : start + len(chunk)] = ready
    return pixels


def _as_array(source: Any) -> NDArray[Any] | Tensor:
    if isinstance(source, Tensor):
        array = source.detach()
        return array.float() if array.dtype in (torch.bfloat16, torch.float16) else array
    try:
        array = np.asarray(source)
    except ValueError as error:
        raise InputError(f"The list cannot be made one array ({error}); all rows must have the same length.") from error
    if array.dtype == object and array.ndim >= 2:  # numbers in a table of mixed columns
        try:
            array = array.astype(np.float64)
        except (TypeError, ValueError) as error:
            raise InputError(f"The array holds objects that are not numbers: {error}.") from error
    if array.dtype.kind not in "biuf":
        raise InputError(f"{type(source).__name__} of type {array.dtype} holds no pixels; use uint8 or float arrays.")
    return array.astype(np.float32) if array.dtype == np.float16 else array


def _chunks(array: NDArray[Any] | Tensor, room: Tensor, verbose: int) -> Iterator[tuple[int, NDArray[Any]]]:
    """Contiguous own copies of some rows at a time, few enough to stay small, native byte order, finite."""
    step = max(1, _CHUNK_BYTES // max(1, array[:1].nbytes, room[:1].nbytes))
    with progress(label="reading arrays", total=len(array), unit="picture", verbose=verbose) as bar:
        for start in range(0, len(array), step):
            rows = array[start : start + step]
            chunk = rows.cpu().numpy() if isinstance(rows, Tensor) else rows
            if chunk.dtype.kind == "f" and chunk.dtype != np.float32:
                chunk = chunk.astype(np.float64)
            chunk = np.array(chunk, dtype=chunk.dtype.newbyteorder("="), order="C")
            if chunk.dtype.kind == "f" and not np.isfinite(chunk).all():
                bad = ~np.isfinite(chunk).reshape(len(chunk), -1).all(axis=1)
                raise InputError(
                    f"Row {start + int(np.argmax(bad))} of the array holds NaN or inf; correct or remove it."
                )
            yield start, chunk
            bar.update(len(chunk))


def _copy_rows(array: NDArray[Any] | Tensor, contract: DataContract, verbose: int) -> Tensor:
    shape = tuple(array.shape[1:])
    if contract.input_size is not None and shape != tuple(contract.input_size):
        raise InputError(f"Rows of the array have shape {shape}; the backbone takes {contract.input_size}.")
    whole = torch.uint8 if array.dtype in (np.uint8, torch.uint8) else torch.int64
    copy = allocate(tuple(array.shape), _stored_dtype(array, whole))
    for start, chunk in _chunks(array, copy, verbose):
        copy[start : start + len(chunk)] = torch.from_numpy(chunk)
    return copy


def _stored_dtype(array: NDArray[Any] | Tensor, whole: torch.dtype) -> torch.dtype:
    """float32 and float64 are kept; whole numbers become `whole`."""
    if isinstance(array, Tensor):
        return array.dtype if array.dtype.is_floating_point else whole
    if array.dtype.kind != "f":
        return whole
    return torch.float32 if array.dtype.itemsize == 4 else torch.float64


def _channels_first(array: Any, contract: DataContract, alone: bool) -> Any:
    """A view of the array as (n, C, H, W)."""
    want, shape = picture_shape(contract)[0], tuple(array.shape)
    if len(shape) == 3:
        _refuse_single_picture(shape, contract, alone)
        return array[:, None]
    if len(shape) != 4:
        raise InputError(
            f"An array of shape {shape} holds no pictures; this backbone takes pictures of "
            f"{contract.input_size}: give (n, C, H, W), (n, H, W, C) or grey (n, H, W)."
        )
    if 0 in shape:
        raise InputError(f"An array of shape {shape} holds pictures without pixels.")
    for possible in ({want}, {1, 3, 4}):
        first, last = shape[1] in possible, shape[3] in possible
        if first and last:
            raise InputError(
                f"An array of shape {shape} may have its channels second or last; "
                "resize the pictures so that only one of these axes is as short as the channels."
            )
        if first:
            return array
        if last:
            return array.permute(0, 3, 1, 2) if isinstance(array, Tensor) else array.transpose(0, 3, 1, 2)
    raise InputError(f"An array of shape {shape} has no axis of {want} channels; give (n, C, H, W) or (n, H, W, C).")


def _refuse_single_picture(shape: tuple[int, ...], contract: DataContract, alone: bool) -> None:
    """(H, W, 3) and (3, H, W) are more often one colour picture than several grey ones."""
    want, rows, columns = picture_shape(contract)
    colour_last = shape[2] in (3, 4) and shape[1:] != (rows, columns)
    if colour_last or (alone and want == shape[0] == 3):
        raise InputError(
            f"An array of shape {shape} looks like one colour picture; give picture[None] for one picture, "
            "or shape (n, 1, H, W) for n grey ones."
        )


def _to_uint8(chunk: NDArray[Any], start: int) -> NDArray[np.uint8]:
    """Integers as 8-bit pixels; their type, never their values, decides the scale."""
    if chunk.dtype == np.uint8:
        return chunk
    if chunk.dtype == np.bool_:
        return chunk.astype(np.uint8) * np.uint8(255)
    if chunk.dtype == np.uint16:
        return ((chunk.astype(np.uint32) + 128) // 257).astype(np.uint8)
    if chunk.min() < 0 or chunk.max() > 255:
        bad = ((chunk < 0) | (chunk > 255)).reshape(len(chunk), -1).any(axis=1)
        raise InputError(
            f"Row {start + int(np.argmax(bad))} of the {chunk.dtype} array has pixels outside 0..255; "
            "give uint8, uint16 (scaled from 0..65535) or floats in [0, 1]."
        )
    return chunk.astype(np.uint8)


def _fit_uint8(chunk: NDArray[np.uint8], contract: DataContract) -> NDArray[np.uint8]:
    want, rows, columns = picture_shape(contract)
    channels, same_size = chunk.shape[1], chunk.shape[2:] == (rows, columns)
    _refuse_channels(channels, want)
    if same_size and channels in (1, want):
        return chunk if channels == want else chunk.repeat(want, axis=1)
    if same_size:  # only the channels change, so the centre is not cut either
        contract = DataContract(contract.input_size, interpolation=contract.interpolation)
    if channels in (1, 3, 4) and want in (1, 3):
        pictures = (np.ascontiguousarray(picture.transpose(1, 2, 0)) for picture in chunk)
        images = (Image.fromarray(p[:, :, 0] if channels == 1 else p) for p in pictures)
        return np.stack([prepare_picture(image, contract) for image in images])
    plane = DataContract((1, rows, columns), interpolation=contract.interpolation, crop=contract.crop)
    return np.stack([np.concatenate([prepare_picture(Image.fromarray(p), plane) for p in x]) for x in chunk])


def _fit_float(chunk: Tensor, contract: DataContract) -> Tensor:
    want, rows, columns = picture_shape(contract)
    _refuse_channels(chunk.shape[1], want)
    if chunk.shape[1] == 4 and want != 4:
        alpha = chunk[:, 3:]
        chunk = chunk[:, :3] * alpha + (1 - alpha)
    if chunk.shape[1] == 3 and want == 1:
        chunk = (chunk * chunk.new_tensor(_LUMA)[:, None, None]).sum(dim=1, keepdim=True)
    if tuple(chunk.shape[2:]) != (rows, columns):  # by the filters that Pillow uses
        new_w, new_h, left, top = resize_plan(chunk.shape[3], chunk.shape[2], contract)
        if new_w * new_h > MOST_PIXELS:
            sides = f"Pictures of {chunk.shape[3]} x {chunk.shape[2]} pixels"
            raise InputError(f"{sides} would have to be resized to {new_w} x {new_h}; cut them first.")
        mode = "nearest-exact" if contract.interpolation == "nearest" else contract.interpolation
        low, high = chunk.amin((1, 2, 3), keepdim=True), chunk.amax((1, 2, 3), keepdim=True)
        if mode == "lanczos":  # which older torch has not
            chunk = _lanczos(chunk, new_h) @ chunk @ _lanczos(chunk.mT, new_w).T
        else:
            chunk = F.interpolate(chunk, size=(new_h, new_w), mode=mode, antialias=mode != "nearest-exact")
        # Overshoot is cut at [0, 1] or the picture's own range.
        chunk = chunk.clamp(low.clamp(max=0), high.clamp(min=1))[:, :, top : top + rows, left : left + columns]
    return chunk.expand(-1, want, -1, -1)


def _lanczos(columns: Tensor, new: int) -> Tensor:
    """The matrix (new, old) that resizes columns of so many pixels by Lanczos' filter, as Pillow has it."""
    old = columns.shape[-2]
    middle = (torch.arange(new, dtype=torch.float64) + 0.5) * (old / new)
    away = (torch.arange(old, dtype=torch.float64) + 0.5 - middle[:, None]) / max(old / new, 1)
    weights = torch.where(away.abs() < 3, torch.sinc(away) * torch.sinc(away / 3), 0)
    return (weights / weights.sum(1, keepdim=True)).to(columns)


def _refuse_channels(channels: int, want: int) -> None:
    if channels != want and (channels not in (1, 3, 4) or want not in (1, 3)):
        raise InputError(f"The pictures have {channels} channels, but the backbone takes {want}.")
