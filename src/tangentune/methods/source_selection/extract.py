"""Features of pictures in any number, written in shards: stopped and started again, it goes on where it was."""

from __future__ import annotations

import hashlib
import json
import os
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm.auto import tqdm

from tangentune._checks import check_counts
from tangentune._files import plain, replaced_file
from tangentune.errors import InputError, PictureError, StoreError
from tangentune.methods.fine_tuning.labelled import mean_features
from tangentune.methods.source_selection.features import Features, open_features
from tangentune.methods.source_selection.manifest import file_digest
from tangentune.networks.backbone import Backbone
from tangentune.pictures.checks import label_array, pictures_digest
from tangentune.pictures.contract import DataContract
from tangentune.pictures.files import FileList, find_files, from_paths
from tangentune.pictures.load import load_pictures
from tangentune.pictures.names import readable, some
from tangentune.pictures.pictures import Pictures

_KIND, _INDEX = "tangentune features 1", "index.json"


@final
@dataclass(frozen=True, eq=False)
class PictureList:
    """Pictures of a source that are read in parts.

    Attributes:
        ids: n names.
        labels: n as the source has them, or None.
        content: changes with the pictures: the sizes of files, or the digest of pixels.
        read: the pictures of a range of positions.
        files: where they are files.
        pictures: where they are in memory.
    """

    ids: list[str]
    labels: list[Any] | None
    content: str
    read: Callable[[slice], Pictures]
    files: FileList | None = None
    pictures: Pictures | None = None


def list_pictures(
    source: Any,
    labels: Any,
    contract: DataContract,
    *,
    need_labels: bool = True,
    on_error: str = "raise",
    n_jobs: int | None = None,
    verbose: int = 0,
) -> PictureList:
    """The pictures of a source; of files only the names are read, so there may be any number.

    Args:
        source: what `load_pictures` takes.
        labels: as there.
        contract: size and preparation.
        need_labels: False for a source without labels.
        on_error: "skip" leaves out files that cannot be read, for which all are read at once.
        n_jobs: processes that decode files.
        verbose: 1 shows a progress bar where pictures are read.

    Raises:
        PictureError: a file or folder is missing or cannot be entered.
        InputError: labels do not fit.

    Example:
        >>> grey = torch.zeros(3, 4, 4, dtype=torch.uint8)
        >>> pictures = list_pictures(grey, ["a", "a", "b"], DataContract(input_size=(3, 4, 4)))
        >>> pictures.ids, len(pictures.read(slice(1, 3)))
        (['0', '1', '2'], 2)
    """
    loading: dict[str, Any] = {"contract": contract, "n_jobs": n_jobs}
    needed = need_labels and labels is None
    files = None
    if isinstance(source, str | os.PathLike):
        files = find_files(source, needed)
    elif isinstance(source, list | tuple) and source and isinstance(source[0], str | os.PathLike):
        files = from_paths(source)
    if files is None or on_error == "skip":
        loading |= {"on_error": on_error, "verbose": verbose, "need_labels": need_labels}
        pictures = load_pictures(source, labels, **loading)
        seen = hashlib.sha256("".join(pictures_digest(pictures.pixels)).encode()).hexdigest()
        own = None if pictures.labels is None else pictures.labels.tolist()
        return PictureList(pictures.ids, own, seen, pictures.select, files, pictures)
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
        return load_pictures(files.paths[part], need_labels=False, **loading)

    return PictureList(files.ids, known, _sizes(files), read, files)


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


@final
@dataclass(frozen=True, eq=False)
class FeatureSet:
    """A target or source set.

    Attributes:
        features: n rows, as the backbone gives them: not brought to length one.
        labels: (n,) names of classes, or None.
        ids: n paths below `root`, or positions as numbers.
        root: absolute folder of the files, None where there are none.
        paths: the n files, where there are.
        pictures: the pictures in memory, where they are.
        backbone: what `Backbone.describe` says of the network that made the features, where it is known.
    """

    features: Features
    labels: NDArray[Any] | None
    ids: Sequence[Any]
    root: str | None = None
    paths: Sequence[str] | None = None
    pictures: Pictures | None = None
    backbone: dict[str, Any] | None = None

    def digests(self, rows: Sequence[int] | NDArray[np.integer], verbose: int = 0) -> list[str | None]:
        """The sha256 of some pictures: of the file's bytes, or of the pixels in memory; None for bare features."""
        if self.paths is not None:
            settings: dict[str, Any] = {"desc": "hashing pictures", "unit": "picture", "delay": 1.0}
            return [file_digest(str(self.paths[i])) for i in tqdm(rows, disable=not verbose, **settings)]
        if self.pictures is not None:
            return list(pictures_digest(self.pictures.pixels[torch.as_tensor(rows)]))
        return [None] * len(rows)


