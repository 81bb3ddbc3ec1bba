"""The page and the picture of the study of pre-training pictures, from its results.

python -m benchmarks.source_page
"""

from __future__ import annotations

import statistics

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from benchmarks import record
from benchmarks.cifar_split import mean_spread
from benchmarks.plots import COLOURS, INK, MUTED, STYLE
from benchmarks.source_data import HALF, SHOTS, TARGETS
from benchmarks.source_methods import ALL, EVEN, FREE, KERNEL, NEAREST, NONE, PAPER, RANDOM, RANKINGS, UOT
from benchmarks.source_results import NAME, SCALE, WAYS, Results
from benchmarks.source_verdicts import RIVALS, points, source_choices, verdicts

SHOWN = {RANDOM: MUTED, NEAREST: COLOURS[2], KERNEL: COLOURS[1], PAPER: COLOURS[3], FREE: "#38a3c4", UOT: COLOURS[0]}
VALUES = {"distractors": "distractors", "distractor_mass": "their mass", "right": "right"}

INTRODUCTION = f"""\
A few pictures of a target, and a pool of {2 * HALF:,} pre-training pictures, half of them distractors: {HALF:,} of
CIFAR-10 and {HALF:,} of Fashion-MNIST. Which of them to learn from as well, and does it help? Choosing by unbalanced
optimal transport (Liu et al. 2022) and by simpler rankings; learning by joint training of two heads, and in closed
form. Our own data, network and settings; no table of the paper is reproduced. Three targets, {SHOTS} pictures a class:

- **grey**: the ten classes of CIFAR-10, grey and softly blurred; the pool has other pictures of the same classes.
- **other classes**: cat, deer, truck and ship; the pool has the other six classes only.
- **traffic**: red, yellow and green traffic lights; nothing in the pool is like them.

Means over three draws of target and pool, ± standard deviation in tables and standard error of seed-by-seed differences
in sentences; "level" means within one standard error of zero, which with three draws is no proof of anything."""
CHOSEN = """\
Distractors among the chosen, their share of the importance weights, and pictures whose target by the ranking is their
own class (grey) or its relative (other classes: dog for cat, horse for deer, automobile for truck, airplane for ship),
per hundred. "Plain": unit features. "Centred": the pool's mean is taken off the unit features of pool and target, which
are then brought to length one again; "UOT" and "UOT free" take off the midpoint of the two sets' means. Both ways of
learning take the centred choices."""
AGREE = "Per cent of the choice of transport that other rankings make too."
HOW = """\
## How

- MobileNetV2 with ImageNet weights at 64 px; 1,000 test pictures (traffic: 297, of which 9 are yellow). Every test
  picture is of the data set's own test part; no picture of a target is in its pool.
- "UOT" is `select_source` with its defaults: features less the midpoint of the two sets' means, transport between the
  classes of pool and target (cost scale .05, penalties 1 and 1), the mass of a class divided among its pictures, and an
  even share of the budget for every target class. "UOT free": the same without even shares.
  "UOT .1" and "UOT .05": the paper's penalties, 1 and 100, at its cost scale and at half of it; the potentials of the
  classes score each picture. Nearest, mean cosine, kernel sum (scale .1), EMD: of single pictures with the class means
  of the target. EMD: targets take their nearest in turns. Random is half distractors; all is the whole pool.
- Read the figures of "UOT" with care: centring, scale, penalties, the division of masses and the even shares were
  chosen with distractors and accuracies of these draws of the grey target in view; its rivals have no such choices.
- Weights: row mass for transport, kernel sum for the kernel sum, else even. Both ways of learning use them; "UOT even"
  takes the pictures of "UOT" with even weights. It was tried after the other figures were seen.
- Joint training: AdamW, about 100 steps of 16 target and 16 source pictures, cosine schedule, flips, statistics of
  normalisation kept, source head from a ridge probe of the chosen pictures' own 20 classes, loss of the source with
  factor 1, rate 3e-4, target head from zero. Without source: ordinary fine-tuning, rate 1e-4, head from a ridge probe.
  Both settings were the best of a small grid on pictures that no figure is from (grey and other classes, another draw,
  other test pictures); without source, the settings of joint training did worse than those.
- Closed form: `TangentClassifier(augment="flip").fit(target, source=chosen)`, pictures weighted as chosen. Strength and
  kind of the source by exact leave-one-out of the target pictures alone; a source that does not gain more than a
  standard error gets weight zero. Source classes named like target classes stand for those (grey); others for the
  target classes they lie near. The joint trainer uses no such names.
- Made by `python -m benchmarks.source_study`, which goes on where it stopped, and, for 110,000 pictures,
  `python -m benchmarks.source_scale` ([source_scale.json](source_scale.json))."""


