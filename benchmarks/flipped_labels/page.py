"""The page on flipped labels and sample weights: `python -m benchmarks.flipped_labels.page`."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from benchmarks import record
from benchmarks.record import Row
from benchmarks.study import mean_each, mean_error, publishing

NAME = "flipped_labels"
DATASETS = {"CIFAR-10": "cifar10", "Fashion-MNIST": "fashion"}  # in the rows, and in page.md
COLUMNS = {"accuracy": "accuracy", "raised damping": "raised_damping", "own damping": "own_damping"}


def publish() -> None:
    """docs/results/flipped_labels.md."""
    rows, parts = record.load(NAME)["rows"], {}
    for dataset, short in DATASETS.items():
        own = [row["ways"] for row in rows if row["key"]["dataset"] == dataset]
        parts |= {f"gains_{short}": gains(own), f"table_{short}": table(own)}
    record.write_page(NAME, __file__, parts)


def table(rows: Sequence[Row]) -> str:
    """A line for each way to weight."""
    lines = []
    for way in rows[0]:
        line = {"sample weights": way}
        for title, name in COLUMNS.items():
            line[title] = mean_each([row[way][name] for row in rows])
        for label in ("wrong", "right"):
            both = [statistics.fmean(row[way][f"weight_of_{label}"][k] for row in rows) for k in (0, 1)]
            line[f"weight of {label}"] = f"{both[0]:.2f}, {both[1]:.2f}"
        line["s"] = f"{statistics.median(row[way]['seconds'] for row in rows):.2f}"
        lines.append(line)
    return record.markdown_table(lines)


def gains(rows: Sequence[Row]) -> str:
    """Gains over uniform weights, in points, with the standard error over seeds."""
    said = []
    for way in rows[0]:
        if way != "all, uniform":
            points = [100 * (row[way]["accuracy"] - row["all, uniform"]["accuracy"]) for row in rows]
            said.append(f"{way} {mean_error(points, '+.1f')}")
    return "; ".join(said)


if __name__ == "__main__":
    publishing(publish, __doc__)
