"""What the cells say together: means over seeds with their standard errors, the best, and paired differences."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import numpy as np

from tangentune.comparison.cell import Cell, right_pictures
from tangentune.comparison.plan import Shots, shots_order

SCORES = ("accuracy", "nll", "ece", "brier")
COSTS = ("seconds", "cpu_seconds", "predict_seconds", "peak_bytes", "before_bytes")
HIGHER_IS_BETTER = {"accuracy": True, "nll": False, "ece": False, "brier": False}


@final
@dataclass(frozen=True)
class Mean:
    """A mean over seeds and its standard error (None from one seed)."""

    mean: float
    error: float | None


@final
@dataclass(frozen=True)
class Difference:
    """Accuracy less that of another method, on the same draws and the same test pictures.

    Attributes:
        other: the other method.
        mean: mean difference over the seeds that both have, as a share.
        error_draws: its standard error over the draws of training pictures; None from one seed.
        error_tests: its standard error over the test pictures, paired: the spread over pictures of each
            picture's mean difference.
    """

    other: str
    mean: float
    error_draws: float | None
    error_tests: float


@final
@dataclass(frozen=True)
class Row:
    """One method at one number of pictures a class.

    Attributes:
        method: its name.
        shots: pictures asked for of every class, or "all".
        n: training pictures of a draw.
        seeds: seeds with a result.
        means: score or cost -> mean over these seeds.
        best: the scores in which it is the best of the methods with as many pictures, or level with it.
        difference: against the best other method; None where there is no other.
        failures: reasons of the seeds that failed, each once.
    """

    method: str
    shots: Shots
    n: int
    seeds: tuple[int, ...]
    means: dict[str, Mean]
    best: tuple[str, ...]
    difference: Difference | None
    failures: tuple[str, ...]


def mean_over_seeds(values: Sequence[float]) -> Mean:
    """Mean and standard error `s / sqrt(k)` of k values, s with k - 1 in the denominator.

    Example:
        >>> mean_over_seeds([1.0, 3.0])
        Mean(mean=2.0, error=1.0)
    """
    array = np.asarray(values, np.float64)
    error = float(array.std(ddof=1)) / math.sqrt(len(array)) if len(array) > 1 else None
    return Mean(float(array.mean()), error)


def summarise_cells(cells: Sequence[Cell], order: Sequence[str], n_test: int) -> tuple[Row, ...]:
    """Rows in the order of the numbers of pictures, then of the methods.

    Args:
        cells: of one comparison.
        order: names of methods in the order wanted; those not named come last.
        n_test: test pictures.
    """
    place = {name: i for i, name in enumerate(order)}
    rows = []
    for shots in sorted({cell.shots for cell in cells}, key=shots_order):
        groups: dict[str, list[Cell]] = {}
        for cell in sorted(cells, key=lambda cell: (place.get(cell.method, len(place)), cell.method, cell.seed)):
            if cell.shots == shots:
                groups.setdefault(cell.method, []).append(cell)
        rows += _rows(shots, groups, n_test)
    return tuple(rows)


def _rows(shots: Shots, groups: dict[str, list[Cell]], n_test: int) -> list[Row]:
    done = {name: [cell for cell in cells if cell.failed is None] for name, cells in groups.items()}
    means = {name: _means(cells) for name, cells in done.items()}
    return [
        Row(
            method=name,
            shots=shots,
            n=cells[0].n,
            seeds=tuple(cell.seed for cell in done[name]),
            means=means[name],
            best=tuple(score for score in SCORES if _is_best(score, name, means)),
            difference=_difference(name, done, means, n_test),
            failures=tuple(dict.fromkeys(cell.failed for cell in cells if cell.failed is not None)),
        )
        for name, cells in groups.items()
    ]


def _means(cells: Sequence[Cell]) -> dict[str, Mean]:
    if not cells:
        return {}
    means = {score: mean_over_seeds([cell.scores[score] for cell in cells]) for score in SCORES}
    for cost in COSTS:
        means[cost] = mean_over_seeds([getattr(cell, cost) for cell in cells])
    return means


def _is_best(score: str, name: str, means: dict[str, dict[str, Mean]]) -> bool:
    sign = 1 if HIGHER_IS_BETTER[score] else -1
    values = {other: sign * found[score].mean for other, found in means.items() if found}
    return len(values) > 1 and name in values and values[name] == max(values.values())


def _difference(
    name: str, done: dict[str, list[Cell]], means: dict[str, dict[str, Mean]], n_test: int
) -> Difference | None:
    own = {cell.seed: cell for cell in done[name]}
    rivals = [other for other in done if other != name and own.keys() & {cell.seed for cell in done[other]}]
    if not rivals:
        return None
    best = max(rivals, key=lambda other: means[other]["accuracy"].mean)
    pairs = [(own[cell.seed], cell) for cell in done[best] if cell.seed in own]
    over_seeds = mean_over_seeds([a.scores["accuracy"] - b.scores["accuracy"] for a, b in pairs])
    right = [right_pictures(a.right, n_test) * 1.0 - right_pictures(b.right, n_test) for a, b in pairs]
    over_pictures = mean_over_seeds(np.mean(right, axis=0).tolist())
    return Difference(best, over_seeds.mean, over_seeds.error, over_pictures.error or 0.0)
