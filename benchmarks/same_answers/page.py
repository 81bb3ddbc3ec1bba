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

import numpy as np

from benchmarks.record import RESULTS

BOUNDS = {"float64": 1e-12, "float32": 1e-6}


def compared(before: dict[str, list[float]], after: dict[str, list[float]]) -> dict[str, Any]:
    """One case: how many numbers, how many of them bit-equal (NaN equals NaN), the worst entry.

    A difference is relative to the entry's largest number; infinite where shapes differ or only one side is finite.
    """
    gaps, same = dict.fromkeys(before, math.inf), 0
    for key, numbers in before.items():
        if key in after and len(after[key]) == len(numbers):
            old, new = np.array(numbers), np.array(after[key])
            equal = (old == new) | (np.isnan(old) & np.isnan(new))
            scale = np.abs(old[np.isfinite(old)]).max(initial=0.0) or 1.0
            apart = np.abs(old[~equal] - new[~equal]) / scale
            gaps[key] = float(np.where(np.isfinite(apart), apart, math.inf).max(initial=0.0))
            same += int(equal.sum())
    worst = max(gaps, key=lambda key: gaps[key])
    numbers = sum(map(len, before.values()))
    return {"numbers": numbers, "bit_equal": same, "worst": worst, "difference": gaps[worst]}


def main() -> int:
    """Compare, print, store; 1 if a bound is broken."""
    parser = argparse.ArgumentParser(description="Compare two stored runs.")
    parser.add_argument("before", type=Path)
    parser.add_argument("after", type=Path)
    parser.add_argument("--out", type=Path, default=RESULTS / "same_answers.json")
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
