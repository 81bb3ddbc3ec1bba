"""Which encoded pictures a source consists of: files, parts of tar files, bytes in a table or in a data set."""

from __future__ import annotations

import os
from typing import Any

from tangentune.errors import InputError
from tangentune.pictures.encoded import Listing, from_cell, is_cell
from tangentune.pictures.files import find_files, from_paths
from tangentune.pictures.libraries import is_hugging_face, read_hugging_face, read_image_folder
from tangentune.pictures.shards import read_shards, shard_paths
from tangentune.pictures.tables import USUAL, Columns


def list_pictures(source: Any, need_labels: bool = True, columns: Columns = USUAL) -> Listing | None:
    """The encoded pictures of a source, none of them decoded; None for pictures in memory and for items made by code.

    What is missing, or not laid out as needed, is a PictureError.

    Example:
        >>> listing = list_pictures([b"the bytes of a picture", "another.png"], need_labels=False)
        >>> listing is not None and (listing.ids, listing.labels)
        (['0', '1'], None)
    """
    if paths := shard_paths(source):
        return read_shards(paths, need_labels, columns)
    if isinstance(source, str | os.PathLike):
        return find_files(source, need_labels, columns)
    if isinstance(source, list) and source:
        if isinstance(source[0], str | os.PathLike):
            return from_paths(source)
        if is_cell(source[0]):
            return Listing([from_cell(entry) for entry in source], [str(i) for i in range(len(source))])
        return None
    if is_hugging_face(source):
        return read_hugging_face(source, need_labels, columns)
    return read_image_folder(source)


def refuse_unlabelled(need_labels: bool, *labels: Any) -> None:
    """Refuse pictures without labels where they are needed."""
    if need_labels and all(known is None for known in labels):
        raise InputError(
            "These pictures have no labels; give labels= (y= of a fit), a CSV file with labels, or class folders."
        )
