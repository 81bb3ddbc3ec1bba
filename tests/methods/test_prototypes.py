"""Class means and clusters of features: the same however the rows are split, merged or stopped."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tangentune.errors import InputError, StoreError
from tangentune.methods.source_selection import clusters as spherical
from tangentune.methods.source_selection import prototypes
from tangentune.methods.source_selection.clusters import nearest_centres, spherical_kmeans
from tangentune.methods.source_selection.features import open_features
from tangentune.methods.source_selection.prototypes import ClassSums, class_prototypes, class_sums
from tangentune.methods.source_selection.spherical_sample import centres_of_sample
from tangentune.methods.source_selection.stream import stream

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
    names, means, counts = class_prototypes(ROWS, NAMES)
    assert names == tuple(np.unique(NAMES).tolist())
    assert counts.tolist() == np.unique(NAMES, return_counts=True)[1].tolist()
    torch.testing.assert_close(means, dense_means(ROWS, NAMES), rtol=1e-12, atol=1e-12)


def test_any_split_over_steps_shards_and_processes_agrees(tmp_path: Path) -> None:
    whole = ClassSums.empty(WIDTH).update(ROWS, NAMES)
    agree(whole, class_sums(ROWS, NAMES, chunk=33))
    cuts = [0, 1, 130, 131, 400, 500]
    parts = []
    for i, (begin, end) in enumerate(pairwise(cuts)):
        np.save(tmp_path / f"{i}.npy", ROWS[begin:end].numpy())
        class_sums(tmp_path / f"{i}.npy", NAMES[begin:end], chunk=50).save(tmp_path / f"sums{i}")
        parts.append(ClassSums.load(tmp_path / f"sums{i}"))
    agree(whole, class_sums([tmp_path / f"{i}.npy" for i in range(5)], NAMES, chunk=50))
    forward, backward = parts[0], parts[-1]
    for part in parts[1:]:
        forward = forward.merge(part)
    for part in parts[-2::-1]:
        backward = part.merge(backward)
    agree(whole, forward)
    agree(whole, backward)
    agree(whole, backward.merge(ClassSums.empty(WIDTH)))


def stop_after(module: Any, monkeypatch: pytest.MonkeyPatch, steps: int) -> None:
    """The passes of a module end with an error after some steps in all."""
    taken = 0

    def stopping(*args: Any, **fields: Any) -> Any:
        nonlocal taken
        for step in stream(*args, **fields):
            if taken == steps:
                raise KeyboardInterrupt
            taken += 1
            yield step

    monkeypatch.setattr(module, "stream", stopping)


def test_a_stopped_pass_goes_on_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = class_sums(ROWS, NAMES, chunk=40)
    fields: dict[str, Any] = {"chunk": 40, "checkpoint": tmp_path / "state", "every": 0}
    with monkeypatch.context() as patch:
        stop_after(prototypes, patch, 6)
        with pytest.raises(KeyboardInterrupt):
            class_sums(ROWS, NAMES, **fields)
    with monkeypatch.context() as patch:  # what is left is 500 - 240 rows
        stop_after(prototypes, patch, 7)
        again = class_sums(ROWS, NAMES, **fields)
    assert torch.equal(whole.sums, again.sums)
    with monkeypatch.context() as patch:
        stop_after(prototypes, patch, 0)
        assert torch.equal(class_sums(ROWS, NAMES, **fields).sums, whole.sums)
    other = ROWS.clone()
    other[3] *= 2
    with pytest.raises(StoreError, match="was written with other features; delete it"):
        class_sums(other, NAMES, **fields)
    with pytest.raises(StoreError, match="was written with other labels; delete it"):
        class_sums(ROWS, NAMES[::-1], **fields)
    (tmp_path / "state").write_bytes(b"rubbish")
    with pytest.raises(StoreError, match="cannot be read"):
        class_sums(ROWS, NAMES, **fields)


def test_what_has_no_mean_direction_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="'b' cancel out"):
        class_sums([[1.0, 0.0], [0.0, 1.0], [0.0, -2.0]], ["a", "b", "b"]).prototypes()
    with pytest.raises(InputError, match="no features were given"):
        ClassSums.empty(3).prototypes()
    with pytest.raises(InputError, match="row 1 hold NaN"):
        class_sums([[1.0, 0.0], [float("nan"), 1.0]], ["a", "b"])
    with pytest.raises(InputError, match="widths 2 and 3"):
        ClassSums.empty(2).merge(ClassSums.empty(3))
    with pytest.raises(StoreError, match="does not exist"):
        ClassSums.load(tmp_path / "sums")


CENTRES = torch.eye(WIDTH)[:4]
CLUSTERED, OWN = rows_around(CENTRES, 3000, 0.15, seed=1)


def test_clusters_are_found_and_their_centres_are_their_means() -> None:
    found = spherical_kmeans(CLUSTERED, 4)
    assert int(found.counts.sum()) == 3000
    places = nearest_centres(CLUSTERED, found.centres)
    table = np.zeros((4, 4), dtype=int)
    np.add.at(table, (places, OWN.numpy()), 1)
    assert table.max(1).sum() >= 2990  # one cluster a centre
    assert sorted(table.argmax(1)) == [0, 1, 2, 3]
    settled = spherical_kmeans(CLUSTERED, 4, n_passes=12)
    assert settled.mean_cosines[-1] == settled.mean_cosines[-2]
    places = nearest_centres(CLUSTERED, settled.centres)
    torch.testing.assert_close(settled.centres, dense_means(CLUSTERED, places), rtol=0, atol=1e-7)  # kept as float32
    assert settled.counts.tolist() == np.bincount(places).tolist()


def test_each_pass_is_a_round_of_lloyd() -> None:
    """Written out in float64, from the centres of the sample; the objective never falls."""
    unit = CLUSTERED.double() / CLUSTERED.double().norm(dim=1, keepdim=True)
    size, passes = 64, 4
    found = spherical_kmeans(CLUSTERED, 9, sample=size, iterations=1, n_passes=passes, chunk=700)
    chosen, _ = spherical.top_rows(3000, lambda rows: spherical.random_scores(rows, 0), size)
    centres = centres_of_sample(unit[chosen].float(), 9, 1, 0).double()
    cosines = []
    for _ in range(passes):
        table = unit @ centres.T
        cosines.append(float(table.amax(1).mean()))
        places = table.argmax(1)
        sums = torch.stack([unit[places == i].sum(0) for i in range(9)])
        centres = sums / sums.norm(dim=1, keepdim=True)
    torch.testing.assert_close(found.centres, centres, rtol=0, atol=1e-5)
    np.testing.assert_allclose(found.mean_cosines, cosines, atol=1e-5)
    assert list(found.mean_cosines) == sorted(found.mean_cosines)


def test_clusters_do_not_depend_on_how_rows_are_read_but_on_the_seed(tmp_path: Path) -> None:
    for i, part in enumerate(CLUSTERED.split([1, 999, 2000])):
        np.save(tmp_path / f"{i}.npy", part.numpy())
    first = spherical_kmeans(CLUSTERED, 10, n_passes=2, sample=200)
    for source, chunk in ((CLUSTERED, 100), (tmp_path, 611)):
        other = spherical_kmeans(source, 10, n_passes=2, sample=200, chunk=chunk)
        assert torch.equal(first.counts, other.counts)
        torch.testing.assert_close(first.centres, other.centres, rtol=0, atol=1e-6)
    assert not torch.equal(first.counts, spherical_kmeans(CLUSTERED, 10, n_passes=2, sample=200, seed=1).counts)


@pytest.mark.parametrize("steps", [0, 2, 6, 8, 17])  # six steps a pass
def test_stopped_clustering_goes_on_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, steps: int) -> None:
    fields: dict[str, Any] = {"chunk": 500, "n_passes": 3, "sample": 100}
    whole = spherical_kmeans(CLUSTERED, 5, **fields)
    fields |= {"checkpoint": tmp_path / "state", "every": 0}
    with monkeypatch.context() as patch:
        stop_after(spherical, patch, steps)
        with pytest.raises(KeyboardInterrupt):
            spherical_kmeans(CLUSTERED, 5, **fields)
    with monkeypatch.context() as patch:
        stop_after(spherical, patch, 18 - steps)  # nothing is done twice
        again = spherical_kmeans(CLUSTERED, 5, **fields)
    assert torch.equal(whole.centres, again.centres)
    assert torch.equal(whole.counts, again.counts)
    assert whole.mean_cosines == again.mean_cosines
    with pytest.raises(StoreError, match="other n_clusters; delete it"):
        spherical_kmeans(CLUSTERED, 6, **fields)


def test_an_empty_cluster_takes_the_farthest_row() -> None:
    """Two directions in the sample, a third far away in the stream: the second pass has it."""
    rows = torch.zeros(600, 3)
    rows[:, 0], rows[::2, 1] = 1.0, 0.5
    far = 599 if 599 not in sampled(600, 8) else 598
    rows[far] = torch.tensor([0.0, 0.0, 2.0])
    found = spherical_kmeans(rows, 3, sample=8, n_passes=3)
    places = nearest_centres(rows, found.centres)
    assert found.counts.sum() == 600
    assert (places == places[far]).sum() == 1
    assert found.mean_cosines[-1] > 0.999


def sampled(count: int, size: int) -> list[int]:
    return spherical.top_rows(count, lambda rows: spherical.random_scores(rows, 0), size)[0].tolist()


def test_repeated_directions_make_fewer_clusters() -> None:
    rows = torch.tensor([[1.0, 0.0], [2.0, 0.0], [0.0, 1.0]]).repeat(20, 1)
    found = spherical_kmeans(rows, 5, n_passes=2)
    assert sorted(found.counts.tolist()) == [20, 40]


def test_clustering_refuses_what_cannot_be() -> None:
    features = open_features(CLUSTERED)
    cases: list[tuple[dict[str, Any], str]] = [
        ({"n_clusters": 1}, "n_clusters is 1"),
        ({"n_clusters": 4, "n_passes": 0}, "n_passes is 0"),
        ({"n_clusters": 4, "sample": 0}, "sample is 0"),
        ({"n_clusters": 4000}, "4000 clusters cannot be made of 3000 rows"),
    ]
    for fields, message in cases:
        with pytest.raises(InputError, match=message):
            spherical_kmeans(features, **fields)


def test_a_broken_row_of_the_sample_is_named_as_in_the_source() -> None:
    rows = torch.randn(50, 4, generator=torch.Generator().manual_seed(0))
    rows[7, 2] = torch.nan
    with pytest.raises(InputError, match="the features of row 7 hold NaN"):
        spherical_kmeans(rows, 3)
