"""Page and figure of the study of LQF's conditions: `python -m benchmarks.lqf_conditions.page`."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks import record
from benchmarks.plots import COLOURS, MUTED, panels, styled
from benchmarks.record import Row
from benchmarks.study import mean_error, publishing, standard_error

NAME, WIDTHS, DRAWS, SETS = "lqf_conditions", "lqf_widths", "lqf_draws", "lqf_sets"
CUTS, DUAL, STOCHASTIC, LARGE = "lqf_cuts", "lqf_dual", "lqf_stochastic", 50
TOLD = {"cells": "mobilenet_v2", "lite": "efficientnet_lite0"}  # means over sets that the page tells in words
GAPS = {"lqf_start": "gap at the start", "lqf": "gap moved"}
WIDTH_LINES = {
    ("no leak", "lqf_start"): "0o:",
    ("no leak", "lqf"): "0s-",
    ("grafted on, healed", "lqf_start"): "2o:",
    ("grafted on, healed", "lqf"): "2s-",
    ("pre-trained with", "lqf_start"): "1o:",
    ("pre-trained with", "lqf"): "1s-",
}
METHODS = {
    "probe": "linear probe",
    "lqf_start": "LQF at the pre-trained weights",
    "lqf_cross": "the same, cross-fitted head",
    "lqf_leak": "the same, a leak of .01 grafted on",
    "lqf": "`fit_lqf`'s default: moved first",
    "finetune": "fine-tuning, swept",
}


def gaps(rows: Iterable[Row], method: str) -> dict[tuple[str, int, int], list[float]]:
    """Points of accuracy by which a method is above fine-tuning, a draw each, by network, resolution, pictures."""
    found = {tuple(row["key"].values()): row["accuracy"] for row in rows if row.get("accuracy") is not None}
    out: dict[tuple[str, int, int], list[float]] = {}
    for (network, size, shots, own, seed), accuracy in found.items():
        other = found.get((network, size, shots, "finetune", seed))
        if own == method and other is not None:
            out.setdefault((network, size, shots), []).append(100 * (accuracy - other))
    return dict(sorted(out.items()))


def conditions(rows: list[Row]) -> str:
    """A line for each network, resolution and number of pictures; gaps are paired by draw."""
    cells: dict[tuple[str, int, int], dict[str, list[float]]] = {}
    for row in rows:
        key = row["key"]
        if row.get("accuracy") is not None:
            place = cells.setdefault((key["network"], key["size"], key["shots"]), {})
            place.setdefault(key["method"], []).append(row["accuracy"])
    measured = [name for name in METHODS if any(name in own for own in cells.values())]
    apart = {title: gaps(rows, name) for name, title in GAPS.items()}
    lines = []
    for place, own in sorted(cells.items()):
        line: Row = dict(zip(("network", "px", "a class"), place, strict=True))
        line |= {METHODS[name]: mean_error(own[name]) if name in own else "-" for name in measured}
        line |= {title: mean_error(found[place], "+.1f") if place in found else "-" for title, found in apart.items()}
        lines.append(line | {"draws": max(map(len, own.values()))})
    return record.markdown_table(lines)


def draws(rows: list[Row]) -> str:
    """The default against what few_shot measured on the same draws: a line a task and number of pictures."""
    lines = []
    for task, shots in dict.fromkeys((row["key"]["task"], row["key"]["shots"]) for row in rows):
        own = record.matching(rows, task=task, shots=shots)
        line = {"task": task, "a class": shots}
        names = {"probe": "former_probe", "lqf_start": "former_lqf", "lqf": "accuracy", "finetune": "former_finetune"}
        line |= {METHODS[name]: mean_error([row[value] for row in own]) for name, value in names.items()}
        for name, title in GAPS.items():
            differences = [100 * (row[names[name]] - row["former_finetune"]) for row in own]
            line[title] = mean_error(differences, "+.1f")
        lines.append(line | {"draws": len(own)})
    return record.markdown_table(lines)


Draws = list[tuple[float, float, float]]


def contests(rows: list[Row]) -> dict[str, dict[str, Draws]]:
    """Accuracies of LQF, its moved network's probe and swept fine-tuning on the same draws, by network and set."""
    tuned = {str(row["key"]): row.get("accuracy") for row in record.load("moving")["table"]}
    out: dict[str, dict[str, Draws]] = {}
    for row in rows:
        own = (row["accuracy"], row["probe_there"], tuned[str(row["key"] | {"method": "finetune"})])
        out.setdefault(row["key"]["network"], {}).setdefault(row["key"]["set"], []).append(own)
    return out


