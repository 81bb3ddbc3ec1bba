"""Page and figures of the calibration study: `python -m benchmarks.calibration.page`."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

from matplotlib.figure import Figure

from benchmarks import record
from benchmarks.calibration.summary import Comparison, Line, chosen_by_validation, compare, complete, lines_of
from benchmarks.plots import COLOURS, MUTED, legend_below, panels, styled
from benchmarks.record import Row
from benchmarks.study import mean_error, publishing

NAME = "calibration"
SEEDS = {"cifar10": 3, "fashion_mnist": 3, "traffic_lights": 3, "plankton": 5}  # data sets, and the draws each may have
FAMILIES = {"ours": COLOURS[0], "laplace": COLOURS[1], "other": MUTED}
LABELS = {"ours": "tangentune", "laplace": "laplace-torch", "other": "fine-tuning, linear probe"}
MARKERS = {"ours": "o", "laplace": "D", "other": "s"}


def publish() -> None:
    """docs/results/calibration.md and the two figures."""
    payload = record.load(NAME)
    lines = lines_of(payload["rows"])
    datasets = [dataset for dataset in SEEDS if complete(lines, dataset, "laplace")]
    best = [compare(complete(lines, d, "ours")[0], complete(lines, d, "laplace")[0]) for d in datasets]
    parts = {
        "goal": goal(lines, datasets),
        "best": record.markdown_table([pair(each) for each in best]),
        "datasets": "\n".join(part(lines, dataset) for dataset in datasets),
        "failed": failed(payload["groups"]),
    }
    figures = {NAME: cost_figure(lines, datasets), f"{NAME}_foreign": foreign_figure(lines, datasets)}
    record.write_page(NAME, __file__, parts, figures)


def goal(lines: Sequence[Line], datasets: Sequence[str]) -> str:
    """Ours against the best setting of laplace-torch by test log-loss, and against the one chosen by validation."""
    verdicts = []
    for method in sorted({line.method for dataset in datasets for line in complete(lines, dataset, "ours")}):
        found, others = [], []
        for dataset in datasets:
            for line in complete(lines, dataset, "ours"):
                if line.method == method:
                    fair = chosen_by_validation(lines, dataset, "refit")
                    found.append(compare(line, complete(lines, dataset, "laplace")[0]))
                    others += [compare(line, fair)] if fair is not None else []
        verdicts.append(verdict(method, found, others))
    return record.markdown_table(verdicts)


def verdict(method: str, best: Sequence[Comparison], fair: Sequence[Comparison]) -> dict[str, str]:
    """On how many data sets each part of the goal holds."""

    def count(found: Sequence[Comparison], *parts: str) -> str:
        return f"{sum(all(each.met[part] for part in parts) for each in found)} of {len(found)}"

    speeds = " / ".join(f"{each.speed:.1f}" for each in best)
    return {
        "ours": method,
        "lower NLL": count(best, "NLL"),
        "accuracy no lower": count(best, "accuracy"),
        "five times faster": count(best, "time"),
        "all three": count(best, "NLL", "accuracy", "time"),
        "their time / ours": speeds,
        "lower NLL than chosen by validation": count(fair, "NLL"),
        "and accuracy no lower": count(fair, "NLL", "accuracy"),
    }


def pair(found: Comparison) -> dict[str, str]:
    """Both in one row."""
    return {
        "data": found.ours.dataset,
        "ours": found.ours.method,
        "laplace-torch": found.peer.method.removeprefix("laplace "),
        "NLL": f"{found.ours.nll:.3f} against {found.peer.nll:.3f}",
        "difference": mean_error(found.nll, "+.3f"),
        "accuracy": " against ".join(f"{fmean(line.values('accuracy')):.3f}" for line in (found.ours, found.peer)),
        "difference ": mean_error(found.accuracy, "+.3f"),
        "their time / ours": f"{found.speed:.1f}",
    }


def part(lines: Sequence[Line], dataset: str) -> str:
    """All of ours and the others, and the best of each approximation of laplace-torch, of one data set."""
    laplace = complete(lines, dataset, "laplace")
    shown: dict[str, Line] = {}
    for line in laplace:  # best first
        shown.setdefault(line.rows[0]["facts"]["approximation"], line)
    fair = [chosen_by_validation(lines, dataset, network) for network in ("refit", "split")]
    chosen = [*complete(lines, dataset, "ours"), *complete(lines, dataset, "other"), *shown.values()]
    chosen += [line for line in fair if line is not None]
    title = f"## {dataset}: {len(laplace[0].rows)} draws"
    note = f"Best predictive and network of each approximation and prior, of {len(laplace)} settings of laplace-torch."
    return "\n".join([title, "", record.markdown_table([row(line) for line in chosen]), "", note, ""])


def row(line: Line) -> dict[str, str]:
    """One row of a table."""
    names = ("ece", "brier", "auroc_probability", "auroc_entropy", "auroc_own")
    plain = {name: f"{fmean(own):.3f}" if (own := line.values(name)) else "-" for name in names}
    peak = max(line.cost("fit", "peak_bytes"), line.cost("predict", "peak_bytes"))
    return {
        "method": line.method,
        "accuracy": mean_error(line.values("accuracy")),
        "NLL": mean_error(line.values("nll")),
        "ECE": plain["ece"],
        "Brier": plain["brier"],
        "AUROC top": plain["auroc_probability"],
        "entropy": plain["auroc_entropy"],
        "own": plain["auroc_own"],
        "seconds": f"{line.cost('fit', 'cpu_seconds'):.1f}",
        "predict": f"{line.cost('predict', 'cpu_seconds'):.1f}",
        "peak GiB": f"{peak / 2**30:.2f}",
    }


def failed(groups: Sequence[Row]) -> str:
    """What laplace-torch could not do, and what it said."""
    found: dict[tuple[str, str], list[str]] = {}
    for group in groups:
        if group["failed"]:
            found.setdefault((group["key"]["group"], group["failed"]), []).append(group["key"]["dataset"])
    return record.markdown_table(
        [
            {"setting": name, "data": ", ".join(dict.fromkeys(where)), "what happened": why}
            for (name, why), where in found.items()
        ]
    )


@styled
def cost_figure(lines: Sequence[Line], datasets: Sequence[str]) -> Figure:
    """Log-loss against processor seconds of the fit, a panel a data set; every complete setting is a dot."""
    rows = (len(datasets) + 1) // 2
    figure, axes_of = panels((7.6, 2.9 * rows + 0.5), rows, 2)
    for axes in list(axes_of.flat)[len(datasets) :]:
        axes.set_axis_off()
    for axes, dataset in zip(axes_of.flat, datasets, strict=False):
        for family, colour in FAMILIES.items():
            size, alpha = (3, 0.6) if family == "laplace" else (6, 0.95)
            for line in complete(lines, dataset, family):
                x = line.cost("fit", "cpu_seconds")
                axes.plot(x, line.nll, MARKERS[family], color=colour, markersize=size, alpha=alpha)
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_title(dataset.replace("_", " "), loc="left", fontsize=9)
        axes.set_xlabel("processor seconds of the fit")
        axes.set_ylabel("test log-loss")
    first = axes_of.flat[0]
    handles = [
        first.plot([], [], MARKERS[family], color=colour, markersize=5, label=LABELS[family])[0]
        for family, colour in FAMILIES.items()
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=3)
    return figure


@styled
def foreign_figure(lines: Sequence[Line], datasets: Sequence[str]) -> Figure:
    """How well foreign pictures are told apart, by each of a method's scores."""
    kinds = {"auroc_probability": "top probability", "auroc_entropy": "entropy", "auroc_own": "its own score"}
    figure, axes_of = panels((9.2, 3.4), 1, len(datasets), sharey=True)
    shown = {dataset: some_methods(lines, dataset) for dataset in datasets}
    names = list(max(shown.values(), key=len))[::-1]
    names = [name for found in shown.values() for name in found if name not in names] + names
    for axes, dataset in zip(axes_of[0], datasets, strict=True):
        for name, line in shown[dataset].items():
            for shift, (kind, colour) in enumerate(zip(kinds, COLOURS, strict=False)):
                own, height = line.values(kind), names.index(name) + 0.16 * (1 - shift)
                if own:
                    axes.plot(fmean(own), height, "o", color=colour, markersize=4.5)
        axes.set_title(dataset.replace("_", " "), loc="left", fontsize=9)
        axes.set_yticks(range(len(names)), names)
        axes.set_xlabel("AUROC")
    legend_below(figure, axes_of[0, 0], zip(kinds.values(), COLOURS, strict=False), markersize=4.5)
    return figure


def some_methods(lines: Sequence[Line], dataset: str) -> dict[str, Line]:
    """A few methods, the same on every data set: ours, the usual ones, and the best of laplace-torch."""
    ours = {line.method: line for line in sorted(complete(lines, dataset, "ours"), key=lambda line: line.method)}
    others = {line.method: line for line in complete(lines, dataset, "other")}
    usual = ["linear probe", "fine-tuning, refit", "fine-tuning + temperature, refit"]
    best = {"laplace, best NLL": complete(lines, dataset, "laplace")[0]}
    return ours | {name: others[name] for name in usual if name in others} | best


if __name__ == "__main__":
    publishing(publish, __doc__)
