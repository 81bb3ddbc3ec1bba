"""The pilot: which blocks of the network are worth their cost, and which metric power.

The first block kept is decided on about a hundred pictures before the rest are touched; the power, whose best value
depends on the number of pictures, on more of them but on one block only.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tangentune.collect import RowSet
from tangentune.metric import KroneckerFactors
from tangentune.selection import Problem, Scored, block_energies, picture_errors, search
from tangentune.work import Work

PILOT_PICTURES = 100
PILOT_PER_OUTPUT = 5
FIRST_BLOCKS = (0.0, 1 / 3, 1 / 2, 2 / 3)  # where the kept blocks may begin, as a share of the network
POWERS = (0.25, 0.0, 0.5)
POWER_PICTURES = 250


@dataclass(frozen=True)
class Pilot:
    """What the pilot decided: blocks kept and the one that matters most; and its rows, for reuse."""

    kept: tuple[str, ...]
    leading: str
    tried: list[Scored]
    rows: RowSet


def pilot_pictures(count: int, outputs: int) -> list[int]:
    """Positions of the pictures that decide metric power and first block, evenly spread (folders are sorted)."""
    wanted = max(PILOT_PICTURES, PILOT_PER_OUTPUT * outputs)
    return _spread(count, count if 1.5 * wanted >= count else wanted)


def _spread(count: int, wanted: int) -> list[int]:
    """At most `wanted` of `count` positions, evenly spaced."""
    return torch.linspace(0, count - 1, min(count, wanted)).round().long().unique().tolist()


def run_pilot(work: Work, index: list[int], whole: bool) -> Pilot:
    """Choose the first block by the criterion on the pictures of `index`.

    Of the candidates within a standard error of the best (paired by picture), the one with the fewest blocks: it
    costs least. A part of the pictures is seen unmirrored, which decides the same for half the cost; the whole set as
    set, for reuse.
    """
    settings = work.settings
    rows = work.collect(work.tangent, "pilot rows", index, settings.mirrored and whole)
    phi, chosen = rows.phi.double(), torch.tensor(index)
    power = 0.0  # the plain metric costs least and ranks blocks alike
    blocks = work.grams(rows.entries, {}, power)
    names = list(blocks)
    tried: list[Scored] = []
    found: list[tuple[Scored, Problem, Tensor]] = []
    for first in sorted({int(share * len(names)) for share in FIRST_BLOCKS}):
        kept = {name: blocks[name] for name in names[first:]}
        problem = Problem(phi @ phi.T, kept, work.targets[chosen], work.weights[chosen])
        scored, more = search(problem, power, settings.fixed, settings.criterion, slopes=(0.0,), refine=False)
        tried += more
        found.append((scored, problem, picture_errors(problem, scored)))
    best = min(found, key=lambda candidate: candidate[0].criterion)
    scored, problem, _ = [candidate for candidate in found if _behind(candidate[2], best[2]) <= 1][-1]
    energies = block_energies(problem, scored)
    leading = max(problem.blocks, key=lambda block: energies.get(block, float(problem.blocks[block].diagonal().sum())))
    return Pilot(tuple(problem.blocks), leading, tried, rows)


def choose_power(work: Work, rows: RowSet, factors: dict[str, KroneckerFactors]) -> tuple[float, list[Scored]]:
    """Metric power with the best criterion, from the rows of the leading block of all pictures; and what was tried."""
    chosen = torch.tensor(_spread(len(rows.phi), POWER_PICTURES))
    part = rows.select(chosen)
    phi = part.phi.double()
    best: list[Scored] = []
    tried: list[Scored] = []
    for power in POWERS:
        blocks = work.grams(part.entries, factors, power)
        problem = Problem(phi @ phi.T, blocks, work.targets[chosen], work.weights[chosen])
        scored, more = search(problem, power, work.settings.fixed, work.settings.criterion, refine=False)
        best.append(scored)
        tried += more
    return min(best, key=lambda scored: scored.criterion).choice.power, tried


def _behind(errors: Tensor, best: Tensor) -> float:
    """How much worse, in standard errors of the paired difference of leave-one-out errors."""
    difference = errors - best
    spread = float(difference.std()) / len(difference) ** 0.5
    return float(difference.mean()) / spread if spread > 0 else 0.0
