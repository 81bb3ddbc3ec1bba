"""The page of the temperatures, with the choice by its rule: `python -m benchmarks.temperature.page`."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks import record
from benchmarks.record import markdown_table
from benchmarks.study import mean_error, publishing, standard_error
from benchmarks.temperature.run import COUNTS, NAME, OPTIONS, REAL, SHOWN

ISSUE = [n for n in COUNTS if n >= 10]  # the numbers of pictures that the rule looks at


def publish() -> None:
    """docs/results/temperature.md."""
    rows = [
        (row["key"], {o: np.fromstring(row["log_loss"][o], sep=" ") for o in OPTIONS})
        for row in record.load(NAME)["rows"]
    ]

    def of(option: str, n: int, part: slice, real: bool) -> NDArray[Any]:
        """Changes against no prior on real pictures; what is lost over even odds on noise."""
        own = [(key, found) for key, found in rows if key["pictures"] == n and (key["dataset"] in REAL) == real]
        return np.concatenate([(f[option] - (f["none"] if real else math.log(k["classes"])))[part] for k, f in own])

    choosing, shown = slice(SHOWN, None), slice(SHOWN)
    table, fit = [], {}
    for option in OPTIONS:
        change = {n: of(option, n, choosing, True) for n in COUNTS}
        noise = max(of(option, n, choosing, False).mean() for n in ISSUE)
        gain = float(np.mean([change[n].mean() for n in ISSUE]))
        harmless = all(change[n].mean() <= 2 * standard_error(change[n].tolist()) for n in ISSUE)
        if gain < 0 and harmless:
            fit[option] = gain, noise
        table.append(
            {"option": option, "mean": gain, "harms": "" if harmless else "yes", "noise": noise}
            | {str(n): change[n].mean() for n in COUNTS}
        )
    calm = {option: gain for option, (gain, noise) in fit.items() if noise <= 0.02}
    enough = {option: noise for option, (gain, noise) in fit.items() if gain <= min(g for g, _ in fit.values()) / 2}
    chosen = min(calm, key=calm.__getitem__) if calm else min(enough, key=enough.__getitem__)
    columns = {"option": "", "mean": "+.4f", "harms": "", "noise": "+.3f"} | dict.fromkeys(map(str, COUNTS), "+.4f")
    held = []
    for title, real in (("real pictures, change", True), ("noise, over even odds", False)):
        for option in ("none", "log-normal 0.3 0.5", chosen):
            cells = {str(n): mean_error(of(option, n, shown, real).tolist(), "+.3f") for n in COUNTS}
            held.append({"": title, "option": option} | cells)
    lines = [
        {"set": key["dataset"], "classes": key["classes"], "pictures": key["pictures"]}
        | {name: mean_error(found[option][shown].tolist()) for name, option in (("without", "none"), ("with", chosen))}
        | {"change": mean_error((found[chosen] - found["none"])[shown].tolist(), "+.3f")}
        for key, found in rows
    ]
    parts = {"chosen": chosen, "grid": markdown_table(table, columns), "held": markdown_table(held)}
    record.write_page(NAME, __file__, parts | {"table": markdown_table(lines)})


if __name__ == "__main__":
    publishing(publish, __doc__)
