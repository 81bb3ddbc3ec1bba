"""Features of pictures in any number, written in shards: stopped and started again, it goes on where it was."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
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
from tangentune.errors import StoreError
from tangentune.methods.fine_tuning.labelled import mean_features
from tangentune.methods.source_selection.feature_source import Features
from tangentune.methods.source_selection.features import open_features
from tangentune.methods.source_selection.picture_list import list_pictures
from tangentune.networks.backbone import Backbone
from tangentune.pictures.checks import label_array
from tangentune.pictures.names import readable, some
from tangentune.pictures.pictures import Pictures

_KIND, _INDEX = "tangentune features 1", "index.json"


@final
@dataclass(frozen=True, eq=False)
class ExtractedFeatures:
    """Features on disk with what they are of.

    Attributes:
        features: (n, d) float32, as the backbone gives them: not brought to length one.
        ids: n names of the pictures.
        labels: (n,) as the source had them, or None.
        backbone: what `Backbone.describe` gave.
        flip: whether each row is the mean of a picture's features and its mirror image's.
    """

    features: Features
    ids: list[str]
    labels: NDArray[Any] | None
    backbone: dict[str, Any]
    flip: bool


def extract_features(
    source: Any,
    backbone: Backbone,
    directory: str | os.PathLike[str],
    labels: Any = None,
    *,
    shard_size: int = 2048,
    batch_size: int = 64,
    flip: bool = False,
    n_jobs: int | None = None,
    need_labels: bool = True,
    verbose: int = 0,
) -> ExtractedFeatures:
    """Features of all pictures of a source, in shards of a directory.

    Every shard is written in one move. Killed and started again, the missing ones are made, and the files are those
    of a run that was never stopped. Files are read a shard at a time, so a folder may hold any number.

    Args:
        source: what `load_pictures` takes: a folder, a table, a list of paths, an array, `Pictures`.
        backbone: whose features.
        directory: made if it is not there; else one that the same call began.
        labels: as in `load_pictures`.
        shard_size: pictures of a shard, which are in memory together.
        batch_size: pictures of one forward pass.
        flip: average the features of each picture and its mirror image.
        n_jobs: processes that decode files, as in `load_pictures`.
        need_labels: False for a source without labels.
        verbose: 1 shows a progress bar with the time left.

    Returns:
        ExtractedFeatures. Cost: one forward pass a picture, two with `flip`.

    Raises:
        PictureError: a picture cannot be read; it is named, and the shards before it stay.
        StoreError: the directory holds something else, or features of another backbone, picture size or source.
        InputError: an argument cannot be used.
    """
    given = SimpleNamespace(shard_size=shard_size, batch_size=batch_size)
    check_counts(given, {"shard_size": 1, "batch_size": 1})
    listed = list_pictures(source, labels, backbone.contract, need_labels, n_jobs)
    index = {"kind": _KIND, "shard_size": shard_size, "flip": flip, "content": listed.content}
    index |= {"backbone": backbone.describe(), "labels": listed.labels, "ids": listed.ids}
    folder, index = Path(directory).expanduser(), plain(index)
    _begin(folder, index)
    count = len(listed.ids)
    starts = [start for start in range(0, count, shard_size) if not _shard(folder, start // shard_size).exists()]
    left = sum(min(shard_size, count - start) for start in starts)
    settings = {"desc": "features", "unit": "picture", "delay": 1.0, "disable": not verbose}
    with tqdm(total=count, initial=count - left, **settings) as bar:
        for start in starts:
            pictures = listed.read(slice(start, min(start + shard_size, count)))
            rows = feature_matrix(pictures, backbone, batch_size=batch_size, flip=flip, progress=bar.update)
            with replaced_file(_shard(folder, start // shard_size)) as part, part.open("wb") as file:
                np.save(file, rows.numpy(), allow_pickle=False)
    for stray in folder.glob(".features-*.part"):  # of killed runs
        stray.unlink(missing_ok=True)
    return open_extracted(folder)


def open_extracted(directory: str | os.PathLike[str]) -> ExtractedFeatures:
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
    return ExtractedFeatures(features, index["ids"], labels, index["backbone"], index["flip"])


def feature_matrix(
    pictures: Pictures,
    backbone: Backbone,
    *,
    batch_size: int = 64,
    flip: bool = False,
    progress: Callable[[int], Any] | None = None,
) -> Tensor:
    """Features of pictures in memory, (n, d) float32, not brought to length one.

    Args:
        pictures: at the size of the backbone's contract.
        backbone: whose features.
        batch_size: pictures of one forward pass.
        flip: average the features of each picture and its mirror image.
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
        parts.append(mean_features(backbone, batch, batch_size, flip).float().cpu())
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
