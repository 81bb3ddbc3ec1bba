"""What a fit on landmarks will cost, and when it is the better way: matrices of landmarks, and rows of all pictures.

It chooses its kernel as a fit to about a thousand pictures does, so that the cost of that one is part of its own.
"""

from __future__ import annotations

from dataclasses import replace

from tangentune.errors import BudgetError
from tangentune.kernels.cost import MemoryPlan, Problem, Rates, chosen_on, metric_rows, plan_memory, seconds_of
from tangentune.kernels.stages import FitSettings
from tangentune.kernels.trial import LayerRows, Trial
from tangentune.memory import nice_mebibytes

USUAL = 2000  # landmarks; fewer lose more of the kernel than their time is worth (docs/results/scale.md)
LARGEST_DUAL = 10_000  # pictures up to which the kernel of all is taken where it has room: it is more accurate
SQUARES = 6  # matrices (D, D) in float64 that solving holds
STEPS = 6  # dampings that are usually tried


def landmark_count(solver: str, wanted: int | None, pictures: int) -> int:
    """How many landmarks a fit to so many pictures takes; 0 where it takes the kernel of all."""
    if solver == "dual" or (solver == "auto" and pictures <= LARGEST_DUAL):
        return 0
    return min(pictures, USUAL if wanted is None else wanted)


def settled(solver: str, wanted: int | None, trial: Trial, settings: FitSettings, problem: Problem) -> FitSettings:
    """The settings with landmarks where the kernel of all pictures has no room, if nothing else was asked for."""
    if settings.landmarks or solver != "auto":
        return settings
    try:
        plan_memory(trial, settings, problem)
    except BudgetError:
        others = replace(settings, landmarks=min(problem.pictures // 2, USUAL if wanted is None else wanted))
        try:
            plan(trial, others, problem)
        except BudgetError:
            return settings  # whose own refusal says more
        return others
    return settings


def plan(trial: Trial, settings: FitSettings, problem: Problem) -> MemoryPlan:
    """How a fit keeps the memory budget, by landmarks or not; one that it cannot keep is a BudgetError."""
    if not settings.landmarks:
        return plan_memory(trial, settings, problem)
    found = plan_memory(trial, settings, _part(settings, problem))
    rows = 4 * problem.pictures * (settings.landmarks + trial.features)  # in single precision
    base = trial.resident + problem.moved
    held = max(found.peaks["kernels"], found.peaks["rows"]) - base
    solving = SQUARES * 8 * (settings.landmarks + trial.features) ** 2
    landmark_rows = settings.landmarks * sum(layer.size for layer in metric_rows(trial, settings).values())
    peaks = found.peaks | {"map": base + rows + held, "system": base + rows + landmark_rows + solving}
    if (most := max(peaks.values())) > settings.memory_budget:
        raise BudgetError(
            f"{problem.pictures} pictures on {settings.landmarks} landmarks need {nice_mebibytes(most)}, more than the "
            f"memory budget of {nice_mebibytes(settings.memory_budget)}, which counts the whole process; raise "
            "memory_budget or lower landmarks"
        )
    return replace(found, peaks=peaks)


def seconds(
    whole: Trial, trial: Trial, settings: FitSettings, problem: Problem, rates: Rates, passes: int
) -> dict[str, float]:
    """Seconds of every stage, as `seconds_of`, by landmarks or not."""
    if not settings.landmarks:
        return seconds_of(whole, trial, settings, problem, rates, passes)
    out = seconds_of(whole, trial, settings, _part(settings, problem), rates, passes)
    n, m = problem.pictures, settings.landmarks
    wide = m + trial.features
    a_row = trial.forward + settings.probes * trial.backward
    out["map"] = n * a_row + n * m * sum(map(_pair_work, metric_rows(trial, settings).values())) / rates.rows
    out["selection"] += (n * wide**2 + STEPS * (wide**3 + 2000 * wide**2)) / rates.double
    out["system"] = 3 * n * wide**2 / rates.double + wide**3 / rates.double
    return out


def _part(settings: FitSettings, problem: Problem) -> Problem:
    """The problem whose kernels are written out."""
    return replace(problem, pictures=min(problem.pictures, max(settings.landmarks, chosen_on(problem))))


def _pair_work(layer: LayerRows) -> float:
    """Multiply-adds of the product of two pictures' rows."""
    if layer.gram == "pairs":
        return layer.positions**2 * (layer.inputs + layer.probes * layer.outputs + 30)
    return layer.width
