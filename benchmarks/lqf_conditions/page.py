"""Page and figure of the study of LQF's conditions: `python -m benchmarks.lqf_conditions.page`."""

from __future__ import annotations

import statistics
from collections.abc import Iterable

from matplotlib.figure import Figure

from benchmarks import record
from benchmarks.plots import COLOURS, legend_below, panels, styled
from benchmarks.record import Row
from benchmarks.study import mean_error, publishing, standard_error

NAME, WIDTHS, DRAWS = "lqf_conditions", "lqf_widths", "lqf_draws"
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
    """A line for each network, resolution and number of pictures."""
    cells: dict[tuple[str, int, int], dict[str, list[float]]] = {}
    for row in rows:
        key = row["key"]
        if row.get("accuracy") is not None:
            place = cells.setdefault((key["network"], key["size"], key["shots"]), {})
            place.setdefault(key["method"], []).append(row["accuracy"])
    lines = []
    for (network, size, shots), own in sorted(cells.items()):
        line = {"network": network, "px": size, "a class": shots}
        line |= {name: mean_error(own[name]) if name in own else "-" for name in METHODS}
        lines.append(line)
    return record.markdown_table(lines)


def effects(rows: list[Row]) -> str:
    """What LQF gains or loses against fine-tuning, by condition: points, mean over all cells and draws that have it."""
    lines = []
    for method in ("lqf_start", "lqf_cross", "lqf_leak", "lqf"):
        found = gaps(rows, method)
        groups = {"all": list(found)}
        for axis in range(3):
            for value in sorted({place[axis] for place in found}, key=str):
                groups[f"{value}{('', ' px', ' a class')[axis]}"] = [p for p in found if p[axis] == value]
        for title, places in groups.items():
            values = [gap for place in places for gap in found[place]]
            if values:
                line = {
                    "method": METHODS[method],
                    "where": title,
                    "points above fine-tuning": mean_error(values, "+.1f"),
                }
                lines.append(line | {"fits": len(values)})
    return record.markdown_table(lines)


def seconds(rows: list[Row]) -> str:
    """Median seconds of a fit, by network and method, at 96 px and 25 a class."""
    lines = []
    for network in sorted({row["key"]["network"] for row in rows}):
        line = {"network": network}
        for method in METHODS:
            own = record.matching(rows, network=network, method=method, size=96, shots=25)
            taken = [row["seconds"] for row in own if row.get("seconds") is not None]
            line[method] = f"{statistics.median(taken):.0f}" if taken else "-"
        lines.append(line)
    return record.markdown_table(lines)


def draws(rows: list[Row]) -> str:
    """The default against what few_shot measured on the same draws: a line a task and number of pictures."""
    lines = []
    for task, shots in dict.fromkeys((row["key"]["task"], row["key"]["shots"]) for row in rows):
        own = record.matching(rows, task=task, shots=shots)
        line = {"task": task, "a class": shots}
        names = {"probe": "former_probe", "lqf_start": "former_lqf", "lqf": "accuracy", "finetune": "former_finetune"}
        line |= {METHODS[name]: mean_error([row[value] for row in own]) for name, value in names.items()}
        for name, title in (("lqf_start", "gap at the start"), ("lqf", "gap moved")):
            differences = [100 * (row[names[name]] - row["former_finetune"]) for row in own]
            line[title] = mean_error(differences, "+.1f")
        lines.append(line | {"draws": len(own)})
    return record.markdown_table(lines)


def widths(rows: list[Row]) -> str:
    """The controlled study: a line for each width and leak."""
    lines = []
    for width, kind in dict.fromkeys((row["key"]["width"], row["key"]["kind"]) for row in rows):
        own = record.matching(rows, width=width, kind=kind)
        line = {"width": width, "leak": kind, "pre-training": mean_error([row["source"] for row in own])}
        for name in ("probe", "lqf_start", "lqf", "finetune"):
            line[METHODS[name]] = mean_error([row[name] for row in own])
        for name, title in (("lqf_start", "gap at the start"), ("lqf", "gap moved")):
            line[title] = mean_error([100 * (row[name] - row["finetune"]) for row in own], "+.1f")
        lines.append(line | {"draws": len(own)})
    return record.markdown_table(lines)


@styled
def plot(rows: list[Row], controlled: list[Row]) -> Figure:
    """The gap to fine-tuning against resolution, pictures a class, and width."""
    figure, axes = panels((9, 3.2), 1, 3, sharey=True)
    networks = sorted({row["key"]["network"] for row in rows})
    for axis, panel, label in ((1, axes[0, 0], "resolution, 25 a class"), (2, axes[0, 1], "pictures a class, 96 px")):
        for method, style in (("lqf_start", "--"), ("lqf", "-")):
            for network, colour in zip(networks, COLOURS, strict=False):
                own = {
                    place[axis]: values
                    for place, values in gaps(rows, method).items()
                    if place[0] == network and (place[2] == 25 if axis == 1 else place[1] == 96)
                }
                means = [statistics.fmean(values) for values in own.values()]
                errors = [standard_error(values) if len(values) > 1 else 0.0 for values in own.values()]
                panel.errorbar(list(own), means, errors, fmt=f"o{style}", color=colour, markersize=4)
        panel.set(xscale="log", xlabel=label)
        panel.axhline(0, color="black", linewidth=0.8)
    for kind, style in (("no leak", "-"), ("pre-trained with", "--")):
        own = sorted({row["key"]["width"] for row in record.matching(controlled, kind=kind)})
        found = [record.matching(controlled, kind=kind, width=width) for width in own]
        each = [[100 * (row["lqf_start"] - row["finetune"]) for row in some] for some in found]
        errors = [standard_error(values) if len(values) > 1 else 0.0 for values in each]
        axes[0, 2].errorbar(
            own, [statistics.fmean(values) for values in each], errors, fmt=f"s{style}", color=COLOURS[3], markersize=4
        )
    axes[0, 2].set(xscale="log", xlabel="width of a small network (dashed: leak)")
    axes[0, 2].axhline(0, color="black", linewidth=0.8)
    axes[0, 0].set_ylabel("points above fine-tuning")
    legend_below(figure, axes[0, 0], zip(networks, COLOURS, strict=False), title="full: moved first; dashed: not moved")
    return figure


def publish() -> None:
    """docs/results/lqf_conditions.md and its figure, from the cells measured so far."""
    rows, controlled = record.load(NAME).get("rows", []), record.load(WIDTHS).get("rows", [])
    parts = {"conditions": conditions(rows), "effects": effects(rows), "seconds": seconds(rows)}
    parts |= {"widths": widths(controlled), "draws": draws(record.load(DRAWS).get("rows", []))}
    record.write_page(NAME, __file__, parts, {NAME: plot(rows, controlled)})


if __name__ == "__main__":
    publishing(publish, __doc__)
