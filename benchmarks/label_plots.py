"""Figures of the studies on wrong labels and on retraining, as matplotlib `Figure` objects."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib as mpl
from matplotlib.figure import Figure

from benchmarks.plots import COLOURS, MUTED, STYLE


def recall_figure(shares: Sequence[float], curves: Mapping[str, Mapping[str, Sequence[float]]]) -> Figure:
    """Share of the wrong labels found against the share of pictures inspected, one panel a data set.

    Args:
        shares: of pictures inspected.
        curves: data set -> method -> share found at each of `shares`.
    """
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(4.2 * len(curves), 3.4), layout="constrained")
        panels = figure.subplots(1, len(curves), squeeze=False, sharey=True)[0]
        percent = [100 * share for share in shares]
        for axes, (dataset, methods) in zip(panels, curves.items(), strict=True):
            for place, (method, found) in enumerate(methods.items()):
                style = "-" if method.startswith("tangent") else "--"
                axes.plot(percent, [100 * f for f in found], style, color=COLOURS[place], label=method, linewidth=1.6)
            axes.plot([0, 10, 50], [0, 100, 100], ":", color=MUTED, linewidth=1, label="perfect")
            axes.set_title(dataset, loc="left", fontsize=9)
            axes.set(xlim=(0, 40), ylim=(0, 102), xlabel="pictures inspected, %")
        panels[0].set_ylabel("wrong labels found, %")
        handles, names = panels[0].get_legend_handles_labels()
        figure.legend(handles, names, loc="outside lower center", ncols=3)
        return figure


def retraining_figure(exact: Sequence[Sequence[float]], halves: Sequence[Sequence[float]], method: str) -> Figure:
    """Predicted against real: effects in the linearised model, and margins of fine-tuning on random halves.

    Args:
        exact: predicted and real effects, equally many.
        halves: predicted and real margins, equally many.
        method: of the predicted margins.
    """
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(8.4, 3.6), layout="constrained")
        left, right = figure.subplots(1, 2)
        left.plot(*exact, "o", color=COLOURS[0], markersize=3, alpha=0.4)
        left.axline((0, 0), slope=1, color=MUTED, linewidth=0.8)
        left.set_title("linearised model, one picture left out", loc="left", fontsize=9)
        left.set(xlabel="predicted effect on scores", ylabel="effect of solving anew")
        left.locator_params(nbins=5)
        right.plot(*halves, "o", color=COLOURS[1], markersize=3, alpha=0.35)
        right.axline((0, 0), slope=1, color=MUTED, linewidth=0.8)
        right.set_title(f"fine-tuning on random halves; {method}", loc="left", fontsize=9)
        right.set(xlabel="predicted margin, about its mean", ylabel="real margin, about its mean")
        return figure
