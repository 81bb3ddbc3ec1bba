"""Page of the study of near copies: `python -m benchmarks.near_copies.page`."""

from __future__ import annotations

from benchmarks import record
from benchmarks.near_copies.run import CHANGES, CHOOSING, NAME, REPORTED, TRIED
from benchmarks.record import Row, markdown_table, matching
from benchmarks.study import publishing
from tangentune.pictures.copies import NEAR


def publish() -> None:
    """docs/results/near_copies.md."""
    rows, choosing = (
        {row["key"]["dataset"]: row for row in matching(record.load(NAME)["rows"], seed=seed)}
        for seed in (REPORTED, CHOOSING)
    )
    methods = [
        {"likeness": name}
        | {dataset: f"{row['found_at_one_percent'][name] / copies(row):.0%}" for dataset, row in rows.items()}
        for name in rows["CIFAR-10"]["found_at_one_percent"]
    ]
    tried: list[Row] = [{"threshold": f"{threshold:.3f}"} for threshold in TRIED]
    for (place, line), (dataset, row) in ((own, other) for own in enumerate(tried) for other in choosing.items()):
        found = sum(row["told"][change][place] for change in CHANGES)
        line[f"{dataset}, found"] = f"{found / copies(row):.1%}"
        line[f"{dataset}, false"] = f"{row['told']['others'][place] / row['pictures']:.1%}"
    used = TRIED.index(NEAR)
    found = [
        {"change": change} | {name: f"{row['told'][change][used] / row['changed']:.0%}" for name, row in rows.items()}
        for change in CHANGES
    ]
    false = {"change": "**other pictures, told all the same**"}
    found.append(false | {name: f"{row['told']['others'][used] / row['pictures']:.1%}" for name, row in rows.items()})
    tables = {"methods": methods, "tried": tried, "found": found}
    record.write_page(NAME, __file__, {"near": f"{NEAR}"} | {name: markdown_table(t) for name, t in tables.items()})


def copies(row: Row) -> int:
    """All copies of a draw."""
    return row["changed"] * len(CHANGES)


if __name__ == "__main__":
    publishing(publish, __doc__)
