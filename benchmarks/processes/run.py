"""What a second process gains for `predict` and `sums`, and what one at half speed costs.

    python -m benchmarks.processes.run       # about twenty minutes on two quiet cores; goes on where it stopped

The commands as they are, each process with one thread and the variables that torchrun sets. Of a slow process's time
every other twentieth of a second is taken away once the work has begun.
"""

from __future__ import annotations

import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.datasets import cifar10, cifar_split
from benchmarks.record import ROOT, Row, fill, load, markdown_table, write_page
from benchmarks.study import STILL, begin, study_parser
from tangentune import TangentClassifier, TangentFeatures, load_backbone

NAME, SIZE, NAP = "processes", 96, 0.05
TASKS = {
    "predict": (4096, ["predict", "MODEL", "PICTURES", "--no-unlike", "--out", "out.csv"]),
    "sums": (1024, ["sums", "PICTURES", "--map", "MAP", "--out", "out.sums", "--shard", "64", "--minimum", "1"]),
}
WAYS = {"one": 1, "two": 2, "two, one of them at half speed": 2}
FEW = 10  # pictures whose command shows what starting and loading take


def main() -> None:
    """Measure what is missing, write docs/results/processes.json and its page."""
    parser = study_parser(__doc__, runs=3)
    parser.add_argument("--share", type=float, default=1.0, help="of the pictures, for a trial")
    given = begin(parser)
    keys = [{"task": task, "processes": way, "share": given.share} for task in TASKS for way in WAYS]
    with tempfile.TemporaryDirectory() as place:
        prepare(Path(place), given.share)

        def measure(key: Row) -> Row:
            count, words = WAYS[key["processes"]], TASKS[key["task"]][1]
            slow = "half" in key["processes"]
            found: dict[str, list[float]] = {"seconds": [], "starting": []}
            for _ in range(given.runs):
                few = [word.replace("PICTURES", "FEW") for word in words]
                named = [word.replace("PICTURES", key["task"]) for word in words]
                found["starting"].append(timed(Path(place), few, count, False))
                found["seconds"].append(timed(Path(place), named, count, slow))
            return found | {"pictures": int(TASKS[key["task"]][0] * given.share)}

        fill(NAME, keys, measure)
    publish()


def prepare(place: Path, share: float) -> None:
    """Pictures in class folders, a model and a map, below a folder."""
    data, backbone = cifar10(), load_backbone("mobilenet_v2").with_size(SIZE)
    for name, count in {"FEW": FEW, **{task: int(task_[0] * share) for task, task_ in TASKS.items()}}.items():
        for i in range(count):
            folder = place / name / f"c{data.test_labels[i]}"
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.asarray(data.test[i])).save(folder / f"{i}.png")
    pictures, _ = cifar_split(backbone, 5, 0, test=1)
    chosen = {"damping": 1.0, "body_scale": 0.5, "metric_power": 0, "normalize": True}
    TangentClassifier(backbone, **STILL, **chosen).fit(pictures).save_pretrained(place / "MODEL")
    TangentFeatures("mobilenet_v2", landmarks=None, width=512, input_size=SIZE).fit().save(place / "MAP")


def timed(place: Path, words: list[str], count: int, slow: bool) -> float:
    """Seconds until the last of a command's processes has ended."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count)}
    environment["PYTHONPATH"] = str(ROOT / "src")
    command, began = [sys.executable, "-m", "tangentune", *words, "-q", "--n-jobs", "1"], time.perf_counter()
    run = [
        subprocess.Popen(command, cwd=place, env={**environment, "RANK": str(i)}, stdout=subprocess.DEVNULL)
        for i in range(count)
    ]
    try:
        while any(one.poll() is None for one in run):
            if slow and run[1].poll() is None and any(place.glob(".out*.parts")):
                run[1].send_signal(signal.SIGSTOP)
                time.sleep(NAP)
                run[1].send_signal(signal.SIGCONT)
            time.sleep(NAP)
    finally:
        for one in run:  # where this is interrupted
            one.kill()
    if any(one.returncode for one in run):
        message = f"{' '.join(command)} failed"
        raise RuntimeError(message)
    return time.perf_counter() - began


def publish() -> None:
    """docs/results/processes.md."""
    rows, lines = {(row["key"]["task"], row["key"]["processes"]): row for row in load(NAME).get("rows", [])}, []
    for task in TASKS:
        whole, start = (
            {way: statistics.median(rows[task, way][clock]) for way in WAYS if (task, way) in rows}
            for clock in ("seconds", "starting")
        )
        if len(whole) < len(WAYS):
            continue
        one, two, slow = WAYS
        work = {way: whole[way] - start[way] for way in WAYS}
        lines.append(
            {
                "command": task,
                "pictures": rows[task, one]["pictures"],
                "one, s": whole[one],
                "two, s": whole[two],
                "gain": whole[one] / whole[two],
                "gain without starting": work[one] / work[two],
                "one at half speed, s": whole[slow],
                "over the ideal": whole[slow] / (start[slow] + work[one] / 1.5) - 1,
                "starting, s": start[two],
            }
        )
    formats = dict.fromkeys(lines[0], ".1f") | {"command": "", "pictures": ",", "over the ideal": "+.0%"}
    formats |= {"gain": ".2f", "gain without starting": ".2f"}
    write_page(NAME, __file__, {"table": markdown_table(lines, formats), "size": str(SIZE), "few": str(FEW)})


if __name__ == "__main__":
    main()