def main() -> None:
    """Write docs/results/source_study.md and its picture."""
    results = Results.load()
    curves(results).savefig(record.RESULTS / f"{NAME}.png", dpi=140)
    text = page(results)
    (record.RESULTS / f"{NAME}.md").write_text(text)
    print(text)


def page(results: Results) -> str:
    """Markdown."""
    lines = ["# Pre-training pictures chosen for a target", "", INTRODUCTION, ""]
    lines += [f"- {sentence}" for sentence in verdicts(results)]
    lines += ["", f"![Accuracy against the number of source pictures]({NAME}.png)", ""]
    for way, title in WAYS.items():
        if results.of("rows", "accuracy", way=way):
            lines += [f"## Accuracy, {title}", "", accuracies(results, way), ""]
            lines += ["Points by which transport beats other choices:", "", differences(results, way), ""]
    lines += ["## Weight of the source in the closed form", "", weights(results), ""]
    lines += ["## What was chosen", "", CHOSEN, "", choices(results), ""]
    lines += ["## How much the choices agree", "", AGREE, "", overlaps(results), ""]
    lines += [*from_many(), HOW, ""]
    return "\n".join(lines)


def accuracies(results: Results, way: str) -> str:
    """Mean and spread over seeds, a line for each target and budget."""
    rows = []
    for target in TARGETS:
        for budget in results.budgets():
            row = {"target": target, "chosen": budget}
            for ranking in (
                NONE,
                RANDOM,
                NEAREST,
                KERNEL,
                *((PAPER,) if way == "joint" else ()),
                FREE,
                UOT,
                *((EVEN,) if way == "joint" else ()),
                ALL,
            ):
                own = {NONE: 0, ALL: 2 * HALF}.get(ranking, budget)
                key = {"target": target, "way": way, "ranking": ranking, "budget": own}
                row[ranking] = mean_spread(list(results.of("rows", "accuracy", **key).values()))
            rows.append(row)
    return record.markdown_table(rows, dict.fromkeys(rows[0], ""))


def differences(results: Results, way: str) -> str:
    """Transport against the others, mean and standard error of the differences seed by seed."""
    rows = []
    others = [rival for rival in (NONE, *RIVALS, ALL) if results.of("rows", "accuracy", way=way, ranking=rival)]
    for target in TARGETS:
        for budget in results.budgets():
            row = {"target": target, "chosen": budget}
            for other in others:
                own = {NONE: 0, ALL: 2 * HALF}.get(other, budget)
                gains = results.gains(target, way, UOT, budget, other, own)
                row[other] = points(gains) if gains else "-"
            rows.append(row)
    return record.markdown_table(rows, dict.fromkeys(rows[0], ""))


def weights(results: Results) -> str:
    """What leave-one-out made of each choice of source pictures, means over seeds."""
    rows = []
    for target in TARGETS:
        for ranking, budget in source_choices(results):
            key = {"target": target, "way": "closed", "ranking": ranking, "budget": budget}
            used = results.of("rows", "strength", **key).values()
            if not used:
                continue
            gains = results.gains(target, "closed", ranking, budget, NONE, 0)
            mass = results.of("rows", "distractor_mass", **key).values()
            row = {"target": target, "source": f"{ranking}, {budget}", "strengths": ", ".join(f"{v:g}" for v in used)}
            row["LOO error without"] = mean_spread(list(results.of("rows", "loo_error_without", **key).values()))
            row["with"] = mean_spread(list(results.of("rows", "loo_error", **key).values()))
            row["gain, points"] = mean_spread(gains, 1)
            row["distractors' share of the source's weight"] = f"{max(mass):.1%}" if mass else "-"
            rows.append(row)
    return record.markdown_table(rows, dict.fromkeys(rows[0], "")) if rows else "Not measured."


def choices(results: Results) -> str:
    """Distractors by number and by weight, and right classes, of every ranking: a line for each target and budget."""
    rows = []
    for target in TARGETS:
        for budget in results.budgets():
            for ranking in RANKINGS:
                row = {"target": target, "chosen": budget, "ranking": ranking}
                for centred, name in ((False, "plain"), (True, "centred")):
                    key = {"target": target, "budget": budget, "ranking": ranking, "centred": centred}
                    for value, title in VALUES.items():
                        found = results.of("selections", value, **key).values()
                        row[f"{title}, {name}"] = f"{100 * statistics.fmean(found):.1f}" if found else "-"
                rows.append(row)
    return record.markdown_table(rows, dict.fromkeys(rows[0], ""))


