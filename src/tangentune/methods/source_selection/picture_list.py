"""Pictures of a source by name, read a part at a time."""

from __future__ import annotations

import hashlib
import os
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, final

from tangentune.errors import InputError, PictureError
from tangentune.pictures.checks import label_array, pictures_digest
from tangentune.pictures.contract import DataContract
from tangentune.pictures.files import FileList, find_files, from_paths
from tangentune.pictures.load import load_pictures
from tangentune.pictures.pictures import Pictures


@final
@dataclass(frozen=True, eq=False)
class PictureList:
    """Pictures of a source that are read in parts.

    Attributes:
        ids: n names.
        labels: n as the source has them, or None.
        content: changes with the pictures: the sizes of files, or the digest of pixels.
        read: the pictures of a range of positions.
    """

    ids: list[str]
    labels: list[Any] | None
    content: str
    read: Callable[[slice], Pictures]


def list_pictures(
    source: Any, labels: Any, contract: DataContract, need_labels: bool = True, n_jobs: int | None = None
) -> PictureList:
    """The pictures of a source; of files only the names are read, so there may be any number.

    Args:
        source: what `load_pictures` takes.
        labels: as there.
        contract: size and preparation.
        need_labels: False for a source without labels.
        n_jobs: processes that decode files.

    Raises:
        PictureError: a file or folder is missing or cannot be entered.
        InputError: labels do not fit.

    Example:
        >>> import torch
        >>> grey = torch.zeros(3, 4, 4, dtype=torch.uint8)
        >>> pictures = list_pictures(grey, ["a", "a", "b"], DataContract(input_size=(3, 4, 4)))
        >>> pictures.ids, len(pictures.read(slice(1, 3)))
        (['0', '1', '2'], 2)
    """
    one_path = isinstance(source, str | os.PathLike)
    if not one_path and not (isinstance(source, list) and source and isinstance(source[0], str | os.PathLike)):
        pictures = load_pictures(source, labels, contract=contract, n_jobs=n_jobs, need_labels=need_labels)
        seen = hashlib.sha256("".join(pictures_digest(pictures.pixels)).encode()).hexdigest()
        own = None if pictures.labels is None else pictures.labels.tolist()
        return PictureList(pictures.ids, own, seen, pictures.select)
    files = find_files(source, need_labels and labels is None) if one_path else from_paths(source)
    if files.lost:
        message = f"{files.lost[0][0]} cannot be read: {files.lost[0][1]}; {len(files.lost)} such places were met"
        raise PictureError(message)
    for note in files.notes:
        warnings.warn(note, stacklevel=3)
    known = files.labels if labels is None else label_array(labels).tolist()
    if known is None and need_labels:
        message = "these pictures have no labels; give labels=, class folders, or need_labels=False"
        raise InputError(message)
    if known is not None and len(known) != len(files.paths):
        message = f"there are {len(known)} labels for {len(files.paths)} pictures; give one per picture"
        raise InputError(message)

    def read(part: slice) -> Pictures:
        return load_pictures(files.paths[part], contract=contract, n_jobs=n_jobs, need_labels=False)

    return PictureList(files.ids, known, _sizes(files), read)


def _sizes(files: FileList) -> str:
    """A digest of the sizes of all files; their contents would have to be read twice."""
    seen = hashlib.sha256()
    for path, name in zip(files.paths, files.ids, strict=True):
        try:
            seen.update(f"{os.path.getsize(path)}\n".encode())
        except OSError as error:
            message = f"the picture {name} cannot be read ({error.strerror}); correct the list or the folder"
            raise PictureError(message) from error
    return seen.hexdigest()
