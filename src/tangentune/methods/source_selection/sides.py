"""A target or source set as features with ids, labels and digests, from wherever its pictures are."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm.auto import tqdm

from tangentune.errors import InputError
from tangentune.methods.source_selection.extract import extract_features, feature_matrix, open_extracted
from tangentune.methods.source_selection.feature_source import ArrayFeatures, Features
from tangentune.methods.source_selection.features import open_features, read_labels
from tangentune.methods.source_selection.manifest import file_digest, picture_names
from tangentune.networks.backbone import Backbone
from tangentune.pictures.files import FileList, find_files, from_paths
from tangentune.pictures.load import Pictures, load_pictures, pictures_digest
from tangentune.pictures.names import readable


@final
class Positions(Sequence[str]):
    """The ids of rows without names, "0", "1", ..., in no memory."""

    def __init__(self, count: int) -> None:
        self._range = range(count)

    def __len__(self) -> int:
        return len(self._range)

    def __getitem__(self, index: Any) -> Any:
        return [str(i) for i in self._range[index]] if isinstance(index, slice) else str(self._range[index])


@final
@dataclass(frozen=True, eq=False)
class Side:
    """A target or source set.

    Attributes:
        features: n rows.
        labels: (n,) names of classes, or None.
        ids: n paths below `root`, or positions.
        root: absolute folder of the files, None where there are none.
        paths: the n files, where there are.
        pictures: the pictures in memory, where they are.
        backbone: what `Backbone.describe` says of the network that made the features, where it is known.
    """

    features: Features
    labels: NDArray[np.str_] | None
    ids: Sequence[str]
    root: str | None = None
    paths: Sequence[str] | None = None
    pictures: Pictures | None = None
    backbone: dict[str, Any] | None = None

    def digests(self, rows: NDArray[np.integer], verbose: int = 0) -> list[str | None]:
        """The sha256 of some pictures: of the file's bytes, or of the pixels in memory; None for bare features."""
        if self.paths is not None:
            settings: dict[str, Any] = {"desc": "hashing pictures", "unit": "picture", "delay": 1.0}
            return [file_digest(str(self.paths[i])) for i in tqdm(rows.tolist(), disable=not verbose, **settings)]
        if self.pictures is not None:
            return list(pictures_digest(self.pictures.pixels[torch.from_numpy(rows)]))
        return [None] * len(rows)


@contextmanager
def open_side(
    given: Any,
    backbone: Backbone | None,
    labels: Any = None,
    *,
    labelled: bool = True,
    cache: Path | None = None,
    batch_size: int = 32,
    on_error: str = "raise",
    n_jobs: int | None = None,
    verbose: int = 0,
) -> Iterator[Side]:
    """A set of pictures, or of features, ready for the passes of a selection.

    Args:
        given: what `load_pictures` takes; or features: a directory of `extract_features`, what `open_features` takes
            from the disk, or, without a backbone, an array (n, d).
        backbone: whose features; None where they are given.
        labels: one a picture, where `given` has none itself.
        labelled: False for sets that need no labels; folders may then have any shape.
        cache: folder where the features are kept, and found by the next selection; None keeps those of files in a
            temporary folder for as long as the side is open.
        batch_size: pictures of one forward pass.
        on_error: "raise" or "skip", for files that cannot be read; with "skip" all pixels are held, beyond 1 GiB in
            a temporary file.
        n_jobs: processes that decode.
        verbose: 1 shows progress bars.

    Raises:
        InputError: labels do not fit, an id is there twice, or features are needed and there is no backbone.
        PictureError: a file or folder cannot be read.
    """
    if holds_features(given) or backbone is None:
        yield _from_features(given, labels)
        return
    with tempfile.TemporaryDirectory(prefix="tangentune-") as scratch:
        loading: dict[str, Any] = {"contract": backbone.contract, "n_jobs": n_jobs, "verbose": verbose}
        needed = labelled and labels is None
        files = _listed(given, needed)
        pictures = None
        if files is None or on_error == "skip":
            pictures = load_pictures(given, labels, need_labels=needed, on_error=on_error, **loading)
        if pictures is not None and cache is None:
            features, known = ArrayFeatures(_features(pictures, backbone, batch_size, verbose)), pictures.labels
        else:
            folder = Path(scratch) / "features"
            if cache is not None:
                folder = cache / f"features-{_key(backbone, given if files is None else files, pictures, labels)}"
            found = extract_features(
                (list(given) if isinstance(given, tuple) else given) if pictures is None else pictures,
                backbone,
                folder,
                labels if pictures is None else None,
                batch_size=batch_size,
                n_jobs=n_jobs,
                need_labels=needed if pictures is None else False,
                verbose=verbose,
            )
            features, known = found.features, found.labels
        names = None if known is None else known.astype(np.str_)
        described = backbone.describe()
        if files is None:
            assert pictures is not None
            yield Side(features, names, picture_names(pictures), pictures=pictures, backbone=described)
        else:
            kept = files.ids if pictures is None else pictures.ids
            yield _from_files(_root(given, files), files, kept, features, names, described)


