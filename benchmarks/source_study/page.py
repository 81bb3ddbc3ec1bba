"""Page and picture of the study of pre-training pictures: `python -m benchmarks.source_study.page`."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from itertools import product
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from benchmarks import record
from benchmarks.plots import COLOURS, INK, MUTED, panels, styled
from benchmarks.study import mean_error, mean_spread, publishing, standard_error

NAME = "source_study"
WAYS = {"joint": "joint training", "closed": "the closed form"}
TARGETS, HALF = ("grey", "other classes", "traffic"), 1000
DISTRACTOR = "clothing: "  # how the labels of Fashion-MNIST begin in a pool
NONE, RANDOM, ALL = "none", "random", "all"
NEAREST, UOT, FREE, PAPER, PAPER_FINE = "nearest", "UOT", "UOT free", "UOT .1", "UOT .05"
EVEN = "UOT even"  # what "UOT" chooses, every picture counting the same
TRAINED = {"joint": (UOT, EVEN, FREE, PAPER, NEAREST, RANDOM), "closed": (UOT, FREE, NEAREST, RANDOM)}
RIVALS = {
    NEAREST: "by the nearest class",
    RANDOM: "by chance",
    EVEN: "by transport with even weights",
    FREE: "by transport without quota",
    PAPER: "by transport with the paper's settings",
}
BAR = 0.05  # of distractors, by weight
COMPARED = (RANDOM, NEAREST, PAPER, PAPER_FINE, UOT, FREE)
SHOWN = {RANDOM: MUTED, NEAREST: COLOURS[2], PAPER: COLOURS[3], FREE: "#38a3c4", UOT: COLOURS[0]}
VALUES = {"distractors": "distractors", "distractor_mass": "their mass", "right": "right"}


def publish() -> None:
    """Write docs/results/source_study.md and its picture."""
    parts = {"verdicts": "\n".join(f"- {sentence}" for sentence in verdicts())}
    parts |= {"weights": weights(), "choices": choices()}
    for way in WAYS:
        parts |= {f"accuracy_{way}": accuracies(way), f"gains_{way}": differences(way)}
    record.write_page(NAME, __file__, parts, {NAME: curves()}, dpi=140)


def values(value: str, section: str = "rows", **key: Any) -> dict[int, Any]:
    """A value of all rows with these settings, by seed; rows that have none are left out."""
    return record.by_seed(record.load(NAME)[section], value, **key)


def accuracy(target: str, way: str, ranking: str, budget: int) -> dict[int, float]:
    """By seed; without a choice there are no or all source pictures, whatever the budget."""
    amount = {NONE: 0, ALL: 2 * HALF}.get(ranking, budget)
    return values("accuracy", target=target, way=way, ranking=ranking, budget=amount)


def gains(target: str, way: str, ranking: str, budget: int, over: str) -> list[float]:
    """Points of accuracy by which one choice beats another, seed by seed."""
    mine, its = (accuracy(target, way, name, budget) for name in (ranking, over))
    return [100 * (mine[seed] - its[seed]) for seed in sorted(mine.keys() & its.keys())]


def budgets() -> list[int]:
    """How many pictures were chosen, ascending."""
    return sorted({row["key"]["budget"] for row in record.load(NAME)["selections"]})


def cases() -> list[tuple[str, int]]:
    """Every target at every budget."""
    return list(product(TARGETS, budgets()))


def learnt(way: str, rankings: Sequence[str]) -> list[str]:
    """Those of the rankings that one way of learning has results of."""
    return [name for name in rankings if values("accuracy", way=way, ranking=name)]


def sources() -> list[tuple[str, int]]:
    """What the closed form learnt from: ranking and number of pictures."""
    return [*((name, budget) for budget in budgets() for name in learnt("closed", TRAINED["closed"])), (ALL, 2 * HALF)]


def accuracies(way: str) -> str:
    """Mean and spread over seeds, a line for each target and budget."""
    rows, rankings = [], learnt(way, (NONE, RANDOM, NEAREST, PAPER, FREE, UOT, EVEN, ALL))
    for target, budget in cases():
        found = {name: mean_spread([*accuracy(target, way, name, budget).values()]) for name in rankings}
        rows.append({"target": target, "chosen": budget} | found)
    return record.markdown_table(rows)


def differences(way: str) -> str:
    """Transport against the others, mean and standard error of the differences seed by seed."""
    rows = []
    for target, budget in cases():
        points = {other: gains(target, way, UOT, budget, other) for other in learnt(way, (NONE, *RIVALS, ALL))}
        told = {other: mean_error(own, "+.1f") if own else "-" for other, own in points.items()}
        rows.append({"target": target, "chosen": budget} | told)
    return record.markdown_table(rows)


def weights() -> str:
    """What leave-one-out made of each choice of source pictures, means over seeds."""
    rows = []
    for target, (ranking, budget) in product(TARGETS, sources()):
        key = {"target": target, "way": "closed", "ranking": ranking, "budget": budget}
        names = ("strength", "loo_error_without", "loo_error", "distractor_mass")
        used, without, error, mass = (list(values(name, **key).values()) for name in names)
        row = {"target": target, "source": f"{ranking}, {budget}", "strengths": ", ".join(f"{own:g}" for own in used)}
        row |= {"LOO error without": mean_spread(without), "with": mean_spread(error)}
        row["gain, points"] = mean_spread(gains(target, "closed", ranking, budget, NONE), 1)
        rows.append(row | {"distractors' share of the source's weight": f"{max(mass):.1%}"})
    return record.markdown_table(rows)


def choices() -> str:
    """Distractors by number and by weight, and right classes, of every ranking: a line for each target and budget."""
    rows = []
    for (target, budget), ranking in product(cases(), COMPARED):
        row: dict[str, Any] = {"target": target, "chosen": budget, "ranking": ranking}
        for (centred, name), (value, title) in product(((False, "plain"), (True, "centred")), VALUES.items()):
            found = values(value, "selections", target=target, budget=budget, ranking=ranking, centred=centred)
            row[f"{title}, {name}"] = f"{100 * statistics.fmean(found.values()):.1f}" if found else "-"
        if row["distractors, plain"] != "-":
            rows.append(row)
    return record.markdown_table(rows)


@styled
def curves() -> Figure:
    """Accuracy against the number of source pictures: a row for each way of learning, a column for each target."""
    figure, axes_of = panels((10.5, 2.9 * len(WAYS) + 0.4), len(WAYS), len(TARGETS), sharey="col")
    for axes, (way, target) in zip(axes_of.flat, product(WAYS, TARGETS), strict=True):
        _panel(axes, target, way)
        axes.set_title(f"{target}, {WAYS[way]}", loc="left", fontsize=9)
    for axes in axes_of[:, 0]:
        axes.set_ylabel("accuracy")
    for axes in axes_of[-1]:
        axes.set_xlabel("source pictures")
    handles = [Line2D([], [], color=colour, marker="o", label=name) for name, colour in SHOWN.items()]
    handles.append(Line2D([], [], color=INK, linestyle="", marker="D", label="all"))
    handles.append(Line2D([], [], color=INK, linestyle="--", label="no source pictures"))
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles))
    return figure


def _panel(axes: Axes, target: str, way: str) -> None:
    places = {budget: place for place, budget in enumerate((*budgets(), 2 * HALF))}
    alone = list(accuracy(target, way, NONE, 0).values())
    middle, spread = statistics.fmean(alone), statistics.pstdev(alone)
    axes.axhspan(middle - spread, middle + spread, color=INK, alpha=0.07, linewidth=0)
    axes.axhline(middle, color=INK, linestyle="--", linewidth=1)
    for number, (ranking, colour) in enumerate([*SHOWN.items(), (ALL, INK)]):
        points = []
        for budget, place in places.items():
            own = list(values("accuracy", target=target, way=way, ranking=ranking, budget=budget).values())
            if own:
                x = place + (0 if ranking == ALL else 0.05 * (number - 2))
                points.append((x, statistics.fmean(own), statistics.pstdev(own)))
        if points:
            x, y, spread = zip(*points, strict=True)
            marker = "D" if ranking == ALL else "o"
            axes.errorbar(x, y, yerr=spread, color=colour, marker=marker, markersize=4, linewidth=1.3, capsize=2)
    axes.set_xticks(list(places.values()), [*map(str, budgets()), f"all {2 * HALF:,}"])
    axes.set_xlim(-0.4, len(places) - 0.6)


def verdicts() -> list[str]:
    """What was found, the plain answer first."""
    return [*map(help_of, WAYS), *map(rivals, WAYS), distractors(), *closed()]


def help_of(way: str) -> str:
    """Gain over no source at the largest budget: by transport, by chance, by the whole pool."""
    most, parts = max(budgets()), []
    for target in TARGETS:
        found = []
        for ranking in (UOT, RANDOM, ALL):
            points = gains(target, way, ranking, most, NONE)
            found.append(f"{mean_error(points, '+.1f')} ({ranking if ranking == ALL else f'{most} by {ranking}'})")
            if ranking == UOT:
                found.append("it helps" if outcome(points) > 0 else "**it does not help**")
        parts.append(f"{target} {', '.join(found)}")
    return f"Gain over no source pictures in points of accuracy, {WAYS[way]}: {'; '.join(parts)}."


def rivals(way: str) -> str:
    """Transport against its rivals, over targets and budgets."""
    parts = []
    for rival, name in RIVALS.items():
        points = [gains(target, way, UOT, budget, rival) for target, budget in cases()]
        found = [outcome(own) for own in points if own]
        if found:
            ahead, behind = found.count(1), found.count(-1)
            told = "better than" if ahead > behind + len(found) / 3 else "no better than"
            counts = f"ahead in {ahead}, level in {found.count(0)}, behind in {behind} of {len(found)} cases"
            parts.append(f"**{told} {name}** ({counts})")
    return f"With {WAYS[way]}, choosing by transport is {', '.join(parts)}."


def distractors() -> str:
    """Mean distractor mass of transport in several settings, and where the bar is not met."""
    out, over = [], []
    for ranking, centred, name in (
        (UOT, True, "as the library has it"),
        (UOT, False, "the same, not centred"),
        (FREE, True, "the same without quota"),
        (PAPER, True, "the paper's settings, centred"),
        (PAPER, False, "the paper's settings"),
    ):
        parts = []
        for target in TARGETS:
            masses = []
            for budget in budgets():
                key = {"target": target, "centred": centred, "ranking": ranking, "budget": budget}
                mass = statistics.fmean(values("distractor_mass", "selections", **key).values())
                masses.append(f"{100 * mass:.1f}")
                if ranking == UOT and centred and mass >= BAR:
                    over.append(f"{target} at {budget}")
            parts.append(f"{target} {' / '.join(masses)}")
        out.append(f"{name}: {', '.join(parts)}")
    met = f"not met for {' and '.join(over)}" if over else "met everywhere"
    sizes = " / ".join(map(str, budgets()))
    return (
        f"Distractor mass among the chosen ({sizes}), per cent, {'; '.join(out)}. The bar of {100 * BAR:.0f} % is, "
        f"with the library's settings, {met}."
    )


def closed() -> list[str]:
    """The closed form: against no source, with the whole pool, and what it makes of distractors."""
    found, mass = [], []
    for target, (ranking, budget) in product(TARGETS, sources()):
        spread, name = (
            100 * statistics.stdev(accuracy(target, "closed", NONE, 0).values()),
            f"{target}, {budget} by {ranking}",
        )
        found.append((statistics.fmean(gains(target, "closed", ranking, budget, NONE)), spread, name))
        own = values("distractor_mass", target=target, way="closed", ranking=ranking, budget=budget)
        mass += [(share, f"{name}, seed {seed}") for seed, share in own.items()]
    worse = [f"{name} ({gain:+.1f}, spread {spread:.1f})" for gain, spread, name in found if gain < -spread]
    least, worst, most = min(found), max(mass), max(budgets())
    told = f"worse in {'; '.join(worse)}" if worse else "never worse"
    # all rows of the whole pool have the same number of pictures: the largest budget stands for transport alone
    whole = {target: [-gain for gain in gains(target, "closed", UOT, most, ALL)] for target in TARGETS}
    pool = ", ".join(f"{target} {mean_error(points, '+.1f')}" for target, points in whole.items())
    return [
        f"The closed form with source pictures against without, by more than the spread over seeds: {told}. "
        f"The least gain is {least[0]:+.1f} points ({least[2]}; spread {least[1]:.1f}).",
        "The closed form weighs the classes of a source itself; with the whole pool, against "
        f"{most} by transport: {pool} points.",
        f"Distractors' share of the source's weight in the closed form: under {100 * BAR:.0f} % in "
        f"{sum(share < BAR for share, _ in mass)} of {len(mass)} fits; at worst {100 * worst[0]:.1f} % ({worst[1]}).",
    ]


def outcome(gains: Sequence[float]) -> int:
    """1 ahead, -1 behind, 0 level: the mean is within one standard error, or there is one seed only.

    Example:
        >>> outcome([1.0, 1.2, 1.1]), outcome([-1.0, 1.5, 0.1])
        (1, 0)
    """
    if len(gains) < 2 or abs(statistics.fmean(gains)) <= standard_error(gains):
        return 0
    return 1 if statistics.fmean(gains) > 0 else -1


if __name__ == "__main__":
    publishing(publish, __doc__)
