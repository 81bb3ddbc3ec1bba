"""The second pass: a score for every picture, the best k of any number, and what each target gets of all of them."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tangentune._checks import check_counts
from tangentune.methods.source_selection.directions import check_same_width
from tangentune.methods.source_selection.feature_source import CHUNK, Features, lengths
from tangentune.methods.source_selection.features import open_features
from tangentune.methods.source_selection.scorer import Scorer, in_float32
from tangentune.methods.source_selection.state_file import Checkpoint
from tangentune.methods.source_selection.stream import stream
from tangentune.methods.source_selection.target_mass import TargetMass, log_masses
from tangentune.methods.source_selection.top import TopPerTarget, TopRows, top_rows

__all__ = ["Scanned", "row_shares", "scan", "top_rows"]

_KIND = "tangentune scan 1"


@final
@dataclass(frozen=True, eq=False)
class Scanned:
    """What a pass over all pictures leaves.

    Attributes:
        indices: (k,) int64 rows with the highest scores, highest first, of equal ones the first row.
        scores: (k,) float32 of these.
        shares: (k, K) float32 for which target each would serve; rows sum to 1.
        per_target: (K, q) int64 rows that give each target most, best first; None where no quota was asked for.
        log_target_mass: (K,) float64 logarithm of what all rows together give each target: transported mass for
            "uot" and "kernel_sum"; for the other methods the number of rows nearest to it (-inf for none).
        log_chosen_mass: (K,) float64 the same for the k rows.
        count: rows that were scored.
    """

    indices: Tensor
    scores: Tensor
    shares: Tensor
    per_target: Tensor | None
    log_target_mass: Tensor
    log_chosen_mass: Tensor
    count: int

    @property
    def coverage(self) -> Tensor:
        """Part of what each target would get of all rows that the k rows give it, (K,) float64 in [0, 1]."""
        found = (self.log_chosen_mass - self.log_target_mass).exp()
        return torch.where(torch.isinf(self.log_target_mass), 0.0, found.clamp(max=1.0))


def scan(
    source: Any,
    scorer: Scorer,
    *,
    k: int,
    quota_per_target: int = 0,
    checkpoint: str | os.PathLike[str] | None = None,
    every: float = 10.0,
    chunk: int = CHUNK,
    verbose: int = 0,
) -> Scanned:
    """Score every row once and keep the best: pictures in any number, in memory for k of them.

    Args:
        source: what `open_features` takes: features (n, d) of any length but zero.
        scorer: with K targets of the same width; used in float32.
        k: rows to keep; all are kept if there are fewer.
        quota_per_target: rows to keep for each target besides; 0 for none.
        checkpoint: file to go on from after a stop, with the identical result. It is there at the end too, so that
            a crash before the result is stored costs nothing: remove it then.
        every: seconds between two writes of it.
        chunk: rows scored at a time.
        verbose: 1 shows a progress bar with the time left.

    Returns:
        Scanned. Cost `2 n d K` flops in one matrix product a chunk, `n K` exponentials or two, and reading the source
        once, in the background. Memory: three chunks of features, two of cosines, `K d`, `2 k` and `k K`.

    Raises:
        InputError: k below 1, another width than the targets', or a row without a direction; it is named.
        StoreError: the checkpoint is of another source, scorer or setting.

    Example:
        >>> from tangentune.methods.source_selection.scorer import nearest_scorer
        >>> found = scan([[1.0, 1.0], [0.0, 2.0], [3.0, 0.1]], nearest_scorer(torch.eye(2)), k=2)
        >>> found.indices.tolist(), found.shares.tolist()
        ([1, 2], [[0.0, 1.0], [1.0, 0.0]])
    """
    features, scorer = open_features(source), in_float32(scorer)
    _check(features, scorer, k, quota_per_target, chunk)
    k = min(k, features.count)
    kept = Checkpoint.of(checkpoint, _KIND, lambda: _identity(features, scorer, k, quota_per_target, chunk))
    state = kept.read()
    tensors, start = (None, 0) if state is None else (state[0], state[1]["done"])
    found = _Found(scorer, k, quota_per_target, tensors)

    def save(done: int) -> None:
        if kept.path is not None:
            kept.write(found.tensors(), done=done)

    room = torch.empty(2, min(chunk, features.count), len(scorer.prototypes))
    for first, rows, norms in stream(
        features, "scores", start=start, chunk=chunk, save=save, every=every, verbose=verbose
    ):
        cosines = scorer.cosines(rows, norms, room[0, : len(rows)])
        found.add(first, *log_masses(scorer, cosines, room[1, : len(rows)]))
    if start < features.count:
        save(features.count)
    indices, scores = found.top.best()
    shares, weight = row_shares(features, scorer, indices), scores.double()[:, None]
    return Scanned(
        indices,
        scores,
        shares,
        None if found.quota is None else found.quota.best(),
        found.mass.total,
        torch.logsumexp(shares.double().log() + (weight if TargetMass.is_mass(scorer) else 0.0), 0),
        features.count,
    )


@final
class _Found:
    """What the rows seen so far leave."""

    def __init__(self, scorer: Scorer, k: int, quota: int, tensors: dict[str, Tensor] | None) -> None:
        kept, targets = tensors or {}, len(scorer.prototypes)
        self.top = TopRows(k, kept.get("indices"), kept.get("scores"))
        own = (kept["targets"], kept["values"], kept["rows"]) if kept and quota else None
        self.quota = TopPerTarget(targets, quota, own) if quota else None
        self.mass = TargetMass(scorer, kept.get("log_target_mass"))

    def add(self, first: int, scores: Tensor, served: Tensor) -> None:
        """Rows from `first` on, (m,) and (m, K) as `log_masses` gives them; the latter is overwritten."""
        self.top.add(first, scores)
        if self.quota is not None:
            self.quota.add(first, served)
        self.mass.add(served)

    def tensors(self) -> dict[str, Tensor]:
        """All of it, for a checkpoint."""
        indices, scores = self.top.best()
        tensors = {"indices": indices, "scores": scores, "log_target_mass": self.mass.total}
        if self.quota is not None:
            tensors |= dict(zip(("targets", "values", "rows"), self.quota.state(), strict=True))
        return tensors


def row_shares(source: Any, scorer: Scorer, indices: Tensor | NDArray[np.integer]) -> Tensor:
    """For which target some rows would serve, (m, K) float32; only these rows are read.

    Args:
        source: what `open_features` takes.
        scorer: with K targets of the same width.
        indices: (m,) rows.

    Raises:
        InputError: another width than the targets', or a row without a direction.

    Example:
        >>> from tangentune.methods.source_selection.scorer import nearest_scorer
        >>> row_shares([[1.0, 1.0], [0.0, 2.0]], nearest_scorer(torch.eye(2)), torch.tensor([1])).tolist()
        [[0.0, 1.0]]
    """
    features, scorer = open_features(source), in_float32(scorer)
    wanted = torch.as_tensor(indices, dtype=torch.int64)
    order = torch.argsort(wanted, stable=True)
    shares = torch.empty(len(wanted), len(scorer.prototypes))
    for part in order.split(CHUNK):
        rows = features.rows(wanted[part])
        shares[part] = scorer.shares(scorer.cosines(rows, lengths(rows, wanted[part])))
    return shares


def _check(features: Features, scorer: Scorer, k: int, quota: int, chunk: int) -> None:
    given = SimpleNamespace(k=k, quota_per_target=quota, chunk=chunk)
    check_counts(given, {"k": 1, "quota_per_target": 0, "chunk": 1})
    check_same_width(torch.empty(0, features.width), scorer.prototypes)


def _identity(features: Features, scorer: Scorer, k: int, quota: int, chunk: int) -> dict[str, Any]:
    """Everything that the result depends on, by the names that a refusal uses."""
    seen = hashlib.sha256(f"{scorer.method} {scorer.temperature!r} {scorer.power!r}".encode())
    for values in (scorer.prototypes, scorer.log_weights, *(() if scorer.centre is None else (scorer.centre,))):
        seen.update(f"{tuple(values.shape)}".encode())
        seen.update(values.contiguous().numpy().data)
    settings = {"k": k, "quota_per_target": quota, "chunk": chunk}
    return {"features": features.digest(), "targets or method": seen.hexdigest(), **settings}
