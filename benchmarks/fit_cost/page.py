"""Page of the study of what fits cost: `python -m benchmarks.fit_cost.page`."""

from __future__ import annotations

from benchmarks import record
from benchmarks.fit_cost.run import NAME, SETTINGS
from benchmarks.record import Row, markdown_table
from benchmarks.study import publishing

MIB = 2**20


def publish() -> None:
    """docs/results/fit_cost.md."""
    rows = {row["key"]["setting"]: row for row in record.load(NAME)["rows"]}
    found = {name: rows[name] for name in SETTINGS if name in rows}
    parts = {"real": markdown_table([shown(name, row) for name, row in found.items()])}
    for title, what in (("worst", "bytes"), ("slowest", "seconds")):
        parts[title] = f"{max(max(ratio(row, what), 1 / ratio(row, what)) for row in found.values()):.2f}"
    record.write_page(NAME, __file__, parts)


def ratio(row: Row, what: str) -> float:
    """Promised by used."""
    return row[f"planned_{what}"] / row["seconds" if what == "seconds" else "seen_bytes"]


def shown(name: str, row: Row) -> Row:
    """One line of the table."""
    planned, used = (f"{row[what] / MIB:,.0f}" for what in ("planned_bytes", "seen_bytes"))
    first = {"setting": name, "promised, MiB": planned, "used": used, "ratio": f"{ratio(row, 'bytes'):.2f}"}
    seconds = {"promised, s": f"{row['planned_seconds']:.1f}", "used ": f"{row['seconds']:.1f}"}
    return first | seconds | {"ratio ": f"{ratio(row, 'seconds'):.2f}"}


if __name__ == "__main__":
    publishing(publish, __doc__)
