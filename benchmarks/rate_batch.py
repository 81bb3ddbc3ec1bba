"""How much tuning does it take? Accuracy over learning rate x batch size, ordinary fine-tuning against LQF.

    python -m benchmarks.rate_batch            # what is missing, then page and heat-maps; about 12 minutes, one thread
    python -m benchmarks.rate_batch --table    # measure nothing, write the page anew

Few-shot CIFAR-10, both with Adam for 15 epochs, with flips, cosine decay and a warm-up; LQF with the squared loss.
It may be stopped and started again at any time.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from itertools import product
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

from benchmarks import record
from benchmarks.cifar_split import DATA, SIZE, TEST, begin, cifar_split, mean_spread, scores, study_parser
from benchmarks.plots import STYLE
from tangentune.errors import InputError
from tangentune.methods.fine_tuning import FineTuneSettings, fine_tune
from tangentune.methods.lqf import LQFSettings, fit_lqf
from tangentune.networks.backbone import Backbone, load_backbone
from tangentune.pictures.load import Pictures

NAME, SHOTS, EPOCHS, DAMPING = "rate_batch", 10, 15, 3.0
RATES, BATCHES = (3e-5, 1e-4, 3e-4, 1e-3, 3e-3), (8, 16, 32, 100)
METHODS = {"finetune": "ordinary fine-tuning", "lqf": "LQF"}
WITHIN = 0.01  # of the best cell
Cells = dict[tuple[float, int], list[float | None]]
PROTOCOL = {
    "data": DATA,
    "fine-tuning": "cross-entropy, AdamW without decay, uncalibrated ridge probe as head (so that both start "
    "from a probe: from a zero head small rates would lose by their start alone), BatchNorm fixed",
    "LQF": "squared loss, Adam, cross-fitted ridge probe as head, all layers, damping in units of K's mean eigenvalue",
    "both": f"{EPOCHS} epochs, cosine decay after a warm-up of 10 %, flips in training, plain predictions; a batch of "
    "100 is all pictures",
    "rates": "the same numbers for both, though Adam's rate need not mean the same: read the width of the good region",
    "diverged": "training ended in NaN or infinity, or its objective ended above that of outputs that are all zero ("
    "log C a picture for the cross-entropy, 1/2 for the squared loss); counts as below every other cell",
}


def main() -> None:
    """Measure what is missing, then write page and heat-maps."""
    parser = study_parser(__doc__)
    parser.add_argument("--table", action="store_true", help="measure nothing, write the page anew")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--shots", type=int, default=SHOTS)
    parser.add_argument("--epochs", type=int, default=EPOCHS)
    parser.add_argument("--test", type=int, default=TEST, help="test pictures")
    parser.add_argument("--damping", type=float, default=DAMPING, help="LQF's, relative; see the ablation's choice")
    parser.add_argument("--rates", type=_numbers, default=RATES, help="comma-separated")
    parser.add_argument("--batches", type=_numbers, default=BATCHES, help="comma-separated")
    given = parser.parse_args()
    begin(given)
    setting = {"shots": given.shots, "epochs": given.epochs, "test": given.test, "damping": given.damping}
    if not given.table:
        backbone = load_backbone("mobilenet_v2").with_size(SIZE)
        for seed in range(given.seeds):
            parts = cifar_split(backbone, given.shots, seed, given.test)
            for method, rate, batch in product(METHODS, given.rates, map(int, given.batches)):
                key = {"method": method, "rate": rate, "batch": batch, "seed": seed, **setting}
                if not record.done(NAME, key):
                    values = measure(backbone, *parts, key)
                    record.append(NAME, key, values)
                    print(key, values, flush=True)
    publish(setting)


def measure(backbone: Backbone, train: Pictures, test: Pictures, key: Mapping[str, Any]) -> dict[str, Any]:
    """Train and score one cell."""
    shared = {"learning_rate": key["rate"], "batch_size": key["batch"], "epochs": key["epochs"], "seed": key["seed"]}
    try:
        if key["method"] == "finetune":
            fitted = fine_tune(backbone, train, FineTuneSettings(head_start="probe", **shared))
            rose = fitted.losses[-1] > math.log(len(fitted.classes))
        else:
            settings = LQFSettings(head="cross_fitted", damping=key["damping"], **shared)
            fitted = fit_lqf(backbone, train, settings)
            rose = fitted.records[0].points[-1].objective > 0.5 * len(train)
        values = scores(fitted, test)
    except InputError as error:  # DivergedError among them; BackboneError of NaN features in prediction
        return {"diverged": True, "reason": str(error)}
    cost = {"diverged": rose, "cpu_seconds": round(fitted.cpu_seconds, 2)}
    return values | cost


def publish(setting: Mapping[str, Any]) -> None:
    """Write page and figure from the rows of this setting; print the page."""
    payload = record.load(NAME)
    rows = [row for row in payload.get("rows", []) if setting.items() <= row["key"].items()]
    maps = {method: cells_of(rows, method) for method in METHODS}
    summary = {method: widths(cells) for method, cells in maps.items() if cells}
    record.record(NAME, {**payload, "protocol": PROTOCOL, "setting": dict(setting), "summary": summary})
    figure(maps).savefig(record.RESULTS / f"{NAME}.png", dpi=160)
    text = page(maps, summary, setting, rows)
    (record.RESULTS / f"{NAME}.md").write_text(text)
    print(text)


def cells_of(rows: Sequence[Mapping[str, Any]], method: str) -> Cells:
    """Accuracies of every cell over seeds; None for a run that diverged."""
    out: Cells = {}
    for row in rows:
        if row["key"]["method"] == method:
            value = None if row["diverged"] else row["accuracy"]
            out.setdefault((row["key"]["rate"], row["key"]["batch"]), []).append(value)
    return out


def mean_of(values: Sequence[float | None]) -> float | None:
    """Mean over seeds; None if any diverged."""
    numbers = [value for value in values if value is not None]
    return statistics.fmean(numbers) if numbers and len(numbers) == len(values) else None


def widths(cells: Cells) -> dict[str, Any]:
    """The best cell, how many come near it, and the spread over all."""
    means = {cell: mean_of(values) for cell, values in cells.items()}
    known = {cell: value for cell, value in means.items() if value is not None}
    if not known:
        return {"cells": len(cells), "diverged": len(cells), "best": None}
    (rate, batch), top = max(known.items(), key=lambda item: item[1])
    near = [cell for cell, value in known.items() if value >= top - WITHIN]
    return {
        "cells": len(cells),
        "diverged": len(cells) - len(known),
        "best": top,
        "best_rate": rate,
        "best_batch": batch,
        "within_a_point": len(near),
        "median": statistics.median([-1.0 if value is None else value for value in means.values()]),
        "worst": min(known.values()),
    }


def page(
    maps: Mapping[str, Cells], summary: Mapping[str, Any], setting: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]
) -> str:
    """The page as Markdown: what stands out, then a table a method."""
    lines = ["# How much tuning does it take?", ""]
    for method, line in summary.items():
        if line["best"] is None:
            lines.append(f"- {METHODS[method]}: every one of {line['cells']} cells diverged.")
            continue
        best = f"best {line['best']:.3f} at rate {line['best_rate']:g}, batch {line['best_batch']}"
        near = f"{line['within_a_point']} of {line['cells']} cells within a point of it"
        rest = f"median {line['median']:.3f}, worst {line['worst']:.3f}, {line['diverged']} diverged"
        lines.append(f"- {METHODS[method]}: {best}; {near}; {rest}.")
    for method, cells in maps.items():
        rates, batches = (sorted({cell[i] for cell in cells}) for i in (0, 1))
        table = [
            {"rate": f"{rate:g}"} | {f"batch {batch}": _text(cells.get((rate, int(batch)), [])) for batch in batches}
            for rate in rates
        ]
        lines += ["", f"## {METHODS[method]}", ""]
        lines.append(record.markdown_table(table, dict.fromkeys(table[0], "")) if table else "nothing measured yet")
    seeds, seconds = len({row["key"]["seed"] for row in rows}), [row.get("cpu_seconds", 0.0) for row in rows]
    words = f"{setting['shots']} pictures a class, {setting['test']} test pictures, {seeds} seed(s)"
    words += f", LQF's damping {setting['damping']:g}"
    lines += ["", f"{words}; training took {sum(seconds):.0f} s of processor time in all.", ""]
    lines += [f"- {name}: {text}." for name, text in PROTOCOL.items()]
    return "\n".join([*lines, "", f"![Accuracy over rate and batch size]({NAME}.png)", ""])


def figure(maps: Mapping[str, Cells]) -> Figure:
    """Heat-maps side by side with one colour scale, numbers in the cells, diverged cells marked."""
    found = [mean for cells in maps.values() for values in cells.values() if (mean := mean_of(values)) is not None]
    low, high = (min(found), max(found)) if found else (0.0, 1.0)
    with mpl.rc_context({**STYLE, "axes.grid": False}):
        figure = Figure(figsize=(8.8, 3.6), layout="constrained")
        panels = figure.subplots(1, len(maps), sharey=True)
        image = None
        for axes, (method, cells) in zip(panels, maps.items(), strict=True):
            rates, batches = (sorted({cell[i] for cell in cells}) for i in (0, 1))
            axes.set_title(METHODS[method], loc="left")
            if not cells:
                continue
            means = [[mean_of(cells.get((rate, int(batch)), [])) for batch in batches] for rate in rates]
            values = np.ma.masked_invalid([[np.nan if mean is None else mean for mean in row] for row in means])
            axes.set_facecolor("#d7dbe0")
            image = axes.imshow(values, vmin=low, vmax=high, cmap="viridis", aspect="auto", origin="lower")
            for i, j in product(range(len(rates)), range(len(batches))):
                mean, here = means[i][j], (rates[i], int(batches[j])) in cells
                dark = mean is not None and mean < low + 0.6 * (high - low)
                words = ("diverged" if here else "") if mean is None else f"{mean:.3f}"
                axes.text(j, i, words, ha="center", va="center", color="white" if dark else "black", fontsize=8)
            axes.set_xticks(range(len(batches)), [f"{batch:g}" for batch in batches])
            axes.set_yticks(range(len(rates)), [f"{rate:g}" for rate in rates])
            axes.set_xlabel("batch size")
        panels[0].set_ylabel("learning rate")
        if image is not None:
            figure.colorbar(image, ax=list(panels), label="test accuracy")
        return figure


def _text(values: Sequence[float | None]) -> str:
    if values and mean_of(values) is None:
        return "diverged"
    return mean_spread([value for value in values if value is not None])


def _numbers(text: str) -> tuple[float, ...]:
    return tuple(float(part) for part in text.split(","))


if __name__ == "__main__":
    main()
