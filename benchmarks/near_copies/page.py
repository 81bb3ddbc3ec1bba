"""Page and plot of the study of near copies: `python -m benchmarks.near_copies.page`."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from benchmarks import record
from benchmarks.near_copies.run import NAME
from benchmarks.plots import COLOURS, INK, legend_below, panels, styled
from benchmarks.record import Row, markdown_table
from benchmarks.study import publishing
from tangentune.pictures.copies import NEAR

OURS = "small picture, 16 x 16"


def publish() -> None:
    """docs/results/near_copies.md and .png."""
    rows = {row["key"]["dataset"]: row for row in record.load(NAME)["rows"]}
    methods = [
        {"likeness": name} | {dataset: f"{area(row, name):.3f}" for dataset, row in rows.items()}
        for name in next(iter(rows.values()))["methods"]
    ]
    changes = list(next(iter(rows.values()))["methods"][OURS]["copies"])
    found = [
        {"change": change} | {dataset: f"{share(row, change):.0%}" for dataset, row in rows.items()}
        for change in changes
    ]
    false = {"change": "**other pictures, told all the same**"}
    false |= {dataset: f"{above(row['methods'][OURS]['others'], NEAR):.1%}" for dataset, row in rows.items()}
    parts = {"methods": markdown_table(methods), "found": markdown_table([*found, false]), "near": f"{NEAR}"}
    record.write_page(NAME, __file__, parts, {NAME: figure(rows)})


def above(values: Any, threshold: float) -> float:
    """Share of likenesses that reach a threshold."""
    return float((np.asarray(values) >= threshold).mean())


def share(row: Row, change: str) -> float:
    """Copies that ours finds at its threshold."""
    return above(row["methods"][OURS]["copies"][change], NEAR)


def curve(row: Row, name: str) -> tuple[NDArray[Any], NDArray[Any]]:
    """Shares of other pictures told by mistake, and of copies found, along the threshold."""
    method = row["methods"][name]
    copies = np.concatenate([np.asarray(values) for values in method["copies"].values()])
    steps = np.unique(np.concatenate([copies, method["others"], [2.0]]))[::-1]
    return tuple(np.array([above(values, step) for step in steps]) for values in (method["others"], copies))  # type: ignore[return-value]


def area(row: Row, name: str) -> float:
    """Copies found where at most 1 % of the others are told by mistake."""
    false, found = curve(row, name)
    return float(found[false <= 0.01].max())


@styled
def figure(rows: dict[str, Row]) -> Figure:
    """Copies found against false alarms, a panel for each data set; the dot is our threshold."""
    drawn, axes = panels((10, 3.2), 1, len(rows), sharey=True)
    names = list(next(iter(rows.values()))["methods"])
    for axis, (dataset, row) in zip(axes[0], rows.items(), strict=True):
        for name, colour in zip(names, COLOURS, strict=True):
            axis.plot(*curve(row, name), color=colour)
        method = row["methods"][OURS]
        copies = np.concatenate([np.asarray(values) for values in method["copies"].values()])
        axis.plot(above(method["others"], NEAR), above(copies, NEAR), "o", color=INK)
        axis.set(title=f"{dataset} ({row['pictures']})", xlabel="others told by mistake", xlim=(-0.002, 0.1))
    axes[0, 0].set(ylabel="copies found", ylim=(0, 1.02))
    legend_below(drawn, axes[0, 0], zip(names, COLOURS, strict=True), marker="-")
    return drawn


if __name__ == "__main__":
    publishing(publish, __doc__)
