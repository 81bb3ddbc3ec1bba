"""Page and picture of the study of pre-training pictures: `python -m benchmarks.source_study.page`."""

from __future__ import annotations

import statistics
from collections.abc import Iterator

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from benchmarks import record
from benchmarks.plots import COLOURS, INK, MUTED, panels, styled
from benchmarks.source_study.results import (
    ALL,
    EVEN,
    FREE,
    HALF,
    KERNEL,
    NAME,
    NEAREST,
    NONE,
    PAPER,
    PAPER_FINE,
    RANDOM,
    RIVALS,
    TARGETS,
    UOT,
    WAYS,
    amount,
    budgets,
    gains,
    source_choices,
    values,
    verdicts,
)  # fmt: skip
from benchmarks.study import mean_error, mean_spread, read_arguments, study_parser

RANKINGS = (RANDOM, NEAREST, "mean cosine", "EMD", KERNEL, PAPER, PAPER_FINE, UOT, FREE)
SHOWN = {RANDOM: MUTED, NEAREST: COLOURS[2], KERNEL: COLOURS[1], PAPER: COLOURS[3], FREE: "#38a3c4", UOT: COLOURS[0]}
VALUES = {"distractors": "distractors", "distractor_mass": "their mass", "right": "right"}


def publish() -> None:
    """Write docs/results/source_study.md and its picture; the table of overlaps is as it was measured once."""
    parts = {"verdicts": "\n".join(f"- {sentence}" for sentence in verdicts())}
    parts |= {"weights": weights(), "choices": choices()}
    for way in WAYS:
        parts |= {f"accuracy_{way}": accuracies(way), f"gains_{way}": differences(way)}
    record.write_page(NAME, __file__, parts, {NAME: curves()}, dpi=140)


def cases() -> Iterator[tuple[str, int]]:
    """Every target at every budget."""
    return ((target, budget) for target in TARGETS for budget in budgets())


def accuracies(way: str) -> str:
    """Mean and spread over seeds, a line for each target and budget."""
    rankings, rows = [NONE, RANDOM, NEAREST, KERNEL, FREE, UOT, ALL], []
    if way == "joint":
        rankings = [NONE, RANDOM, NEAREST, KERNEL, PAPER, FREE, UOT, EVEN, ALL]
    for target, budget in cases():
        row = {"target": target, "chosen": budget}
        for name in rankings:
            own = values("rows", "accuracy", target=target, way=way, ranking=name, budget=amount(name, budget))
            row[name] = mean_spread(list(own.values()))
        rows.append(row)
    return record.markdown_table(rows)


def differences(way: str) -> str:
    """Transport against the others, mean and standard error of the differences seed by seed."""
    rows = []
    others = [rival for rival in (NONE, *RIVALS, ALL) if values("rows", "accuracy", way=way, ranking=rival)]
    for target, budget in cases():
        points = {other: gains(target, way, UOT, budget, other) for other in others}
        told = {other: mean_error(own, "+.1f") if own else "-" for other, own in points.items()}
        rows.append({"target": target, "chosen": budget} | told)
    return record.markdown_table(rows)


def weights() -> str:
    """What leave-one-out made of each choice of source pictures, means over seeds."""
    rows = []
    for target in TARGETS:
        for ranking, budget in source_choices():
            key = {"target": target, "way": "closed", "ranking": ranking, "budget": budget}
            names = ("strength", "loo_error_without", "loo_error", "distractor_mass")
            used, without, error, mass = (list(values("rows", name, **key).values()) for name in names)
            rows.append(
                {
                    "target": target,
                    "source": f"{ranking}, {budget}",
                    "strengths": ", ".join(f"{strength:g}" for strength in used),
                    "LOO error without": mean_spread(without),
                    "with": mean_spread(error),
                    "gain, points": mean_spread(gains(target, "closed", ranking, budget, NONE), 1),
                    "distractors' share of the source's weight": f"{max(mass):.1%}",
                }
            )
    return record.markdown_table(rows)


def choices() -> str:
    """Distractors by number and by weight, and right classes, of every ranking: a line for each target and budget."""
    rows = []
    for target, budget in cases():
        for ranking in RANKINGS:
            row = {"target": target, "chosen": budget, "ranking": ranking}
            for centred, name in ((False, "plain"), (True, "centred")):
                key = {"target": target, "budget": budget, "ranking": ranking, "centred": centred}
                for value, title in VALUES.items():
                    found = values("selections", value, **key).values()
                    row[f"{title}, {name}"] = f"{100 * statistics.fmean(found):.1f}" if found else "-"
            rows.append(row)
    return record.markdown_table(rows)


@styled
def curves() -> Figure:
    """Accuracy against the number of source pictures: a row for each way of learning, a column for each target."""
    figure, axes_of = panels((10.5, 2.9 * len(WAYS) + 0.4), len(WAYS), len(TARGETS), sharey="col")
    for line, way in zip(axes_of, WAYS, strict=True):
        for axes, target in zip(line, TARGETS, strict=True):
            _panel(axes, target, way)
            axes.set_title(f"{target}, {WAYS[way]}", loc="left", fontsize=9)
        line[0].set_ylabel("accuracy")
    for axes in axes_of[-1]:
        axes.set_xlabel("source pictures")
    handles = [Line2D([], [], color=colour, marker="o", label=name) for name, colour in SHOWN.items()]
    handles.append(Line2D([], [], color=INK, linestyle="", marker="D", label="all"))
    handles.append(Line2D([], [], color=INK, linestyle="--", label="no source pictures"))
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles))
    return figure


def _panel(axes: Axes, target: str, way: str) -> None:
    places = {budget: place for place, budget in enumerate((*budgets(), 2 * HALF))}
    alone = list(values("rows", "accuracy", target=target, way=way, ranking=NONE).values())
    middle, spread = statistics.fmean(alone), statistics.pstdev(alone)
    axes.axhspan(middle - spread, middle + spread, color=INK, alpha=0.07, linewidth=0)
    axes.axhline(middle, color=INK, linestyle="--", linewidth=1)
    for number, (ranking, colour) in enumerate([*SHOWN.items(), (ALL, INK)]):
        points = []
        for budget, place in places.items():
            own = list(values("rows", "accuracy", target=target, way=way, ranking=ranking, budget=budget).values())
            if own:
                x = place + (0 if ranking == ALL else 0.05 * (number - 2))
                points.append((x, statistics.fmean(own), statistics.pstdev(own)))
        if points:
            x, y, spread = zip(*points, strict=True)
            marker = "D" if ranking == ALL else "o"
            axes.errorbar(x, y, yerr=spread, color=colour, marker=marker, markersize=4, linewidth=1.3, capsize=2)
    axes.set_xticks(list(places.values()), [*map(str, budgets()), f"all {2 * HALF:,}"])
    axes.set_xlim(-0.4, len(places) - 0.6)


if __name__ == "__main__":
    read_arguments(study_parser(__doc__))
    publish()
