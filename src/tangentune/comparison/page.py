"""A comparison for people: a figure of accuracy against pictures and against time, and the table as a document."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator, PercentFormatter

from tangentune._files import replaced_file
from tangentune.comparison.methods import METHODS
from tangentune.comparison.plan import ALL, Shots
from tangentune.comparison.run import Comparison
from tangentune.comparison.summary import Row
from tangentune.comparison.tables import COLUMNS, notes, table_lines
from tangentune.reports.figures import PALETTE, house_style

FIGURE, DOCUMENT = "comparison.png", "comparison.md"
# Okabe and Ito's colours, told apart by nearly all eyes, each with its own mark.
_LOOKS = (("#0072b2", "o"), ("#d55e00", "s"), ("#009e73", "^"), ("#cc79a7", "D"), ("#b8860b", "v"), ("#56b4e9", "P"))


def write_files(comparison: Comparison, folder: Path) -> None:
    """Write comparison.md and comparison.png into the folder.

    Raises:
        StoreError: they cannot be written.
    """
    with replaced_file(folder / DOCUMENT) as part:
        part.write_text(document(comparison), encoding="utf-8")
    figure = comparison_figure(comparison.rows, comparison.settings)
    with replaced_file(folder / FIGURE) as part, house_style():
        figure.savefig(part, format="png", dpi=150)


def document(comparison: Comparison) -> str:
    """The comparison as Markdown: what was compared, the table, the figure and the notes."""
    settings = comparison.settings
    size = "" if settings["input_size"] is None else f" at {settings['input_size'][-1]} pixels"
    lines = [
        f"# Comparison on {settings['backbone']}{size}",
        "",
        f"{len(settings['classes'])} classes, {settings['train_pictures']:,} pictures to draw from, "
        f"{settings['test_pictures']:,} test pictures.",
        "",
        "| " + " | ".join(COLUMNS) + " |",
        "|" + "|".join(["---:", "---", *["---:"] * (len(COLUMNS) - 2)]) + "|",
    ]
    for entries in table_lines(comparison.rows):
        words = [f"**{entry.text}** \\*" if entry.best else entry.text for entry in entries]
        lines.append("| " + " | ".join(words) + " |")
    lines += ["", f"![Accuracy against pictures a class and against time]({FIGURE})", ""]
    lines += [f"- {note}" for note in notes(settings, comparison.cells, comparison.rows)]
    used = dict.fromkeys(row.method for row in comparison.rows)
    lines += ["", *[f"- `{name}`: {METHODS[name].title}" for name in used if name in METHODS], ""]
    return "\n".join(lines)


def comparison_figure(rows: Sequence[Row], settings: Mapping[str, Any]) -> Figure:
    """Accuracy against pictures a class, and against the seconds of a fit; one line a method.

    Bands and bars are standard errors over seeds. "all" stands at the mean number of pictures a class, or right of
    every other number.
    """
    names = list(dict.fromkeys(row.method for row in rows if row.means))
    places = _places([row.shots for row in rows if row.means], settings)
    with house_style():
        figure = Figure(figsize=(8.4, 3.9), layout="constrained", facecolor=PALETTE["surface"])
        left, right = figure.subplots(1, 2, sharey=True)
        for i, name in enumerate(names):
            own = [row for row in rows if row.method == name and row.means]
            colour, mark = _LOOKS[i % len(_LOOKS)]
            weight = len(names) - 1 - i  # later lines are thinner, so that those below stay visible
            look = {"color": colour, "marker": mark, "linewidth": 1.4 + 0.25 * weight, "markersize": 5 + 0.6 * weight}
            _draw_line(left, right, own, places, {**look, "label": name})
        _number_axis(left, places)
        left.set(xlabel="training pictures a class", ylabel="accuracy on the test pictures")
        left.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        right.set_xscale("log")
        right.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        right.xaxis.set_minor_locator(NullLocator())
        right.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        right.set_xlabel("seconds of a fit with all choices (numbers: pictures a class)")
        if names:
            figure.legend(*left.get_legend_handles_labels(), loc="outside upper center", ncols=6, frameon=False)
    return figure


def _draw_line(
    left: Axes, right: Axes, rows: Sequence[Row], places: Mapping[Shots, float], look: dict[str, Any]
) -> None:
    shots = np.array([places[row.shots] for row in rows])
    share = np.array([row.means["accuracy"].mean for row in rows])
    error = np.array([row.means["accuracy"].error or 0.0 for row in rows])
    seconds = np.array([row.means["seconds"].mean for row in rows])
    line = {**look, "markeredgecolor": PALETTE["surface"], "markeredgewidth": 0.6}
    left.plot(shots, share, **line)
    left.fill_between(shots, share - error, share + error, color=look["color"], alpha=0.14, linewidth=0)
    right.plot(seconds, share, **line)
    right.vlines(seconds, share - error, share + error, color=look["color"], alpha=0.45, linewidth=1)
    for row, x, y in zip(rows, seconds, share, strict=True):
        right.annotate(
            str(row.shots), (x, y), xytext=(6, -8), textcoords="offset points", fontsize=7, color=PALETTE["muted"]
        )


def _places(shots: Sequence[Shots], settings: Mapping[str, Any]) -> dict[Shots, float]:
    """Where each number of pictures stands on the axis."""
    places = {count: float(count) for count in shots if count != ALL}
    if ALL in shots:
        mean = float(np.mean(list(settings["classes"].values())))
        places[ALL] = max([mean, *(1.4 * place for place in places.values())])
    return places


def _number_axis(axes: Axes, places: Mapping[Shots, float]) -> None:
    """A logarithmic axis whose ticks are the numbers that were compared."""
    if not places:
        return
    axes.set_xscale("log")
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xticks(list(places.values()), [str(count) for count in places])
    if len(places) == 1:
        only = next(iter(places.values()))
        axes.set_xlim(only / 2, only * 2)