def extract_features(
    pictures: PictureList,
    backbone: Backbone,
    directory: str | os.PathLike[str],
    *,
    shard_size: int = 2048,
    batch_size: int = 64,
    verbose: int = 0,
) -> FeatureSet:
    """Features of all pictures of a list, in shards of a directory.

    Every shard is written in one move. Killed and started again, the missing ones are made, and the files are those
    of a run that was never stopped. Files are read a shard at a time, so a folder may hold any number.

    Args:
        pictures: of `list_pictures`.
        backbone: whose features.
        directory: made if it is not there; else one that the same call began.
        shard_size: pictures of a shard, which are in memory together.
        batch_size: pictures of one forward pass.
        verbose: 1 shows a progress bar with the time left.

    Returns:
        FeatureSet. Cost: one forward pass a picture.

    Raises:
        PictureError: a picture cannot be read; it is named, and the shards before it stay.
        StoreError: the directory holds something else, or features of another backbone, picture size or source.
        InputError: an argument cannot be used.
    """
    given = SimpleNamespace(shard_size=shard_size, batch_size=batch_size)
    check_counts(given, {"shard_size": 1, "batch_size": 1})
    index = {"kind": _KIND, "shard_size": shard_size, "flip": False, "content": pictures.content}
    index |= {"backbone": backbone.describe(), "labels": pictures.labels, "ids": pictures.ids}
    folder, count = Path(directory).expanduser(), len(pictures.ids)
    _begin(folder, plain(index))
    starts = [start for start in range(0, count, shard_size) if not _shard(folder, start // shard_size).exists()]
    left = sum(min(shard_size, count - start) for start in starts)
    settings: dict[str, Any] = {"desc": "features", "unit": "picture", "delay": 1.0, "disable": not verbose}
    with tqdm(total=count, initial=count - left, **settings) as bar:
        for start in starts:
            part = pictures.read(slice(start, min(start + shard_size, count)))
            rows = feature_matrix(part, backbone, batch_size=batch_size, progress=bar.update)
            with replaced_file(_shard(folder, start // shard_size)) as place, place.open("wb") as file:
                np.save(file, rows.numpy(), allow_pickle=False)
    for stray in folder.glob(".features-*.part"):  # of killed runs
        stray.unlink(missing_ok=True)
    return open_extracted(folder)


def open_extracted(directory: str | os.PathLike[str]) -> FeatureSet:
    """What `extract_features` wrote.

    Raises:
        StoreError: the directory is missing, something else, or not finished.
    """
    folder = Path(directory).expanduser()
    index = _read_index(folder)
    if index is None:
        message = f"{readable(folder)} holds no extracted features; make them with extract_features"
        raise StoreError(message)
    count, size = len(index["ids"]), index["shard_size"]
    shards = [_shard(folder, i) for i in range(-(-count // size))]
    missing = [path.name for path in shards if not path.exists()]
    if missing:
        message = f"{readable(folder)} is not finished: {some(missing)} of {len(shards)} shards missing"
        message = f"{message}; run the extraction again"
        raise StoreError(message)
    features = open_features(shards)
    if features.count != count:
        message = f"{readable(folder)} holds {features.count} rows for {count} pictures; delete it and extract again"
        raise StoreError(message)
    labels = None if index["labels"] is None else label_array(index["labels"])
    return FeatureSet(features, labels, index["ids"], backbone=index["backbone"])


def feature_matrix(
    pictures: Pictures,
    backbone: Backbone,
    *,
    batch_size: int = 64,
    progress: Callable[[int], Any] | None = None,
) -> Tensor:
    """Features of pictures in memory, (n, d) float32, not brought to length one.

    Args:
        pictures: at the size of the backbone's contract.
        backbone: whose features.
        batch_size: pictures of one forward pass.
        progress: called with the number of pictures done after each batch.

    Raises:
        BackboneError: the pictures do not fit, or the features hold NaN or infinity.

    Example:
        >>> net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 2))
        >>> pictures = Pictures(torch.zeros(3, 3, 2, 2, dtype=torch.uint8), None, ["a", "b", "c"])
        >>> feature_matrix(pictures, Backbone(net, input_size=(3, 2, 2))).shape
        torch.Size([3, 2])
    """
    parts = []
    for start in range(0, len(pictures), batch_size):
        batch = pictures.select(slice(start, start + batch_size))
        parts.append(mean_features(backbone, batch, batch_size, False).float().cpu())
        if progress is not None:
            progress(len(batch))
    return torch.cat(parts)


def _shard(folder: Path, number: int) -> Path:
    return folder / f"features-{number:05d}.npy"


def _begin(folder: Path, index: dict[str, Any]) -> None:
    """Write the index of a new directory, or check that it is the one that is there."""
    was = _read_index(folder)
    if was is None:
        if folder.is_dir() and any(folder.iterdir()):
            message = f"{readable(folder)} holds other files; give a new directory for the features"
            raise StoreError(message)
        with replaced_file(folder / _INDEX) as part:
            part.write_text(json.dumps(index, indent=1) + "\n", encoding="utf-8")
        return
    theirs, mine = was["backbone"], index["backbone"]
    checks = {
        "another backbone": theirs["digest"] == mine["digest"],
        "pictures of another size or preparation": theirs["contract"] == mine["contract"],
        "another list of pictures or labels": all(was[name] == index[name] for name in ("ids", "labels", "content")),
        f"shard_size {was['shard_size']} and flip {was['flip']}": (was["shard_size"], was["flip"])
        == (index["shard_size"], index["flip"]),
    }
    other = next((what for what, same in checks.items() if not same), None)
    if other is not None:
        message = f"{readable(folder)} holds features made with {other}; give another directory"
        raise StoreError(message)


def _read_index(folder: Path) -> dict[str, Any] | None:
    path = folder / _INDEX
    if not path.exists():
        return None
    try:
        index = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        message = f"{readable(path)} cannot be read ({error}); delete the directory and extract again"
        raise StoreError(message) from error
    if not isinstance(index, dict) or index.get("kind") != _KIND:
        message = f"{readable(path)} is no index of extracted features of this version; give another directory"
        raise StoreError(message)
    return index
