"""The pilot: which blocks of the network are worth their cost, and which metric power.

The first block kept is decided on about a hundred pictures before the rest are touched; the power, whose best value
depends on the number of pictures, on more of them, and of the blocks that are kept.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tangentune.kernels.choice import KernelCandidates, Scored, energies, picture_errors, search, solution_of
from tangentune.kernels.collect import Begun, RowSet, restrict
from tangentune.kernels.metric import KroneckerFactors
from tangentune.kernels.stages import FitJob, spread
from tangentune.networks.parameters import block_of, group_blocks

PILOT_PICTURES = 100
PILOT_PER_OUTPUT = 5
CHOOSING_PICTURES, CHOOSING_PER_OUTPUT = 1000, 10
FIRST_BLOCKS = (0.0, 1 / 3, 1 / 2, 2 / 3, 3 / 4)  # where the kept blocks may begin, as a share of the network
POWERS = (0.25, 0.0, 0.5)  # the first is kept in doubt
POWER_PICTURES = 150


@dataclass(frozen=True)
class Pilot:
    """What the pilot decided: the blocks kept and the one that matters most; and `begun`, if they can be used, rows."""

    kept: tuple[str, ...]
    leading: str
    tried: list[Scored]
    begun: Begun | None


def pilot_pictures(count: int, outputs: int) -> list[int]:
    """Positions of the pictures that decide metric power and first block, evenly spread (folders are sorted).

    Where pictures are many, early blocks pay more often, and more of them must say so.
    """
    wanted = max(PILOT_PICTURES, PILOT_PER_OUTPUT * outputs, count // 4 if count >= CHOOSING_PICTURES else 0)
    return spread(count, count if 1.5 * wanted >= count else wanted)


def choosing_pictures(count: int, outputs: int) -> list[int] | None:
    """Positions of the pictures on which a large fit chooses its kernel; None where it chooses on all."""
    wanted = max(CHOOSING_PICTURES, CHOOSING_PER_OUTPUT * outputs)
    return spread(count, wanted) if count >= 1.5 * wanted else None


def run_pilot(job: FitJob, index: list[int]) -> Pilot:
    """Choose the first block by the criterion on the pictures of `index`.

    Of the candidates within a standard error of the best (paired by picture), the one with the fewest blocks: it costs
    least. Of many pictures the best: what early blocks are worth grows with the pictures. The plain metric and
    unmirrored pictures decide the same for a third of the cost. The late half of the network is looked at first, and
    earlier blocks, whose rows cost most, only while the earliest candidate is the best so far, or none beats a probe.
    Its rows are a beginning of the fit's, unless that has its pictures mirrored or must take rows in several passes.
    """
    settings, chosen = job.settings, torch.tensor(index)
    every = list(group_blocks(job.tangent.names))
    firsts = _firsts(len(every))[::-1]
    late = [first for first in firsts if first >= len(every) // 2]
    blocks: dict[str, Tensor] = {}
    taken: list[RowSet] = []
    tried: list[Scored] = []
    found: list[tuple[Scored, KernelCandidates, Tensor]] = []
    for group in (late, *([first] for first in firsts[len(late) :])):
        best = min(found, key=lambda candidate: candidate[0].criterion, default=None)
        if best is not None and best is not found[-1] and best[0].choice.body_scale > 0:
            break
        rows, more = _block_grams(job, index, [block for block in every[group[-1] :] if block not in blocks])
        blocks, taken, head = more | blocks, [rows, *taken], _head(rows)
        with job.meter.stage("pilot"):
            for first in group:
                kept = {block: blocks[block] for block in every[first:]}
                problem = KernelCandidates(head, kept, job.targets[chosen], job.weights[chosen])
                scored, some = search(problem, 0.0, settings.fixed, settings.criterion, slopes=(0.0,), refine=False)
                tried += some
                found.append((scored, problem, picture_errors(problem, scored)))
    with job.meter.stage("pilot"):
        best = min(found, key=lambda candidate: candidate[0].criterion)
        behind = 1 if job.pictures.count < CHOOSING_PICTURES else 0
        scored, problem, _ = next(candidate for candidate in found if _behind(candidate[2], best[2]) <= behind)
        moved = energies(problem, scored.choice, solution_of(problem, scored).dual)
        leading = max(problem.blocks, key=lambda block: moved.get(block, float(problem.blocks[block].diagonal().sum())))
    names = [name for name in job.tangent.names if block_of(name) in problem.blocks]
    rows = RowSet.beside(taken).restrict(names)
    usable = len(rows.entries) == len(names) and len(job.passes(restrict(job.tangent, names))) == 1
    return Pilot(tuple(problem.blocks), leading, tried, Begun(rows, chosen) if usable else None)


def _block_grams(job: FitJob, index: list[int], blocks: list[str]) -> tuple[RowSet, dict[str, Tensor]]:
    """Rows and plain kernels of some blocks for the pictures of `index`; features alone where a fit cannot use rows."""
    tangent = restrict(job.tangent, [name for name in job.tangent.names if block_of(name) in blocks])
    rows, grams, passes = None, dict[str, Tensor](), job.passes(tangent, len(index))
    usable = len(passes) == 1 and not job.settings.mirrored
    for names in passes:
        with job.meter.stage("rows" if usable else "pilot"):
            rows = job.collect(restrict(job.tangent, names), "pilot rows", index, mirrored=False)
        with job.meter.stage("pilot"):
            for block, gram in job.grams(rows.entries, {}, 0.0).items():
                grams[block] = grams[block] + gram if block in grams else gram
    assert rows is not None
    return rows if usable else rows.restrict(()), grams


def choose_on_all(
    job: FitJob, rows: RowSet, factors: dict[str, KroneckerFactors]
) -> tuple[float, dict[str, Tensor], list[Scored]]:
    """The best metric power, its kernels from the best first block on, and all tried: every pair, for small sets."""
    settings, head = job.settings, _head(rows)
    best: tuple[Scored, dict[str, Tensor]] | None = None
    tried: list[Scored] = []
    for power in POWERS if settings.power is None else (settings.power,):
        blocks = job.grams(rows.entries, factors, power)
        for first in _firsts(len(blocks)):
            kept = dict(list(blocks.items())[first:])
            problem = KernelCandidates(head, kept, job.targets, job.weights)
            scored, more = search(problem, power, settings.fixed, settings.criterion, slopes=(0.0,), refine=False)
            tried += more
            if best is None or scored.criterion < best[0].criterion:
                best = scored, kept
    assert best is not None
    return best[0].choice.power, best[1], tried


def _firsts(blocks: int) -> list[int]:
    """Where those that are kept may begin, ascending."""
    return sorted({int(share * blocks) for share in FIRST_BLOCKS})


def choose_power(
    job: FitJob, rows: RowSet, factors: dict[str, KroneckerFactors], *, whole: bool
) -> tuple[float, list[Scored]]:
    """Metric power by the criterion, from the rows of all blocks on some of their pictures; and what was tried.

    If not `whole`, of the leading block, which measures small differences poorly: 1/4 stays unless another power is
    better by more than a standard error, paired by picture.
    """
    chosen = torch.tensor(spread(len(rows.phi), POWER_PICTURES))
    part = rows.select(chosen)
    head = _head(part)
    best: dict[float, tuple[Scored, Tensor]] = {}
    tried: list[Scored] = []
    for power, blocks in job.power_grams(part.entries, factors, POWERS).items():
        problem = KernelCandidates(head, blocks, job.targets[chosen], job.weights[chosen])
        scored, more = search(problem, power, job.settings.fixed, job.settings.criterion, refine=False)
        best[power] = scored, picture_errors(problem, scored)
        tried += more
    power = min(best, key=lambda p: best[p][0].criterion)
    usual = POWERS[0]
    return usual if not whole and _behind(best[usual][1], best[power][1]) <= 1 else power, tried


def _head(rows: RowSet) -> Tensor:
    """(n, n) kernel of the features, float64."""
    phi = rows.phi.double()
    return phi @ phi.T


def _behind(errors: Tensor, best: Tensor) -> float:
    """How much worse, in standard errors of the paired difference of leave-one-out errors."""
    difference = errors - best
    spread = float(difference.std()) / len(difference) ** 0.5
    return float(difference.mean()) / spread if spread > 0 else 0.0
