"""A comparison for people: its table, the notes to judge it by, a figure of accuracy, and all of it as a document."""

from __future__ import annotations

import math
import re
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
from tangentune.comparison.store import Comparison
from tangentune.comparison.summary import Mean, Row
from tangentune.errors import nice_number
from tangentune.estimators.summary import nice_bytes, nice_seconds
from tangentune.pictures.names import some
from tangentune.reports.figures import PALETTE, house_style

COLUMNS = ("Pictures a class", "Method", "Accuracy", "NLL", "ECE", "Fit", "Peak memory", "Paired difference (points)")
FIGURE, DOCUMENT = "comparison.png", "comparison.md"
# Okabe and Ito's colours, told apart by nearly all eyes, each with its own mark.
_LOOKS = (("#0072b2", "o"), ("#d55e00", "s"), ("#009e73", "^"), ("#cc79a7", "D"), ("#b8860b", "v"), ("#56b4e9", "P"))


def write_files(comparison: Comparison, folder: Path) -> None:
    """Write comparison.md and comparison.png into the folder; a StoreError where they cannot be written."""
    with replaced_file(folder / DOCUMENT) as part:
        part.write_text(document(comparison), encoding="utf-8")
    figure = comparison_figure(comparison.rows, comparison.settings)
    with replaced_file(folder / FIGURE) as part, house_style():
        figure.savefig(part, format="png", dpi=150)


def document(comparison: Comparison) -> str:
    """The comparison as Markdown: what was compared, the table, the figure and the notes."""
    settings = comparison.settings
    size = "" if settings["input_size"] is None else f" at {settings['input_size'][-1]} pixels"
    table = [[re.sub(r"^(.*) \*$", r"**\1** \\*", entry) for entry in line] for line in table_lines(comparison.rows)]
    used = dict.fromkeys(row.method for row in comparison.rows)
    lines = [
        f"# Comparison on {settings['backbone']}{size}",
        "",
        f"{len(settings['classes'])} classes, {settings['train_pictures']:,} pictures to draw from, "
        f"{settings['test_pictures']:,} test pictures.",
        "",
        "| " + " | ".join(COLUMNS) + " |",
        "|" + "|".join(["---:", "---", *["---:"] * (len(COLUMNS) - 2)]) + "|",
        *[f"| {' | '.join(line)} |" for line in table],
        *["", f"![Accuracy against pictures a class and against time]({FIGURE})", ""],
        *[f"- {note}" for note in notes(comparison)],
        *["", *[f"- `{name}`: {METHODS[name].title}" for name in used if name in METHODS], ""],
    ]
    return "\n".join(lines)


def table_lines(rows: Sequence[Row]) -> list[list[str]]:
    """One line a row, one entry a column of `COLUMNS`; after the best a star; each number of pictures stands once."""
    lines, last = [], None
    for row in rows:
        line = ["" if row.shots == last else str(row.shots), row.method]
        last, means = row.shots, row.means
        if means:
            shown = {"accuracy": f"{with_error(means['accuracy'], 1, 100)} %", "nll": with_error(means["nll"], 3)}
            shown["ece"] = f"{with_error(means['ece'], 1, 100)} %"
            line += [f"{text} *" if score in row.best else text for score, text in shown.items()]
            time = means["seconds"].mean
            fit = f"{with_error(means['seconds'], 2 if time < 1 else 1)} s" if time < 60 else nice_seconds(time)
            line += [fit, nice_bytes(means["peak_bytes"].mean), _difference(row)]
        lines.append(line if means else [*line, "failed", *[""] * (len(COLUMNS) - 3)])
    return lines


def with_error(value: Mean, digits: int, factor: float = 1.0) -> str:
    """A mean with its standard error, both times `factor`, such as "50.0 ± 1.0"."""
    error = "" if value.error is None else f" ± {factor * value.error:.{digits}f}"
    return f"{factor * value.mean:.{digits}f}{error}"


def _difference(row: Row) -> str:
    found = row.difference
    if found is None:
        return ""
    draws = "" if found.error_draws is None else f" ± {100 * found.error_draws:.1f}"
    return f"{100 * found.mean:+.1f}{draws} ± {100 * found.error_tests:.1f} on {found.other}"


