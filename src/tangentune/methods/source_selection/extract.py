"""A target or source set as features with ids and labels, from wherever its pictures are, of which there may be any
number: features of files are written in shards, so that an extraction that is stopped goes on where it was.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm.auto import tqdm

from tangentune._files import file_digest, from_json, locked, plain, replaced_file, user_path
from tangentune.errors import InputError, PictureError, StoreError, check_counts
from tangentune.memory import progress
from tangentune.methods.fine_tuning.labelled import mean_features
from tangentune.methods.source_selection.features import Features, open_features, read_labels
from tangentune.methods.source_selection.manifest import picture_names
from tangentune.networks.backbone import Backbone, same_features
from tangentune.pictures.checks import label_array, one_class_each, pictures_digest
from tangentune.pictures.contract import DataContract
from tangentune.pictures.files import FileList, find_files, from_paths
from tangentune.pictures.load import load_pictures
from tangentune.pictures.names import readable, some
from tangentune.pictures.pictures import Pictures
from tangentune.pictures.ranks import ALONE, Rank, run_shards
from tangentune.pictures.tables import Columns

_KIND, _INDEX = "tangentune features 1", "index.json"


@final
@dataclass(frozen=True, eq=False)
class FeatureSet:
    """A target or source set."""

    features: Features  # n rows, as the backbone gives them: not brought to length one
    labels: NDArray[Any] | None  # (n,) names of classes, or None
    ids: Sequence[Any]  # n paths below `root`, or positions as numbers
    root: str | None = None  # absolute folder of the files, None where there are none
    paths: Sequence[str] | None = None  # the n files, where there are
    pictures: Pictures | None = None  # the pictures in memory, where they are
    # what `Backbone.describe` says of the network that made the features, where it is known
    backbone: dict[str, Any] | None = None

    def digests(self, rows: Sequence[int] | NDArray[np.integer], verbose: int = 0) -> list[str | None]:
        """The sha256 of some pictures: of the file's bytes, or of the pixels in memory; None for bare features."""
        if self.paths is not None:
            known = progress(rows, label="hashing pictures", total=None, unit="picture", verbose=verbose)
            return [file_digest(str(self.paths[i])) for i in known]
        if self.pictures is not None:
            return list(pictures_digest(self.pictures.pixels[torch.as_tensor(rows)]))
        return [None] * len(rows)


@contextmanager
def open_set(
    given: Any,
    backbone: Backbone | None,
    labels: Any = None,
    *,
    labelled: bool = True,
    cache: Path | None = None,
    batch_size: int = 32,
    verbose: int = 0,
    rank: Rank = ALONE,
    **loading: Any,
) -> Iterator[FeatureSet]:
    """A set of pictures, or of features, ready for the passes of a selection.

    `given` is what `load_pictures` takes, or features: a directory of `extract_features`, what `open_features` takes
    from the disk, or, without a backbone, an array (n, d). Sets that are not `labelled` need no labels, and folders may
    then have any shape. In `cache` the features are kept, and found by the next selection, and several ranks make them
    together; None keeps them in a temporary folder for as long as the set is open. `loading` are arguments of
    `load_pictures`; with `on_error` "skip" all pixels are held, beyond 1 GiB in a temporary file.
    """
    if holds_features(given) or backbone is None:
        yield _from_features(given, labels)
        return
    listed = list_pictures(given, labels, backbone.contract, need_labels=labelled, verbose=verbose, **loading)
    if listed.files is None:
        assert listed.pictures is not None
        ids, root, paths = picture_names(listed.pictures), None, None
    else:
        ids, root, paths = _places(given, listed.files, listed.ids)
    names = None if listed.labels is None else one_class_each(label_array(listed.labels)).astype(np.str_)
    with tempfile.TemporaryDirectory(prefix="tangentune-") as scratch:
        folder = Path(scratch) / "features" if cache is None else cache / f"features-{_key(backbone, listed)}"
        found = extract_features(listed, backbone, folder, batch_size=batch_size, verbose=verbose, rank=rank)
        yield FeatureSet(found.features, names, ids, root, paths, listed.pictures, backbone.describe())


def holds_features(given: Any) -> bool:
    """Whether these are features and no pictures: opened ones, a .npy file, or a folder of such."""
    if not isinstance(given, str | os.PathLike):
        return isinstance(given, Features)
    path = user_path(given)
    if path.is_dir():
        return (path / _INDEX).exists() or any(path.glob("*.npy"))
    return path.suffix.lower() == ".npy"


def _from_features(given: Any, labels: Any) -> FeatureSet:
    path = user_path(given) if isinstance(given, str | os.PathLike) else None
    if path is not None and (path / _INDEX).exists():
        found = open_extracted(path)
        labels = found.labels if labels is None else labels
    elif isinstance(given, Pictures) or (path is not None and path.exists() and not holds_features(given)):
        raise InputError("pictures are given without a backbone; give one, or features")
    else:
        features = open_features(given)
        found = FeatureSet(features, None, range(features.count))
    return replace(found, labels=None if labels is None else read_labels(labels, found.features.count))


