"""The page and the pictures of the three transfer studies, from their results.

python -m benchmarks.transfer_page
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from benchmarks import record
from benchmarks.plots import COLOURS, INK, MUTED, STYLE
from benchmarks.transfer_sines import predictions, target_task, trained_source

TANGENT, TUNED, LAST, RBF = "tangent GP", "fine-tuning, all layers", "last layer, Bayesian", "RBF GP on features"
SHOWN = {TANGENT: COLOURS[0], TUNED: COLOURS[1], LAST: COLOURS[2], RBF: COLOURS[3], "RBF GP on x": MUTED}
BLIND = 60 / 3**0.5  # error in degrees of always guessing 0
Rows = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Study:
    """One study: its results, what sets its size, and how its scores are shown."""

    name: str
    title: str
    size: str
    score: str
    label: str
    higher: bool
    text: str
    part: str | None = None

    @property
    def rows(self) -> Rows:
        """The rows of the study, or of its part."""
        rows = record.load(self.name).get("rows", [])
        return [row for row in rows if self.part in (None, row["key"].get("split"))]

    @property
    def sizes(self) -> list[int]:
        """How many examples, ascending."""
        return sorted({row["key"][self.size] for row in self.rows})

    @property
    def methods(self) -> list[str]:
        """All, in the order of the results."""
        return list(self.rows[0]["methods"])

    @property
    def runs(self) -> str:
        """How many source networks and target tasks the medians are over."""
        keys = [row["key"] for row in self.rows]
        sources = len({key["seed"] for key in keys})
        tasks = len({key.get("task", 0) for key in keys})
        each = f", {tasks} targets each" if tasks > 1 else ""
        return f"Median over {sources} source networks{each}." if sources > 1 else "One source network only."

    def values(self, method: str, size: int, score: str) -> list[float]:
        """Over seeds and tasks."""
        return [row["methods"][method][score] for row in self.rows if row["key"][self.size] == size]

    def middle(self, method: str, size: int, score: str) -> float:
        """Their median."""
        return statistics.median(self.values(method, size, score))


WAVES = (
    "Trained on one sine wave, adapted to waves of the same frequency and another amplitude and phase. Errors in units "
    "of the target's amplitude; noise 0.01."
)
ANGLES = (
    "The angle, within 60 degrees, of turned garments of classes that the network was not trained on. Error in "
    "degrees; always guessing 0 errs by 34.6."
)
CLASSES = "Pictures a class of the five classes that the network was not trained on."
STUDIES = (
    Study("transfer_sines", "Sine waves", "points", "rmse", "RMSE / amplitude", False, WAVES),
    Study("transfer_angles", "Angles, related garments", "points", "rmse", "RMSE, degrees", False, ANGLES, "near"),
    Study("transfer_angles", "Angles, unlike garments", "points", "rmse", "RMSE, degrees", False, ANGLES, "far"),
    Study("transfer_classes", "CIFAR-10, five classes to five", "shots", "accuracy", "accuracy", True, CLASSES),
)


def main() -> None:
    """Write docs/results/transfer.md and its two pictures."""
    curves().savefig(record.RESULTS / "transfer.png", dpi=140)
    waves().savefig(record.RESULTS / "transfer_sines.png", dpi=140)
    text = page()
    (record.RESULTS / "transfer.md").write_text(text)
    print(text)


def page() -> str:
    """Markdown."""
    lines = ["# Adapting a trained network to a new task", ""]
    lines += [
        "The tangent-kernel Gaussian process of a trained network (Maddox et al. 2021) against fine-tuning all layers,",
        "Bayesian regression on the last layer, and RBF processes. The weights of the process never move; adapting is",
        "conditioning. Our own data, networks and settings; no table of the paper is reproduced.",
        "",
    ]
    lines += [f"- {verdict(study)}" for study in STUDIES]
    lines += ["", "![Scores against the number of examples](transfer.png)", ""]
    for study in STUDIES:
        lines += [f"## {study.title}", "", f"{study.text} {study.runs}", "", table(study), ""]
        if study.name == "transfer_sines":
            lines += ["![Three adaptations to the same ten points](transfer_sines.png)", ""]
    lines += [
        "## How",
        "",
        '- "tangent GP": the ratio of noise to prior variance by evidence on source data, their size on the new data',
        '  (`adapt(..., scales="ratio")`). "own ratio": both by evidence on the new data alone, which with ten',
        "  examples may find noise zero. Mean: a free constant for waves and classes, the network for angles, unless",
        "  said.",
        "- Fine-tuning: Adam, all layers; learning rate and number of epochs, zero among them, by held-out adaptation",
        "  data (five folds up to 50 examples, one beyond), then all data; its variance is the held-out squared error.",
        "- Classes: one-hot regression with the shared kernel, a softmax whose temperature is fitted to exact",
        "  leave-one-out predictions; fine-tuning by cross-entropy from a ridge probe of the same pictures, folds with",
        "  every class, its temperature fitted to held-out outputs.",
        "- NLL of angles in log units per degree; seconds include fitting, tuning and predicting all test inputs on",
        "  one thread of a busy machine, at the largest size.",
        "",
    ]
    return "\n".join(lines)


def verdict(study: Study) -> str:
    """One sentence from the numbers."""
    sign = 1 if study.higher else -1
    ranks = []
    for size in study.sizes:
        values = {m: study.middle(m, size, study.score) for m in (TANGENT, TUNED, LAST, RBF)}
        best = max(values, key=lambda m: sign * values[m])
        tangent, tuned = (_number(study, values[m]) for m in (TANGENT, TUNED))
        ranks.append(f"{size}: {tangent} against {tuned} (best: {best.split(',')[0]})")
    return f"{study.title}, {study.score} of the tangent GP against fine-tuning, at {'; '.join(ranks)}."


def table(study: Study) -> str:
    """Score and NLL of every method at every size, and seconds at the largest."""
    rows = []
    for method in study.methods:
        row = {"method": method}
        for size in study.sizes:
            row[f"{study.score}, {size}"] = _number(study, study.middle(method, size, study.score))
        for size in study.sizes:
            row[f"NLL, {size}"] = f"{study.middle(method, size, 'nll'):.2f}"
        if study.higher:
            row[f"ECE, {study.sizes[-1]}"] = f"{study.middle(method, study.sizes[-1], 'ece'):.3f}"
        row["seconds"] = f"{study.middle(method, study.sizes[-1], 'seconds'):.2f}"
        rows.append(row)
    return record.markdown_table(rows, dict.fromkeys(rows[0], ""))


def curves() -> Figure:
    """Score against number of examples, one panel a study: medians, and the range between quartiles."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(11.5, 3.1), layout="constrained")
        panels = figure.subplots(1, len(STUDIES))
        for axes, study in zip(panels, STUDIES, strict=True):
            for method, colour in SHOWN.items():
                if method in study.methods:
                    _curve(axes, study, method, colour)
            if study.name == "transfer_angles":
                axes.axhline(BLIND, color=MUTED, linewidth=0.8, linestyle=":")
                axes.text(study.sizes[-1], BLIND + 0.2, "always 0", color=MUTED, fontsize=7, ha="right")
            axes.set_xscale("log")
            axes.set_xticks(study.sizes, [str(size) for size in study.sizes])
            axes.minorticks_off()
            axes.set_title(study.title, loc="left", fontsize=9)
            axes.set_xlabel("examples" if study.size == "points" else "pictures a class")
            axes.set_ylabel(study.label)
        panels[0].set_yscale("log")
        handles = [Line2D([], [], color=colour, marker="o", label=method) for method, colour in SHOWN.items()]
        figure.legend(handles=handles, loc="outside lower center", ncols=len(handles))
        return figure


