"""Page of the study of near copies: `python -m benchmarks.near_copies.page`."""

from __future__ import annotations

from typing import Any

import numpy as np

from benchmarks import record
from benchmarks.near_copies.run import CHOOSING, NAME, OURS, REPORTED
from benchmarks.record import Row, markdown_table, matching
from benchmarks.study import publishing
from tangentune.pictures.copies import NEAR

TRIED = (0.9, 0.92, 0.94, 0.95, 0.96, 0.97, 0.975, 0.98, 0.985, 0.99, 0.995)  # thresholds


def publish() -> None:
    """docs/results/near_copies.md."""
    rows, choosing = (
        {row["key"]["dataset"]: row["methods"] for row in matching(record.load(NAME)["rows"], seed=seed)}
        for seed in (REPORTED, CHOOSING)
    )
    methods = [
        {"likeness": name} | {dataset: f"{found_at_one_percent(row[name]):.0%}" for dataset, row in rows.items()}
        for name in rows["CIFAR-10"]
    ]
    tried = [
        {"threshold": f"{t:.3f}"}
        | {f"{dataset}, {part}": f"{share:.1%}" for dataset, row in choosing.items() for part, share in told(row, t)}
        for t in TRIED
    ]
    found = [
        {"change": change} | {name: f"{above(row[OURS]['copies'][change], NEAR):.0%}" for name, row in rows.items()}
        for change in rows["CIFAR-10"][OURS]["copies"]
    ]
    false = {"change": "**other pictures, told all the same**"}
    found.append(false | {name: f"{above(row[OURS]['others'], NEAR):.1%}" for name, row in rows.items()})
    tables = {"methods": methods, "tried": tried, "found": found}
    record.write_page(NAME, __file__, {"near": f"{NEAR}"} | {name: markdown_table(t) for name, t in tables.items()})


def above(values: Any, threshold: float) -> float:
    """Share of likenesses that reach a threshold."""
    return float((np.asarray(values) >= threshold).mean())


def told(row: Row, threshold: float) -> list[tuple[str, float]]:
    """Copies that ours finds, and other pictures that it tells."""
    parts = {"found": np.concatenate(list(row[OURS]["copies"].values())), "false": row[OURS]["others"]}
    return [(name, above(values, threshold)) for name, values in parts.items()]


def found_at_one_percent(method: Row) -> float:
    """Copies found where at most 1 % of the others are told by mistake."""
    least = np.quantile(method["others"], 0.99, method="higher")
    return float((np.concatenate(list(method["copies"].values())) > least).mean())


if __name__ == "__main__":
    publishing(publish, __doc__)