def _places(given: Any, files: FileList, kept: Sequence[str]) -> tuple[list[str], str, list[str]]:
    """Ids, root and paths of the files that are kept.

    Ids are relative to the folder given, that of the table, or that which holds all paths; or, elsewhere, paths.
    """
    if isinstance(given, str | os.PathLike):
        place = user_path(given)
        root = os.path.abspath(place if place.is_dir() else place.parent)
    else:
        root = os.path.commonpath([os.path.dirname(os.path.abspath(path)) for path in files.pictures])
    where = dict(zip(files.ids, files.pictures, strict=True))
    paths = [os.path.abspath(where[name]) for name in kept]
    ids = [readable(os.path.relpath(path, root) if Path(path).is_relative_to(root) else path) for path in paths]
    twice = [name for name, count in Counter(ids).items() if count > 1]
    if twice:
        raise InputError(f"{twice[0]} is listed more than once ({len(twice)} such); list each picture once")
    return ids, root, paths


def _key(backbone: Backbone, listed: PictureList) -> str:
    """Names a folder of the cache by what its features depend on, so that no other selection's are met there."""
    known = backbone.describe()
    paths = [] if listed.files is None or listed.pictures is not None else listed.files.pictures
    changed = [os.stat(path).st_mtime_ns for path in paths]  # `content` has the sizes
    features = [f"{value:.2g}" for value in known["fingerprint"] or ()]  # also where they are is part of a backbone
    parts = [known["digest"], features, known["contract"], listed.content, listed.ids, listed.labels, changed]
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:16]


@final
@dataclass(frozen=True, eq=False)
class PictureList:
    """Pictures that are read in parts, by ranges of positions, from files or memory."""

    ids: list[str]
    labels: list[Any] | None  # as the source has them
    content: str  # changes with the pictures: the sizes of files, or the digest of pixels
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
    path_column: str | None = None,
    label_column: str | None = None,
) -> PictureList:
    """What `load_pictures` takes, with its arguments; only names of files are read, but with `on_error="skip"` all."""
    files = None
    if isinstance(source, str | os.PathLike):
        files = find_files(source, need_labels and labels is None, Columns(path_column, label_column))
    elif isinstance(source, list | tuple) and source and isinstance(source[0], str | os.PathLike):
        files = from_paths(source)
    if files is None or on_error == "skip":
        settings: dict[str, Any] = {"on_error": on_error, "n_jobs": n_jobs, "verbose": verbose}
        settings |= {"path_column": path_column, "label_column": label_column}
        pictures = load_pictures(source, labels, contract=contract, need_labels=need_labels, **settings)
        seen = hashlib.sha256("".join(pictures_digest(pictures.pixels)).encode()).hexdigest()
        own = None if pictures.labels is None else pictures.labels.tolist()
        return PictureList(pictures.ids, own, seen, pictures.select, files, pictures)
    if files.lost:
        raise PictureError(
            f"{files.lost[0][0]} cannot be read: {files.lost[0][1]}; {len(files.lost)} such places were met"
        )
    for note in files.notes:
        warnings.warn(note, stacklevel=3)
    known = files.labels if labels is None else label_array(labels).tolist()
    if known is None and need_labels:
        raise InputError("these pictures have no labels; give labels=, class folders, or need_labels=False")
    if known is not None and len(known) != len(files.pictures):
        raise InputError(f"there are {len(known)} labels for {len(files.pictures)} pictures; give one per picture")

    def read(part: slice) -> Pictures:
        return load_pictures(files.pictures[part], need_labels=False, contract=contract, n_jobs=n_jobs)

    return PictureList(files.ids, known, _sizes(files), read, files)


def _sizes(files: FileList) -> str:
    """A digest of the sizes of all files; their contents would have to be read twice."""
    seen = hashlib.sha256()
    for path, name in zip(files.pictures, files.ids, strict=True):
        try:
            seen.update(f"{os.path.getsize(path)}\n".encode())
        except OSError as error:
            raise PictureError(
                f"the picture {name} cannot be read ({error.strerror}); correct the list or the folder"
            ) from error
    return seen.hexdigest()