def gap(found: Draws, of: int = 0) -> float:
    """Mean points of accuracy above fine-tuning; of LQF, or (1) of the probe."""
    return statistics.fmean(100 * (own[of] - own[2]) for own in found)


def sets(rows: list[Row]) -> str:
    """A line a network and set, and one a network for the mean over its sets, whose error is that of the cells."""
    lines = []
    titles = (METHODS["lqf"], "the moved network's probe", METHODS["finetune"])
    for network, cells in contests(rows).items():
        for name, found in cells.items():
            line = {"network": network, "set": name}
            line |= {title: mean_error(list(own)) for title, own in zip(titles, zip(*found, strict=True), strict=True)}
            lines.append(line | {"gap": mean_error([gap([own]) for own in found], "+.1f"), "draws": len(found)})
        whole, probe = ([gap(found, of) for found in cells.values()] for of in (0, 1))
        line = {"network": network, "set": f"**mean of {len(cells)} sets**"} | dict.fromkeys(titles, "")
        line[titles[1]] = f"gap {mean_error(probe, '+.1f')}"
        lines.append(line | {"gap": f"**{mean_error(whole, '+.1f')}**", "draws": sum(map(len, cells.values()))})
    return record.markdown_table(lines)


def cells(several: list[Row], more: list[Row], network: str) -> str:
    """A network's mean gap over sets at 25 a class or more, with the error that the cells have."""
    whole = [gap(own) for own in contests(several).get(network, {}).values()]
    own = record.matching(more, task="cifar10", shots=25) if network == "mobilenet_v2" else []
    if own:
        whole.append(statistics.fmean(100 * (row["accuracy"] - row["former_finetune"]) for row in own))
    mean, error = statistics.fmean(whole), standard_error(whole)
    return f"{mean:+.1f} points (standard error {error:.1f}, {len(whole)} cells)"


def cuts(rows: list[Row]) -> str:
    """Gradient features: a line for each variant and cut, a column for each number of pictures."""
    lines = []
    for variant, cut in dict.fromkeys((row["key"]["variant"], row["key"]["cut"]) for row in rows):
        line = {"variant": variant, "cut at": "-" if variant == "activation" else f"`{cut}`"}
        for shots in sorted({row["key"]["shots"] for row in rows}):
            own = record.matching(rows, variant=variant, cut=cut, shots=shots)
            line[f"{shots} a class"] = mean_error([row["accuracy"] for row in own]) if own else "-"
        lines.append(line)
    return record.markdown_table(lines)


def solvers(rows: list[Row]) -> str:
    """Products until the gradient has fallen: a line for each pre-conditioner, a column for each damping."""
    ways = [name for name in (rows[0] if rows else {}) if name != "damping"]
    return record.markdown_table([{"": way} | {f"{row['damping']:g}": row[way] for row in rows} for way in ways])


def stochastic(rows: list[Row]) -> str:
    """Stochastic solvers: a line each, per cent of the way to the optimum that is left after some epochs."""
    lines = []
    for solver in dict.fromkeys(row["key"]["solver"] for row in rows):
        own = record.matching(rows, solver=solver)
        left = {f"{at} epochs, %": mean_error([100 * row["left"][at] for row in own], ".2f") for at in (4, 8, 12)}
        worst = f"{max(100 * row['left'][-1] for row in own):.2f}"
        lines.append({"solver": solver} | left | {"worst draw, %": worst, "draws": len(own)})
    return record.markdown_table(lines)


def widths(rows: list[Row]) -> str:
    """The controlled study: a line for each width and leak."""
    lines = []
    for width, kind in dict.fromkeys((row["key"]["width"], row["key"]["kind"]) for row in rows):
        own = record.matching(rows, width=width, kind=kind)
        line = {"width": width, "leak": kind, "pre-training": mean_error([row["source"] for row in own])}
        for name in ("probe", "lqf_start", "lqf", "finetune"):
            line[METHODS[name]] = mean_error([row[name] for row in own])
        for name, title in GAPS.items():
            line[title] = mean_error([100 * (row[name] - row["finetune"]) for row in own], "+.1f")
        lines.append(line | {"draws": len(own)})
    return record.markdown_table(lines)


def points(rows: Iterable[Row], more: Iterable[Row], method: str, axis: str) -> dict[str, dict[int, list[float]]]:
    """Gaps by network, then by resolution (25 a class) or pictures a class (96 px); `more` is from few_shot."""
    out: dict[str, dict[int, list[float]]] = {}
    for (network, size, shots), values in gaps(rows, method).items():
        if (shots == 25) if axis == "size" else (size == 96):
            out.setdefault(network, {})[size if axis == "size" else shots] = values
    if method == "lqf_start":
        more = former()
    for row in more:
        if row["key"]["task"] == "cifar10" and (axis == "shots" or row["key"]["shots"] == 25):
            place = row["key"]["shots"] if axis == "shots" else 96
            own = out.setdefault("mobilenet_v2", {}).setdefault(place, [])
            own.append(100 * (row["accuracy"] - row["former_finetune"]))
    return out


