"""Means of the calibration study over draws, the best settings of laplace-torch, and whether the goal is met."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

from benchmarks.record import Row

FASTER = 5.0  # the goal: a fifth of the time


@final
@dataclass(frozen=True)
class Line:
    """One method on one data set.

    Attributes:
        dataset: its name.
        method: its name; for laplace-torch with its setting.
        family: "ours", "laplace" or "other".
        rows: as measured, by draw.
    """

    dataset: str
    method: str
    family: str
    rows: tuple[Row, ...]

    @property
    def nll(self) -> float:
        """Mean log-loss, which every method has."""
        return statistics.fmean(row["nll"] for row in self.rows)

    def values(self, name: str) -> list[float]:
        """A score of every draw; none where the method has none."""
        return [row[name] for row in self.rows if row[name] is not None]

    def cost(self, stage: str, name: str) -> float:
        """Median over draws of "fit" or "predict": "seconds", "cpu_seconds" or "peak_bytes"."""
        return statistics.median(row[stage][name] for row in self.rows)


@final
@dataclass(frozen=True)
class Comparison:
    """One of ours against a setting of laplace-torch on the same draws.

    Attributes:
        ours: the line of ours.
        peer: the line of laplace-torch.
        nll: our log-loss minus theirs, one a draw; below 0 is better.
        accuracy: our accuracy minus theirs, one a draw.
        speed: how many times our processor seconds they take, median over draws.
    """

    ours: Line
    peer: Line
    nll: tuple[float, ...]
    accuracy: tuple[float, ...]
    speed: float

    @property
    def met(self) -> dict[str, bool]:
        """The three parts of the goal, on the means."""
        better, level = statistics.fmean(self.nll) < 0, statistics.fmean(self.accuracy) >= 0
        return {"NLL": better, "accuracy": level, "time": self.speed >= FASTER}


def lines_of(rows: Sequence[Row]) -> list[Line]:
    """One line a method and data set, in the order in which they were measured."""
    found: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        found.setdefault((row["key"]["dataset"], row["key"]["method"]), []).append(row)
    return [
        Line(dataset, method, group[0]["family"], tuple(sorted(group, key=lambda row: row["key"]["seed"])))
        for (dataset, method), group in found.items()
    ]


def complete(lines: Sequence[Line], dataset: str, family: str) -> list[Line]:
    """Lines of a family with as many draws as any method of the data set has, best log-loss first."""
    here = [line for line in lines if line.dataset == dataset]
    most = max((len(line.rows) for line in here), default=0)
    full = [line for line in here if line.family == family and len(line.rows) == most]
    return sorted(full, key=lambda line: line.nll)


def chosen_by_validation(lines: Sequence[Line], dataset: str, network: str) -> Line | None:
    """laplace-torch as one can have it: for each draw the setting of lowest log-loss on the pictures kept aside.

    The cost is that of the chosen setting alone, not of those tried beside it.
    """
    candidates = [line for line in complete(lines, dataset, "laplace") if line.method.endswith(network)]
    if not candidates:
        return None
    by_draw = zip(*(line.rows for line in candidates), strict=True)
    rows = tuple(min(draw, key=lambda row: row["facts"]["validation_nll"]) for draw in by_draw)
    return Line(dataset, f"laplace, chosen by validation, {network}", "laplace", rows)


def compare(ours: Line, peer: Line) -> Comparison:
    """Both on the draws that both have."""
    theirs = {row["key"]["seed"]: row for row in peer.rows}
    pairs = [(row, theirs[row["key"]["seed"]]) for row in ours.rows if row["key"]["seed"] in theirs]
    return Comparison(
        ours,
        peer,
        tuple(mine["nll"] - other["nll"] for mine, other in pairs),
        tuple(mine["accuracy"] - other["accuracy"] for mine, other in pairs),
        statistics.median(other["fit"]["cpu_seconds"] / mine["fit"]["cpu_seconds"] for mine, other in pairs),
    )
