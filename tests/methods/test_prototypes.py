"""Class means and clusters of features: the same however the rows are split."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from tangentune.errors import InputError
from tangentune.methods.source_selection.features import open_features
from tangentune.methods.source_selection.prototypes import ClassSums, class_sums, cluster_names
from tangentune.methods.source_selection.rankings import random_scores

WIDTH = 6


def rows_around(centres: Tensor, count: int, noise: float, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Float32 rows of uneven lengths around directions, and which of them each belongs to."""
    generator = torch.Generator().manual_seed(seed)
    places = torch.randint(len(centres), (count,), generator=generator)
    rows = centres[places] + noise * torch.randn(count, centres.shape[1], generator=generator)
    return rows * (0.1 + 10 * torch.rand(count, 1, generator=generator)), places


def dense_means(rows: Tensor, labels: np.ndarray) -> Tensor:
    """Unit mean directions, class by class in sorted order, all in float64."""
    unit = rows.double() / rows.double().norm(dim=1, keepdim=True)
    means = torch.stack([unit[torch.from_numpy(labels == name)].mean(0) for name in np.unique(labels)])
    return means / means.norm(dim=1, keepdim=True)


ROWS, PLACES = rows_around(torch.randn(7, WIDTH, generator=torch.Generator().manual_seed(5)), 500, 0.3)
NAMES = np.array([f"class {i}" for i in PLACES.tolist()])


def agree(left: ClassSums, right: ClassSums) -> None:
    assert left.names == right.names
    assert torch.equal(left.counts, right.counts)
    torch.testing.assert_close(left.sums, right.sums, rtol=1e-12, atol=1e-12)


def test_prototypes_are_means_of_features_of_length_one() -> None:
    found = class_sums(ROWS, NAMES)
    assert found.names == tuple(np.unique(NAMES).tolist())
    assert found.counts.tolist() == np.unique(NAMES, return_counts=True)[1].tolist()
    assert [found.names[i] for i in found.members] == NAMES.tolist()
    torch.testing.assert_close(found.prototypes(), dense_means(ROWS, NAMES), rtol=1e-12, atol=1e-12)


def test_any_split_over_steps_and_shards_agrees(tmp_path: Path) -> None:
    whole = class_sums(ROWS, NAMES)
    agree(whole, class_sums(ROWS, NAMES, chunk=33))
    for i, part in enumerate(ROWS.split([1, 129, 1, 269, 100])):
        np.save(tmp_path / f"{i}.npy", part.numpy())
    agree(whole, class_sums([tmp_path / f"{i}.npy" for i in range(5)], NAMES, chunk=50))


def test_what_has_no_mean_direction_is_refused() -> None:
    with pytest.raises(InputError, match="'b' cancel out"):
        class_sums([[1.0, 0.0], [0.0, 1.0], [0.0, -2.0]], ["a", "b", "b"]).prototypes()
    with pytest.raises(InputError, match="row 1 hold NaN"):
        class_sums([[1.0, 0.0], [float("nan"), 1.0]], ["a", "b"])


CENTRES = torch.eye(WIDTH)[:4]
CLUSTERED, OWN = rows_around(CENTRES, 3000, 0.15, seed=1)


def test_clusters_are_found() -> None:
    names = cluster_names(open_features(CLUSTERED), 4)
    places = np.array([int(name.split()[1]) for name in names])
    table = np.zeros((4, 4), dtype=int)
    np.add.at(table, (places, OWN.numpy()), 1)
    assert table.sum() == 3000
    assert table.max(1).sum() >= 2990  # one cluster a centre
    assert sorted(table.argmax(1)) == [0, 1, 2, 3]


def test_rows_go_to_the_nearest_mean_direction() -> None:
    """Where the sample is all rows and k-means has settled, clusters are those of their own mean directions."""
    names = cluster_names(open_features(CLUSTERED), 4)
    unit = CLUSTERED.double() / CLUSTERED.double().norm(dim=1, keepdim=True)
    known = np.unique(names)
    nearest = (unit @ dense_means(CLUSTERED, names).T).argmax(1).numpy()
    assert (known[nearest] == names).mean() > 0.999


def test_clusters_do_not_depend_on_how_rows_are_read_but_on_the_seed(tmp_path: Path) -> None:
    for i, part in enumerate(CLUSTERED.split([1, 999, 2000])):
        np.save(tmp_path / f"{i}.npy", part.numpy())
    first = cluster_names(open_features(CLUSTERED), 10)
    for source, chunk in ((CLUSTERED, 100), (tmp_path, 611)):
        assert np.array_equal(first, cluster_names(open_features(source), 10, chunk=chunk))
    assert not np.array_equal(first, cluster_names(open_features(CLUSTERED), 10, seed=1))


def test_repeated_directions_make_fewer_clusters() -> None:
    rows = torch.tensor([[1.0, 0.0], [2.0, 0.0], [0.0, 1.0]]).repeat(20, 1)
    _, counts = np.unique(cluster_names(open_features(rows), 5), return_counts=True)
    assert sorted(counts) == [20, 40]


def test_clustering_refuses_what_cannot_be() -> None:
    with pytest.raises(InputError, match="4000 clusters cannot be made of 3000 rows"):
        cluster_names(open_features(CLUSTERED), 4000)


def test_a_broken_row_of_the_sample_is_named_as_in_the_source() -> None:
    rows = torch.randn(50, 4, generator=torch.Generator().manual_seed(0))
    rows[7, 2] = torch.nan
    assert random_scores(torch.arange(50)).argsort()[-1] != 7  # it is not the first of the sample
    with pytest.raises(InputError, match="the features of row 7 hold NaN"):
        cluster_names(open_features(rows), 3)
