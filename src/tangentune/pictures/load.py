"""All the ways to give pictures, and how each becomes `Pictures`."""

from __future__ import annotations

import math
import os
import time
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from tangentune._torch import usual_torch
from tangentune.errors import InputError, PictureError
from tangentune.memory import progress
from tangentune.pictures.arrays import load_array
from tangentune.pictures.checks import check_classes, label_array, numeric_labels, pictures_digest
from tangentune.pictures.contract import DataContract
from tangentune.pictures.datasets import count_items, is_item, read_items, warn_if_random
from tangentune.pictures.decode import picture_shape
from tangentune.pictures.decode_pool import decode_files
from tangentune.pictures.encoded import Listing, is_cell
from tangentune.pictures.libraries import class_names
from tangentune.pictures.listing import list_pictures, refuse_unlabelled
from tangentune.pictures.names import some
from tangentune.pictures.pictures import RAM_LIMIT, Pictures, allocate, normalise
from tangentune.pictures.tables import Columns, is_frame, read_frame
from tangentune.pictures.unreadable import ABSENT, file_problem

__all__ = ["Pictures", "check_classes", "load_pictures", "normalise", "numeric_labels", "pictures_digest"]

# How long to read on once it is known that pictures will be refused, so that all of them can be named.
_READ_ON_S = 60.0


@usual_torch
def load_pictures(
    source: Any,
    labels: Any = None,
    *,
    contract: DataContract,
    on_error: str = "raise",
    n_jobs: int | None = None,
    verbose: int = 0,
    need_labels: bool = True,
    path_column: str | None = None,
    label_column: str | None = None,
    label_separator: str | None = None,
    label_columns: Sequence[str] = (),
) -> Pictures:
    """Read pictures from wherever they are, at the size a network takes.

    Args:
        source: a folder root/class/file (names of the class folders are the labels; order: sorted by path); any folder
            when `need_labels=False`; a `.csv` file or data frame with columns path,label (or the like: image, file,
            class, target, ...); a picture; WebDataset's `.tar` files, one, a list, a folder of them or
            "part-{00..31}.tar"; a Hugging Face `Dataset`; a list of paths, Pillow pictures, arrays or bytes; an array
            (n, C, H, W), (n, H, W, C), (n, H, W) or vectors (n, k); a map-style torch Dataset of (picture, label), such
            as torchvision's, the names of whose classes become the labels; or `Pictures`.
        labels: one per picture, or a list of names for each, in the source's order; goes before labels that the source
            has itself. Text is the name of the source's column of labels, as `label_column` is.
        contract: size, interpolation and crop the network needs.
        on_error: "raise" refuses pictures that cannot be read and names them; "skip" leaves them out and warns with a
            count.
        n_jobs: processes that decode files; None uses all cores once there is enough to do. The result
            does not depend on it.
        verbose: 1 shows a progress bar with the time left on anything over a second.
        need_labels: False for prediction; names of folders are then not taken as labels.
        path_column: the column of a table that holds the pictures, where its name does not say so.
        label_column: the column that holds the labels.
        label_separator: what stands between the names where a cell of that column holds several; a blank one has none.
        label_columns: columns of 0 and 1 instead, each a label of its own.

    Returns:
        Pictures, with labels as the source gives them (folder names and CSV entries stay text).

    Raises:
        PictureError: a file, folder or table cannot be used; the message names it.
        InputError: an array, label list or argument cannot be used.

    Example:
        >>> contract = DataContract(input_size=(3, 32, 32))
        >>> grey = np.zeros((4, 28, 28), dtype=np.uint8)
        >>> load_pictures(grey, ["a", "a", "b", "b"], contract=contract).pixels.shape
        torch.Size([4, 3, 32, 32])
    """
    if on_error not in ("raise", "skip"):
        raise InputError(f"on_error is {on_error!r}; use 'raise' or 'skip'.")
    named = isinstance(labels, str)  # the name of a column, as in fit(frame, "species")
    label_column, labels = (labels, None) if named else (label_column, labels)
    given = None if labels is None else label_array(labels)
    columns = Columns(path_column, label_column, label_separator, tuple(label_columns))
    if is_frame(source) and contract.input_size is not None:
        source, own = read_frame(source, need_labels and given is None, columns)
        given = label_array(own) if given is None and own is not None else given
    source = _plain_list(source)
    own = need_labels and given is None
    listing = None if isinstance(source, Pictures) else list_pictures(source, own, columns)
    if named and given is None and listing is None:
        raise InputError(f"labels is {label_column!r}, the name of a column, but these pictures have no columns.")
    if isinstance(source, Pictures):
        pictures = source if given is None else source.relabelled(_fitting(given, len(source)))
    elif listing is not None:
        refuse_unlabelled(need_labels, given, listing.labels, listing.sets)
        pictures = read_listing(listing, given, contract, on_error, n_jobs, verbose)
    elif _is_array(source):
        refuse_unlabelled(need_labels, given)
        pixels = load_array(source, contract, verbose, alone=given is None)
        _check_depth(source, pixels, need_labels)
        kept = None if given is None else _fitting(given, len(pixels))
        pictures = Pictures(pixels, kept, [str(i) for i in range(len(pixels))])
    else:
        pictures = _from_items(source, given, contract, on_error, verbose)
    refuse_unlabelled(need_labels, pictures.labels)
    if pictures is not source:
        for sentence in (_range_sentence(pictures.pixels, contract), pictures.skip_report()):
            if sentence:
                warnings.warn(sentence, stacklevel=2)
    return pictures


