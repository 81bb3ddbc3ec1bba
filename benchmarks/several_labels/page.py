"""The page of the study of several labels, from its rows of fits: `python -m benchmarks.several_labels.page`."""

from __future__ import annotations

from benchmarks import record
from benchmarks.record import Row
from benchmarks.study import mean_error, publishing

NAME = "several_labels"
FIGURES = {
    "average_precision": "average precision",
    "macro_f1": "macro F1",
    "nll": "log-loss",
    "ece": "calibration error",
}


def publish() -> None:
    """Write the tables."""
    rows = record.load(NAME)["rows"]
    groups = list(dict.fromkeys((row["key"]["dataset"], row["key"]["method"], row["key"]["n"]) for row in rows))
    honest, thresholds = [], []
    for dataset, method, n in groups:
        own = record.matching(rows, dataset=dataset, method=method, n=n)
        head: Row = {"set": dataset, "fit": method, "pictures": n, "draws": len(own)}
        honest.append(head | {words: sides(own, name) for name, words in FIGURES.items()})
        thresholds.append(head | {f"{way}, {which}": f1(own, way, which) for which in ("all", "rare") for way in WAYS})
    parts = {
        "honest": record.markdown_table(honest),
        "thresholds": record.markdown_table(thresholds),
        "apart": f"{max(row['apart'] for row in rows):.0e}",
        "fits": str(len(rows)),
    }
    record.write_page(NAME, __file__, parts)


WAYS = ("half", "counted", "expected")


def sides(rows: list[Row], name: str) -> str:
    """Leave-one-out and held-out mean, and the difference with its standard error over draws."""
    loo, held = ([row[side][name] for row in rows] for side in ("loo", "held_out"))
    gap = mean_error([a - b for a, b in zip(loo, held, strict=True)], "+.3f")
    return f"{mean_error(loo[:1] if len(loo) == 1 else loo).split(' ')[0]} / {mean_error(held).split(' ')[0]} ({gap})"


def f1(rows: list[Row], way: str, which: str) -> str:
    """Held-out mean F1 of labels by one way to choose thresholds; of rare labels over the draws that have some."""
    values = [found[which] for row in rows if which in (found := row["thresholds"][way])]
    return f"{sum(values) / len(values):.3f}" if values else "-"


if __name__ == "__main__":
    publishing(publish, __doc__)
