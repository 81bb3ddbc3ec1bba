"""What the rows of the study of pre-training pictures say: names, gains, and sentences made from them."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

from benchmarks import record
from benchmarks.study import mean_error, standard_error

NAME = "source_study"
WAYS = {"joint": "joint training", "closed": "the closed form"}
TARGETS, SHOTS, HALF = ("grey", "other classes", "traffic"), 10, 1000
DISTRACTOR = "clothing: "  # how the labels of Fashion-MNIST begin in a pool
NONE, RANDOM, ALL = "none", "random", "all"
NEAREST, KERNEL, UOT, FREE, PAPER, PAPER_FINE = "nearest", "kernel sum", "UOT", "UOT free", "UOT .1", "UOT .05"
EVEN = "UOT even"  # what "UOT" chooses, every picture counting the same
TRAINED = {"joint": (UOT, EVEN, FREE, PAPER, NEAREST, KERNEL, RANDOM), "closed": (UOT, FREE, NEAREST, KERNEL, RANDOM)}
RIVALS = {
    NEAREST: "by the nearest class",
    KERNEL: "by the kernel sum",
    RANDOM: "by chance",
    EVEN: "by transport with even weights",
    FREE: "by transport without quota",
    PAPER: "by transport with the paper's settings",
}
BAR = 0.05  # of distractors, by weight


def values(section: str, value: str, **key: Any) -> dict[int, Any]:
    """A value of all rows with these settings, by seed; rows that have none are left out."""
    rows = [row for row in record.load(NAME)[section] if key.items() <= row["key"].items()]
    return {row["key"]["seed"]: row[value] for row in rows if row.get(value) is not None}


def budgets() -> list[int]:
    """How many pictures were chosen, ascending."""
    return sorted({row["key"]["budget"] for row in record.load(NAME)["selections"]})


def amount(ranking: str, budget: int) -> int:
    """How many source pictures a ranking has: without a choice none or all, whatever the budget."""
    return {NONE: 0, ALL: 2 * HALF}.get(ranking, budget)


def gains(target: str, way: str, ranking: str, budget: int, over: str) -> list[float]:
    """Points of accuracy by which one choice beats another, seed by seed."""
    mine, its = (
        values("rows", "accuracy", target=target, way=way, ranking=name, budget=amount(name, budget))
        for name in (ranking, over)
    )
    return [100 * (mine[seed] - its[seed]) for seed in sorted(mine.keys() & its.keys())]


def source_choices() -> list[tuple[str, int]]:
    """What the closed form learnt from: ranking and number of pictures."""
    return [*((ranking, budget) for budget in budgets() for ranking in TRAINED["closed"]), (ALL, 2 * HALF)]


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
    parts, cases = [], [(target, budget) for target in TARGETS for budget in budgets()]
    for rival, name in RIVALS.items():
        points = [gains(target, way, UOT, budget, rival) for target, budget in cases]
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
                mass = statistics.fmean(values("selections", "distractor_mass", **key).values())
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
    for target in TARGETS:
        alone = list(values("rows", "accuracy", target=target, way="closed", ranking=NONE).values())
        spread = 100 * statistics.stdev(alone)
        for ranking, budget in source_choices():
            points = gains(target, "closed", ranking, budget, NONE)
            found.append((statistics.fmean(points), spread, f"{target}, {budget} by {ranking}"))
            key = {"target": target, "way": "closed", "ranking": ranking, "budget": budget}
            own = values("rows", "distractor_mass", **key)
            mass += [(share, f"{target}, {budget} by {ranking}, seed {seed}") for seed, share in own.items()]
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
