"""Sentences on the study of pre-training pictures, made from its numbers."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from benchmarks.source_data import HALF, TARGETS
from benchmarks.source_methods import ALL, EVEN, FREE, KERNEL, NEAREST, NONE, PAPER, RANDOM, TRAINED, UOT
from benchmarks.source_results import WAYS, Results

RIVALS = {
    NEAREST: "by the nearest class",
    KERNEL: "by the kernel sum",
    RANDOM: "by chance",
    EVEN: "by transport with even weights",
    FREE: "by transport without quota",
    PAPER: "by transport with the paper's settings",
}
BAR = 0.05  # of distractors, by weight


def verdicts(results: Results) -> list[str]:
    """What was found, the plain answer first."""
    return [
        *(_help(results, way) for way in WAYS if results.of("rows", "accuracy", way=way)),
        *(_rivals(results, way) for way in WAYS if results.of("rows", "accuracy", way=way)),
        *_distractors(results),
        *_closed(results),
    ]


def _help(results: Results, way: str) -> str:
    """Gain over no source at the largest budget: by transport, by chance, by the whole pool."""
    most, parts = max(results.budgets()), []
    for target in TARGETS:
        found = []
        for ranking, budget in ((UOT, most), (RANDOM, most), (ALL, 2 * HALF)):
            gains = results.gains(target, way, ranking, budget, NONE, 0)
            if gains:
                found.append(f"{points(gains)} ({ranking if ranking == ALL else f'{budget} by {ranking}'})")
                if ranking == UOT:
                    helps = "it helps" if outcome(gains) > 0 else "**it does not help**"
                    found[-1] += f", {helps}"
        if found:
            parts.append(f"{target} {', '.join(found)}")
    return f"Gain over no source pictures in points of accuracy, {WAYS[way]}: {'; '.join(parts)}."


def _rivals(results: Results, way: str) -> str:
    """Transport against its rivals, over targets and budgets."""
    parts = []
    for rival, name in RIVALS.items():
        found = [
            outcome(gains)
            for target in TARGETS
            for budget in results.budgets()
            if (gains := results.gains(target, way, UOT, budget, rival, budget))
        ]
        if found:
            ahead, behind = found.count(1), found.count(-1)
            told = "better than" if ahead > behind + len(found) / 3 else "no better than"
            counts = f"ahead in {ahead}, level in {found.count(0)}, behind in {behind} of {len(found)} cases"
            parts.append(f"**{told} {name}** ({counts})")
    return f"With {WAYS[way]}, choosing by transport is {', '.join(parts)}."


def _distractors(results: Results) -> list[str]:
    """Mean distractor mass of transport in four settings, and where the bar is not met."""
    budgets = results.budgets()
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
            for budget in budgets:
                key = {"target": target, "centred": centred, "ranking": ranking, "budget": budget}
                mass = statistics.fmean(results.of("selections", "distractor_mass", **key).values())
                masses.append(f"{100 * mass:.1f}")
                if ranking == UOT and centred and mass >= BAR:
                    over.append(f"{target} at {budget}")
            parts.append(f"{target} {' / '.join(masses)}")
        out.append(f"{name}: {', '.join(parts)}")
    met = f"not met for {' and '.join(over)}" if over else "met everywhere"
    sizes = " / ".join(map(str, budgets))
    return [
        f"Distractor mass among the chosen ({sizes}), per cent, {'; '.join(out)}. The bar of {100 * BAR:.0f} % is, "
        f"with the library's settings, {met}."
    ]


def _closed(results: Results) -> list[str]:
    found, mass = [], []
    for target in TARGETS:
        alone = list(results.of("rows", "accuracy", target=target, way="closed", ranking=NONE).values())
        for ranking, budget in source_choices(results):
            gains = results.gains(target, "closed", ranking, budget, NONE, 0)
            if len(gains) and len(alone) > 1:
                spread = 100 * statistics.stdev(alone)
                found.append((statistics.fmean(gains), spread, f"{target}, {budget} by {ranking}"))
            key = {"target": target, "way": "closed", "ranking": ranking, "budget": budget}
            own = results.of("rows", "distractor_mass", **key)
            mass += [(share, f"{target}, {budget} by {ranking}, seed {seed}") for seed, share in own.items()]
    out = []
    if found:
        worse = [f"{name} ({gain:+.1f}, spread {spread:.1f})" for gain, spread, name in found if gain < -spread]
        least = min(found)
        told = f"worse in {'; '.join(worse)}" if worse else "never worse"
        out.append(
            f"The closed form with source pictures against without, by more than the spread over seeds: {told}. "
            f"The least gain is {least[0]:+.1f} points ({least[2]}; spread {least[1]:.1f})."
        )
    most = max(results.budgets())
    whole = {target: results.gains(target, "closed", ALL, 2 * HALF, UOT, most) for target in TARGETS}
    if all(whole.values()):
        told = ", ".join(f"{target} {points(gains)}" for target, gains in whole.items())
        out.append(
            "The closed form weighs the classes of a source itself; with the whole pool, against "
            f"{most} by transport: {told} points."
        )
    if mass:
        over = [(share, name) for share, name in mass if share >= BAR]
        worst = max(mass)
        out.append(
            f"Distractors' share of the source's weight in the closed form: under {100 * BAR:.0f} % in "
            f"{len(mass) - len(over)} of {len(mass)} fits; at worst {100 * worst[0]:.1f} % ({worst[1]})."
        )
    return out


def source_choices(results: Results) -> list[tuple[str, int]]:
    """What sources were learnt from: ranking and number of pictures."""
    return [*((ranking, budget) for budget in results.budgets() for ranking in TRAINED["closed"]), (ALL, 2 * HALF)]


def outcome(gains: Sequence[float]) -> int:
    """1 ahead, -1 behind, 0 level: the mean is within one standard error, or there is one seed only.

    Example:
        >>> outcome([1.0, 1.2, 1.1]), outcome([-1.0, 1.5, 0.1])
        (1, 0)
    """
    if len(gains) < 2:
        return 0
    mean, doubt = statistics.fmean(gains), statistics.stdev(gains) / len(gains) ** 0.5
    return 0 if abs(mean) <= doubt else 1 if mean > 0 else -1


def points(gains: Sequence[float]) -> str:
    """Mean with standard error, as text."""
    mean = f"{statistics.fmean(gains):+.1f}"
    return mean if len(gains) < 2 else f"{mean} ± {statistics.stdev(gains) / len(gains) ** 0.5:.1f}"