def overlaps(results: Results) -> str:
    """Share of transport's choice that other rankings make too, mean over seeds."""
    rows = []
    for centred in (False, True):
        for target in TARGETS:
            for budget in results.budgets():
                key = {"target": target, "budget": budget, "ranking": UOT, "centred": centred}
                tables = list(results.of("selections", "overlap", **key).values())
                row = {"features": "centred" if centred else "plain", "target": target, "chosen": budget}
                for other in RANKINGS:
                    if other != UOT:
                        row[other] = f"{100 * statistics.fmean(table[other] for table in tables):.0f}"
                rows.append(row)
    return record.markdown_table(rows, dict.fromkeys(rows[0], ""))


def from_many() -> list[str]:
    """The choice from 110,000 pictures, where it was made."""
    found = record.load(SCALE)
    if not found:
        return []
    parts = found["extraction"].values()
    seconds, pictures = sum(part["processor"] for part in parts), sum(part["pictures"] for part in parts)
    rows = [
        {
            "settings": row["settings"],
            "distractors": f"{100 * row['distractors']:.1f}",
            "their mass": f"{100 * row['distractor_mass']:.1f}",
            "right": f"{100 * row['right']:.1f}",
            "processor seconds": f"{row['processor_seconds']:.1f}",
        }
        for row in found["rows"]
    ]
    text = (
        f"The best {found['budget']:,} of {pictures:,} for the grey target, per cent: all of Fashion-MNIST and all of "
        "CIFAR-10's\ntraining pictures but the target's. Their features took "
        f"{seconds:.0f} processor seconds; those below are of a choice from\nfeatures on disk. Right: the picture is "
        "of the class that it is to serve."
    )
    table = record.markdown_table(rows, dict.fromkeys(rows[0], ""))
    return ["## From 110,000 pictures", "", text, "", table, ""]


def curves(results: Results) -> Figure:
    """Accuracy against the number of source pictures: a row for each way of learning, a column for each target."""
    ways = [way for way in WAYS if results.of("rows", "accuracy", way=way)] or list(WAYS)
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(10.5, 2.9 * len(ways) + 0.4), layout="constrained")
        panels = figure.subplots(len(ways), len(TARGETS), squeeze=False, sharey="col")
        for line, way in zip(panels, ways, strict=True):
            for axes, target in zip(line, TARGETS, strict=True):
                _panel(axes, results, target, way)
                axes.set_title(f"{target}, {WAYS[way]}", loc="left", fontsize=9)
            line[0].set_ylabel("accuracy")
        for axes in panels[-1]:
            axes.set_xlabel("source pictures")
        handles = [Line2D([], [], color=colour, marker="o", label=name) for name, colour in SHOWN.items()]
        handles.append(Line2D([], [], color=INK, linestyle="", marker="D", label="all"))
        handles.append(Line2D([], [], color=INK, linestyle="--", label="no source pictures"))
        figure.legend(handles=handles, loc="outside lower center", ncols=len(handles))
        return figure


def _panel(axes: Axes, results: Results, target: str, way: str) -> None:
    places = {budget: place for place, budget in enumerate((*results.budgets(), 2 * HALF))}
    alone = list(results.of("rows", "accuracy", target=target, way=way, ranking=NONE).values())
    if alone:
        middle, spread = statistics.fmean(alone), statistics.pstdev(alone)
        axes.axhspan(middle - spread, middle + spread, color=INK, alpha=0.07, linewidth=0)
        axes.axhline(middle, color=INK, linestyle="--", linewidth=1)
    for number, (ranking, colour) in enumerate([*SHOWN.items(), (ALL, INK)]):
        points = []
        for budget, place in places.items():
            own = list(results.of("rows", "accuracy", target=target, way=way, ranking=ranking, budget=budget).values())
            if own:
                points.append(
                    (
                        place + (0 if ranking == ALL else 0.05 * (number - 2)),
                        statistics.fmean(own),
                        statistics.pstdev(own),
                    )
                )
        if points:
            x, y, spread = zip(*points, strict=True)
            marker = "D" if ranking == ALL else "o"
            axes.errorbar(x, y, yerr=spread, color=colour, marker=marker, markersize=4, linewidth=1.3, capsize=2)
    axes.set_xticks(list(places.values()), [*map(str, results.budgets()), f"all {2 * HALF:,}"])
    axes.set_xlim(-0.4, len(places) - 0.6)


if __name__ == "__main__":
    main()
