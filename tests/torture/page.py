"""The page of the fault run: `python tests/torture/page.py` writes docs/results/reliability.md from its counts."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))  # the tests' own helpers

from torture.run import KINDS, record

Row = Mapping[str, Any]


def page() -> None:
    """Write the page; nothing is tried."""
    rows = {row["key"]["kind"]: row for row in record.load("reliability").get("rows", [])}
    table = record.markdown_table([_line(name, rows.get(name)) for name in KINDS])
    unfinished = [name for name in KINDS if name not in rows or rows[name]["cases"] < KINDS[name].cases]
    failures = [f"- {name} {number}: {why}" for name, row in rows.items() for number, why in row["failures"]]
    machines = sorted({row["cpu"] for row in rows.values()})
    dates = sorted(row["date"][:10] for row in rows.values())
    parts = {
        "counts": table,
        "outcomes": "\n".join(_outcomes(name, rows[name]) for name in KINDS if name in rows),
        "unfinished": f"Not finished: {', '.join(unfinished)}." if unfinished else "All of it was tried.",
        "failures": "\n".join(failures) or "Nothing failed.",
        "where": f"{', '.join(machines)}, one thread, Linux, {' to '.join(dict.fromkeys((dates[0], dates[-1])))}",
    }
    record.write_page("reliability", __file__, parts)


def _line(name: str, row: Row | None) -> dict[str, Any]:
    found = row or {"cases": 0, "failed": 0, "commits": []}
    wanted = f"{KINDS[name].cases:,}"
    return {
        "what": name, "wanted": wanted, "tried": f"{found['cases']:,}", "failed": found["failed"],
        "commit": ", ".join(found["commits"]),
    }  # fmt: skip


def _outcomes(name: str, row: Row) -> str:
    told = sorted(row["outcomes"].items(), key=lambda item: -item[1])
    return f"- **{name}**: " + ", ".join(f"{what} {count:,}" for what, count in told)


if __name__ == "__main__":
    page()