def _listed(given: Any, need_labels: bool) -> FileList | None:
    """The files of a folder, a table or a list of paths; None for what is no file."""
    if isinstance(given, str | os.PathLike):
        return find_files(given, need_labels)
    if isinstance(given, list | tuple) and given and all(isinstance(path, str | os.PathLike) for path in given):
        return from_paths(given)
    return None


def _root(given: Any, files: FileList) -> str:
    """The folder that ids are relative to: the one given, that of the table, or that which holds all paths."""
    if isinstance(given, str | os.PathLike):
        place = Path(given).expanduser()
        return os.path.abspath(place if place.is_dir() else place.parent)
    return os.path.commonpath([os.path.dirname(os.path.abspath(path)) for path in files.paths])


def _from_files(
    root: str,
    files: FileList,
    kept: Sequence[str],
    features: Features,
    labels: NDArray[np.str_] | None,
    backbone: dict[str, Any],
) -> Side:
    where = dict(zip(files.ids, files.paths, strict=True))
    paths = [os.path.abspath(where[name]) for name in kept]
    ids = [_below(path, root) for path in paths]
    twice = [name for name, count in Counter(ids).items() if count > 1]
    if twice:
        message = f"{twice[0]} is listed more than once ({len(twice)} such); list each picture once"
        raise InputError(message)
    return Side(features, labels, ids, root, paths, backbone=backbone)


def _below(path: str, root: str) -> str:
    """A file's path relative to the root, or as it is where the file lies elsewhere."""
    return readable(os.path.relpath(path, root) if Path(path).is_relative_to(root) else path)


def holds_features(given: Any) -> bool:
    """Whether these are features and no pictures: opened ones, a .npy file, or a folder of such."""
    if isinstance(given, Features):
        return True
    if not isinstance(given, str | os.PathLike):
        return False
    path = Path(given).expanduser()
    if path.is_dir():
        return (path / "index.json").exists() or any(path.glob("*.npy"))
    return path.suffix.lower() == ".npy"


def _from_features(given: Any, labels: Any) -> Side:
    if isinstance(given, str | os.PathLike) and (Path(given).expanduser() / "index.json").exists():
        found = open_extracted(given)
        known = found.labels if labels is None else labels
        names = None if known is None else read_labels(known, found.features.count)
        return Side(found.features, names, found.ids, backbone=found.backbone)
    is_path = isinstance(given, str | os.PathLike)
    if isinstance(given, Pictures) or (is_path and os.path.exists(given) and not holds_features(given)):
        message = "pictures are given without a backbone; give one, or features"
        raise InputError(message)
    features = open_features(given)
    names = None if labels is None else read_labels(labels, features.count)
    return Side(features, names, Positions(features.count))


def _features(pictures: Pictures, backbone: Backbone, batch_size: int, verbose: int) -> torch.Tensor:
    settings: dict[str, Any] = {"desc": "features", "unit": "picture", "delay": 1.0, "disable": not verbose}
    with tqdm(total=len(pictures), **settings) as bar:
        return feature_matrix(pictures, backbone, batch_size=batch_size, progress=bar.update)


def _key(backbone: Backbone, given: FileList | Any, pictures: Pictures | None, labels: Any) -> str:
    """Names a folder of the cache by what its features depend on, so that no other selection's are met there."""
    known = backbone.describe()
    seen = hashlib.sha256(json.dumps([known["digest"], known["contract"]], sort_keys=True).encode())
    if pictures is not None:
        parts = [*pictures.ids, *pictures_digest(pictures.pixels), *map(str, _list(pictures.labels))]
    else:
        parts = [*given.ids, *map(_stamp, given.paths)]
        parts += map(str, [*(given.labels or ()), *_list(labels)])
    for part in parts:
        seen.update(f"{part}\n".encode("utf-8", "surrogatepass"))
    return seen.hexdigest()[:16]


def _stamp(path: str) -> str:
    try:
        info = os.stat(path)
    except OSError:  # the extraction names it
        return ""
    return f"{info.st_size} {info.st_mtime_ns}"


def _list(labels: Any) -> list[Any]:
    return [] if labels is None else np.asarray(labels).ravel().tolist()
