"""Page and heat-maps of accuracy over rate and batch size: `python -m benchmarks.rate_batch.page`."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from itertools import product
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from benchmarks import record
from benchmarks.plots import panels, styled
from benchmarks.record import Row
from benchmarks.study import mean_spread, read_arguments, study_parser

NAME, WITHIN = "rate_batch", 0.01  # of the best cell
SETTING: dict[str, Any] = {"shots": 10, "epochs": 15, "test": 1000, "damping": 3.0}
METHODS = {"finetune": "ordinary fine-tuning", "lqf": "LQF"}
Cells = dict[tuple[float, int], list[float | None]]


def publish() -> None:
    """Write page and figure from the rows of the setting."""
    rows = [row for row in record.load(NAME)["rows"] if SETTING.items() <= row["key"].items()]
    maps = {method: cells_of(rows, method) for method in METHODS}
    seconds, seeds = sum(row.get("cpu_seconds", 0.0) for row in rows), len({row["key"]["seed"] for row in rows})
    parts: dict[str, Any] = {f"table_{method}": table(cells) for method, cells in maps.items()}
    parts |= {"verdicts": "\n".join(f"- {METHODS[m]}: {verdict(cells)}." for m, cells in maps.items())}
    record.write_page(NAME, __file__, parts | {"seeds": seeds, "seconds": f"{seconds:.0f}"}, {NAME: figure(maps)})


def cells_of(rows: Sequence[Row], method: str) -> Cells:
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


def axes_of(cells: Cells) -> tuple[list[float], list[int]]:
    """Rates and batch sizes, ascending."""
    return sorted({rate for rate, _ in cells}), sorted({batch for _, batch in cells})


def verdict(cells: Cells) -> str:
    """The best cell, how many come near it, and the spread over all."""
    means = {cell: mean_of(values) for cell, values in cells.items()}
    known = {cell: value for cell, value in means.items() if value is not None}
    if not known:
        return f"every one of {len(cells)} cells diverged"
    (rate, batch), top = max(known.items(), key=lambda item: item[1])
    near = sum(value >= top - WITHIN for value in known.values())
    median = statistics.median([-1.0 if value is None else value for value in means.values()])
    return (
        f"best {top:.3f} at rate {rate:g}, batch {batch}; {near} of {len(cells)} cells within a point of it; median "
        f"{median:.3f}, worst {min(known.values()):.3f}, {len(cells) - len(known)} diverged"
    )


def table(cells: Cells) -> str:
    """A line a rate, a column a batch size."""

    def text(values: Sequence[float | None]) -> str:
        known = [value for value in values if value is not None]
        return "diverged" if len(known) < len(values) else mean_spread(known)

    rates, batches = axes_of(cells)
    return record.markdown_table(
        [{"rate": f"{rate:g}"} | {f"batch {batch}": text(cells[rate, batch]) for batch in batches} for rate in rates]
    )


@styled
def figure(maps: Mapping[str, Cells]) -> Figure:
    """Heat-maps side by side with one colour scale, numbers in the cells, diverged cells marked."""
    found = [mean for cells in maps.values() for values in cells.values() if (mean := mean_of(values)) is not None]
    low, high = min(found), max(found)
    figure, panel = panels((8.8, 3.6), 1, len(maps), sharey=True)
    image = None
    for axes, (method, cells) in zip(panel[0], maps.items(), strict=True):
        rates, batches = axes_of(cells)
        means = [[mean_of(cells[rate, batch]) for batch in batches] for rate in rates]
        values = np.ma.masked_invalid([[np.nan if mean is None else mean for mean in row] for row in means])
        axes.set_title(METHODS[method], loc="left")
        axes.grid(False)
        axes.set_facecolor("#d7dbe0")
        image = axes.imshow(values, vmin=low, vmax=high, cmap="viridis", aspect="auto", origin="lower")
        for i, j in product(range(len(rates)), range(len(batches))):
            mean = means[i][j]
            dark = mean is not None and mean < low + 0.6 * (high - low)
            words = "diverged" if mean is None else f"{mean:.3f}"
            axes.text(j, i, words, ha="center", va="center", color="white" if dark else "black", fontsize=8)
        axes.set_xticks(range(len(batches)), [f"{batch:g}" for batch in batches])
        axes.set_yticks(range(len(rates)), [f"{rate:g}" for rate in rates])
        axes.set_xlabel("batch size")
    panel[0, 0].set_ylabel("learning rate")
    if image is not None:
        figure.colorbar(image, ax=list(panel[0]), label="test accuracy")
    return figure


if __name__ == "__main__":
    read_arguments(study_parser(__doc__))
    publish()
