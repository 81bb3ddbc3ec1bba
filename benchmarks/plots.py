"""Figures of the accuracy and the honesty studies, as matplotlib `Figure` objects."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

INK, MUTED, GRID = "#1b2733", "#5f6f80", "#dde4ea"
COLOURS = ("#2563c4", "#c9640f", "#2f8a5b", "#8a4fb0", "#5f6f80")
STYLE: dict[Any, Any] = {
    "font.size": 9,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": GRID,
    "xtick.color": MUTED,
    "ytick.color": INK,
    "text.color": INK,
    "legend.frameon": False,
}


def accuracy_figure(summary: Sequence[Mapping[str, Any]]) -> Figure:
    """Held-out accuracy of each method as a dot with its spread over seeds, leave-one-out accuracy as a ring.

    Args:
        summary: lines with `shots`, `method`, `accuracy`, `accuracy_std` and `loo_accuracy` (None where unknown).
    """
    all_shots = sorted({line["shots"] for line in summary}) or [0]
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(4.4 * len(all_shots), 2.9), layout="constrained")
        for axes, shots in zip(figure.subplots(1, len(all_shots), squeeze=False)[0], all_shots, strict=True):
            lines = [line for line in summary if line["shots"] == shots][::-1]
            for height, line in enumerate(lines):
                colour = COLOURS[1] if line["method"].startswith("fine") else COLOURS[0]
                colour = MUTED if line["method"].startswith("linear") else colour
                axes.errorbar(
                    line["accuracy"], height, xerr=line["accuracy_std"] or 0, fmt="o", color=colour, capsize=3
                )
                if line["loo_accuracy"] is not None:
                    axes.plot(line["loo_accuracy"], height, "o", color=colour, markerfacecolor="none", markersize=9)
            axes.set_yticks(range(len(lines)), [line["method"] for line in lines])
            axes.set_ylim(-0.6, len(lines) - 0.4)
            axes.set_title(f"{shots} pictures a class", loc="left", fontsize=9)
            axes.set_xlabel("accuracy; dot: test, ring: leave-one-out")
        return figure


def honesty_figure(rows: Sequence[Mapping[str, Any]], methods: Sequence[str]) -> Figure:
    """Leave-one-out against held-out squared error, one dot a split: dots below the diagonal are optimistic.

    Args:
        rows: one a split, with `key` (`dataset`, `n`) and `methods`: name -> `loo_error` and `held_out_error`.
        methods: which to show, one panel each.
    """
    datasets = list(dict.fromkeys(row["key"]["dataset"] for row in rows))
    sizes = sorted({row["key"]["n"] for row in rows})
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(2.4 * len(methods), 3.6), layout="constrained")
        panels = figure.subplots(1, len(methods), squeeze=False, sharex=True, sharey=True)[0]
        for axes, method in zip(panels, methods, strict=True):
            for row in rows:
                if method not in row["methods"]:
                    continue
                point = row["methods"][method]
                colour, size = COLOURS[datasets.index(row["key"]["dataset"])], 3 + 2 * sizes.index(row["key"]["n"])
                axes.plot(point["held_out_error"], point["loo_error"], "o", color=colour, markersize=size, alpha=0.65)
            axes.axline((0.4, 0.4), slope=1, color=MUTED, linewidth=0.8)
            axes.set_title(method, loc="left", fontsize=9)
            axes.set_xlabel("held-out")
            axes.set_aspect("equal", adjustable="box")
        points = [point for row in rows for name, point in row["methods"].items() if name in methods]
        top = 1.05 * max((p[key] for p in points for key in ("held_out_error", "loo_error")), default=1.0)
        panels[0].set(xlim=(0, top), ylim=(0, top), ylabel="leave-one-out")
        handles = [panels[0].plot([], [], "o", color=c, label=d)[0] for c, d in zip(COLOURS, datasets, strict=False)]
        figure.legend(
            handles=handles,
            loc="outside lower center",
            ncols=len(datasets),
            title="squared error; larger dot: more pictures",
        )
        return figure


def bias_figure(summary: Sequence[Mapping[str, Any]], methods: Sequence[str]) -> Figure:
    """Relative bias of the leave-one-out squared error for each method and data set, with two standard errors."""
    datasets = list(dict.fromkeys(line["dataset"] for line in summary))
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(6.4, 3.2), layout="constrained")
        axes = figure.subplots()
        for shift, dataset in enumerate(datasets):
            for place, method in enumerate(methods):
                for line in summary:
                    if line["dataset"] == dataset and line["method"] == method:
                        x, scale = place + 0.13 * (shift - (len(datasets) - 1) / 2), 100 / line["held_out_error"]
                        bars = 2 * scale * line["bias_standard_error"]
                        axes.errorbar(x, scale * line["bias"], yerr=bars, fmt="o", color=COLOURS[shift], capsize=3)
        axes.axhline(0, color=MUTED, linewidth=0.8)
        axes.set_xticks(range(len(methods)), methods)
        axes.set_ylabel("bias of squared LOO error, %\n(below 0: optimistic)")
        handles = [axes.plot([], [], "o", color=c, label=d)[0] for c, d in zip(COLOURS, datasets, strict=False)]
        figure.legend(handles=handles, loc="outside lower center", ncols=len(datasets))
        return figure
