"""Compare two runs of `same_answers.run`: the largest difference of every case, relative to its largest number.

    python -m benchmarks.same_answers.page before.json after.json

writes docs/results/same_answers.json and fails where a difference is above 1e-12 in float64 or 1e-6 in float32.
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from typing import Any

from benchmarks.record import RESULTS

BOUNDS = {"float64": 1e-12, "float32": 1e-6}
RESULT = RESULTS / "same_answers.json"


def unequal(old: float, new: float) -> bool:
    """NaN equals NaN."""
    return old != new and not (math.isnan(old) and math.isnan(new))


def difference(before: list[float], after: list[float]) -> float:
    """Largest difference over the largest number; infinite where the shapes differ or only one is NaN."""
    if len(before) != len(after):
        return math.inf
    finite = [abs(value) for value in before if math.isfinite(value)]
    scale, worst = max(finite, default=0.0) or 1.0, 0.0
    for old, new in zip(before, after, strict=True):
        if unequal(old, new):
            gap = abs(old - new) / scale
            worst = max(worst, gap if math.isfinite(gap) else math.inf)
    return worst


def compared(before: dict[str, list[float]], after: dict[str, list[float]]) -> dict[str, Any]:
    """One case: how many numbers, how many of them bit-equal, the worst entry."""
    gaps = {key: difference(before[key], after[key]) if key in after else math.inf for key in before}
    worst = max(gaps, key=lambda key: gaps[key])
    pairs = [(old, new) for key in before if key in after for old, new in zip(before[key], after[key], strict=False)]
    return {
        "numbers": sum(map(len, before.values())),
        "bit_equal": sum(not unequal(old, new) for old, new in pairs),
        "worst": worst,
        "difference": gaps[worst],
    }


def main() -> int:
    """Compare, print, store; 1 if a bound is broken."""
    parser = argparse.ArgumentParser(description="Compare two stored runs.")
    parser.add_argument("before", type=Path)
    parser.add_argument("after", type=Path)
    parser.add_argument("--out", type=Path, default=RESULT)
    options = parser.parse_args()
    before, after = (json.loads(path.read_text()) for path in (options.before, options.after))
    rows = {name: compared(case, after["cases"].get(name, {})) for name, case in before["cases"].items()}
    broken = [name for name, row in rows.items() if not row["difference"] <= BOUNDS[name.rsplit(", ", 1)[1]]]
    for name, row in rows.items():
        equal = f"{row['bit_equal']} of {row['numbers']} bit-equal"
        print(f"{'! ' if name in broken else '  '}{name}: {equal}, worst {row['difference']:.1e} ({row['worst']})")
    sides = {"before": before, "after": after}
    found = {side: {key: run[key] for key in ("commit", "dirty", "torch", "date")} for side, run in sides.items()}
    options.out.write_text(json.dumps({**found, "bounds": BOUNDS, "broken": broken, "cases": rows}, indent=1) + "\n")
    print(f"{len(rows) - len(broken)} of {len(rows)} cases within the bounds")
    return bool(broken)


if __name__ == "__main__":
    raise SystemExit(main())
