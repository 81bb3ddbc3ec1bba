"""Page of the study of what fits cost: `python -m benchmarks.fit_cost.page`."""

from __future__ import annotations

from benchmarks import record
from benchmarks.fit_cost.run import NAME, SETTINGS
from benchmarks.record import Row, markdown_table
from benchmarks.study import publishing

MIB = 2**20
BUDGETS = "Each of these fits got the smallest `memory_budget` (to 4 MiB) that `plan` does not refuse:\n\n"
NOT_YET = (
    "That the smallest budgets are kept is tested (`tests/kernels/test_memory_budget.py`; `pytest -m slow` for all "
    "six); their table here is not measured yet. Two settings that nothing was "
    "tuned on still wait to be measured."
)


def publish() -> None:
    """docs/results/fit_cost.md."""
    rows = {row["key"]["setting"]: row for row in record.load(NAME)["rows"]}
    real = [(name, rows[name]) for name in SETTINGS if name in rows and not SETTINGS[name].tight]
    tight = [(name.removeprefix("tight: "), rows[name]) for name in SETTINGS if name in rows and SETTINGS[name].tight]
    worst = max(max(ratio(row, "bytes"), 1 / ratio(row, "bytes")) for _, row in real)
    slowest = max(max(ratio(row, "seconds"), 1 / ratio(row, "seconds")) for _, row in real + tight)
    parts = {
        "real": markdown_table([shown(name, row, False) for name, row in real]),
        "tight": BUDGETS + markdown_table([shown(name, row, True) for name, row in tight]) if tight else NOT_YET,
        "worst": f"{worst:.2f}",
        "slowest": f"{slowest:.2f}",
    }
    record.write_page(NAME, __file__, parts)


def ratio(row: Row, what: str) -> float:
    """Promised by used."""
    return row[f"planned_{what}"] / row["seconds" if what == "seconds" else "seen_bytes"]


def shown(name: str, row: Row, tight: bool) -> Row:
    """One line of a table."""
    mib = {name: f"{row[name] / MIB:,.0f}" for name in ("planned_bytes", "seen_bytes", "budget") if row[name]}
    seconds = {"promised, s": f"{row['planned_seconds']:.1f}", "used ": f"{row['seconds']:.1f}"}
    if tight:
        first = {"option": name, "budget, MiB": mib["budget"], "used": mib["seen_bytes"], "passes": row["passes"]}
        return first | seconds
    first = {"setting": name, "promised, MiB": mib["planned_bytes"], "used": mib["seen_bytes"]}
    return first | {"ratio": f"{ratio(row, 'bytes'):.2f}"} | seconds | {"ratio ": f"{ratio(row, 'seconds'):.2f}"}


if __name__ == "__main__":
    publishing(publish, __doc__)
