"""The few pictures that the page of a selection shows: some of each target class, and the best chosen for it."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, final

import numpy as np
from numpy.typing import NDArray

from tangentune.methods.source_selection.manifest import Manifest, load_selected
from tangentune.pictures.contract import DataContract
from tangentune.pictures.files import find_files
from tangentune.pictures.load import Pictures, load_pictures

SIDE = 112  # pixels of a picture on the page
WANTED, FOUND = 2, 7  # pictures of a target class, and chosen for it
TARGETS = 24  # target classes that are shown with pictures


@final
@dataclass(frozen=True, eq=False)
class Examples:
    """The few pictures that the page shows.

    Attributes:
        target: labelled target pictures, some of each class.
        chosen: chosen source pictures, under their ids in the manifest.
    """

    target: Pictures
    chosen: Pictures


def load_examples(
    manifest: Manifest, target: Any, *, target_labels: Any = None, source: Any = None, n_jobs: int | None = None
) -> Examples:
    """The pictures that the page of a selection shows, at its size where they are files."""
    files = DataContract(input_size=(3, SIDE, SIDE), crop=1.0)
    known = manifest.backbone["contract"]
    arrays = files if known is None else DataContract.from_dict(known)

    def contract(given: Any) -> DataContract:
        return files if given is None or isinstance(given, str | os.PathLike) else arrays

    rows = sorted({int(row) for found in shown(manifest).values() for row in found})
    chosen = load_selected(_part(manifest, rows), contract(source), source=source, n_jobs=n_jobs).pictures
    return Examples(_some_of_each(target, target_labels, contract(target), n_jobs), chosen)


def _part(manifest: Manifest, rows: list[int]) -> Manifest:
    """The manifest of some of its pictures."""
    columns = {
        name: tuple(getattr(manifest, name)[row] for row in rows) for name in ("ids", "sha256", "classes", "targets")
    }
    arrays = {name: getattr(manifest, name)[rows] for name in ("scores", "weights", "shares")}
    return replace(manifest, **columns, **arrays)


def _some_of_each(target: Any, labels: Any, contract: DataContract, n_jobs: int | None) -> Pictures:
    """The first pictures of every class; of files, only these are read."""
    if not isinstance(target, str | os.PathLike):
        loaded = load_pictures(target, labels, contract=contract, n_jobs=n_jobs)
        return loaded.select(_first([] if loaded.labels is None else loaded.labels.tolist()))
    found = find_files(target, need_labels=labels is None)
    given = list(found.labels or ()) if labels is None else list(labels)
    rows = _first(given)
    paths, names = [found.paths[i] for i in rows], [found.ids[i] for i in rows]
    loaded = load_pictures(paths, [given[i] for i in rows], contract=contract, n_jobs=n_jobs)
    return replace(loaded, ids=names)


def _first(labels: Sequence[Any]) -> list[int]:
    seen: Counter[Any] = Counter()
    rows = []
    for row, label in enumerate(labels):
        seen[label] += 1
        if seen[label] <= WANTED:
            rows.append(row)
    return rows


def shown(manifest: Manifest) -> dict[str, NDArray[np.int64]]:
    """For each target class on the page, the rows of the pictures to show, best first.

    Where whole classes were chosen, whose pictures share one score, the classes take turns.
    """
    served, names = np.array(manifest.targets), manifest.target["classes"]
    weight = {name: float(manifest.weights[served == name].sum()) for name in names}
    keep = set(sorted(names, key=lambda name: -weight[name])[:TARGETS])
    order = np.argsort(-manifest.scores, kind="stable")
    if manifest.settings.get("granularity") == "classes":
        turns, seen = np.empty(len(order), np.int64), Counter()
        for place, row in enumerate(order.tolist()):
            turns[place] = seen[manifest.classes[row]]
            seen[manifest.classes[row]] += 1
        order = order[np.argsort(turns, kind="stable")]
    return {name: order[served[order] == name][:FOUND] for name in names if name in keep}
