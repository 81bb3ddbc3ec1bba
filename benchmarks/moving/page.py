"""Tables and figure of the study of moving: `python -m benchmarks.moving.page`."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Iterator, Sequence
from itertools import product

from matplotlib.figure import Figure

from benchmarks import record
from benchmarks.plots import COLOURS, MUTED, panels, styled
from benchmarks.record import Row
from benchmarks.study import mean_error, publishing, standard_error
from tangentune.estimators.outer_steps import FAR
from tangentune.estimators.outer_steps import RUNGS as LADDER

NAME, SIZE = "moving", 96
SETS = ("cifar10", "fashion_mnist", "animals", "clip_art", "digits", "letters", "solar_cells")
NETWORKS, SHOTS = ("mobilenet_v2", "efficientnet_lite0"), (5, 10, 50)
TABLE_SEEDS, GRID_SEEDS = range(5), range(100, 106)
RUNGS = {n: ((32, 1e-4), (64, 2e-4) if n == 5 else (32, 3e-4), (96, 3e-4), (96, 6e-4)) for n in SHOTS}
COSTS, FURTHER = (10, 50, 200), 500  # pictures a class of the timings, and of one further cell


def publish() -> None:
    """Write the tables as Markdown and the figure."""
    found = record.load(NAME)
    parts = {"table": contest(found), "means": means(found), "costs": costs(found)}
    parts |= {"honesty": honesty(found), "regret": regret(found)}
    record.write_page(NAME, __file__, parts, {NAME: figure(found)})


def good(found: Row, part: str, **key: object) -> list[Row]:
    """Cells that were measured without a failure."""
    return [row for row in record.matching(found.get(part, []), **key) if "failed" not in row]


def pairs(found: Row, **key: object) -> Iterator[tuple[Row, Row]]:
    """The default and fine-tuning on the same draw."""
    other = {str(row["key"]): row for row in good(found, "table", method="finetune")}
    for row in good(found, "table", method="default", **key):
        if (its := other.get(str({**row["key"], "method": "finetune"}))) is not None:
            yield row, its


def contest(found: Row) -> str:
    """A line a set, network and number of pictures: both methods, and the difference paired by draw."""
    lines = []
    for shots, network, name in product(SHOTS, NETWORKS, SETS):
        both = list(pairs(found, shots=shots, network=network, set=name))
        if both:
            line = {"a class": shots, "network": network, "set": name, "draws": len(both)}
            lines.append(line | compared(both))
    for row, its in pairs(found, shots=FURTHER):
        line = {"a class": FURTHER, "network": row["key"]["network"], "set": row["key"]["set"], "draws": 1}
        lines.append(line | compared([(row, its)]))
    return record.markdown_table(lines)


def compared(both: Sequence[tuple[Row, Row]]) -> Row:
    """Means of both, and of their differences with one standard error."""
    out: Row = {}
    for title, score, spec in (("accuracy", "accuracy", ".3f"), ("log-loss", "nll", ".3f")):
        ours, its = ([row[score] for row in rows] for rows in zip(*both, strict=True))
        out |= {f"{title}, default": format(statistics.fmean(ours), spec)}
        out |= {f"{title}, fine-tuning": format(statistics.fmean(its), spec)}
        scale, spec = (100, "+.1f") if score == "accuracy" else (1, "+.3f")
        gaps = [scale * (a - b) for a, b in zip(ours, its, strict=True)]
        out[f"{title}, difference"] = mean_error(gaps, spec)
    return out


def means(found: Row) -> str:
    """A line a number of pictures: mean differences over sets and networks, and the worst cell."""
    lines = []
    for shots in SHOTS:
        cells = [
            list(pairs(found, shots=shots, network=network, set=name)) for network, name in product(NETWORKS, SETS)
        ]
        cells = [cell for cell in cells if cell]
        if not cells:
            continue
        gaps = [[100 * (a["accuracy"] - b["accuracy"]) for a, b in cell] for cell in cells]
        losses = [statistics.fmean(a["nll"] - b["nll"] for a, b in cell) for cell in cells]
        beyond = [-statistics.fmean(gap) - (standard_error(gap) if len(gap) > 1 else 0.0) for gap in gaps]
        own = [statistics.fmean(gap) for gap in gaps]
        lines.append({
            "a class": shots, "cells": len(cells), "points of accuracy": mean_error(own, "+.2f"),
            "log-loss": mean_error(losses, "+.3f"), "worst cell": f"{min(own):+.1f}",
            "worst, beyond its error": f"{-max(beyond):+.1f}",
        })  # fmt: skip
    return record.markdown_table(lines)


def costs(found: Row) -> str:
    """Processor seconds of both by pictures a class, and their ratio."""
    lines = []
    for shots in COSTS:
        ours, its = (good(found, "costs", shots=shots, method=method) for method in ("default", "finetune"))
        if ours and its:
            a, b = ours[0]["cpu_seconds"], its[0]["cpu_seconds"]
            lines.append({"a class": shots, "default": f"{a:.0f}", "fine-tuning": f"{b:.0f}", "ratio": f"{a / b:.2f}"})
    return record.markdown_table(lines)


def honesty(found: Row) -> str:
    """A line a number of pictures and rung: leave-one-out minus held-out squared error, in per cent."""
    lines = []
    for shots in SHOTS:
        seen = [rung for row in good(found, "grid", shots=shots) for rung in row["rungs"]]
        for steps, rate in sorted({(rung["steps"], rung["rate"]) for rung in seen}):
            rows = [rung for rung in seen if (rung["steps"], rung["rate"]) == (steps, rate)]
            bias = [100 * (row["loo_square"] / row["test_square"] - 1) for row in rows]
            lines.append({
                "a class": shots, "steps": steps, "rate": f"{rate:g}", "draws": len(rows),
                "bias, %": mean_error(bias, "+.1f"), "spread, %": f"{statistics.pstdev(bias):.1f}",
                "accuracy": mean_error([row["test_accuracy"] for row in rows]),
                "log-loss": mean_error([row["test_nll"] for row in rows]),
            })  # fmt: skip
    return record.markdown_table(lines)


def chosen(row: Row) -> Row:
    """The rung that `choose_steps` takes on a draw, worked out from what the grid saw of each."""
    still, *rungs = row["rungs"]
    by_setting = {(rung["steps"], rung["rate"]): rung for rung in rungs}
    known = (by_setting.get((own.steps, own.rate)) for own in LADDER if own.pictures <= row["n"] < own.below)
    ladder = [rung for rung in known if rung is not None]  # the grid was measured before the highest came
    ahead, former = [], still["first"] + (ladder[0]["first_doubt"] if ladder else 0.0)
    for rung in ladder:
        if rung["first"] > former:
            break
        ahead, former = [*ahead, rung], rung["first"]
    good_ones = (rung for rung in reversed(ahead) if rung["spread"] < FAR)
    return next((rung for rung in good_ones if rung["probe"] <= still["probe"] + rung["probe_doubt"]), still)


def regret(found: Row) -> str:
    """A line a number of pictures: held-out squared error of the chosen rung against the best of the grid."""
    lines = []
    for shots in SHOTS:
        rows = good(found, "grid", shots=shots)
        taken, squares = [chosen(row) for row in rows], [[rung["test_square"] for rung in row["rungs"]] for row in rows]
        lost = [100 * (own["test_square"] / min(all_) - 1) for own, all_ in zip(taken, squares, strict=True)]
        bias = [100 * (own["loo_square"] / own["test_square"] - 1) for own in taken]
        if rows:
            lines.append({
                "a class": shots, "draws": len(rows), "median, %": f"{statistics.median(lost):.1f}",
                "worst, %": f"{max(lost):.1f}", "bias of the chosen, %": mean_error(bias, "+.1f"),
            })  # fmt: skip
    return record.markdown_table(lines)


@styled
def figure(found: Row) -> Figure:
    """Accuracy of the default against that of fine-tuning, a dot a draw, a panel a number of pictures."""
    figure, axes_of = panels((3.2 * len(SHOTS), 3.1), 1, len(SHOTS))
    for axes, shots in zip(axes_of[0], SHOTS, strict=True):
        for network, colour in zip(NETWORKS, COLOURS, strict=False):
            axes.plot(*points(pairs(found, shots=shots, network=network)), "o", color=colour, markersize=3)
        axes.axline((0.5, 0.5), slope=1, color=MUTED, linewidth=1)
        axes.set_title(f"{shots} pictures a class", loc="left", fontsize=9)
        axes.set_xlabel("accuracy of fine-tuning")
    axes_of[0][0].set_ylabel("accuracy of the default")
    return figure


def points(both: Iterable[tuple[Row, Row]]) -> tuple[list[float], list[float]]:
    """Accuracies of fine-tuning and of the default."""
    found = list(both)
    return [its["accuracy"] for _, its in found], [ours["accuracy"] for ours, _ in found]


if __name__ == "__main__":
    publishing(publish, __doc__)