def extract_features(
    pictures: PictureList,
    backbone: Backbone,
    directory: str | os.PathLike[str],
    *,
    shard_size: int = 2048,
    batch_size: int = 64,
    verbose: int = 0,
    rank: Rank = ALONE,
) -> FeatureSet:
    """Features of all pictures of a list, in shards of a directory, new or one that the same call began.

    Every shard is written in one move. Killed and started again, the missing ones are made, and the files are those
    of a run that was never stopped. Files are read a shard at a time, so a folder may hold any number. Cost: one
    forward pass a picture, shared among ranks. A picture that cannot be read is named, and the shards before it stay.
    """
    check_counts(SimpleNamespace(shard_size=shard_size, batch_size=batch_size), {"shard_size": 1, "batch_size": 1})
    index = {"kind": _KIND, "shard_size": shard_size, "content": pictures.content}
    index |= {"backbone": backbone.describe(), "labels": pictures.labels, "ids": pictures.ids}
    folder, count = user_path(directory), len(pictures.ids)
    with locked(folder) if rank.count > 1 else nullcontext():
        _begin(folder, plain(index))
    names = [_shard(folder, i).name for i in range(-(-count // shard_size))]
    parts = [slice(i * shard_size, min((i + 1) * shard_size, count)) for i in range(len(names))]
    done = sum(part.stop - part.start for part, name in zip(parts, names, strict=True) if (folder / name).exists())
    settings: dict[str, Any] = {"desc": "features", "unit": "picture", "delay": 1.0, "disable": not verbose}
    with tqdm(total=count, initial=done, **settings) as bar:

        def make(number: int, path: Path) -> None:
            rows = feature_matrix(pictures.read(parts[number]), backbone, batch_size, bar.update)
            with replaced_file(path) as place, place.open("wb") as file:
                np.save(file, rows.numpy(), allow_pickle=False)

        run_shards(folder, names, make, rank)
    for stray in (*folder.glob(".features-*.part"), *folder.glob("features-*.by")):  # of killed runs
        stray.unlink(missing_ok=True)
    return open_extracted(folder)


def open_extracted(directory: str | os.PathLike[str]) -> FeatureSet:
    """What `extract_features` wrote; a directory that is missing, something else, or not finished is refused."""
    folder = user_path(directory)
    index = _read_index(folder)
    if index is None:
        raise StoreError(f"{readable(folder)} holds no extracted features; make them with extract_features")
    count, size = len(index["ids"]), index["shard_size"]
    shards = [_shard(folder, i) for i in range(-(-count // size))]
    missing = [path.name for path in shards if not path.exists()]
    if missing:
        message = f"{readable(folder)} is not finished: {some(missing)} of {len(shards)} shards missing; "
        message += "run the extraction again"
        raise StoreError(message)
    features = open_features(shards)
    if features.count != count:
        raise StoreError(
            f"{readable(folder)} holds {features.count} rows for {count} pictures; delete it and extract again"
        )
    labels = None if index["labels"] is None else label_array(index["labels"])
    return FeatureSet(features, labels, index["ids"], backbone=index["backbone"])


def feature_matrix(pictures: Pictures, backbone: Backbone, batch_size: int, tell: Callable[[int], Any]) -> Tensor:
    """Features of pictures in memory, (n, d) float32; `tell` is told the number of each batch."""
    parts = []
    for start in range(0, len(pictures), batch_size):
        batch = pictures.select(slice(start, start + batch_size))
        parts.append(mean_features(backbone, batch, batch_size, False).float().cpu())
        tell(len(batch))
    return torch.cat(parts)


def _shard(folder: Path, number: int) -> Path:
    return folder / f"features-{number:05d}.npy"


def _begin(folder: Path, index: dict[str, Any]) -> None:
    """Write the index of a new directory, or check that it is the one that is there."""
    was = _read_index(folder)
    if was is None:
        if folder.is_dir() and any(folder.iterdir()):
            raise StoreError(f"{readable(folder)} holds other files; give a new directory for the features")
        with replaced_file(folder / _INDEX) as part:
            part.write_text(json.dumps(index, indent=1) + "\n", encoding="utf-8")
        return
    theirs, mine = was["backbone"], index["backbone"]
    checks = {
        "another backbone": theirs["digest"] == mine["digest"],
        "pictures of another size or preparation": theirs["contract"] == mine["contract"],
        "another place of the backbone's features": same_features(theirs["fingerprint"], mine["fingerprint"]),
        "another list of pictures or labels": all(was[name] == index[name] for name in ("ids", "labels", "content")),
        f"shard_size {was['shard_size']}": was["shard_size"] == index["shard_size"],
    }
    other = next((what for what, same in checks.items() if not same), None)
    if other is not None:
        raise StoreError(f"{readable(folder)} holds features made with {other}; give another directory")


def _read_index(folder: Path) -> dict[str, Any] | None:
    path = folder / _INDEX
    if not path.exists():
        return None
    try:
        index = from_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise StoreError(
            f"{readable(path)} cannot be read ({error}); delete the directory and extract again"
        ) from error
    if not isinstance(index, dict) or index.get("kind") != _KIND:
        raise StoreError(f"{readable(path)} is no index of extracted features of this version; give another directory")
    return index
