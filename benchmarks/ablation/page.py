"""Table, findings and figure of the ablation of LQF: `python -m benchmarks.ablation.page`."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from itertools import product
from typing import Any

from matplotlib.figure import Figure

from benchmarks import record
from benchmarks.plots import COLOURS, MUTED, styled
from benchmarks.record import Row
from benchmarks.study import mean_spread, read_arguments, standard_error, study_parser

NAME, GOAL = "ablation", 0.01
ACTIVATIONS, LOSSES, SOLVERS = ("relu", "leaky"), ("cross_entropy", "squared"), ("adam", "kfac")
FULL = {"method": "lqf", "activation": "leaky", "loss": "squared", "solver": "kfac"}
BASE = {"method": "lqf", "activation": "relu", "loss": "cross_entropy", "solver": "adam"}
TUNED = {"method": "fine-tuning", "activation": "relu", "loss": "cross_entropy", "flip": False}
PAIRS: tuple[tuple[str, Row, Row], ...] = (
    ("Leaky-ReLU, squared loss and K-FAC together against fine-tuning without flips", FULL, TUNED),
    ("the same against fine-tuning with flips", FULL, TUNED | {"flip": True}),
    ("none of the three (ReLU, cross-entropy, Adam) against fine-tuning without flips", BASE, TUNED),
    ("Leaky-ReLU alone against none of the three", BASE | {"activation": "leaky"}, BASE),
    ("squared loss alone against none of the three", BASE | {"loss": "squared"}, BASE),
    ("K-FAC alone against none of the three", BASE | {"solver": "kfac"}, BASE),
    ("all three against none", FULL, BASE),
)


def publish() -> None:
    """Write the page and the figure."""
    lines, table = summarise(), []
    for line in lines:
        there, curves = line.get("epochs_to_goal", []), line.get("curves", 0)
        epochs = f"{mean_spread(there, 1)} ({len(there)} of {curves} seeds)" if curves else "-"
        table.append(
            {name: line[name] for name in ("method", "activation", "loss", "solver", "seeds")}
            | {"accuracy": mean_spread(line["accuracy"]), "NLL": mean_spread(line["nll"], 2)}
            | {"sub-optimality at the end": mean_spread(line.get("last", []), 4), "epochs to 1 %": epochs}
            | {"CPU s": mean_spread(line["cpu_seconds"], 1)}
        )
    parts = {"findings": "\n".join(findings()), "table": record.markdown_table(table)}
    record.write_page(NAME, __file__, parts, {NAME: figure(lines)})


def group(**wanted: Any) -> list[Row]:
    """Rows of these settings that did not diverge."""
    rows = record.load(NAME)["rows"]
    return [row for row in rows if wanted.items() <= row["key"].items() and row["accuracy"] is not None]


def summarise() -> list[Row]:
    """A line a method: cells of LQF, the exact optima, the head alone where linear models start, fine-tuning."""
    out, optima = [], record.load(NAME).get("optima", [])

    def add(names: tuple[str, str, str, str], rows: Sequence[Row], more: Row | None = None) -> None:
        columns = {name: [row[name] for row in rows if name in row] for name in ("accuracy", "nll", "cpu_seconds")}
        known = dict(zip(("method", "activation", "loss", "solver"), names, strict=True))
        out.append(known | {"seeds": len(rows), **columns} | (more or {}))

    for cell in product(ACTIVATIONS, LOSSES, SOLVERS):
        curves = curves_of(*cell)
        reached = [epochs_to_goal(curve) for curve in curves]
        more = {"last": [curve[-1] for curve in curves], "curves": len(curves)}
        more |= {"epochs_to_goal": [epoch for epoch in reached if epoch is not None]}
        rows = group(method="lqf", **dict(zip(("activation", "loss", "solver"), cell, strict=True)))
        add(("LQF", *cell), rows, more)
    found = {a: [f for row in optima if row["key"]["activation"] == a for f in row["found"]] for a in ACTIVATIONS}
    for activation, loss in product(ACTIVATIONS, LOSSES):
        add(("LQF", activation, loss, "exact optimum"), [f for f in found[activation] if f["loss"] == loss])
    for activation in ACTIVATIONS:
        heads = [{"accuracy": f["probe_accuracy"]} for f in found[activation] if f["loss"] == LOSSES[0]]
        add(("probe", activation, "squared", "head only"), heads)
    for flip, activation, loss in product((False, True), ACTIVATIONS, LOSSES):
        rows = group(method="fine-tuning", activation=activation, loss=loss, flip=flip)
        if rows:
            add(("fine-tuning", activation, loss, "AdamW, flips" if flip else "AdamW"), rows)
    return out


def curves_of(activation: str, loss: str, solver: str) -> list[list[float]]:
    """Sub-optimality after each epoch from 0 on, of every seed whose exact optimum is known."""
    out = []
    for row in group(method="lqf", activation=activation, loss=loss, solver=solver):
        for other in record.load(NAME).get("optima", []):
            same = all(other["key"][name] == row["key"][name] for name in ("activation", "seed", "shots"))
            for found in other["found"] if same else []:
                if found["loss"] == loss and abs(found["damping"] - row["damping"]) <= 1e-6 * found["damping"]:
                    reach = found["start"] - found["least"]
                    out.append([(value - found["least"]) / reach for value in row["objectives"]])
    return out


def epochs_to_goal(curve: Sequence[float], goal: float = GOAL) -> int | None:
    """First epoch after which the sub-optimality stays at or below the goal; None if it never does."""
    above = [epoch for epoch, value in enumerate(curve) if value > goal]
    first = above[-1] + 1 if above else 0
    return first if first < len(curve) else None


def findings() -> list[str]:
    """Differences in accuracy, paired by seed, in words."""
    out = []
    for words, one, two in PAIRS:
        first, second = ({row["key"]["seed"]: row["accuracy"] for row in group(**key)} for key in (one, two))
        gaps = [100 * (first[seed] - second[seed]) for seed in sorted(first.keys() & second.keys())]
        error = f"standard error {standard_error(gaps):.1f}, {len(gaps)} seeds"
        out.append(f"- {words}: {statistics.fmean(gaps):+.1f} points ({error}).")
    return out


@styled
def figure(lines: Sequence[Row]) -> Figure:
    """Left: accuracy of every line. Right: sub-optimality against epochs, a panel a loss, means over seeds."""
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    dots, *panels = figure.subplots(1, 3, width_ratios=(1.2, 1, 1))
    for height, line in enumerate(lines[::-1]):
        colour = {"LQF": COLOURS[0], "fine-tuning": COLOURS[1], "probe": COLOURS[2]}[line["method"]]
        colour = MUTED if line["solver"] == "exact optimum" else colour
        dots.plot(line["accuracy"], [height] * len(line["accuracy"]), "o", color=colour, alpha=0.35, markersize=4)
        dots.plot(statistics.fmean(line["accuracy"]), height, "|", color=colour, markersize=14, markeredgewidth=2)
    words = [", ".join(line[key].replace("_", "-") for key in ("activation", "loss", "solver")) for line in lines]
    dots.set_yticks(range(len(lines)), words[::-1], fontsize=7)
    dots.set_xlabel("test accuracy; bar: mean, dots: seeds")
    dots.set_title("blue: LQF, grey: exact optimum, green: probe, orange: fine-tuning", loc="left", fontsize=8)
    for axes, loss in zip(panels, LOSSES, strict=True):
        for activation, solver in product(ACTIVATIONS, SOLVERS):
            mean = [statistics.fmean(values) for values in zip(*curves_of(activation, loss, solver), strict=True)]
            style, colour = "-" if activation == "leaky" else "--", COLOURS[SOLVERS.index(solver)]
            axes.plot(mean, style, color=colour, label=f"{solver}, {activation}")
        axes.axhline(GOAL, color=MUTED, linewidth=0.8)
        axes.set_yscale("log")
        axes.set(xlabel="epochs", title=loss.replace("_", "-"))
    panels[0].set_ylabel("sub-optimality; line: 1 %")
    panels[1].legend(fontsize=7)
    return figure


if __name__ == "__main__":
    read_arguments(study_parser(__doc__))
    publish()
