"""The fault run, `make torture`: damage, kills, races, full disks, signals, hostile names, small budgets.

    python tests/torture/run.py [--seconds 1200] [--kinds kills races] [--out FILE.json]

Counts what was tried and what failed in a JSON file, and goes on from there when it is started again. The number of a
trial is its seed: `--again kills 17` repeats one and says what came of it.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))  # the tests' own helpers

import torch
from killing import child, wait
from torture.trials import KINDS, Failed, template

from tangentune._files import replaced_file

MOST_TOLD = 20  # failures of a kind that are written down
Counts = dict[str, Any]


def attempt(name: str, seed: int) -> dict[str, Any]:
    """One trial in a child, so that whatever happens to it ends there: its outcomes, or why it failed."""
    with tempfile.TemporaryDirectory(prefix="trial-", ignore_cleanup_errors=True) as folder:
        place, found, said = Path(folder) / "place", Path(folder) / "found.json", Path(folder) / "said.txt"
        place.mkdir()

        def work() -> None:
            warnings.simplefilter("ignore")
            try:
                outcomes = KINDS[name].trial(Random(seed), place)
                found.write_text(json.dumps({"outcomes": {key: int(count) for key, count in outcomes.items()}}))
            except Failed as failure:
                found.write_text(json.dumps({"failure": str(failure)}))

        try:
            code = wait(child(work, said))
        except TimeoutError as error:
            return {"failure": str(error)}
        if code == 0 and found.exists():
            return json.loads(found.read_text())
        return {"failure": f"ended with {code}: {said.read_text(errors='replace')[-300:]}"}


def run(counts: Counts, kinds: Sequence[str], share: float, seconds: float, keep: Callable[[Counts], None]) -> Counts:
    """Try a share of all cases of each kind, in turn, until all are tried or the time is over; the counts grow."""
    torch.set_num_threads(1)  # children are copies of one thread
    template()
    until, waiting = time.monotonic() + seconds, list(kinds)
    while waiting and time.monotonic() < until:
        for name in list(waiting):
            own = counts.setdefault(name, {"trials": 0, "cases": 0, "failed": 0, "outcomes": {}, "failures": []})
            if own["cases"] >= KINDS[name].cases * share:
                waiting.remove(name)
                continue
            found = attempt(name, own["trials"])
            if "failure" in found:
                own["failed"] += 1
                own["failures"] = [*own["failures"], [own["trials"], found["failure"]]][:MOST_TOLD]
            own["outcomes"] = dict(Counter(own["outcomes"]) + Counter(found.get("outcomes", {})))
            own["trials"] += 1
            own["cases"] += KINDS[name].at_once
        keep(counts)
    return counts


def main() -> int:
    """Read the command line, run, and say what failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=1200.0)
    parser.add_argument("--kinds", nargs="+", default=list(KINDS), choices=list(KINDS), metavar="KIND")
    parser.add_argument("--share", type=float, default=1.0, help="of all cases of each kind")
    parser.add_argument("--out", type=Path, default=Path("docs/results/reliability.json"))
    parser.add_argument("--again", nargs=2, metavar=("KIND", "SEED"))
    given = parser.parse_args()
    if given.again:
        sys.stdout.write(f"{attempt(given.again[0], int(given.again[1]))}\n")
        return 0
    counts: Counts = json.loads(given.out.read_text()) if given.out.exists() else {}

    def keep(found: Counts) -> None:
        with replaced_file(given.out) as part:
            part.write_text(json.dumps(found, indent=1) + "\n")

    run(counts, given.kinds, given.share, given.seconds, keep)
    for name, own in counts.items():
        sys.stdout.write(f"{name}: {own['cases']} of {KINDS[name].cases} tried, {own['failed']} failed\n")
        sys.stdout.writelines(f"  {seed}: {failure}\n" for seed, failure in own["failures"])
    return int(any(own["failed"] for own in counts.values()))


if __name__ == "__main__":
    sys.exit(main())