def _plain_list(source: Any) -> Any:
    """Single pictures, tuples, iterators and arrays of text as a list; everything else as it is."""
    if isinstance(source, Image.Image):
        return [source]
    if isinstance(source, Iterator) or (isinstance(source, tuple) and type(source) is tuple):
        return list(source)
    if hasattr(source, "__array__") and getattr(source, "ndim", 0) == 1:
        entries = np.asarray(source).tolist()
        return entries if entries and isinstance(entries[0], (str, os.PathLike)) else source
    return source


def _is_array(source: Any) -> bool:
    if isinstance(source, list):
        return not (source and (is_item(source[0]) or is_cell(source[0])))
    return source is None or np.isscalar(source) or isinstance(source, Tensor) or hasattr(source, "__array__")


def _fitting(labels: NDArray[Any], count: int) -> NDArray[Any]:
    if len(labels) != count:
        raise InputError(f"There are {len(labels)} labels for {count} pictures; give one per picture.")
    return labels


def read_listing(
    listing: Listing,
    given: NDArray[Any] | None,
    contract: DataContract,
    on_error: str,
    n_jobs: int | None,
    verbose: int,
) -> Pictures:
    """Decode what was listed; labels that are given go before its own."""
    picture_shape(contract, files=True)
    own = listing.labels if listing.sets is None else listing.sets
    labels = label_array(own) if given is None and own is not None else given
    if labels is not None:
        labels = _fitting(labels, len(listing))
    for note in listing.notes:
        warnings.warn(note, stacklevel=3)
    files, lost = listing.pictures, listing.lost
    known = {}
    if on_error == "raise" and isinstance(files, list):  # what is read from elsewhere would be read twice
        known = {i: reason for i, path in enumerate(files) if (reason := file_problem(path))}
    decoded = decode_files(files, contract, n_jobs)
    with closing(decoded):  # stops the workers when pictures are refused
        pixels, kept, skipped = _collect(decoded, listing.ids, on_error, verbose, lost, known)
    _warn_if_dark(pixels, labels)
    ids = [listing.ids[i] for i in kept]
    return Pictures(pixels, None if labels is None else labels[kept], ids, lost + skipped)


def _from_items(source: Any, given: NDArray | None, contract: DataContract, on_error: str, verbose: int) -> Pictures:
    count = count_items(source)
    if not isinstance(source, list):
        warn_if_random(source, contract)
    ids, brought = [str(i) for i in range(count)], []

    def pictures() -> Iterator[Tensor | Exception]:
        for picture, label in read_items(source, contract):
            brought.append(label)
            yield picture

    pixels, kept, skipped = _collect(pictures(), ids, on_error, verbose)
    labels = None if given is None else _fitting(given, count)[kept]
    own = class_names(source, [brought[i] for i in kept])
    if labels is None and any(label is not None for label in own):
        labels = label_array(own)
    _warn_if_dark(pixels, labels)
    return Pictures(pixels, labels, [ids[i] for i in kept], skipped)


