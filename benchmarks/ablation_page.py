"""Table, findings and figure of the ablation, from what docs/results/ablation.json holds."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from itertools import product
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

from benchmarks import record
from benchmarks.cifar_split import mean_spread
from benchmarks.plots import COLOURS, MUTED, STYLE

Row = dict[str, Any]
ACTIVATIONS, LOSSES, SOLVERS = ("relu", "leaky"), ("cross_entropy", "squared"), ("adam", "kfac")
GOAL = 0.01


def publish(name: str, protocol: Mapping[str, str]) -> None:
    """Write the summary into the JSON file, the page and the figure; print the page."""
    payload = record.load(name)
    rows, optima = payload.get("rows", []), payload.get("optima", [])
    lines = [*lqf_lines(rows, optima), *exact_lines(optima), *probe_lines(optima), *tuned_lines(rows)]
    record.record(name, {**payload, "protocol": dict(protocol), "summary": lines})
    curves = {cell: _curves(rows, optima, *cell) for cell in product(ACTIVATIONS, LOSSES, SOLVERS)}
    figure(lines, curves).savefig(record.RESULTS / f"{name}.png", dpi=160)
    text = page(name, lines, findings(rows), protocol)
    (record.RESULTS / f"{name}.md").write_text(text)
    print(text)


def suboptimality(row: Row, optima: Sequence[Row]) -> list[float] | None:
    """Sub-optimality after each epoch from 0 on; None where the exact optimum is not measured yet."""
    for other in optima:
        same = all(other["key"][name] == row["key"][name] for name in ("activation", "seed", "shots"))
        for found in other["found"] if same else []:
            alike = abs(found["damping"] - row.get("damping", 0)) <= 1e-6 * found["damping"]
            if found["loss"] == row["key"]["loss"] and alike:
                reach = found["start"] - found["least"]
                return [(value - found["least"]) / reach for value in row["objectives"]]
    return None


def epochs_to_goal(curve: Sequence[float], goal: float = GOAL) -> int | None:
    """First epoch after which the sub-optimality stays at or below the goal; None if it never does."""
    above = [epoch for epoch, value in enumerate(curve) if value > goal]
    first = above[-1] + 1 if above else 0
    return first if first < len(curve) else None


def lqf_lines(rows: Sequence[Row], optima: Sequence[Row]) -> list[Row]:
    """One line a cell of the ablation."""
    out = []
    for activation, loss, solver in product(ACTIVATIONS, LOSSES, SOLVERS):
        group = _group(rows, method="lqf", activation=activation, loss=loss, solver=solver)
        curves = _curves(rows, optima, activation, loss, solver)
        reached = [epochs_to_goal(curve) for curve in curves]
        known = {"method": "LQF", "activation": activation, "loss": loss, "solver": solver}
        there = [epoch for epoch in reached if epoch is not None]
        last = {"last": [curve[-1] for curve in curves], "epochs_to_goal": there, "curves": len(curves)}
        out += [known | _common(group) | last] if group else []
    return out


def exact_lines(optima: Sequence[Row]) -> list[Row]:
    """Accuracy of the exact optima."""
    out = []
    for activation, loss in product(ACTIVATIONS, LOSSES):
        rows = [row for row in optima if row["key"]["activation"] == activation]
        group = [found for row in rows for found in row["found"] if found["loss"] == loss]
        known = {"method": "LQF", "activation": activation, "loss": loss, "solver": "exact optimum"}
        out += [known | _common(group)] if group else []
    return out


def probe_lines(optima: Sequence[Row]) -> list[Row]:
    """The head alone, where every linear model starts."""
    out = []
    for activation in ACTIVATIONS:
        own = [row["found"][0]["probe_accuracy"] for row in optima if row["key"]["activation"] == activation]
        known = {"method": "probe", "activation": activation, "loss": "squared", "solver": "head only"}
        out += [known | _common([{"accuracy": value} for value in own])] if own else []
    return out


def tuned_lines(rows: Sequence[Row]) -> list[Row]:
    """Ordinary fine-tuning."""
    out = []
    for flip, activation, loss in product((False, True), ACTIVATIONS, LOSSES):
        group = _group(rows, method="fine-tuning", activation=activation, loss=loss, flip=flip)
        word = "AdamW, flips" if flip else "AdamW"
        known = {"method": "fine-tuning", "activation": activation, "loss": loss, "solver": word}
        out += [known | _common(group)] if group else []
    return out


def findings(rows: Sequence[Row]) -> list[str]:
    """Differences in accuracy, paired by seed, in words."""
    full = {"method": "lqf", "activation": "leaky", "loss": "squared", "solver": "kfac"}
    base = {"method": "lqf", "activation": "relu", "loss": "cross_entropy", "solver": "adam"}
    tuned = {"method": "fine-tuning", "activation": "relu", "loss": "cross_entropy", "flip": False}
    pairs = [
        ("Leaky-ReLU, squared loss and K-FAC together against fine-tuning without flips", full, tuned),
        ("the same against fine-tuning with flips", full, tuned | {"flip": True}),
        ("none of the three (ReLU, cross-entropy, Adam) against fine-tuning without flips", base, tuned),
        ("Leaky-ReLU alone against none of the three", base | {"activation": "leaky"}, base),
        ("squared loss alone against none of the three", base | {"loss": "squared"}, base),
        ("K-FAC alone against none of the three", base | {"solver": "kfac"}, base),
        ("all three against none", full, base),
    ]
    out = []
    for words, one, two in pairs:
        first, second = ({row["key"]["seed"]: row["accuracy"] for row in _group(rows, **key)} for key in (one, two))
        gaps = [100 * (first[seed] - second[seed]) for seed in sorted(first.keys() & second.keys())]
        if gaps:
            error = f"standard error {statistics.stdev(gaps) / len(gaps) ** 0.5:.1f}, " if len(gaps) > 1 else ""
            out.append(f"{words}: {statistics.fmean(gaps):+.1f} points ({error}{len(gaps)} seeds)")
    return out


def page(name: str, lines: Sequence[Row], found: Sequence[str], protocol: Mapping[str, str]) -> str:
    """The page as Markdown."""
    text = ["# Which part of LQF matters?", "", *(f"- {sentence}." for sentence in found), ""]
    table = []
    for line in lines:
        there, curves = line.get("epochs_to_goal", []), line.get("curves", 0)
        epochs = f"{mean_spread(there, 1)} ({len(there)} of {curves} seeds)" if curves else "-"
        table.append(
            {name: line[name] for name in ("method", "activation", "loss", "solver", "seeds")}
            | {"accuracy": mean_spread(line["accuracy"]), "NLL": mean_spread(line["nll"], 2)}
            | {"sub-optimality at the end": mean_spread(line.get("last", []), 4), "epochs to 1 %": epochs}
            | {"CPU s": mean_spread(line["cpu_seconds"], 1)}
        )
    text += [record.markdown_table(table, dict.fromkeys(table[0], "")) if table else "", ""]
    text += ["Mean ± standard deviation over seeds; epochs to 1 %: over the seeds that got there and stayed.", ""]
    text += [f"- {key}: {said}." for key, said in protocol.items()]
    return "\n".join([*text, "", f"![Ablation]({name}.png)", ""])


def figure(lines: Sequence[Row], curves: Mapping[tuple[str, str, str], Sequence[Sequence[float]]]) -> Figure:
    """Left: accuracy of every line. Right: sub-optimality against epochs, a panel a loss, means over seeds."""
    with mpl.rc_context(STYLE):
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
            for (activation, own, solver), runs in curves.items():
                if own == loss and runs:
                    mean = [statistics.fmean(values) for values in zip(*runs, strict=True)]
                    style = "-" if activation == "leaky" else "--"
                    colour = COLOURS[SOLVERS.index(solver)]
                    axes.plot(mean, style, color=colour, label=f"{solver}, {activation}")
            axes.axhline(GOAL, color=MUTED, linewidth=0.8)
            axes.set_yscale("log")
            axes.set(xlabel="epochs", title=loss.replace("_", "-"))
        panels[0].set_ylabel("sub-optimality; line: 1 %")
        panels[1].legend(fontsize=7)
        return figure


def _curves(rows: Sequence[Row], optima: Sequence[Row], activation: str, loss: str, solver: str) -> list[list[float]]:
    group = _group(rows, method="lqf", activation=activation, loss=loss, solver=solver)
    found = (suboptimality(row, optima) for row in group)
    return [curve for curve in found if curve]


def _group(rows: Sequence[Row], **wanted: Any) -> list[Row]:
    chosen = [row for row in rows if wanted.items() <= row["key"].items()]
    return [row for row in chosen if row["accuracy"] is not None]


def _common(group: Sequence[Row]) -> Row:
    """Figures that every line has."""
    columns = {name: [row[name] for row in group if name in row] for name in ("accuracy", "nll", "cpu_seconds")}
    return {"seeds": len(group), **columns}
