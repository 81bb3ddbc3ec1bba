"""Spherical k-means of rows in memory, and the steps that a pass over all rows shares with it.

Source: Dhillon and Modha 2001, "Concept decompositions for large sparse text data using clustering"; seeds as Arthur
and Vassilvitskii 2007, "k-means++".
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import normalize
from tqdm.auto import tqdm

from tangentune.methods.source_selection.feature_source import CHUNK

_SEEDING = 16  # rows for each cluster that seeds are drawn from
_SAME = 1e-6  # rows whose cosine is nearer to 1 have the same direction, in float32


def centres_of_sample(unit: Tensor, n_clusters: int, iterations: int, seed: int, verbose: int = 0) -> Tensor:
    """Spherical k-means in memory: seeds by k-means++, then Lloyd's rounds until no row moves.

    Args:
        unit: (s, d) rows of length one, in random order.
        n_clusters: number of clusters; centres repeat if there are fewer directions.
        iterations: rounds at most.
        seed: of the seeds.
        verbose: 1 shows a progress bar.

    Returns:
        (K, d) centres of length one.

    Example:
        >>> rows = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]])
        >>> sorted(centres_of_sample(rows, 2, 5, seed=0).tolist())
        [[0.0, 1.0], [1.0, 0.0]]
    """
    centres = _seeds(unit[: _SEEDING * n_clusters], n_clusters, seed)
    before: Tensor | None = None
    for _ in tqdm(range(iterations), desc="k-means on a sample", disable=not verbose, delay=1.0):
        cosines, places = nearest(unit, centres)
        if before is not None and torch.equal(places, before):
            break
        before = places
        sums, members = torch.zeros(centres.shape, dtype=torch.float64), torch.bincount(places, minlength=len(centres))
        sums.index_add_(0, places, unit.double())
        farthest = torch.argsort(cosines, stable=True)
        centres = moved(centres, sums, members, unit[farthest[: len(centres)]])
    return centres


def nearest(rows: Tensor, centres: Tensor) -> tuple[Tensor, Tensor]:
    """Largest product of each row with a centre, and the first centre that has it; a part of the table at a time."""
    parts = [(part @ centres.T).max(1) for part in rows.split(CHUNK)]
    return torch.cat([part.values for part in parts]), torch.cat([part.indices for part in parts])


def moved(centres: Tensor, sums: Tensor, members: Tensor, far: Tensor) -> Tensor:
    """Mean directions; an empty cluster takes the next of the far rows, one that cancels out stays."""
    found = normalize(sums, dim=1).to(centres.dtype)
    cancelled = sums.norm(dim=1) <= 1e-12 * members
    found[cancelled] = centres[cancelled]
    empty = (members == 0).nonzero().flatten()[: len(far)]
    found[empty] = far[: len(empty)]
    return found


def _seeds(unit: Tensor, n_clusters: int, seed: int) -> Tensor:
    """k-means++: each next seed is a row drawn in proportion to `1 - cosine` with the nearest seed so far."""
    generator = torch.Generator().manual_seed(seed)
    draws = torch.rand(n_clusters, generator=generator, dtype=torch.float64)
    chosen = [int(draws[0] * len(unit))]
    distances = torch.full((len(unit),), torch.inf, dtype=torch.float64)
    for draw in draws[1:]:
        distances = torch.minimum(distances, (1 - unit @ unit[chosen[-1]]).double())
        distances[distances < _SAME] = 0
        ends = distances.cumsum(0)
        if not bool(ends[-1] > 0):  # what is left are copies; a cluster without rows may find some in the pass
            chosen += chosen[:1] * (n_clusters - len(chosen))
            break
        chosen.append(min(int(torch.searchsorted(ends, draw * ends[-1], right=True)), len(unit) - 1))
    return unit[chosen]
