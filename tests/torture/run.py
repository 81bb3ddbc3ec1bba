"""The fault run, `make torture`: damage, kills, races, full disks, signals, hostile names, small budgets.

    python tests/torture/run.py [--seconds 1200] [--kinds kills races] [--scratch]

Counts what was tried and what failed in docs/results/reliability.json, with the commits that were tried, and goes on
from there when it is started again; with --afresh it begins anew. The number of a trial is its seed: `--again kills 17`
repeats one and says what came of it.
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
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))  # the tests' own helpers

import torch
from killing import child, wait
from torture import commands, damage
from torture.common import Failed, Trial, template
from usual_signals import usual_signals

sys.path.insert(0, str(Path(__file__).parents[2]))
from benchmarks import record

MOST_TOLD = 20  # failures of a kind that are written down
Counts = dict[str, Any]


@dataclass(frozen=True)
class Kind:
    """A kind of trials, how many cases a whole run tries, and what is made once before."""

    trial: Trial
    cases: int
    at_once: int = 1
    before: Callable[[], Any] = template


KINDS = {
    "damaged pictures": Kind(damage.damaged_pictures, 20_000, 20, damage.samples),
    "damaged models": Kind(damage.damaged_model, 1_000),
    "forged models": Kind(damage.forged_model, 1_000),
    "kills at each step": Kind(commands.killed_at_a_step, 500, before=commands.every_step),
    "kills at any moment": Kind(commands.killed_any_time, 300, before=commands.every_step),
    "races": Kind(commands.raced, 200),
    "signals": Kind(commands.signalled, 100, before=commands.many_pictures),
    "full disks": Kind(commands.no_room, 200, before=commands.every_step),
    "hostile names": Kind(commands.hostile_names, 400),
    "small budgets": Kind(commands.small_budgets, 100),
}


def attempt(name: str, seed: int) -> dict[str, Any]:
    """One trial in a child, so that whatever happens to it ends there: its outcomes, or why it failed."""
    with tempfile.TemporaryDirectory(prefix="trial-", ignore_cleanup_errors=True) as folder:
        place, found, said = Path(folder) / "place", Path(folder) / "found.json", Path(folder) / "said.txt"
        place.mkdir()
        (place / "tmp").mkdir()

        def work() -> None:
            warnings.simplefilter("ignore")
            tempfile.tempdir = str(place / "tmp")  # of the commands too
            try:
                outcomes = KINDS[name].trial(seed, place)
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


def run(counts: Counts, kinds: Sequence[str], share: float, seconds: float, keep: Callable[[str], None]) -> Counts:
    """Try a share of all cases of each kind, in turn, until all are tried or the time is over; the counts grow."""
    torch.set_num_threads(1)  # children are copies of one thread
    template()
    until, waiting = time.monotonic() + seconds, list(kinds)
    for name in kinds:
        KINDS[name].before()
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
            keep(name)
    return counts


def main() -> int:
    """Read the command line, run, and say what failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=1200.0)
    parser.add_argument("--kinds", nargs="+", default=list(KINDS), choices=list(KINDS), metavar="KIND")
    parser.add_argument("--share", type=float, default=1.0, help="of all cases of each kind")
    parser.add_argument("--scratch", type=Path, nargs="?", const=record.ROOT / ".cache" / "scratch", metavar="FOLDER")
    parser.add_argument("--afresh", action="store_true", help="forget what these kinds have counted")
    parser.add_argument("--again", nargs=2, metavar=("KIND", "SEED"))
    given = parser.parse_args()
    usual_signals()
    if given.again:
        torch.set_num_threads(1)
        KINDS[given.again[0]].before()
        sys.stdout.write(f"{attempt(given.again[0], int(given.again[1]))}\n")
        return 0
    record.RESULTS = given.scratch or record.RESULTS
    check_clean()
    rows = {row["key"]["kind"]: row for row in record.load("reliability").get("rows", [])}
    fresh = given.kinds if given.afresh else ()
    counts: Counts = {name: dict(row) for name, row in rows.items() if name in KINDS and name not in fresh}
    commit, kept = record.git("rev-parse", "--short", "HEAD"), dict.fromkeys(KINDS, time.monotonic())

    def keep(name: str, *, seldom: bool = True) -> None:
        if not seldom or time.monotonic() > kept[name] + 20:
            kept[name], own = time.monotonic(), counts[name]
            own["commits"] = sorted({*own.get("commits", ()), commit})
            record.append("reliability", {"kind": name}, {key: own[key] for key in KEPT})

    run(counts, given.kinds, given.share, given.seconds, keep)
    for name in given.kinds:
        if name in counts:
            keep(name, seldom=False)
    for name, own in counts.items():
        sys.stdout.write(f"{name}: {own['cases']} of {KINDS[name].cases} tried, {own['failed']} failed\n")
        sys.stdout.writelines(f"  {seed}: {failure}\n" for seed, failure in own["failures"])
    return int(any(own["failed"] for own in counts.values()))


KEPT = ("trials", "cases", "failed", "outcomes", "failures", "commits")


def check_clean() -> None:
    """Refuse to count for docs/results with code, or trials, that no commit holds."""
    record.check_clean()
    inside = record.RESULTS.is_relative_to(record.ROOT / "docs" / "results")
    if inside and record.git("status", "--porcelain", "--untracked-files=all", "--", "tests"):
        message = "commit first, or use --scratch: results need a clean tree, and files of tests differ"
        raise record.UncommittedCode(message)


if __name__ == "__main__":
    sys.exit(main())