def notes(comparison: Comparison) -> list[str]:
    """Sentences on the test part, the errors, time and memory, small classes and failures."""
    settings, cells, rows = comparison.settings, comparison.cells, comparison.rows
    before = [cell.before_bytes for cell in cells if cell.before_bytes is not None]
    sentences = [_test(settings, rows), _errors(rows), _costs(settings, before) if before else ""]
    sentences.append(_small_classes(settings["classes"], [row.shots for row in rows]))
    for row in rows:
        place = (row.method, row.shots)
        failed = len({cell.seed for cell in cells if cell.failed is not None and cell.key[:2] == place})
        if failed:
            of = failed + len(row.seeds)
            reasons = "; ".join(reason.rstrip(".") for reason in row.failures)
            sentences.append(f"{row.method}, {row.shots} a class: {failed} of {of} seeds failed: {reasons}.")
    return [sentence for sentence in sentences if sentence]


def _test(settings: Mapping[str, Any], rows: Sequence[Row]) -> str:
    n, share = settings["test_pictures"], settings["test_share"]
    origin = (
        "given apart" if share is None else f"{nice_number(100 * share)} % of each class, set aside before every draw"
    )
    text = f"Scored on the same {n:,} test pictures throughout ({origin})."
    measured = [row.means["accuracy"].mean for row in rows if row.means]
    if measured:
        middle = float(np.median(measured))
        points = 100 * math.sqrt(middle * (1 - middle) / n)  # binomial: n independent pictures
        text += (
            f" Their number alone gives an accuracy of {100 * middle:.0f} % a standard error of {points:.1f} points."
        )
    if settings["shared_pictures"]:
        text += f" {settings['shared_pictures']} of them are also training pictures, so all accuracies are optimistic."
    return text


def _errors(rows: Sequence[Row]) -> str:
    several = sorted({len(row.seeds) for row in rows if len(row.seeds) > 1})
    parts = []
    if several:
        how_many = " or ".join(map(str, several))
        parts.append(f"± is the standard error over {how_many} seeds, each with its own draw of training pictures.")
    if any(row.best for row in rows):
        parts.append("* marks the best of the methods with as many pictures.")
    if any(row.difference for row in rows):
        errors = "± over the draws, then ± over the test pictures" if several else "± over the test pictures"
        parts.append(
            f"The last column is the accuracy less that of the best other method, on the same pictures: {errors}."
        )
    return " ".join(parts)


def _costs(settings: Mapping[str, Any], before: Sequence[int]) -> str:
    threads = settings["threads"]
    where = f"on {settings['device']} with {threads} thread{'' if threads == 1 else 's'}"
    text = f"Time and memory are those of the fit with every choice it makes, {where}; "
    if settings["peak_of"] != "each fit":
        return f"{text}this system cannot reset the peak of memory, so it is that of all cells so far."
    held = " to ".join(dict.fromkeys((nice_bytes(min(before)), nice_bytes(max(before)))))
    return f"{text}{held} of the memory was held before it began."


def _small_classes(counts: Mapping[str, int], shots: Sequence[Shots]) -> str:
    highest = max((int(count) for count in shots if count != ALL), default=0)
    small = [f"{name} has {count}" for name, count in counts.items() if count < highest]
    if not small:
        return ""
    return f"Classes with fewer training pictures than asked for give all they have: {some(small, 8)}."


def comparison_figure(rows: Sequence[Row], settings: Mapping[str, Any]) -> Figure:
    """Accuracy against pictures a class and against the seconds of a fit, one line a method, with standard errors."""
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
    small: dict[str, Any] = {"textcoords": "offset points", "fontsize": 7, "color": PALETTE["muted"]}
    for row, x, y in zip(rows, seconds, share, strict=True):
        right.annotate(str(row.shots), (x, y), xytext=(6, -8), **small)


def _places(shots: Sequence[Shots], settings: Mapping[str, Any]) -> dict[Shots, float]:
    """Where each number of pictures stands on the axis: "all" at the mean of the classes, or right of every other."""
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
