"""A target or source set as features with ids and labels, from wherever its pictures are."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from tqdm.auto import tqdm

from tangentune.errors import InputError
from tangentune.methods.source_selection.extract import (
    FeatureSet,
    PictureList,
    extract_features,
    feature_matrix,
    list_pictures,
    open_extracted,
)
from tangentune.methods.source_selection.features import Features, open_features, read_labels
from tangentune.methods.source_selection.manifest import picture_names
from tangentune.networks.backbone import Backbone
from tangentune.pictures.checks import label_array
from tangentune.pictures.files import FileList
from tangentune.pictures.load import Pictures
from tangentune.pictures.names import readable


@contextmanager
def open_set(
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
) -> Iterator[FeatureSet]:
    """A set of pictures, or of features, ready for the passes of a selection.

    Args:
        given: what `load_pictures` takes; or features: a directory of `extract_features`, what `open_features` takes
            from the disk, or, without a backbone, an array (n, d).
        backbone: whose features; None where they are given.
        labels: one a picture, where `given` has none itself.
        labelled: False for sets that need no labels; folders may then have any shape.
        cache: folder where the features are kept, and found by the next selection; None keeps those of files in a
            temporary folder for as long as the set is open.
        batch_size: as in `select_source`, and so are the others; with "skip" all pixels are held, beyond 1 GiB in a
            temporary file.
        on_error: as there.
        n_jobs: as there.
        verbose: as there.

    Raises:
        InputError: labels do not fit, an id is there twice, or features are needed and there is no backbone.
        PictureError: a file or folder cannot be read.
    """
    if holds_features(given) or backbone is None:
        yield _from_features(given, labels)
        return
    listed = list_pictures(
        given, labels, backbone.contract, need_labels=labelled, on_error=on_error, n_jobs=n_jobs, verbose=verbose
    )
    if listed.files is None:
        assert listed.pictures is not None
        ids, root, paths = picture_names(listed.pictures), None, None
    else:
        ids, root, paths = _places(given, listed.files, listed.ids)
    names = None if listed.labels is None else label_array(listed.labels).astype(np.str_)
    with tempfile.TemporaryDirectory(prefix="tangentune-") as scratch:
        if listed.pictures is not None and cache is None:
            settings: dict[str, Any] = {"desc": "features", "unit": "picture", "delay": 1.0, "disable": not verbose}
            with tqdm(total=len(listed.ids), **settings) as bar:
                rows = feature_matrix(listed.pictures, backbone, batch_size=batch_size, progress=bar.update)
            features = open_features(rows)
        else:
            folder = Path(scratch) / "features" if cache is None else cache / f"features-{_key(backbone, listed)}"
            features = extract_features(listed, backbone, folder, batch_size=batch_size, verbose=verbose).features
        yield FeatureSet(features, names, ids, root, paths, listed.pictures, backbone.describe())


def _places(given: Any, files: FileList, kept: Sequence[str]) -> tuple[list[str], str, list[str]]:
    """Ids, root and paths of the files that are kept.

    Ids are relative to the folder given, that of the table, or that which holds all paths; of a file that lies
    elsewhere its path.
    """
    if isinstance(given, str | os.PathLike):
        place = Path(given).expanduser()
        root = os.path.abspath(place if place.is_dir() else place.parent)
    else:
        root = os.path.commonpath([os.path.dirname(os.path.abspath(path)) for path in files.paths])
    where = dict(zip(files.ids, files.paths, strict=True))
    paths = [os.path.abspath(where[name]) for name in kept]
    ids = [readable(os.path.relpath(path, root) if Path(path).is_relative_to(root) else path) for path in paths]
    twice = [name for name, count in Counter(ids).items() if count > 1]
    if twice:
        message = f"{twice[0]} is listed more than once ({len(twice)} such); list each picture once"
        raise InputError(message)
    return ids, root, paths


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


def _from_features(given: Any, labels: Any) -> FeatureSet:
    path = Path(given).expanduser() if isinstance(given, str | os.PathLike) else None
    if path is not None and (path / "index.json").exists():
        found = open_extracted(path)
        labels = found.labels if labels is None else labels
    elif isinstance(given, Pictures) or (path is not None and path.exists() and not holds_features(given)):
        message = "pictures are given without a backbone; give one, or features"
        raise InputError(message)
    else:
        features = open_features(given)
        found = FeatureSet(features, None, range(features.count))
    return replace(found, labels=None if labels is None else read_labels(labels, found.features.count))


def _key(backbone: Backbone, listed: PictureList) -> str:
    """Names a folder of the cache by what its features depend on, so that no other selection's are met there."""
    known = backbone.describe()
    paths = [] if listed.files is None or listed.pictures is not None else listed.files.paths
    changed = [os.stat(path).st_mtime_ns for path in paths]  # `content` has the sizes
    parts = [known["digest"], known["contract"], listed.content, listed.ids, listed.labels, changed]
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:16]
