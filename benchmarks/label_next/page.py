"""Page and plot of the study of what to label next: `python -m benchmarks.label_next.page`."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Mapping

import numpy as np
from matplotlib.figure import Figure

from benchmarks import record
from benchmarks.plots import COLOURS, panels, styled
from benchmarks.record import Row
from benchmarks.study import mean_error, publishing, standard_error

NAME = "label_next"
DATASETS = {"CIFAR-10": "cifar10", "Fashion-MNIST": "fashion"}  # in the rows, and in page.md
SEEDS = (0, 1, 2)
BUDGETS = [*range(10, 101, 10), *range(125, 401, 25)]
SHOWN = (10, 20, 30, 40, 60, 80, 100, 150, 200, 300, 400)
PLOTTED = ("ours", "random", "margin", "k-centre", "typical only")
Curves = Mapping[str, np.ndarray]  # strategy -> (seeds, budgets) accuracy


def publish() -> None:
    """docs/results/label_next.md and .png."""
    rows, parts, curves = record.load(NAME)["rows"], {}, {}
    for dataset, short in DATASETS.items():
        own = [row for row in rows if row["key"]["dataset"] == dataset]
        found = {name: np.array([row["accuracy"][name] for row in own]) for name in own[0]["accuracy"]}
        curves[dataset] = found
        parts[f"table_{short}"] = table(found)
        parts[f"below_{short}"] = below(found)
        parts[f"switch_{short}"] = switches(own)
        parts[f"saved_{short}"] = saved(found)
    record.write_page(NAME, __file__, parts, {NAME: figure(curves)}, dpi=150)


def table(found: Curves) -> str:
    """A line a strategy: mean and standard error over seeds, and the mean over all budgets."""
    lines = []
    for name, values in found.items():
        cells = {str(n): f"{values[:, BUDGETS.index(n)].mean():.3f}" for n in SHOWN}
        lines.append({"strategy": name} | cells | {"all budgets": mean_error(values.mean(1).tolist())})
    return record.markdown_table(lines)


def below(found: Curves) -> str:
    """Where ours is below random by more than twice the standard error of the paired difference, in words."""
    gaps = found["ours"] - found["random"]
    noise = [2 * standard_error(gaps[:, i].tolist()) for i in range(len(BUDGETS))]
    under = [(n, gap) for n, gap in zip(BUDGETS, gaps.mean(0).tolist(), strict=True) if gap < 0]
    beyond = [n for n, gap, two in zip(BUDGETS, gaps.mean(0).tolist(), noise, strict=True) if gap < -two]
    lost = ", ".join(f"{n} ({gap:+.3f})" for n, gap in under) or "none"
    worst = ", ".join(map(str, beyond)) or "none"
    return f"budgets where the mean of ours is below random: {lost}; by more than two standard errors: {worst}"


def switches(rows: list[Row]) -> str:
    """The criterion at each budget, seed by seed."""
    told = []
    for row in rows:
        counts = Counter(row["stages"][:-1])
        first = next((n for n, s in zip(BUDGETS, row["stages"], strict=True) if s != "typical"), None)
        told.append(f"seed {row['key']['seed']} from {first} on ({counts['typical']} typical batches in all)")
    return "; ".join(told)


def saved(found: Curves) -> str:
    """Labels that ours needs for what random reaches with 400."""
    goal, ours = found["random"].mean(0)[-1], found["ours"].mean(0)
    reached = next((n for n, value in zip(BUDGETS, ours.tolist(), strict=True) if value >= goal), None)
    gain = statistics.fmean((found["ours"] - found["random"]).mean(1).tolist())
    return f"{reached or 'more than 400'} labels (mean gain over all budgets {gain:+.3f})"


@styled
def figure(curves: Mapping[str, Curves]) -> Figure:
    """Mean accuracy against labels, one panel a data set."""
    figure, axes_of = panels((4.2 * len(curves), 3.6), 1, len(curves))
    for axes, (dataset, found) in zip(axes_of[0], curves.items(), strict=True):
        for colour, name in zip(COLOURS, PLOTTED, strict=True):
            axes.plot(
                BUDGETS, found[name].mean(0), "-" if name == "ours" else "--", color=colour, label=name, linewidth=1.6
            )
        axes.set_title(dataset, loc="left", fontsize=9)
        axes.set(xscale="log", xlabel="labelled pictures")
        axes.set_xticks([10, 20, 50, 100, 200, 400], ["10", "20", "50", "100", "200", "400"])
        axes.minorticks_off()
    axes_of[0, 0].set_ylabel("accuracy, test pictures")
    handles, names = axes_of[0, 0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=5)
    return figure


if __name__ == "__main__":
    publishing(publish, __doc__)
