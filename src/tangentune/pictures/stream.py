"""Pictures of a listing, decoded a portion at a time, so that there may be more of them than memory holds."""

from __future__ import annotations

import warnings
from collections.abc import Iterator

import torch
from torch import Tensor

from tangentune._torch import usual_torch
from tangentune.pictures.contract import DataContract
from tangentune.pictures.decode import picture_shape
from tangentune.pictures.decode_pool import decode_files
from tangentune.pictures.encoded import Listing
from tangentune.pictures.load import refusal
from tangentune.pictures.pictures import Pictures
from tangentune.pictures.unreadable import file_problem

Skipped = list[tuple[str, str]]
PORTION = 256  # pictures that are in memory at once


@usual_torch
def stream_pictures(
    listing: Listing,
    contract: DataContract,
    skipped: list[tuple[str, str]],
    *,
    on_error: str = "raise",
    n_jobs: int | None = None,
) -> Iterator[Pictures]:
    """The pictures in their order, a portion at a time, without labels; `on_error` and `n_jobs` as of `load_pictures`.

    `skipped` is given `(id, reason)` of each picture that is left out. A PictureError where some cannot be read and
    `on_error` is "raise", before the first portion if they are not even there; or where none can.
    """
    check_listing(listing, contract, skipped, on_error)
    read = 0
    for number in range(portion_count(listing)):
        found = read_portion(listing, number, contract, skipped, on_error, n_jobs)
        if found is not None:
            read += len(found)
            yield found
    if not read:
        raise refusal(skipped, len(listing))


def portion_count(listing: Listing) -> int:
    """How many there are of a listing."""
    return -(-len(listing) // PORTION)


def check_listing(listing: Listing, contract: DataContract, skipped: Skipped, on_error: str) -> None:
    """Say, or refuse, what can be known before the first portion."""
    picture_shape(contract, files=True)
    for note in listing.notes:
        warnings.warn(note, stacklevel=3)
    skipped += listing.lost
    if on_error == "raise" and isinstance(listing.pictures, list):
        found = zip(listing.ids, map(file_problem, listing.pictures), strict=True)
        if missing := [(name, reason) for name, reason in found if reason]:
            raise refusal([*skipped, *missing], len(listing))


@usual_torch
def read_portion(
    listing: Listing, number: int, contract: DataContract, skipped: Skipped, on_error: str, jobs: int | None
) -> Pictures | None:
    """One portion of a listing, as `stream_pictures` gives it; None where none of its pictures can be read."""
    start = number * PORTION
    pixels, names, ids = list[Tensor](), list[str](), listing.ids[start : start + PORTION]
    decoded = decode_files(listing.pictures[start : start + PORTION], contract, jobs)
    for name, picture in zip(ids, decoded, strict=True):
        if isinstance(picture, str):
            skipped.append((name, picture))
        else:
            pixels.append(torch.from_numpy(picture))
            names.append(name)
    if skipped and on_error == "raise":
        raise refusal(skipped, len(listing), len(listing) - start - len(ids))
    return Pictures(torch.stack(pixels), None, names) if names else None
