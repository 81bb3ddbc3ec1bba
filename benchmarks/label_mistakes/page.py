"""Page and plot of the study of label mistakes: `python -m benchmarks.label_mistakes.page`."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from benchmarks import record
from benchmarks.plots import COLOURS, MUTED, panels, styled
from benchmarks.record import Row
from benchmarks.study import mean_each, publishing

NAME = "label_mistakes"
DATASETS = {"traffic lights": "lights", "CIFAR-10": "cifar10"}  # in the rows, and in page.md
SHARES = tuple(round(0.01 * k, 2) for k in range(51))
FIGURES = ("AUROC", "in 10 %", "in 20 %")
OPTIONS: dict[str, dict[str, Any]] = {
    "tangent": {"augment": "flip"},
    "tangent, outer steps": {"augment": "flip", "outer_steps": "loo"},
    "same score, linear probe": {"augment": "flip", "subset": "none"},
}
PLOTTED = ("tangent, outer steps", "tangent", "logistic probe, 5-fold", "nearest neighbours", "cleanlab")


def publish() -> None:
    """docs/results/label_mistakes.md and .png; the tables of other scores are as they were measured once."""
    rows, parts, curves = record.load(NAME)["rows"], {}, {}
    for dataset, short in DATASETS.items():
        own = [row for row in rows if row["key"]["dataset"] == dataset]
        methods = means(own)
        prefixes = ("logistic", "ridge", "nearest", "cleanlab")
        rival = {prefix: strongest(prefix, methods) for prefix in prefixes}
        first = [*OPTIONS, *rival.values()]
        curves[dataset] = {name: methods[rival.get(name.split()[0], name)]["curve"] for name in PLOTTED}
        parts[f"verdict_{short}"] = verdict(methods, list(rival.values()))
        parts[f"table_{short}"] = table(first, methods)
        parts[f"fits_{short}"] = fit_table([row for row in own if row["key"]["part"] in OPTIONS])
        parts[f"others_{short}"] = table([name for name in methods if name not in first], methods)
    record.write_page(NAME, __file__, parts, {NAME: figure(curves)}, dpi=150)


def means(rows: Sequence[Row]) -> dict[str, Row]:
    """Method -> means and lists over seeds."""
    gathered: dict[str, list[Row]] = {}
    for row in rows:
        for name, values in row["methods"].items():
            gathered.setdefault(name, []).append(values)
    found = {}
    for name, values in gathered.items():
        each = {"AUROC": [v["auroc"] for v in values]}
        each |= {f"in {share} %": [v["recall"][share] for v in values] for share in (10, 20)}
        found[name] = {figure: statistics.fmean(own) for figure, own in each.items()} | {
            "each": each,
            "curve": np.mean([v["recall"] for v in values], axis=0).tolist(),
            "CPU s": statistics.fmean(v.get("cpu_seconds", math.nan) for v in values),
            "seeds": len(values),
        }
    return found


def strongest(prefix: str, methods: Mapping[str, Row]) -> str:
    """The setting of a rival that has the highest AUROC."""
    return max((name for name in methods if name.startswith(prefix)), key=lambda name: methods[name]["AUROC"])


def verdict(methods: Mapping[str, Row], rivals: Sequence[str]) -> str:
    """Whether each configuration is at least level with the best rival, figure by figure."""
    words = []
    for name in ("tangent, outer steps", "tangent"):
        parts = []
        for figure in FIGURES:
            best = max(rivals, key=lambda rival: methods[rival][figure])
            parts.append(f"{figure} {methods[name][figure]:.3f} (best rival {methods[best][figure]:.3f}, {best})")
        words.append(f"- {name}: " + "; ".join(parts) + ".")
    return "\n".join(words)


def table(names: Sequence[str], methods: Mapping[str, Row]) -> str:
    """Every figure with its values over seeds."""
    lines = []
    for name in names:
        line = methods[name]
        figures = {figure: mean_each(line["each"][figure]) for figure in FIGURES}
        lines.append({"method": name} | figures | {"CPU s": f"{line['CPU s']:.1f}", "seeds": line["seeds"]})
    return record.markdown_table(lines)


def fit_table(rows: Sequence[Row]) -> str:
    """What every fit chose, and its leave-one-out accuracy."""
    lines = []
    for row in rows:
        fields = {name: row["key"][name] for name in ("part", "seed")}
        names = ("outer_steps", "body_scale", "metric_power", "relative_damping")
        numbers = {name.replace("_", " "): f"{row[name]:.3g}" for name in names}
        accuracies = {f"LOO accuracy, {kind} labels": row[f"loo_accuracy_{kind}"] for kind in ("given", "true")}
        lines.append(fields | numbers | {name: f"{value:.3f}" for name, value in accuracies.items()})
    return record.markdown_table(lines)


@styled
def figure(curves: Mapping[str, Mapping[str, Sequence[float]]]) -> Figure:
    """Share of the wrong labels found against the share of pictures inspected, one panel a data set."""
    figure, axes_of = panels((4.2 * len(curves), 3.4), 1, len(curves), sharey=True)
    percent = [100 * share for share in SHARES]
    for axes, (dataset, methods) in zip(axes_of[0], curves.items(), strict=True):
        for place, (method, found) in enumerate(methods.items()):
            style = "-" if method.startswith("tangent") else "--"
            axes.plot(percent, [100 * f for f in found], style, color=COLOURS[place], label=method, linewidth=1.6)
        axes.plot([0, 10, 50], [0, 100, 100], ":", color=MUTED, linewidth=1, label="perfect")
        axes.set_title(dataset, loc="left", fontsize=9)
        axes.set(xlim=(0, 40), ylim=(0, 102), xlabel="pictures inspected, %")
    axes_of[0, 0].set_ylabel("wrong labels found, %")
    handles, names = axes_of[0, 0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=3)
    return figure


if __name__ == "__main__":
    publishing(publish, __doc__)
