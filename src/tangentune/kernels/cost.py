"""What a fit will cost: bytes and seconds of each of its stages, from a trial with a few pictures and three products.

The fit asks here too how much memory it may give to rows, so that what is promised is what is kept.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from tangentune.errors import BudgetError
from tangentune.kernels.choice import RELATIVE_DAMPINGS, coarse_step
from tangentune.kernels.collect import plan_passes
from tangentune.kernels.gram import TILE_BYTES
from tangentune.kernels.pilot import FIRST_BLOCKS, POWER_PICTURES, POWERS, choosing_pictures, pilot_pictures
from tangentune.kernels.stages import PCA_PICTURES, FitSettings
from tangentune.kernels.trial import LayerRows, Trial
from tangentune.memory import nice_mebibytes
from tangentune.networks.parameters import block_of, group_blocks
from tangentune.solvers.factorisation import eigh

MOVING, MOVING_BATCH = 1.5, 32  # of what outer steps leave behind, they hold so much more meanwhile; their batch
REFINED = 10  # settings that the search of the kernel tries beyond its first grid, usually
FACTORED = 1.2  # n^3 multiply-adds at the rate of a small product, for a large factorisation, inverse and all
TRIALS = 3  # of a rate, the quickest of which counts: other work on the machine only slows
WALKED = 5  # dampings that a large fit usually tries
LAPLACE_SCALES, DIRICHLET_TRIALS = 13, 45  # that the searches of these likelihoods try


@final
@dataclass(frozen=True)
class Problem:
    """What is fitted: n `pictures`, a `batch` at a time; columns of the targets; bytes that `moved` networks hold."""

    pictures: int
    batch: int
    outputs: int
    likelihood: str = "least_squares"
    moved: int = 0


@final
@dataclass(frozen=True)
class Rates:
    """Multiply-adds a second in the rows' precision and in float64; an eigendecomposition's seconds by n^2 and n^3."""

    rows: float
    double: float
    eigen: tuple[float, float]

    def decomposition(self, n: int) -> float:
        """Seconds of an eigendecomposition (n, n)."""
        return self.eigen[0] * n**2 + self.eigen[1] * n**3


def measure_rates(like: Tensor) -> Rates:
    """From a product of a typical tile, and a product and decompositions of two sizes in float64."""
    noise = torch.Generator().manual_seed(0)  # the user's own stays where it was
    tile = torch.randn(256, 8192, generator=noise).to(like)

    def once(work: Callable[[], Tensor]) -> float:
        start = time.perf_counter()
        float(work())
        return time.perf_counter() - start

    def seconds(work: Callable[[], Tensor]) -> float:
        work()
        return max(min(once(work) for _ in range(TRIALS)), 1e-7)

    rows = 256 * 256 * 8192 / seconds(lambda: (tile @ tile.T).sum())
    small, large = (torch.randn(m, m, generator=noise).double().to(like.device) for m in (96, 384))
    double = 384**3 / seconds(lambda: (large @ large).sum())
    few, many = (seconds(lambda part=part: eigh(part @ part.T, "noise")[0].sum()) for part in (small, large))
    cubic = max(0.0, (many / 384**2 - few / 96**2) / (384 - 96))
    return Rates(rows, double, (max(0.0, few / 96**2 - 96 * cubic), cubic))


def is_small(problem: Problem) -> bool:
    """Whether everything is tried on all pictures: their pilot would be all of them."""
    return len(pilot_pictures(problem.pictures, problem.outputs)) == problem.pictures


def bytes_besides(trial: Trial, settings: FitSettings, problem: Problem) -> dict[str, int]:
    """Peak bytes of every stage beyond the rows that it works on, all that was held before included."""
    n, layers, free = problem.pictures, trial.layers.values(), settings.fixed.body_scale is None
    square, blocks = 8 * n**2, len({block_of(name) for name in trial.layers})
    part = 8 * chosen_on(problem) ** 2
    size = max((layer.itemsize for layer in layers), default=4)
    metric = size * sum(layer.factors for layer in layers) if settings.power != 0 else 0
    sums = size * sum(layer.factors for layer in layers if not layer.positions)
    largest = size * max((max(layer.outputs, layer.inputs) ** 2 for layer in layers), default=0)
    widest = size * problem.outputs * max((layer.width for layer in layers), default=0)
    body = size * problem.outputs * sum(layer.width for layer in layers)
    small = is_small(problem) and free
    candidates = blocks + 1  # kernels of blocks and head
    searching = candidates + (2 * blocks + 10 if settings.criterion == "evidence" else 9)
    kernels = blocks + 4 + (searching if small else 0)
    likely = 8 + {"dirichlet": 8, "laplace": 9 + problem.outputs}.get(problem.likelihood, 0)
    base = trial.resident + problem.moved
    large = square > part
    assembling = max(kernels * part, 5 * square if large else 0)
    moving: dict[str, int] = {}
    if problem.moved:
        moving["outer steps"] = base + int(MOVING * problem.moved) + MOVING_BATCH * trial.picture_bytes
    return moving | {
        "rows": base + trial.batch_bytes + sums,
        "metric": base + sums + metric + (4 * largest if metric else 0) + (square if large else 0),
        "kernels": base + sums + metric + assembling + TILE_BYTES,
        "selection": base + sums + metric + max(searching * part, 6 * square if large else 0),
        "weights": base + sums + 2 * metric + body + 2 * widest + max((blocks + 3) * part, square) + TILE_BYTES,
        "system": base + metric + body + likely * square,
    }


def chosen_on(problem: Problem) -> int:
    """How many pictures the kernel is chosen on."""
    index = choosing_pictures(problem.pictures, problem.outputs)
    return problem.pictures if index is None else len(index)


@final
@dataclass(frozen=True)
class MemoryPlan:
    """Bytes that `room` leaves to rows, groups of parameters for one pass over the pictures each, peaks by stage."""

    room: int
    passes: list[list[str]]
    peaks: dict[str, int]


def has_pilot(settings: FitSettings, problem: Problem) -> bool:
    """Whether a fit decides on some of its pictures which blocks move."""
    return settings.fixed.body_scale is None and not is_small(problem)


def metric_rows(trial: Trial, settings: FitSettings) -> dict[str, LayerRows]:
    """Rows by parameter as they are held in the metric, where a fit may have one."""
    return {name: layer if settings.power == 0 else layer.in_metric for name, layer in trial.layers.items()}


def usually_kept(trial: Trial) -> set[str]:
    """Parameters of the blocks that a pilot usually keeps, the fewest that it may."""
    blocks = list(group_blocks(trial.layers).values())
    return {name for block in blocks[int(FIRST_BLOCKS[-1] * len(blocks)) :] for name in block}


def pilot_bytes(trial: Trial, settings: FitSettings, problem: Problem) -> int:
    """Peak of the pilot: rows of all blocks, of few pictures, none of them mirrored."""
    count = len(pilot_pictures(chosen_on(problem), problem.outputs)) + 2 * problem.batch
    held = sum(layer.size for layer in trial.layers.values()) * count
    return trial.resident + problem.moved + trial.batch_bytes // views(settings) + held


def views(settings: FitSettings) -> int:
    """How often a picture goes through the network for its rows."""
    return 2 if settings.mirrored else 1


def plan_memory(trial: Trial, settings: FitSettings, problem: Problem) -> MemoryPlan:
    """How a fit keeps the memory budget; one that it cannot keep is a BudgetError."""
    n, besides, budget = problem.pictures, bytes_besides(trial, settings, problem), settings.memory_budget
    sizes = {name: layer.size for name, layer in trial.layers.items()}
    waiting = 2 * min(problem.batch, n)  # rows of a batch lie there twice before they are put in their place
    room = min(budget - max(besides.values()), (budget - besides["rows"]) * n // (n + waiting))
    if room <= 0:
        raise _refusal(max(besides.values()), trial, settings, problem)
    passes = plan_passes(sizes, n, room) or [[]]
    held = max(sum(sizes[name] for name in group) for group in passes)
    spare = max(2 * max((sizes[name] for name in group), default=0) for group in passes)
    rows = {"rows": held * (n + waiting), "metric": held * n, "kernels": (held + spare) * n}
    if len(passes) == 1:
        rows |= {"selection": held * n, "weights": (held + spare) * n, "system": held * n}
    else:  # taken again, batch by batch
        rows["weights"] = trial.batch_bytes + waiting * sum(sizes.values())
    peaks = {stage: count + rows.get(stage, 0) for stage, count in besides.items()}
    if max(peaks.values()) > budget:
        raise _refusal(max(peaks.values()), trial, settings, problem)
    return MemoryPlan(room, passes, peaks)


def _refusal(needed: int, trial: Trial, settings: FitSettings, problem: Problem) -> BudgetError:
    return BudgetError(
        f"{problem.pictures} pictures need {nice_mebibytes(needed - trial.resident)} beside the "
        f"{nice_mebibytes(trial.resident)} that this process already holds, more than the memory budget of "
        f"{nice_mebibytes(settings.memory_budget)}, which counts the whole process; raise memory_budget, lower "
        "batch_size or use fewer pictures"
    )


def seconds_of(
    whole: Trial, trial: Trial, settings: FitSettings, problem: Problem, rates: Rates, passes: int
) -> dict[str, float]:
    """Seconds of every stage of a fit that takes so many passes; `trial` is of what the pilot keeps of the `whole`."""
    n, outputs, probes = problem.pictures, problem.outputs, settings.probes
    free, small = settings.fixed.body_scale is None, is_small(problem)
    layers = list(trial.layers.values())
    a_row = trial.forward + probes * trial.backward
    powers = POWERS if settings.power is None else (settings.power,)
    part = chosen_on(problem)
    pilot = len(pilot_pictures(part, outputs)) if free and not small else 0
    again = part if part < n else 0  # pictures whose rows and kernels are made for the choice alone
    rows = list(metric_rows(trial, settings).values())
    plain = sum(_gram_work(layer, n) for layer in rows)
    moved = sum(_whitening_work(layer) for layer in layers)
    sides = [(layer.groups, side) for layer in layers if layer.factors for side in (layer.outputs, layer.inputs)]
    factors = sum(groups * rates.decomposition(side) for groups, side in sides)
    normalisations = 2 if settings.fixed.normalize is None else 1

    def trying(count: int, settings_tried: int) -> float:
        """Seconds of so many settings of the kernel, each with its damping path."""
        path = len(RELATIVE_DAMPINGS) if settings.fixed.damping is None else 1
        return settings_tried * (rates.decomposition(count) + path * count**2 * (2 * outputs + 1) / rates.double)

    out = {"features": trial.forward / views(settings) * min(n, PCA_PICTURES)}
    if pilot:
        late = list(group_blocks(whole.layers).values())  # and often no others
        late = [whole.layers[name] for block in late[len(late) // 2 :] for name in block]
        out["pilot"] = sum(_gram_work(layer, pilot) for layer in late) / rates.rows
        out["pilot"] += trying(pilot, len(FIRST_BLOCKS) * normalisations * 3)
    out["rows"] = (passes * n + again) * a_row
    if pilot:
        begun = pilot * (whole.forward + probes * (whole.backward + trial.backward) / 2) / views(settings)
        if settings.mirrored or passes > 1:
            out["pilot"] += begun
        else:  # its rows are the first of all
            out["rows"] += begun - pilot * a_row
    if any(power != 0 for power in powers):
        out["metric"] = factors
    if settings.power is None and not small:
        few = min(part, POWER_PICTURES)
        grams = len(POWERS) * sum(_gram_work(layer, few) for layer in rows) + few * moved
        out["metric power"] = grams / rates.rows
        out["metric power"] += trying(few, len(POWERS) * normalisations * 5)
    assembling = sum(plain + (n * moved if power else 0) for power in (powers if small and free else powers[:1]))
    assembling += sum(_gram_work(layer, again) for layer in rows) + again * moved
    out["kernels"] = assembling / rates.rows
    if small and free:
        out["kernels"] += trying(n, len(powers) * len(FIRST_BLOCKS) * normalisations * 3)
    step = coarse_step(part) if free else 1
    out["selection"] = trying(part // step, 5 * normalisations if free else normalisations)
    out["selection"] += trying(part, REFINED) if free else 0
    if again:
        out["selection"] += (WALKED * FACTORED * n**3 + n * whole.features**2) / rates.double
        out["selection"] += rates.decomposition(whole.features)
    forming = sum(layer.positions * layer.width for layer in rows)
    turning = moved if small or passes > 1 else 0  # others are in the metric since their kernels were made
    out["weights"] = 1.6 * n * (turning + forming + outputs * sum(layer.width for layer in rows)) / rates.rows
    out["weights"] += trying(0, 1) + len(RELATIVE_DAMPINGS) * n**2 * (2 * outputs + 1) / rates.double
    out["system"] = FACTORED * n**3 / rates.double
    if problem.likelihood == "laplace":
        out["system"] += LAPLACE_SCALES * outputs * 4 * n**3 / rates.double + rates.decomposition(n)
    elif problem.likelihood == "dirichlet":
        out["system"] += DIRICHLET_TRIALS * 3 * n**3 / rates.double
    return out


def _whitening_work(layer: LayerRows) -> float:
    """Multiply-adds a picture to bring a row into the metric."""
    o, i, few = layer.outputs, layer.inputs, layer.in_metric
    if layer.positions:
        return layer.positions * (i * few.inputs + layer.probes * o * few.outputs)
    return layer.width * few.outputs + few.width * i


def _gram_work(layer: LayerRows, n: int) -> float:
    """Multiply-adds of the Gram of n pictures, a little more than half of it being calculated."""
    if layer.gram == "pairs":
        return 0.6 * n**2 * layer.positions**2 * (layer.inputs + layer.probes * layer.outputs + 30)
    return 0.6 * n**2 * layer.width + n * layer.positions * layer.width