def former() -> list[Row]:
    """LQF at the pre-trained weights and fine-tuning on CIFAR-10, as few_shot has them from five a class on."""
    path = record.ROOT / "docs" / "results" / "few_shot" / "cifar10" / "comparison.json"
    cells = {
        (c["method"], c["shots"], c["seed"]): c["scores"].get("accuracy") for c in json.loads(path.read_text())["cells"]
    }
    places = [(shots, seed) for method, shots, seed in cells if method == "lqf" and shots >= 5]
    return [
        {"key": {"task": "cifar10", "shots": shots, "seed": seed}, "accuracy": cells["lqf", shots, seed]}
        | {"former_finetune": cells["finetune", shots, seed]}
        for shots, seed in places
    ]


def curve(panel: Axes, found: dict[int, list[float]], **look: Any) -> None:
    """Means with their standard errors."""
    places = sorted(found)
    errors = [standard_error(found[x]) if len(found[x]) > 1 else 0.0 for x in places]
    panel.errorbar(places, [statistics.fmean(found[x]) for x in places], errors, markersize=4, capsize=2, **look)


@styled
def plot(rows: list[Row], controlled: list[Row], more: list[Row], several: list[Row]) -> Figure:
    """The gap to fine-tuning against pictures a class, width, and, where there is any, resolution."""
    axes_of = {"shots": "pictures a class"} | ({"size": "resolution, px"} if rows else {})
    figure, axes = panels((4.2 * (len(axes_of) + 1), 3.4), 1, len(axes_of) + 1)
    for panel, (axis, label) in zip(axes[0], axes_of.items(), strict=False):
        for method, style, title in (("lqf_start", "o:", "pre-trained weights"), ("lqf", "s-", "moved first")):
            for (network, found), colour in zip(points(rows, more, method, axis).items(), COLOURS, strict=False):
                curve(panel, found, fmt=style, color=colour, label=f"{network}, {title}")
        panel.set(xscale="log", xlabel=label)
    for (network, cells), colour in zip(contests(several).items(), COLOURS[1:], strict=False):
        found = {LARGE: [gap(own) for own in cells.values()]}
        curve(axes[0, 0], found, fmt="D", color=colour, label=f"{network}, other sets, moved first")
    for (kind, method), style in WIDTH_LINES.items():
        own: dict[int, list[float]] = {}
        for row in record.matching(controlled, kind=kind):
            own.setdefault(row["key"]["width"], []).append(100 * (row[method] - row["finetune"]))
        title = "moved first" if method == "lqf" else "pre-trained weights"
        curve(
            axes[0, -1],
            own,
            fmt=style[1:],
            color=COLOURS[int(style[0])],
            label=f"{kind.replace('pre-trained with', 'leak').replace('grafted on, healed', 'healed')}, {title}",
        )
    axes[0, -1].set(xscale="log", xlabel="width of a small residual network")
    for panel in axes[0]:
        panel.set_xticks(sorted({int(x) for line in panel.lines for x in np.asarray(line.get_xdata())}))
        panel.axhline(0, color=MUTED, linewidth=0.8)
        panel.xaxis.set_major_formatter("{x:.0f}")
        panel.xaxis.set_minor_formatter("")
        panel.legend(fontsize=7)
    axes[0, 0].set_ylabel("points above swept fine-tuning")
    return figure


def publish() -> None:
    """docs/results/lqf_conditions.md and its figure, from what was measured so far."""
    every = (NAME, WIDTHS, DRAWS, SETS, CUTS, DUAL, STOCHASTIC)
    rows, controlled, more, several, cut, dual, steps = (record.load(name).get("rows", []) for name in every)
    parts = {"conditions": conditions(rows), "widths": widths(controlled), "draws": draws(more)}
    shards = [{k: v if k == "shards" else f"{v:.3f}" for k, v in r.items()} for r in record.load("lqf_compose")["rows"]]
    parts["compose"] = record.markdown_table(shards)
    means = {name: cells(several, more, network) for name, network in TOLD.items()}
    parts |= {"sets": sets(several), "cuts": cuts(cut), "dual": solvers(dual), "steps": stochastic(steps)} | means
    record.write_page(NAME, __file__, parts, {NAME: plot(rows, controlled, more, several)})


if __name__ == "__main__":
    publishing(publish, __doc__)
