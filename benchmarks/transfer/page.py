"""The page of the three transfer studies and its curves, from their results: `python -m benchmarks.transfer.page`."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from benchmarks import record
from benchmarks.plots import COLOURS, MUTED, panels, styled
from benchmarks.study import publishing

TANGENT, TUNED, LAST, RBF = "tangent GP", "fine-tuning, all layers", "last layer, Bayesian", "RBF GP on features"
SHOWN = {TANGENT: COLOURS[0], TUNED: COLOURS[1], LAST: COLOURS[2], RBF: COLOURS[3], "RBF GP on x": MUTED}
BLIND = 60 / 3**0.5  # error in degrees of always guessing 0


@dataclass(frozen=True)
class Study:
    """One study: its results, what sets its size, and how its scores are shown."""

    name: str
    title: str
    size: str
    score: str
    label: str
    part: str | None = None

    @property
    def higher(self) -> bool:
        """Whether more is better."""
        return self.score == "accuracy"

    @property
    def rows(self) -> Sequence[Mapping[str, Any]]:
        """The rows of the study, or of its part."""
        rows = record.load(self.name).get("rows", [])
        return [row for row in rows if self.part in (None, row["key"].get("split"))]

    @property
    def sizes(self) -> list[int]:
        """How many examples, ascending."""
        return sorted({row["key"][self.size] for row in self.rows})

    @property
    def methods(self) -> list[str]:
        """All, in the order of the results."""
        return list(self.rows[0]["methods"])

    @property
    def runs(self) -> str:
        """How many source networks and target tasks the medians are over."""
        keys = [row["key"] for row in self.rows]
        sources = len({key["seed"] for key in keys})
        tasks = len({key.get("task", 0) for key in keys})
        each = f", {tasks} targets each" if tasks > 1 else ""
        return f"Median over {sources} source networks{each}." if sources > 1 else "One source network only."

    def values(self, method: str, size: int, score: str) -> list[float]:
        """Over seeds and tasks."""
        return [row["methods"][method][score] for row in self.rows if row["key"][self.size] == size]

    def middle(self, method: str, size: int, score: str) -> float:
        """Their median."""
        return statistics.median(self.values(method, size, score))


STUDIES = {
    "sines": Study("transfer_sines", "Sine waves", "points", "rmse", "RMSE / amplitude"),
    "near": Study("transfer_angles", "Angles, related garments", "points", "rmse", "RMSE, degrees", "near"),
    "far": Study("transfer_angles", "Angles, unlike garments", "points", "rmse", "RMSE, degrees", "far"),
    "classes": Study("transfer_classes", "CIFAR-10, five classes to five", "shots", "accuracy", "accuracy"),
}


def publish() -> None:
    """Write docs/results/transfer.md and transfer.png; the example of waves was drawn once (8ee90dc)."""
    parts = {"verdicts": "\n".join(f"- {verdict(study)}" for study in STUDIES.values())}
    for name, study in STUDIES.items():
        parts |= {name: table(study), f"runs_{name}": study.runs}
    record.write_page("transfer", __file__, parts, {"transfer": curves()}, dpi=140)


def verdict(study: Study) -> str:
    """One sentence from the numbers."""
    sign = 1 if study.higher else -1
    ranks = []
    for size in study.sizes:
        values = {m: study.middle(m, size, study.score) for m in (TANGENT, TUNED, LAST, RBF)}
        best = max(values, key=lambda m: sign * values[m])
        tangent, tuned = (_number(study, values[m]) for m in (TANGENT, TUNED))
        ranks.append(f"{size}: {tangent} against {tuned} (best: {best.split(',')[0]})")
    return f"{study.title}, {study.score} of the tangent GP against fine-tuning, at {'; '.join(ranks)}."


def table(study: Study) -> str:
    """Score and NLL of every method at every size, and seconds at the largest."""
    rows = []
    for method in study.methods:
        row = {"method": method}
        for size in study.sizes:
            row[f"{study.score}, {size}"] = _number(study, study.middle(method, size, study.score))
        for size in study.sizes:
            row[f"NLL, {size}"] = f"{study.middle(method, size, 'nll'):.2f}"
        if study.higher:
            row[f"ECE, {study.sizes[-1]}"] = f"{study.middle(method, study.sizes[-1], 'ece'):.3f}"
        row["seconds"] = f"{study.middle(method, study.sizes[-1], 'seconds'):.2f}"
        rows.append(row)
    return record.markdown_table(rows)


@styled
def curves() -> Figure:
    """Score against number of examples, one panel a study: medians, and the range between quartiles."""
    figure, axes_of = panels((11.5, 3.1), 1, len(STUDIES))
    for axes, study in zip(axes_of[0], STUDIES.values(), strict=True):
        for method, colour in SHOWN.items():
            if method in study.methods:
                _curve(axes, study, method, colour)
        if study.name == "transfer_angles":
            axes.axhline(BLIND, color=MUTED, linewidth=0.8, linestyle=":")
            axes.text(study.sizes[-1], BLIND + 0.2, "always 0", color=MUTED, fontsize=7, ha="right")
        axes.set_xscale("log")
        axes.set_xticks(study.sizes, [str(size) for size in study.sizes])
        axes.minorticks_off()
        axes.set_title(study.title, loc="left", fontsize=9)
        axes.set_xlabel("examples" if study.size == "points" else "pictures a class")
        axes.set_ylabel(study.label)
    axes_of[0, 0].set_yscale("log")
    handles = [Line2D([], [], color=colour, marker="o", label=method) for method, colour in SHOWN.items()]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles))
    return figure


def _curve(axes: Axes, study: Study, method: str, colour: str) -> None:
    values = [study.values(method, size, study.score) for size in study.sizes]
    low, middle, high = ([float(np.quantile(own, q)) for own in values] for q in (0.25, 0.5, 0.75))
    axes.fill_between(study.sizes, low, high, color=colour, alpha=0.12, linewidth=0)
    axes.plot(study.sizes, middle, "o-", color=colour, markersize=4, linewidth=1.4)


def _number(study: Study, value: float) -> str:
    return f"{value:.1f}" if study.name == "transfer_angles" else f"{value:.3f}"


if __name__ == "__main__":
    publishing(publish, __doc__)
