"""Gram matrices of rows: three exact ways, the cheapest per parameter, in tiles; and their sums over a block.

Products run in the rows' own precision over short tiles and are summed in float64.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from tangentune.jacobian.layers import Entry, Pairs
from tangentune.kernels.metric import KroneckerFactors, eigen_axes, in_power, whiten, whitening
from tangentune.networks.parameters import group_blocks

TILE_BYTES = 24 * 2**20  # tiles that stay in the cache: forming rows is several times faster there
PAIR_OVERHEAD = 60  # elementwise work on one position pair, in multiply-adds of a matrix product


def strategy(entry: Entry, other: Entry | None = None) -> str:
    """Which way is cheapest: "pairs" (position pairs, or the layer form for one position) or "rows"."""
    other = entry if other is None else other
    if not isinstance(entry, Pairs) or not isinstance(other, Pairs):
        return "rows"
    positions = entry.a.shape[1] * other.a.shape[1]
    thickness = entry.a.shape[2] + entry.g.shape[2] * entry.g.shape[3]
    return "pairs" if pairs_are_cheaper(positions, thickness, entry.width) else "rows"


def pairs_are_cheaper(positions: int, thickness: int, width: int) -> bool:
    """Whether a Gram entry costs less from so many pairs of positions than from rows of a width."""
    return positions * (thickness + PAIR_OVERHEAD) < 1.2 * width


def gram(entry: Entry, other: Entry | None = None, tile_bytes: int = TILE_BYTES) -> Tensor:
    """Inner products of rows, (n, m) float64; symmetric work is done once when `other` is None.

    Cost: "rows" n m w multiply-adds for row width w, "pairs" n m T^2 (i + R o). Temporary memory about `tile_bytes`.
    """
    pairs, device = strategy(entry, other) == "pairs", (entry.a if isinstance(entry, Pairs) else entry.values).device
    out = torch.zeros(len(entry), len(entry if other is None else other), dtype=torch.float64, device=device)
    if other is not None:
        (_pair_tile if pairs else _row_tile)(out, entry, other, tile_bytes)
        return out
    edges = _edges(len(entry))
    if pairs:
        strips = [entry.select(slice(start, stop)) for start, stop in edges]
        for i, (start, stop) in enumerate(edges):
            for (low, high), strip in zip(edges[i:], strips[i:], strict=True):
                _pair_tile(out[start:stop, low:high], strips[i], strip, tile_bytes)
        return mirrored(out)
    for _, part in row_chunks(entry, tile_bytes):  # rows formed once a chunk, upper tiles only
        for start, stop in edges:
            out[start:stop, start:] += part[start:stop] @ part[start:].T
    return mirrored(out)


def row_chunks(entry: Entry, tile_bytes: int = TILE_BYTES) -> Iterator[tuple[slice, Tensor]]:
    """Explicit rows in column chunks: (columns of the flat row, (n, chunk) tensor), never all at once."""
    unit = entry.a.shape[2] if isinstance(entry, Pairs) else 1
    step = unit * max(1, tile_bytes // (len(entry) * unit * entry.dtype.itemsize))
    for low in range(0, entry.width, step):
        columns = slice(low, min(low + step, entry.width))
        yield columns, _columns(entry, columns)


def _columns(entry: Entry, columns: slice) -> Tensor:
    """Some columns of the flat rows; of pairs, whole runs of inputs."""
    if not isinstance(entry, Pairs):
        return entry.values.flatten(1)[:, columns]
    inputs = entry.a.shape[2]
    g = entry.g.flatten(2).transpose(1, 2)[:, columns.start // inputs : columns.stop // inputs]
    return torch.bmm(g, entry.a).flatten(1)


def _row_tile(out: Tensor, entry: Entry, other: Entry, tile_bytes: int) -> None:
    # Pairs can only be cut between runs of inputs, so they lead; the longer side sets the size.
    lead = other if isinstance(other, Pairs) else entry
    for columns, part in row_chunks(lead, tile_bytes * len(lead) // max(len(entry), len(other))):
        left = part if lead is entry else _columns(entry, columns)
        out += left @ (part if lead is other else _columns(other, columns)).T


def _pair_tile(out: Tensor, entry: Entry, other: Entry, tile_bytes: int) -> None:
    assert isinstance(entry, Pairs)
    assert isinstance(other, Pairs)
    t, s = entry.a.shape[1], other.a.shape[1]
    left_a, left_g = entry.a.flatten(0, 1), entry.g.flatten(2).flatten(0, 1)
    right_a, right_g = other.a.flatten(0, 1).T, other.g.flatten(2).flatten(0, 1).T
    step = max(1, tile_bytes // (2 * t * len(right_a.T) * left_a.element_size()))
    for low in range(0, len(entry), step):
        rows = slice(low * t, (low + step) * t)
        product = (left_a[rows] @ right_a).mul_(left_g[rows] @ right_g)
        if t * s > 1:
            product = product.view(-1, t, len(other), s).sum((1, 3))
        out[low : low + step] += product


def _edges(n: int) -> list[tuple[int, int]]:
    """Strips of samples: ten of them nearly halve the symmetric work, and products stay large."""
    step = max(64, -(-n // 10))
    return [(low, min(low + step, n)) for low in range(0, n, step)]


def mirrored(out: Tensor) -> Tensor:
    """(..., n, n) from its upper triangle."""
    return torch.triu(out) + torch.triu(out, 1).mT


def whitened(entry: Entry, factors: KroneckerFactors | None, power: float) -> Entry:
    """An entry in the metric of the given power; power 0 is the entry itself."""
    return entry if power == 0 or factors is None else whiten(entry, whitening(factors, power))


def block_grams(
    entries: dict[str, Entry],
    factors: dict[str, KroneckerFactors],
    power: float,
    tick: Callable[[], object] = lambda: None,
) -> dict[str, Tensor]:
    """(n, n) Gram of every block, probes averaged, float64: passes then add up to the same bits or nearly.

    `factors` are not needed for power 0; `tick` is called after every parameter.
    """
    out: dict[str, Tensor] = {}
    for block, names in group_blocks(entries).items():
        total: Tensor | None = None
        for name in names:
            entry = entries[name]
            part = gram(whitened(entry, factors.get(name), power)) / entry.probes
            total = part if total is None else total + part
            tick()
        assert total is not None
        out[block] = total
    return out


def power_grams(
    entries: dict[str, Entry],
    factors: dict[str, KroneckerFactors],
    powers: tuple[float, ...],
    tick: Callable[[], object] = lambda: None,
) -> dict[float, dict[str, Tensor]]:
    """`block_grams` at several powers, to choose among them, for little more than the highest one costs.

    Rows are turned into the eigenvectors of their metric once, those that the highest power keeps, which keeps most;
    powers then differ by factors along them. Power 0 so loses what the others leave out, some per cent of its square.
    """
    out: dict[float, dict[str, Tensor]] = {power: {} for power in powers}
    for block, names in group_blocks(entries).items():
        for name in names:
            turned = whiten(entries[name], eigen_axes(factors[name], max(powers)))
            for power in powers:
                part = gram(in_power(turned, factors[name], power)) / turned.probes
                out[power][block] = out[power][block] + part if block in out[power] else part
            tick()
    return out


def inverse_lengths(squares: Tensor, least: float = 1e-300) -> Tensor:
    """1 / sqrt of squared row lengths, and 0 for a row of zeros; `least` is a number that the precision holds."""
    return torch.where(squares > 0, squares.clamp_min(least).rsqrt(), torch.zeros_like(squares))


def cosine(kernel: Tensor) -> Tensor:
    """Divide by the rows' lengths; a zero row stays zero."""
    inverse = inverse_lengths(kernel.diagonal())
    return inverse[:, None] * kernel * inverse
