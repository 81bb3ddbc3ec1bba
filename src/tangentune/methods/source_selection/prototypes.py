"""Target and source of a selection as class prototypes in one feature space: what every method ranks."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import normalize

from tangentune.errors import InputError
from tangentune.methods.source_selection.extract import FeatureSet
from tangentune.methods.source_selection.features import CHUNK, Features, lengths, open_features, read_labels, stream
from tangentune.methods.source_selection.rankings import Scorer, descending, random_scores
from tangentune.methods.source_selection.settings import SelectionSettings

_PER_CLUSTER, _LEAST_SAMPLE = 64, 4096  # rows of the sample that is clustered


@final
@dataclass(frozen=True, eq=False)
class ClassSums:
    """Sums of unit features by class."""

    names: tuple[str, ...]  # of the classes, sorted as text
    members: NDArray[np.int64]  # (n,) int64 class of each row, positions in `names`
    sums: Tensor  # (C, d) float64, of every feature divided by its length
    counts: Tensor  # (C,) int64 rows of each class

    def prototypes(self, centre: Tensor | None = None) -> Tensor:
        """Mean directions of the classes, (C, d) float64 of length one; `centre` (d,) is taken off the means first."""
        sums = self.sums if centre is None else self.sums - self.counts[:, None] * centre
        norms = sums.norm(dim=1)
        cancelled = (norms <= 1e-12 * self.counts).nonzero().flatten().tolist()
        if cancelled:
            name = self.names[cancelled[0]]
            raise InputError(
                f"the features of class {name!r} cancel out, so their mean has no direction; split the class"
            )
        return sums / norms[:, None]


def class_sums(source: Any, labels: Any, *, chunk: int = CHUNK, verbose: int = 0) -> ClassSums:
    """Sums of unit features by class, of what `open_features` takes, one label a row; memory a chunk and the sums."""
    features = open_features(source)
    names, members = np.unique(read_labels(labels, features.count), return_inverse=True)
    members = members.reshape(-1)
    of, sums = torch.from_numpy(members), torch.zeros(len(names), features.width, dtype=torch.float64)
    for first, rows, _ in stream(features, "class means", chunk=chunk, verbose=verbose):
        unit = rows.double()
        unit = unit / lengths(unit)[:, None]
        sums += torch.zeros_like(sums).index_add_(0, of[first : first + len(rows)], unit)
    return ClassSums(tuple(names.tolist()), members, sums, torch.bincount(of, minlength=len(names)))


def cluster_names(
    features: Features, n_clusters: int, *, seed: int = 0, chunk: int = CHUNK, verbose: int = 0
) -> NDArray[np.str_]:
    """The cluster of every row by direction, "cluster 0", "cluster 1", ...: k-means of a sample, then one pass.

    The sample is chosen by hashing row numbers with the seed, so nothing depends on how the rows are read. Of rows of
    length one, k-means maximises the sum of products with the centres; a row goes to the centre of the largest cosine.
    There can be fewer clusters if directions repeat. Cost `2 n d K` flops; memory the sample, a chunk, the names.
    """
    from sklearn.cluster import KMeans
    from sklearn.exceptions import ConvergenceWarning

    if n_clusters > features.count:
        raise InputError(f"{n_clusters} clusters cannot be made of {features.count} rows of features; ask for fewer")
    size = max(_PER_CLUSTER * n_clusters, _LEAST_SAMPLE)
    sample = descending(random_scores(torch.arange(features.count), seed))[:size]
    rows = features.rows(sample)
    unit = rows / lengths(rows, sample)[:, None]
    with warnings.catch_warnings():  # fewer directions than clusters: some stay empty
        warnings.simplefilter("ignore", ConvergenceWarning)
        found = KMeans(n_clusters, random_state=seed % 2**32).fit(unit.numpy())
    centres = normalize(torch.from_numpy(found.cluster_centers_), dim=1).T.contiguous()
    nearest = np.empty(features.count, dtype=np.int64)
    for first, rows, _ in stream(features, "nearest clusters", chunk=chunk, verbose=verbose):
        nearest[first : first + len(rows)] = (rows @ centres).argmax(1).numpy()
    return np.array([f"cluster {i}" for i in range(n_clusters)], dtype=np.str_)[nearest]


@final
@dataclass(frozen=True, eq=False)
class Prototypes:
    """Both sides of a selection."""

    target: FeatureSet  # labelled pictures
    source: FeatureSet  # pictures to choose from
    target_sums: ClassSums  # the target's classes
    source_sums: ClassSums  # the source's classes, or clusters
    centre: Tensor | None  # (d,) float64, midpoint of the two sets' mean unit features; None: nothing is taken off
    targets: Tensor  # (K, d) float64 unit prototypes of the target classes, the centre taken off
    sources: Tensor  # (C, d) float64 of the source classes, likewise

    @property
    def nearest(self) -> Scorer:
        """The score of the nearest target, whose cosines are those that every method compares."""
        return Scorer(normalize(self.targets, dim=1), centre=self.centre)


def make_prototypes(
    target: FeatureSet, source: FeatureSet, settings: SelectionSettings, *, verbose: int = 0
) -> Prototypes:
    """Class means of both sides, in one pass over each; with clusters, one more over the source."""
    if target.labels is None:
        raise InputError(
            "the target's pictures have no labels; give class folders, a CSV file with labels, or target_labels="
        )
    known = np.unique(target.labels)
    if len(known) < 2:
        raise InputError(f"the target holds one class only ({known[0]}); a selection needs at least two target classes")
    if source.labels is None and settings.clusters is None:
        raise InputError("the source's pictures have no labels; give clusters=, how many groups to divide them into")
    if source.features.width != target.features.width:
        message = f"source features have {source.features.width} numbers and target features {target.features.width}; "
        message += "take both from one backbone"
        raise InputError(message)
    if target.backbone and source.backbone and target.backbone["digest"] != source.backbone["digest"]:
        raise InputError("the target's features come from another backbone than the source's; take both from one")
    with _named("target"):
        target_sums = class_sums(target.features, target.labels)
    with _named("source"):
        features, labels = source.features, source.labels
        if settings.clusters is not None:
            labels = cluster_names(features, settings.clusters, seed=settings.seed, verbose=verbose)
        source_sums = class_sums(features, labels, verbose=verbose)
    sides, centre = (target_sums, source_sums), None
    if settings.centre:
        centre = torch.stack([side.sums.sum(0) / side.counts.sum() for side in sides]).mean(0)
    return Prototypes(target, source, *sides, centre, *(side.prototypes(centre) for side in sides))


@contextmanager
def _named(whose: str) -> Iterator[None]:
    """Errors about rows say of which side they are."""
    try:
        yield
    except InputError as error:
        raise InputError(f"the {whose} cannot be used: {error}") from error
