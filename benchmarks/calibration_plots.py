"""Figures of the calibration study."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.calibration_summary import Line, complete
from benchmarks.plots import COLOURS, MUTED, STYLE

FAMILIES = {"ours": COLOURS[0], "laplace": COLOURS[1], "other": MUTED}
LABELS = {"ours": "tangentune", "laplace": "laplace-torch", "other": "fine-tuning, linear probe"}
MARKERS = {"ours": "o", "laplace": "D", "other": "s"}


def cost_figure(lines: Sequence[Line], datasets: Sequence[str]) -> Figure:
    """Log-loss against processor seconds of the fit, a panel a data set; every complete setting is a dot."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(7.6, 2.9 * ((len(datasets) + 1) // 2) + 0.5), layout="constrained")
        panels = list(figure.subplots((len(datasets) + 1) // 2, 2, squeeze=False).flat)
        for axes in panels[len(datasets) :]:
            axes.set_axis_off()
        for axes, dataset in zip(panels, datasets, strict=False):
            for family, colour in FAMILIES.items():
                for line in complete(lines, dataset, family):
                    _dot(axes, line, family, colour)
            axes.set_xscale("log")
            axes.set_yscale("log")
            axes.set_title(dataset.replace("_", " "), loc="left", fontsize=9)
            axes.set_xlabel("processor seconds of the fit")
            axes.set_ylabel("test log-loss")
        handles = [
            figure.axes[0].plot([], [], MARKERS[family], color=colour, markersize=5, label=LABELS[family])[0]
            for family, colour in FAMILIES.items()
        ]
        figure.legend(handles=handles, loc="outside lower center", ncols=3)
        return figure


def _dot(axes: Axes, line: Line, family: str, colour: str) -> None:
    seconds, value = line.cost("fit", "cpu_seconds"), line.nll
    size = 3 if family == "laplace" else 6
    axes.plot(
        seconds, value, MARKERS[family], color=colour, markersize=size, alpha=0.6 if family == "laplace" else 0.95
    )


def foreign_figure(lines: Sequence[Line], datasets: Sequence[str]) -> Figure:
    """How well foreign pictures are told apart: the best score each method has, with the one used as the colour."""
    kinds = {"auroc_probability": "top probability", "auroc_entropy": "entropy", "auroc_own": "its own score"}
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(9.2, 3.4), layout="constrained")
        panels = figure.subplots(1, max(len(datasets), 1), squeeze=False, sharey=True)[0]
        shown = {dataset: dict(_shown(lines, dataset)) for dataset in datasets}
        names = list(max(shown.values(), key=len, default={}))[::-1]
        names = [name for found in shown.values() for name in found if name not in names] + names
        for axes, dataset in zip(panels, datasets, strict=False):
            for height, line in ((names.index(name), line) for name, line in shown[dataset].items()):
                for shift, (kind, colour) in enumerate(zip(kinds, COLOURS, strict=False)):
                    value = line.mean(kind)
                    if value is not None:
                        axes.plot(value, height + 0.16 * (1 - shift), "o", color=colour, markersize=4.5)
            axes.set_title(dataset.replace("_", " "), loc="left", fontsize=9)
            axes.set_yticks(range(len(names)), names)
            axes.set_xlabel("AUROC")
        handles = [
            panels[0].plot([], [], "o", color=colour, markersize=4.5, label=name)[0]
            for name, colour in zip(kinds.values(), COLOURS, strict=False)
        ]
        figure.legend(handles=handles, loc="outside lower center", ncols=3)
        return figure


def _shown(lines: Sequence[Line], dataset: str) -> list[tuple[str, Line]]:
    """A few methods, the same on every data set: ours, the usual ones, and the best of laplace-torch."""
    ours = sorted(complete(lines, dataset, "ours"), key=lambda line: line.method)
    others = {line.method: line for line in complete(lines, dataset, "other")}
    usual = ["linear probe", "fine-tuning, refit", "fine-tuning + temperature, refit"]
    shown = [(line.method, line) for line in ours] + [(name, others[name]) for name in usual if name in others]
    best = complete(lines, dataset, "laplace")[:1]
    return shown + [("laplace, best NLL", line) for line in best]
