"""Clusters of unlabelled pictures by direction: spherical k-means on a sample, then one pass over everything.

Source: Dhillon and Modha 2001, "Concept decompositions for large sparse text data using clustering".
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tangentune._checks import check_counts
from tangentune.errors import InputError
from tangentune.methods.source_selection.feature_source import CHUNK, Features, lengths
from tangentune.methods.source_selection.features import open_features
from tangentune.methods.source_selection.rankings import random_scores
from tangentune.methods.source_selection.spherical_sample import centres_of_sample, moved, nearest
from tangentune.methods.source_selection.state_file import Checkpoint
from tangentune.methods.source_selection.stream import stream
from tangentune.methods.source_selection.top import TopRows, top_rows

_KIND = "tangentune spherical k-means 1"
_PER_CLUSTER = 64  # rows of the sample


@final
@dataclass(frozen=True, eq=False)
class SphericalClusters:
    """Clusters by direction.

    Attributes:
        centres: (K, d) float64 of length one, the mean directions of the last pass.
        counts: (K,) int64 rows of each in the last pass; none is 0.
        mean_cosines: of rows with the centre they were given to, one number a pass.
    """

    centres: Tensor
    counts: Tensor
    mean_cosines: tuple[float, ...]


def spherical_kmeans(
    source: Any,
    n_clusters: int,
    *,
    n_passes: int = 1,
    sample: int | None = None,
    iterations: int = 20,
    seed: int = 0,
    checkpoint: str | os.PathLike[str] | None = None,
    every: float = 10.0,
    chunk: int = CHUNK,
    verbose: int = 0,
) -> SphericalClusters:
    """Spherical k-means: seeds and Lloyd's rounds on a sample, then `n_passes` rounds over all rows.

    The sample is chosen by hashing row numbers with the seed, so nothing depends on how the rows are read but for
    rounding. A cluster that a round leaves empty takes the row farthest from its centre, in the sample or in the
    pass; one that is empty after the last pass is dropped.

    Args:
        source: what `open_features` takes.
        n_clusters: number of clusters; there can be fewer if directions repeat.
        n_passes: rounds over all rows.
        sample: rows of the sample; by default 64 a cluster and at least 4,096.
        iterations: rounds on the sample at most; they end when no row moves.
        seed: of sample and seeds.
        checkpoint: file to go on from after a stop; it stays until the caller removes it.
        every: seconds between two writes of it.
        chunk: rows read at a time.
        verbose: 1 shows progress bars with the time left.

    Returns:
        SphericalClusters. Cost `2 n d K` flops a pass; memory the sample, three chunks and the centres.

    Raises:
        InputError: fewer than two clusters, more clusters than rows, or a row without a direction.
        StoreError: the checkpoint is of other features or settings.

    Example:
        >>> rows = [[1.0, 0.0], [5.0, 0.1], [0.0, 2.0], [0.1, 3.0]]
        >>> found = spherical_kmeans(rows, 2)
        >>> found.counts.tolist(), round(found.mean_cosines[0], 3)
        ([2, 2], 1.0)
    """
    features = open_features(source)
    _check(features, n_clusters, n_passes, iterations, sample)
    settings = {"n_clusters": n_clusters, "sample": sample, "iterations": iterations, "seed": seed, "chunk": chunk}
    kept = Checkpoint.of(checkpoint, _KIND, lambda: {"features": features.digest(), **settings})
    state = kept.read()
    if state is None:
        size = max(_PER_CLUSTER * n_clusters, 4096) if sample is None else max(sample, n_clusters)
        chosen, _ = top_rows(features.count, lambda rows: random_scores(rows, seed), size)
        rows = features.rows(chosen)
        lloyd = _Round(centres_of_sample(rows / lengths(rows, chosen)[:, None], n_clusters, iterations, seed, verbose))
        _write(kept, lloyd, 0)
    else:
        lloyd = _Round.from_state(*state)
    while len(lloyd.mean_cosines) < n_passes:
        _whole_pass(lloyd, features, kept, every, verbose, chunk)
        lloyd = lloyd.following(features)
        _write(kept, lloyd, 0)
    filled = lloyd.members > 0
    return SphericalClusters(lloyd.centres[filled].double(), lloyd.members[filled], lloyd.mean_cosines)


def nearest_centres(source: Any, centres: Tensor, *, chunk: int = CHUNK, verbose: int = 0) -> NDArray[np.int64]:
    """The cluster of every row, (n,): that of the centre with the largest cosine, the first of equal ones.

    Args:
        source: what `open_features` takes.
        centres: (K, d) of length one.
        chunk: rows read at a time.
        verbose: 1 shows a progress bar with the time left.

    Returns:
        (n,) positions of centres. Cost `2 n d K` flops; memory 8 n bytes and three chunks.

    Raises:
        InputError: a row without a direction.

    Example:
        >>> nearest_centres([[1.0, 0.2], [0.0, 2.0]], torch.eye(2)).tolist()
        [0, 1]
    """
    features = open_features(source)
    found, columns = np.empty(features.count, dtype=np.int64), centres.float().T.contiguous()
    for first, rows, _ in stream(features, "nearest clusters", chunk=chunk, verbose=verbose):
        found[first : first + len(rows)] = (rows @ columns).argmax(1).numpy()
    return found


@final
class _Round:
    """Lloyd's round under way: the centres it started from and what the rows so far add up to."""

    def __init__(self, centres: Tensor, members: Tensor | None = None, mean_cosines: tuple[float, ...] = ()) -> None:
        self.centres, self.mean_cosines = centres, mean_cosines
        self.members = torch.zeros(len(centres), dtype=torch.int64) if members is None else members
        self.start, self.cosines, self.far = 0, 0.0, TopRows(len(centres))
        self.sums, self.counts = torch.zeros(centres.shape, dtype=torch.float64), torch.zeros_like(self.members)

    def add(self, first: int, rows: Tensor, norms: Tensor) -> None:
        cosines, places = nearest(rows, self.centres)
        cosines /= norms
        unit = rows.double()
        self.sums.index_add_(0, places, unit / unit.norm(dim=1, keepdim=True))
        self.counts += torch.bincount(places, minlength=len(self.counts))
        self.cosines += float(cosines.sum(dtype=torch.float64))
        self.far.add(first, -cosines)

    def following(self, features: Features) -> _Round:
        """The next round, from the centres that this one found."""
        rows = features.rows(self.far.best()[0])
        centres = moved(self.centres, self.sums, self.counts, rows / lengths(rows)[:, None])
        return _Round(centres, self.counts, (*self.mean_cosines, self.cosines / features.count))

    def state(self, done: int) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Tensors and JSON-able values of a checkpoint after `done` rows."""
        far, scores = self.far.best()
        tensors = {"centres": self.centres, "members": self.members, "sums": self.sums, "counts": self.counts}
        book = {"done": done, "cosines": self.cosines, "mean_cosines": self.mean_cosines}
        return tensors | {"far": far, "far_scores": scores}, book

    @classmethod
    def from_state(cls, tensors: dict[str, Tensor], book: dict[str, Any]) -> _Round:
        """What `state` gave."""
        found = cls(tensors["centres"], tensors["members"], tuple(book["mean_cosines"]))
        found.start, found.cosines = book["done"], book["cosines"]
        found.sums, found.counts = tensors["sums"], tensors["counts"]
        if len(tensors["far"]):
            found.far = TopRows(len(found.centres), tensors["far"], tensors["far_scores"])
        return found


def _whole_pass(lloyd: _Round, features: Features, kept: Checkpoint, every: float, verbose: int, chunk: int) -> None:
    def save(done: int) -> None:
        _write(kept, lloyd, done)

    what = f"k-means, pass {len(lloyd.mean_cosines) + 1}"
    for first, rows, norms in stream(
        features, what, start=lloyd.start, chunk=chunk, save=save, every=every, verbose=verbose
    ):
        lloyd.add(first, rows, norms)


def _write(kept: Checkpoint, lloyd: _Round, done: int) -> None:
    tensors, book = lloyd.state(done)
    kept.write(tensors, **book)


def _check(features: Features, n_clusters: int, n_passes: int, iterations: int, sample: int | None) -> None:
    given = SimpleNamespace(n_clusters=n_clusters, n_passes=n_passes, iterations=iterations, sample=sample)
    least = {"n_clusters": 2, "n_passes": 1, "iterations": 1}
    check_counts(given, least if sample is None else {**least, "sample": 1})
    if n_clusters > features.count:
        message = f"{n_clusters} clusters cannot be made of {features.count} rows of features; ask for fewer"
        raise InputError(message)
