"""Page and plot of the cleaning study: `python -m benchmarks.cleaning.page`."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure

from benchmarks import record
from benchmarks.plots import COLOURS, MUTED, panels, styled
from benchmarks.record import Row
from benchmarks.study import mean_each, mean_error, publishing

NAME = "cleaning"
DATASETS = {"traffic lights": "lights", "CIFAR-10": "cifar10"}  # in the rows, and in page.md
SEEDS, LOOKS, EVERY = (0, 1, 2), 200, 10
SHOWN = (50, 100, 150, 200)  # looks, in the tables


def publish() -> None:
    """docs/results/cleaning.md and .png."""
    rows, parts, curves = record.load(NAME)["rows"], {}, {}
    for dataset, short in DATASETS.items():
        own = [row for row in rows if row["key"]["dataset"] == dataset]
        curves[dataset] = {name: gathered(own, name) for name in own[0]["methods"]}
        parts[f"start_{short}"] = mean_each([row["methods"]["ours"]["accuracy"][0] for row in own])
        parts[f"clean_{short}"] = mean_each([row["accuracy_clean"] for row in own])
        parts[f"test_{short}"] = f"{own[0]['test']:,}"
        parts[f"found_{short}"] = table(curves[dataset], "corrected", ".1f")
        parts[f"accuracy_{short}"] = table(curves[dataset], "accuracy", ".3f")
        parts[f"seconds_{short}"] = seconds(own)
    record.write_page(NAME, __file__, parts, {NAME: figure(curves)}, dpi=150)


def gathered(rows: Sequence[Row], method: str) -> dict[str, np.ndarray]:
    """(seeds, looks / 10 + 1) labels corrected, and accuracy."""
    return {what: np.array([row["methods"][method][what] for row in rows]) for what in ("corrected", "accuracy")}


def table(methods: Mapping[str, Mapping[str, np.ndarray]], what: str, spec: str) -> str:
    """A line a method: mean and standard error over seeds after so many looks."""
    lines = []
    for name, found in methods.items():
        cells = {f"{looks} looks": mean_error(found[what][:, looks // EVERY].tolist(), spec) for looks in SHOWN}
        lines.append({"list": name} | cells)
    return record.markdown_table(lines)


def seconds(rows: Sequence[Row]) -> str:
    """What an oracle waited for its lists, in all; last, what refits from the pictures would have cost."""
    fit, lines = statistics.fmean(row["fit_seconds"] for row in rows), []
    for name in rows[0]["methods"]:
        waited = statistics.fmean(row["methods"][name]["waited_seconds"] for row in rows)
        whole = f"{LOOKS // EVERY * 5 * fit:,.0f}" if name.startswith("cleanlab") else "-"
        refreshed = {"ours": 1}.get(name, EVERY if name.startswith("cleanlab") else None)
        often = "never" if refreshed is None else f"every {refreshed} looks" if refreshed > 1 else "every look"
        lines.append({"list": name, "refreshed": often, "s waited": f"{waited:.1f}", "s with whole refits": whole})
    return f"{record.markdown_table(lines)}\n\nOne whole fit took {fit:.1f} s."


@styled
def figure(curves: Mapping[str, Mapping[str, Mapping[str, np.ndarray]]]) -> Figure:
    """Mean accuracy on clean test pictures, and below it the labels corrected, against looks."""
    figure, axes_of = panels((4.2 * len(curves), 5.4), 2, len(curves), sharex=True)
    looks = np.arange(0, LOOKS + 1, EVERY)
    for column, (dataset, methods) in enumerate(curves.items()):
        for place, (name, found) in enumerate(methods.items()):
            style = {"color": COLOURS[place], "linewidth": 1.6, "label": name}
            for axes, what in zip(axes_of[:, column], ("accuracy", "corrected"), strict=True):
                axes.plot(looks, found[what].mean(0), "-" if name.startswith("ours") else "--", **style)
        axes_of[1, column].plot([0, 100, LOOKS], [0, 100, 100], ":", color=MUTED, linewidth=1)
        axes_of[0, column].set_title(dataset, loc="left", fontsize=9)
        axes_of[1, column].set_xlabel("pictures looked at")
    axes_of[0, 0].set_ylabel("accuracy, clean test pictures")
    axes_of[1, 0].set_ylabel("wrong labels corrected")
    handles, names = axes_of[0, 0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=3)
    return figure


if __name__ == "__main__":
    publishing(publish, __doc__)
