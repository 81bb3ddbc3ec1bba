"""Page and figures of the calibration study: `python -m benchmarks.calibration.page`."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

from matplotlib.figure import Figure

from benchmarks import record
from benchmarks.plots import COLOURS, MUTED, legend_below, panels, styled
from benchmarks.record import Row
from benchmarks.study import mean_error, publishing

NAME = "calibration"
SEEDS = {"cifar10": 3, "fashion_mnist": 3, "traffic_lights": 3, "plankton": 5}  # data sets, and their draws
FASTER = 5.0  # the goal: a fifth of the time
FAMILIES = {  # colour, marker, name
    "ours": (COLOURS[0], "o", "tangentune"),
    "laplace": (COLOURS[1], "D", "laplace-torch"),
    "other": (MUTED, "s", "fine-tuning, linear probe"),
}


@final
@dataclass(frozen=True)
class Line:
    """One method, "ours", "laplace" or "other", on one data set: its rows, by draw."""

    dataset: str
    method: str
    family: str
    rows: tuple[Row, ...]

    @property
    def nll(self) -> float:
        """Mean log-loss, which every method has."""
        return statistics.fmean(self.values("nll"))

    def values(self, name: str) -> list[float]:
        """A score of every draw; none where the method has none."""
        return [row[name] for row in self.rows if row[name] is not None]

    def mean(self, name: str) -> str:
        """As text."""
        return f"{statistics.fmean(own):.3f}" if (own := self.values(name)) else "-"

    def cost(self, stage: str, name: str) -> float:
        """Median over draws of "fit" or "predict": "seconds", "cpu_seconds" or "peak_bytes"."""
        return statistics.median(row[stage][name] for row in self.rows)


@final
class Comparison:
    """One of ours against a setting of laplace-torch on the draws that both have: differences, one a draw.

    `speed` is how many times our processor seconds they take, median over draws; `met` the three parts of the goal.
    """

    def __init__(self, ours: Line, peer: Line) -> None:
        theirs = {row["key"]["seed"]: row for row in peer.rows}
        pairs = [(row, theirs[row["key"]["seed"]]) for row in ours.rows if row["key"]["seed"] in theirs]
        self.ours, self.peer = ours, peer
        self.nll, self.accuracy = ([mine[name] - its[name] for mine, its in pairs] for name in ("nll", "accuracy"))
        self.speed = statistics.median(its["fit"]["cpu_seconds"] / mine["fit"]["cpu_seconds"] for mine, its in pairs)
        better, level = statistics.fmean(self.nll) < 0, statistics.fmean(self.accuracy) >= 0
        self.met = {"NLL": better, "accuracy": level, "time": self.speed >= FASTER}


@final
class Results:
    """All lines of the study, in the order in which they were measured."""

    def __init__(self, rows: Sequence[Row]) -> None:
        found: dict[tuple[str, str], list[Row]] = {}
        for row in rows:
            found.setdefault((row["key"]["dataset"], row["key"]["method"]), []).append(row)
        self.lines = [
            Line(dataset, method, group[0]["family"], tuple(sorted(group, key=lambda row: row["key"]["seed"])))
            for (dataset, method), group in found.items()
        ]
        self.datasets = [dataset for dataset in SEEDS if self.complete(dataset, "laplace")]

    def complete(self, dataset: str, family: str) -> list[Line]:
        """Lines of a family with as many draws as any method of the data set has, best log-loss first."""
        here = [line for line in self.lines if line.dataset == dataset]
        most = max((len(line.rows) for line in here), default=0)
        full = [line for line in here if line.family == family and len(line.rows) == most]
        return sorted(full, key=lambda line: line.nll)

    def chosen_by_validation(self, dataset: str, network: str) -> list[Line]:
        """laplace-torch as one can have it: for each draw the setting of lowest log-loss on the pictures kept aside.

        One line or none. The cost is that of the chosen setting alone, not of those tried beside it.
        """
        candidates = [line for line in self.complete(dataset, "laplace") if line.method.endswith(network)]
        by_draw = list(zip(*(line.rows for line in candidates), strict=True))
        rows = tuple(min(draw, key=lambda row: row["facts"]["validation_nll"]) for draw in by_draw)
        return [Line(dataset, f"laplace, chosen by validation, {network}", "laplace", rows)] if candidates else []


def publish() -> None:
    """docs/results/calibration.md and the two figures."""
    payload = record.load(NAME)
    found = Results(payload["rows"])
    best = [Comparison(found.complete(d, "ours")[0], found.complete(d, "laplace")[0]) for d in found.datasets]
    parts = {
        "goal": goal(found),
        "best": record.markdown_table([pair(each) for each in best]),
        "datasets": "\n".join(part(found, dataset) for dataset in found.datasets),
        "failed": failed(payload["groups"]),
    }
    record.write_page(NAME, __file__, parts, {NAME: cost_figure(found), f"{NAME}_foreign": foreign_figure(found)})


def goal(found: Results) -> str:
    """Of each of ours: on how many data sets each part of the goal holds.

    Against the best setting of laplace-torch by test log-loss, and against the one chosen by validation.
    """
    best: dict[str, list[Comparison]] = {}
    fair: dict[str, list[Comparison]] = {}
    for dataset in found.datasets:
        for line in found.complete(dataset, "ours"):
            best.setdefault(line.method, []).append(Comparison(line, found.complete(dataset, "laplace")[0]))
            chosen = found.chosen_by_validation(dataset, "refit")
            fair.setdefault(line.method, []).extend(Comparison(line, each) for each in chosen)

    def count(those: Sequence[Comparison], *parts: str) -> str:
        return f"{sum(all(each.met[part] for part in parts) for each in those)} of {len(those)}"

    return record.markdown_table(
        [
            {
                "ours": method,
                "lower NLL": count(those, "NLL"),
                "accuracy no lower": count(those, "accuracy"),
                "five times faster": count(those, "time"),
                "all three": count(those, "NLL", "accuracy", "time"),
                "their time / ours": " / ".join(f"{each.speed:.1f}" for each in those),
                "lower NLL than chosen by validation": count(fair[method], "NLL"),
                "and accuracy no lower": count(fair[method], "NLL", "accuracy"),
            }
            for method, those in sorted(best.items())
        ]
    )


def pair(found: Comparison) -> Row:
    """Both in one row."""
    return {
        "data": found.ours.dataset,
        "ours": found.ours.method,
        "laplace-torch": found.peer.method.removeprefix("laplace "),
        "NLL": f"{found.ours.nll:.3f} against {found.peer.nll:.3f}",
        "difference": mean_error(found.nll, "+.3f"),
        "accuracy": f"{found.ours.mean('accuracy')} against {found.peer.mean('accuracy')}",
        "difference ": mean_error(found.accuracy, "+.3f"),
        "their time / ours": f"{found.speed:.1f}",
    }


def part(found: Results, dataset: str) -> str:
    """All of ours and the others, and the best of each approximation of laplace-torch, of one data set."""
    laplace, shown = found.complete(dataset, "laplace"), {}
    for line in laplace:  # best first
        shown.setdefault(line.rows[0]["facts"]["approximation"], line)
    fair = [line for network in ("refit", "split") for line in found.chosen_by_validation(dataset, network)]
    chosen = [*found.complete(dataset, "ours"), *found.complete(dataset, "other"), *shown.values(), *fair]
    title = f"## {dataset}: {len(laplace[0].rows)} draws"
    note = f"Best predictive and network of each approximation and prior, of {len(laplace)} settings of laplace-torch."
    return "\n".join([title, "", record.markdown_table([scores(line) for line in chosen]), "", note, ""])


def scores(line: Line) -> Row:
    """One row of a table."""
    peak = max(line.cost("fit", "peak_bytes"), line.cost("predict", "peak_bytes"))
    return {
        "method": line.method,
        "accuracy": mean_error(line.values("accuracy")),
        "NLL": mean_error(line.values("nll")),
        "ECE": line.mean("ece"),
        "Brier": line.mean("brier"),
        "AUROC top": line.mean("auroc_probability"),
        "entropy": line.mean("auroc_entropy"),
        "own": line.mean("auroc_own"),
        "seconds": f"{line.cost('fit', 'cpu_seconds'):.1f}",
        "predict": f"{line.cost('predict', 'cpu_seconds'):.1f}",
        "peak GiB": f"{peak / 2**30:.2f}",
    }


def failed(groups: Sequence[Row]) -> str:
    """What laplace-torch could not do, and what it said."""
    found: dict[tuple[str, str], list[str]] = {}
    for group in groups:
        if group["failed"]:
            found.setdefault((group["key"]["group"], group["failed"]), []).append(group["key"]["dataset"])
    lines = [
        {"setting": name, "data": ", ".join(dict.fromkeys(where)), "what happened": why}
        for (name, why), where in found.items()
    ]
    return record.markdown_table(lines)


@styled
def cost_figure(found: Results) -> Figure:
    """Log-loss against processor seconds of the fit, a panel a data set; every complete setting is a dot."""
    rows = (len(found.datasets) + 1) // 2
    figure, axes_of = panels((7.6, 2.9 * rows + 0.5), rows, 2)
    for axes in list(axes_of.flat)[len(found.datasets) :]:
        axes.set_axis_off()
    for axes, dataset in zip(axes_of.flat, found.datasets, strict=False):
        for family, (colour, marker, _) in FAMILIES.items():
            size, alpha = (3, 0.6) if family == "laplace" else (6, 0.95)
            for line in found.complete(dataset, family):
                x = line.cost("fit", "cpu_seconds")
                axes.plot(x, line.nll, marker, color=colour, markersize=size, alpha=alpha)
        axes.set(xscale="log", yscale="log", xlabel="processor seconds of the fit", ylabel="test log-loss")
        axes.set_title(dataset.replace("_", " "), loc="left", fontsize=9)
    first = axes_of.flat[0]
    handles = [
        first.plot([], [], marker, color=colour, markersize=5, label=name)[0]
        for colour, marker, name in FAMILIES.values()
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=3)
    return figure


@styled
def foreign_figure(found: Results) -> Figure:
    """How well foreign pictures are told apart, by each of a method's scores."""
    kinds = {"auroc_probability": "top probability", "auroc_entropy": "entropy", "auroc_own": "its own score"}
    figure, axes_of = panels((9.2, 3.4), 1, len(found.datasets), sharey=True)
    shown = {dataset: some_methods(found, dataset) for dataset in found.datasets}
    names = list(max(shown.values(), key=len))[::-1]
    names = [name for own in shown.values() for name in own if name not in names] + names
    for axes, dataset in zip(axes_of[0], found.datasets, strict=True):
        for name, line in shown[dataset].items():
            for shift, (kind, colour) in enumerate(zip(kinds, COLOURS, strict=False)):
                own, height = line.values(kind), names.index(name) + 0.16 * (1 - shift)
                if own:
                    axes.plot(statistics.fmean(own), height, "o", color=colour, markersize=4.5)
        axes.set_title(dataset.replace("_", " "), loc="left", fontsize=9)
        axes.set_yticks(range(len(names)), names)
        axes.set_xlabel("AUROC")
    legend_below(figure, axes_of[0, 0], zip(kinds.values(), COLOURS, strict=False), markersize=4.5)
    return figure


def some_methods(found: Results, dataset: str) -> dict[str, Line]:
    """A few methods, the same on every data set: ours, the usual ones, and the best of laplace-torch."""
    ours = {line.method: line for line in sorted(found.complete(dataset, "ours"), key=lambda line: line.method)}
    others = {line.method: line for line in found.complete(dataset, "other")}
    usual = ["linear probe", "fine-tuning, refit", "fine-tuning + temperature, refit"]
    best = {"laplace, best NLL": found.complete(dataset, "laplace")[0]}
    return ours | {name: others[name] for name in usual if name in others} | best


if __name__ == "__main__":
    publishing(publish, __doc__)