def waves(seed: int = 1, task: int = 1, points: int = 10) -> Figure:
    """What three methods make of the same points: mean, and two standard deviations."""
    source = trained_source(seed)
    wave, x, y = target_task(source, seed, task, points)
    new = torch.linspace(-5, 5, 400, dtype=torch.float64)[:, None]
    found = predictions(source, x, y, new, seed)
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(10.5, 2.9), layout="constrained")
        panels = figure.subplots(1, 3, sharey=True)
        for axes, method in zip(panels, (TANGENT, TUNED, LAST), strict=True):
            own = found[method]
            assert own.variance is not None
            mean, spread = own.mean[:, 0], 2 * own.variance[:, 0].sqrt()
            axes.fill_between(new[:, 0], mean - spread, mean + spread, color=SHOWN[method], alpha=0.2, linewidth=0)
            axes.plot(new[:, 0], source.network(new)[:, 0], color=MUTED, linewidth=0.8, linestyle=":", label="source")
            axes.plot(new[:, 0], wave(new)[:, 0], color=INK, linewidth=0.9, linestyle="--", label="target")
            axes.plot(new[:, 0], mean, color=SHOWN[method], label="adapted")
            axes.plot(x[:, 0], y[:, 0], "o", color=INK, markersize=4)
            axes.set_title(method, loc="left", fontsize=9)
            axes.set_xlabel("x")
        limit = 2.2 * max(wave.amplitude, source.wave.amplitude)
        panels[0].set_ylim(-limit, limit)
        panels[0].legend(loc="upper left", ncols=3, fontsize=7)
        return figure


def _curve(axes: Axes, study: Study, method: str, colour: str) -> None:
    sizes = study.sizes
    values = [torch.tensor(study.values(method, size, study.score), dtype=torch.float64) for size in sizes]
    low, middle, high = ([float(v.quantile(q)) for v in values] for q in (0.25, 0.5, 0.75))
    axes.fill_between(sizes, low, high, color=colour, alpha=0.12, linewidth=0)
    axes.plot(sizes, middle, "o-", color=colour, markersize=4, linewidth=1.4)


def _number(study: Study, value: float) -> str:
    return f"{value:.1f}" if study.name == "transfer_angles" else f"{value:.3f}"


if __name__ == "__main__":
    main()
