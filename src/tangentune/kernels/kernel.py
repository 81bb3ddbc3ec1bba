"""From rows to kernels: one Gram matrix per block of the network, and their sum.

`k(x, x') = s_head <phi, phi'> + sum_blocks s_l (1/R) sum_r <M_l psi_rl, M_l psi'_rl>`; with `normalize` the head
part and the body part are each divided by the lengths of their rows (cosines).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from tangentune.jacobian.layers import Entry
from tangentune.kernels.gram import gram
from tangentune.kernels.metric import KroneckerFactors, whiten, whitening
from tangentune.networks.parameters import group_blocks


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

    Args:
        entries: rows by parameter name.
        factors: K-FAC factors by parameter name; not needed for power 0.
        power: of the metric.
        tick: called after every parameter.
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


def inverse_lengths(squares: Tensor) -> Tensor:
    """1 / sqrt of squared row lengths, and 0 for a row of zeros."""
    return torch.where(squares > 0, squares.clamp_min(1e-300).rsqrt(), torch.zeros_like(squares))


def cosine(kernel: Tensor) -> Tensor:
    """Divide by the rows' lengths; a zero row stays zero."""
    inverse = inverse_lengths(kernel.diagonal())
    return inverse[:, None] * kernel * inverse
