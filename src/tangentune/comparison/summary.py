"""A measurement, and what many say together: means over seeds with standard errors, the best, paired differences."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, final

import numpy as np
from numpy.typing import NDArray

from tangentune.comparison.plan import Shots, shots_order

SCORES = ("accuracy", "nll", "ece", "brier")
COSTS = ("seconds", "cpu_seconds", "predict_seconds", "peak_bytes", "before_bytes")


@final
@dataclass(frozen=True)
class Cell:
    """One measurement: what one method did with one draw of training pictures.

    Attributes:
        method: its name in `tangentune.comparison.methods.METHODS`.
        shots: pictures asked for of every class, or "all".
        seed: of the draw and of the method.
        n: training pictures it got, all classes together.
        failed: why there is no result; None where there is one.
        scores: accuracy, nll, ece and brier on the test pictures; empty if it failed.
        right: which test pictures it got right, as hexadecimal bits (see `right_pictures`).
        seconds: wall time of the fit with every choice it makes, without reading pictures and predicting.
        cpu_seconds: processor time of the same, all threads together.
        predict_seconds: wall time for all test pictures.
        peak_bytes: highest memory during the fit, all that the process (or the accelerator) holds.
        before_bytes: of these, held before the fit began: interpreter, network, all pictures.
        chosen: what the method chose.
        notes: warnings it gave.
    """

    method: str
    shots: Shots
    seed: int
    n: int
    failed: str | None = None
    scores: dict[str, float] = field(default_factory=dict)
    right: str = ""
    seconds: float | None = None
    cpu_seconds: float | None = None
    predict_seconds: float | None = None
    peak_bytes: int | None = None
    before_bytes: int | None = None
    chosen: dict[str, Any] = field(default_factory=dict)
    notes: Sequence[str] = ()

    @property
    def key(self) -> tuple[str, Shots, int]:
        """What tells it from other cells of the same comparison."""
        return self.method, self.shots, self.seed


@final
@dataclass(frozen=True)
class Mean:
    """A mean over seeds and its standard error (None from one seed)."""

    mean: float
    error: float | None


Means = dict[str, Mean]  # of scores and costs, by name


@final
@dataclass(frozen=True)
class Difference:
    """Accuracy less that of another method, on the same draws and the same test pictures, as a share."""

    other: str
    mean: float  # over the seeds that both have
    error_draws: float | None  # its standard error over the draws of training pictures; None from one seed
    error_tests: float  # and over the test pictures, paired: the spread of each picture's mean difference


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
    means: Means
    best: tuple[str, ...]
    difference: Difference | None
    failures: tuple[str, ...]


def pack_right(right: NDArray[np.bool_]) -> str:
    """Which of n pictures are right, as hexadecimal text of n / 4 letters; `right_pictures` reads it."""
    return np.packbits(right).tobytes().hex()


def right_pictures(text: str, n: int) -> NDArray[np.float64]:
    """(n,) 1 for each picture that is right and 0 for the others, from what `pack_right` wrote."""
    return np.unpackbits(np.frombuffer(bytes.fromhex(text), np.uint8), count=n).astype(np.float64)


def mean_over_seeds(values: Sequence[float]) -> Mean:
    """Mean and standard error `s / sqrt(k)` of k values, s with k - 1 in the denominator."""
    array = np.asarray(values, np.float64)
    error = float(array.std(ddof=1)) / math.sqrt(len(array)) if len(array) > 1 else None
    return Mean(float(array.mean()), error)


def summarise_cells(cells: Sequence[Cell], order: Sequence[str], n_test: int) -> tuple[Row, ...]:
    """Rows in the order of the numbers of pictures, then of the methods as named; those not named come last."""
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


def _means(cells: Sequence[Cell]) -> Means:
    if not cells:
        return {}
    means = {score: mean_over_seeds([cell.scores[score] for cell in cells]) for score in SCORES}
    return means | {cost: mean_over_seeds([getattr(cell, cost) for cell in cells]) for cost in COSTS}


def _is_best(score: str, name: str, means: dict[str, Means]) -> bool:
    sign = 1 if score == "accuracy" else -1  # the others are losses
    values = {other: sign * found[score].mean for other, found in means.items() if found}
    return len(values) > 1 and name in values and values[name] == max(values.values())


def _difference(name: str, done: dict[str, list[Cell]], means: dict[str, Means], n_test: int) -> Difference | None:
    own = {cell.seed: cell for cell in done[name]}
    rivals = [other for other in done if other != name and own.keys() & {cell.seed for cell in done[other]}]
    if not rivals:
        return None
    best = max(rivals, key=lambda other: means[other]["accuracy"].mean)
    pairs = [(own[cell.seed], cell) for cell in done[best] if cell.seed in own]
    over_seeds = mean_over_seeds([a.scores["accuracy"] - b.scores["accuracy"] for a, b in pairs])
    right = [right_pictures(a.right, n_test) - right_pictures(b.right, n_test) for a, b in pairs]
    over_pictures = mean_over_seeds(np.mean(right, axis=0).tolist())
    return Difference(best, over_seeds.mean, over_seeds.error, over_pictures.error or 0.0)
