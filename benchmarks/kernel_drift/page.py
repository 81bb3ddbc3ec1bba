"""Page and plot of the drift of the tangent kernel: `python -m benchmarks.kernel_drift.page`."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from benchmarks import record
from benchmarks.plots import COLOURS, MUTED, panels, styled
from benchmarks.record import Row
from benchmarks.study import mean_spread, read_arguments, study_parser

NAME, TEST = "kernel_drift", 1000
COLUMNS = {
    "head_to_start": "head kernel to start", "body_to_start": "body kernel to start",
    "head_to_labels": "head to labels",
    "body_to_labels": "body to labels", "body_to_labels_train": "body to labels, training pictures",
    "tuned": "accuracy: fine-tuned", "probe": "ridge probe on its features", "linear": "linear model, same path",
}  # fmt: skip
LINES = {  # above: alignments; below: accuracies
    "head_to_start": (COLOURS[0], "--"), "body_to_start": (COLOURS[0], "-"),
    "head_to_labels": (COLOURS[1], "--"), "body_to_labels": (COLOURS[1], "-"),
    "tuned": (COLOURS[1], "o-"), "probe": (MUTED, "o-"), "linear": (COLOURS[0], "o-"),
}  # fmt: skip


def publish() -> None:
    """Write page and figure."""
    groups: dict[int, dict[int, list[Row]]] = {}  # shots -> epochs -> rows
    for row in sorted(record.load(NAME)["rows"], key=lambda row: (row["key"]["shots"], row["key"]["epochs"])):
        if row["key"]["test"] == TEST:
            groups.setdefault(row["key"]["shots"], {}).setdefault(row["key"]["epochs"], []).append(row)
    findings, table = [], []
    for shots, path in groups.items():
        last = list(path)[-1]
        findings.append(f"- {shots} pictures a class, {last} epochs: {finding(path[min(path)], path[last])}.")
        for epochs, group in path.items():
            cells = {title: mean_spread([row[name] for row in group]) for name, title in COLUMNS.items()}
            table.append({"shots": shots, "epochs": epochs, "seeds": len(group), **cells})
    parts = {"findings": "\n".join(findings), "table": record.markdown_table(table)}
    record.write_page(NAME, __file__, parts, {NAME: figure(groups)})


def mean(group: Sequence[Row], name: str) -> float:
    """Over seeds."""
    return statistics.fmean(row[name] for row in group)


def finding(first: Sequence[Row], last: Sequence[Row]) -> str:
    """The ends of the path in words."""
    labels = f"{mean(first, 'body_to_labels'):.2f} to {mean(last, 'body_to_labels'):.2f}"
    tuned, probe, linear = (f"{100 * mean(last, name):.1f} %" for name in ("tuned", "probe", "linear"))
    return (
        f"the body kernel keeps an alignment of {mean(last, 'body_to_start'):.2f} with its start, its alignment with "
        f"labels goes from {labels} on pictures kept out; accuracy: fine-tuned {tuned}, a probe on its features "
        f"{probe}, the linear model along the same path {linear} (start: {100 * mean(first, 'tuned'):.1f} %)"
    )


@styled
def figure(groups: dict[int, dict[int, list[Row]]]) -> Figure:
    """Alignments above, accuracies below, against epochs; a column for each number of pictures a class."""
    figure, axes_of = panels((4.4 * len(groups), 5.4), 2, len(groups), sharex=True, sharey="row")
    for (above, below), (shots, path) in zip(axes_of.T, groups.items(), strict=True):
        place = np.sqrt(list(path))  # the start is where most happens
        for name, (colour, style) in LINES.items():
            axes = below if style == "o-" else above
            values = [mean(group, name) for group in path.values()]
            label = COLUMNS[name].removeprefix("accuracy: ")
            axes.plot(place, values, style, markersize=3, color=colour, label=label)
        below.set_xticks(place, [str(k) for k in path])
        below.set_xlabel("epochs (square-root scale)")
        above.set_title(f"{shots} pictures a class", loc="left")
    for axes, words in zip(axes_of[:, 0], ("centred alignment, held-out pictures", "test accuracy"), strict=True):
        axes.set_ylabel(words)
    for axes in axes_of[:, -1]:
        axes.legend(fontsize=7)
    return figure


if __name__ == "__main__":
    read_arguments(study_parser(__doc__))
    publish()