def _collect(
    results: Iterable[Any],
    ids: Sequence[str],
    on_error: str,
    verbose: int,
    lost: Sequence[tuple[str, str]] = (),
    known: Mapping[int, str] | None = None,
) -> tuple[Tensor, list[int], list[tuple[str, str]]]:
    """Put pictures into one tensor: `(pixels, positions that could be read, what was skipped)`.

    Before it `lost` names were given up, with reasons, and some positions are `known` to be unreadable. If that means
    to refuse them all, the others are only read to name what is unreadable too, and not for long.
    """
    pixels, kept, skipped, read = None, [], [], len(ids)
    ends = time.monotonic() + _READ_ON_S if on_error == "raise" and (lost or known) else math.inf
    bar = progress(results, label="reading pictures", total=len(ids), unit="picture", verbose=verbose)
    for position, result in enumerate(bar):
        name = ids[position]
        if time.monotonic() > ends:
            read = position
            break
        if isinstance(result, (str, Exception)):
            text = str(result).strip().rstrip(".") if isinstance(result, Exception) else result
            own = isinstance(result, str | InputError)
            skipped.append((name, text if own else f"{type(result).__name__}: {text}"))
            if on_error == "raise":
                if isinstance(result, Exception):  # a dataset's own: told at once, with its cause
                    raise refusal(skipped, len(ids)) from result
                ends = min(ends, time.monotonic() + _READ_ON_S)
            continue
        if ends < math.inf:
            continue
        picture = torch.as_tensor(result)
        if pixels is None:
            pixels = allocate((len(ids), *picture.shape), picture.dtype)
        if picture.shape != pixels.shape[1:] or picture.dtype != pixels.dtype:
            raise InputError(
                f"Picture {name} is {tuple(picture.shape)} {picture.dtype}, unlike those before it "
                f"({tuple(pixels.shape[1:])} {pixels.dtype}); give all pictures in one form."
            )
        pixels[len(kept)] = picture
        kept.append(position)
    if ends < math.inf or (pixels is None and skipped):
        skipped += [(ids[i], reason) for i, reason in (known or {}).items() if i >= read]
        raise refusal([*lost, *skipped], len(ids), len(ids) - read)
    if pixels is None:
        raise PictureError("There are no pictures to read.")
    pixels = pixels[: len(kept)]
    # A shortened view would carry the whole room along when it is pickled; in a file that costs nothing.
    in_memory = skipped and pixels.untyped_storage().nbytes() <= RAM_LIMIT
    return pixels.clone() if in_memory else pixels, kept, skipped


def refusal(problems: Sequence[tuple[str, str]], count: int, untried: int = 0) -> PictureError:
    """The error that names all pictures known to be unreadable at once, so that they can be corrected in one go."""
    if len(problems) == 1 and not untried:
        said, they = "Cannot read picture {}: {}".format(*problems[0]), "it"
    else:
        named = some([f"{name} ({reason})" for name, reason in problems], 10)
        tried = f", and {untried} were not tried" if untried else ""
        said = f"{len(problems)} of {max(count, len(problems))} pictures cannot be read{tried}: {named}"
        they = "them"
    moved = len(problems) == count and all(reason == ABSENT for _, reason in problems)
    hint = " Paths in a table start from the folder that it is in." if moved else ""
    return PictureError(f'{said}. Correct or remove {they}, or use on_error="skip" to leave {they} out.{hint}')


def _warn_if_dark(pixels: Tensor, labels: NDArray[Any] | None) -> None:
    highest = int(pixels.max()) if labels is not None and pixels.dtype == torch.uint8 else 255
    if highest < 32:
        message = (
            f"All {len(pixels)} pictures are nearly black (highest value {highest} of 255); if they are "
            "16-bit files that hold 10- or 12-bit values, scale them to the full range first."
        )
        warnings.warn(message, stacklevel=4)


def _check_depth(source: Any, pixels: Tensor, learning: bool) -> None:
    """Refuse uint16 arrays to learn from that hold fewer bits, and so would be nearly black; else warn."""
    array = source.cpu().numpy() if isinstance(source, Tensor) else np.asarray(source)
    highest = int(array.max()) if array.dtype == np.uint16 and pixels.dtype == torch.uint8 else 65535
    if 0 < highest < 4096:
        bits = max(8, highest.bit_length())
        cure = "give uint8" if bits == 8 else f"multiply by {1 << (16 - bits)}"
        seen = f"The uint16 pixels go up to {highest}, as if they had {bits} bits"
        message = f"{seen}, but uint16 is taken as 0..65535: {cure}."
        if learning:
            raise InputError(message)
        warnings.warn(message, stacklevel=3)


def _range_sentence(pixels: Tensor, contract: DataContract) -> str:
    """What looks wrong about the range of float pictures; 0..255 for a network that takes [0, 1] is refused."""
    if contract.input_size is None or pixels.ndim != 4 or not pixels.dtype.is_floating_point or not len(pixels):
        return ""
    low, high = float(pixels.min()), float(pixels.max())
    seen = f"Float pixels go from {low:.3g} to {high:.3g}"
    if low >= 0 and high > 2:
        message = f"{seen}, like 0..255, but floats are taken as [0, 1] values: give uint8, or divide by 255."
        if high > 16 and (contract.mean or contract.std):
            raise InputError(message)
        return message
    if low < -0.01 and contract.mean:
        return f"{seen}, as if normalised, but the backbone's mean and std are applied: give [0, 1] values."
    return ""
