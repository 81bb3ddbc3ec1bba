"""Every way to a Gram matrix against the plain product of explicit rows, and the algebra of entries."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from reference import closeness
from torch import Tensor

from tangentune.jacobian.layers import Entry, Pairs, Rows, add_uses, average_views, stack_probes
from tangentune.kernels import gram as gram_module
from tangentune.kernels.feature_map import FeatureRows, KeptRows
from tangentune.kernels.gram import block_grams, cosine, gram, row_chunks, strategy


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def pairs(n: int, positions: int, inputs: int, outputs: int, probes: int = 1, seed: int = 0) -> Pairs:
    return Pairs(normal(n, positions, inputs, seed=seed), normal(n, positions, probes, outputs, seed=seed + 1))


def flat(entry: Entry) -> Tensor:
    """Explicit rows, by an einsum of our own for pairs."""
    if isinstance(entry, Rows):
        return entry.values.flatten(1)
    return torch.einsum("ntro,nti->nroi", entry.g, entry.a).flatten(1)


# name -> (a set, another set of other size, the way that must be taken)
WAYS: dict[str, tuple[Entry, Entry, str]] = {
    "rows": (Rows(normal(7, 1, 1, 5, 6)), Rows(normal(4, 1, 1, 5, 6, seed=3)), "rows"),
    "rows_groups": (Rows(normal(7, 2, 3, 4, 5)), Rows(normal(4, 2, 3, 4, 5, seed=3)), "rows"),
    "vectors": (Rows(normal(7, 3, 9, 1, 1)), Rows(normal(4, 3, 9, 1, 1, seed=3)), "rows"),
    "layer_form": (pairs(7, 1, 40, 50), pairs(4, 1, 40, 50, seed=7), "pairs"),
    "layer_form_probes": (pairs(7, 1, 40, 30, 3), pairs(4, 1, 40, 30, 3, seed=7), "pairs"),
    "position_pairs": (pairs(7, 3, 60, 50), pairs(4, 3, 60, 50, seed=7), "pairs"),
    "position_pairs_uneven": (pairs(7, 3, 60, 50, 2), pairs(4, 2, 60, 50, 2, seed=7), "pairs"),
    "expanded_pairs": (pairs(7, 6, 5, 8, 2), pairs(4, 6, 5, 8, 2, seed=7), "rows"),
    "mixed": (pairs(7, 2, 6, 5), Rows(normal(4, 1, 1, 5, 6, seed=3)), "rows"),
    "mixed_turned": (Rows(normal(7, 1, 1, 5, 6, seed=3)), pairs(4, 2, 6, 5), "rows"),
}
TILES = (1, 1000, 5000, 2**26)


@pytest.mark.parametrize("tile_bytes", TILES)
@pytest.mark.parametrize("name", WAYS)
def test_gram_of_two_sets(name: str, tile_bytes: int) -> None:
    entry, other, way = WAYS[name]
    assert strategy(entry, other) == way
    got = gram(entry, other, tile_bytes)
    assert got.dtype == torch.float64
    assert closeness(got, flat(entry) @ flat(other).T) < 1e-13


@pytest.mark.parametrize("tile_bytes", TILES)
@pytest.mark.parametrize("name", WAYS)
def test_symmetric_gram(name: str, tile_bytes: int) -> None:
    entry = WAYS[name][0]
    got = gram(entry, tile_bytes=tile_bytes)
    assert closeness(got, flat(entry) @ flat(entry).T) < 1e-13
    assert torch.equal(got, got.T)


@pytest.mark.parametrize("make", [
    lambda n: Rows(normal(n, 1, 1, 3, 2)), lambda n: pairs(n, 1, 30, 20), lambda n: pairs(n, 2, 60, 40),
])  # fmt: skip
@pytest.mark.parametrize("n", [1, 63, 64, 65, 300])
def test_symmetric_tiles_meet_at_their_edges(make, n: int) -> None:
    # From 65 samples on the upper triangle is done in more than one strip.
    entry = make(n)
    assert (len(gram_module._edges(len(entry))) > 1) == (n > 64)
    assert closeness(gram(entry), flat(entry) @ flat(entry).T) < 1e-13


def test_both_ways_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    entry = pairs(9, 3, 60, 50, 2)
    by_pairs = gram(entry)
    monkeypatch.setattr(gram_module, "strategy", lambda *_: "rows")
    assert closeness(gram(entry), by_pairs) < 1e-13
    assert closeness(gram(Rows(entry.explicit())), by_pairs) < 1e-13


def test_float32_tiles_are_summed_in_float64() -> None:
    wide = Rows(torch.full((2, 1, 1, 250, 400), 0.1, dtype=torch.float32))
    exact = float(torch.tensor(0.1, dtype=torch.float32).double().square()) * 1e5
    short = float(gram(wide, tile_bytes=128)[0, 1])  # 16 columns a tile: 6,250 sums
    assert abs(short / exact - 1) < 1e-6
    tiles = np.full(6250, np.float32(exact / 6250))
    assert abs(float(np.add.accumulate(tiles)[-1]) / exact - 1) > 1e-6  # what a float32 sum would give


@pytest.mark.parametrize("name", WAYS)
@pytest.mark.parametrize("tile_bytes", [1, 700, 2**26])
def test_chunks_cover_every_column_once(name: str, tile_bytes: int) -> None:
    entry = WAYS[name][0]
    columns, parts = zip(*row_chunks(entry, tile_bytes), strict=True)
    assert [c for piece in columns for c in range(entry.width)[piece]] == list(range(entry.width))
    assert closeness(torch.cat(parts, 1), flat(entry)) < 1e-13


@pytest.mark.parametrize("name", WAYS)
def test_an_entry_knows_itself(name: str) -> None:
    entry = WAYS[name][0]
    rows = flat(entry)
    assert len(entry) == 7
    assert entry.width == rows.shape[1]
    assert closeness(entry.explicit().flatten(1), rows) < 1e-13
    assert closeness(entry.squared_norms(), rows.square().sum(1)) < 1e-12
    assert closeness(flat(entry.select(slice(2, 5))), rows[2:5]) < 1e-13
    assert closeness(flat(entry.select(torch.tensor([4, 0]))), rows[[4, 0]]) < 1e-13


@pytest.mark.parametrize("first, second", [
    (pairs(4, 2, 6, 5), pairs(4, 3, 6, 5, seed=5)),
    (pairs(4, 2, 6, 5), Rows(normal(4, 1, 1, 5, 6, seed=5))),
    (Rows(normal(4, 1, 1, 5, 6)), Rows(normal(4, 1, 1, 5, 6, seed=5))),
    (pairs(4, 2, 6, 5), Rows(normal(4, 1, 30, 1, 1, seed=5))),  # a table that also multiplies
    (Rows(normal(4, 2, 30, 1, 1)), Rows(normal(4, 2, 1, 5, 6, seed=5))),
])  # fmt: skip
def test_uses_add(first: Entry, second: Entry) -> None:
    both = add_uses(first, second)
    assert isinstance(both, Pairs) == (isinstance(first, Pairs) and isinstance(second, Pairs))
    assert closeness(flat(both), flat(first) + flat(second)) < 1e-13


@pytest.mark.parametrize("views", [1, 2, 3])
@pytest.mark.parametrize("entry", [pairs(6, 2, 4, 3, 2), Rows(normal(6, 2, 1, 4, 3))])
def test_views_average(entry: Entry, views: int) -> None:
    mean = average_views(entry, views)
    assert type(mean) is type(entry)
    assert len(mean) == 6 // views
    assert closeness(flat(mean), flat(entry).unflatten(0, (views, -1)).mean(0)) < 1e-13


def test_probes_stack() -> None:
    same = normal(5, 2, 4)
    split: list[Entry] = [Pairs(same, normal(5, 2, 1, 3, seed=seed)) for seed in (1, 2, 3)]
    stacked = stack_probes(split)
    assert isinstance(stacked, Pairs)
    assert stacked.probes == 3
    assert torch.equal(stacked.a, same)
    expected = torch.cat([entry.explicit() for entry in split], 1)
    assert closeness(stacked.explicit(), expected) < 1e-14
    rows = stack_probes([Rows(entry.explicit()) for entry in split])
    assert rows.probes == 3
    assert closeness(rows.explicit(), expected) < 1e-14
    assert stack_probes(split[:1]) is split[0]


def test_block_grams_average_probes_and_sum_a_block() -> None:
    entries = {"0.weight": pairs(5, 1, 30, 20, 2), "0.bias": Rows(normal(5, 2, 20, 1, 1)),
               "2.weight": Rows(normal(5, 2, 1, 3, 4))}  # fmt: skip
    grams = block_grams(entries, {}, 0.0)
    assert list(grams) == ["0", "2"]
    products = {name: flat(entry) @ flat(entry).T / 2 for name, entry in entries.items()}
    assert closeness(grams["0"], products["0.weight"] + products["0.bias"]) < 1e-13
    assert closeness(grams["2"], products["2.weight"]) < 1e-13


def test_block_grams_tick_once_a_parameter() -> None:
    ticks: list[None] = []
    entries = {"a.weight": pairs(3, 1, 4, 4), "a.bias": Rows(normal(3, 1, 4, 1, 1))}
    block_grams(entries, {}, 0.0, lambda: ticks.append(None))
    assert len(ticks) == 2


def test_cosine_keeps_a_zero_row_zero() -> None:
    rows = normal(4, 6)
    rows[2] = 0
    got = cosine(rows @ rows.T)
    expected = torch.nn.functional.normalize(rows) @ torch.nn.functional.normalize(rows).T
    assert closeness(got, expected) < 1e-12
    assert not got[2].any()


def test_rows_in_parts_are_the_rows_of_the_whole() -> None:
    """Selected in any order, cut, and grown: small parts grow, large ones and those in a file stay as they are."""

    def some(start: int, count: int) -> FeatureRows:
        index = torch.arange(start, start + count).double()[:, None]
        return FeatureRows(index, {"w": Pairs(index[:, :, None], index[:, None, None])}, index[:, 0])

    rows = KeptRows((some(0, 70),), mapped=1).joined(some(70, 3)).joined(some(73, 2)).joined(some(75, 60))
    assert [len(part) for part in rows.parts] == [70, 65]
    assert [len(part) for part in rows.joined(some(135, 1)).parts] == [70, 65, 1]
    assert rows.nbytes == rows.parts[1].nbytes
    for index in ([3, 71, 0, 134, 69, 70], [5, 2], [100]):
        found = rows.select(torch.tensor(index))
        assert found.phi[:, 0].tolist() == found.lengths.tolist() == index
        assert found.entries["w"].explicit().flatten().tolist() == [i**2 for i in index]
    for count in (20, 70, 90, 135):
        first = rows.first(count)
        assert torch.cat([part.lengths for part in first.parts]).tolist() == list(range(count))
    assert [len(part) for part in rows.first(20).parts] == [20]
