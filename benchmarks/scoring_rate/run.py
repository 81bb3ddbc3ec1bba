"""Rate and memory of a choice from 1,000,000 features on the disk for 200 target classes, against plain products.

    python -m benchmarks.scoring_rate.run            # about two minutes, 2 GB of disk for that time

Every scan is a `select_source` by the nearest class in a process of its own. It is followed by matrix
products in the same process: at the scan's own shape (8,192 x 512 times 512 x 200) and square. The ratio of the two
rates is what is held to, in seconds by the clock; beside it stands the one in seconds of processor time, reading thread
included, which other work on the machine does not move. Peak memory is that of the whole scanning process, interpreter
and torch included, read before the plain products are made. The stored file is of transport's scorer, whose pass also
took an exponential an entry, and says how a killed pass went on.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.record import ROOT, record
from benchmarks.study import alternating, begin, medians, stopwatch, study_parser
from tangentune import transport

NAME, COUNT, WIDTH, CLASSES, TARGETS, KEPT = "scoring_rate", 1_000_000, 512, 1000, 200, 10_000
CHUNK, SQUARE, PRODUCTS = 8192, 1024, 15
COLD = "1 thread, file not in the system's cache"


def main() -> None:
    """Scan several times, print medians, write docs/results/scoring_rate.json."""
    parser = study_parser(__doc__, runs=5)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rows", type=int, default=COUNT, help="fewer for a trial")
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)  # what this script says to its own processes
    parser.add_argument("--cold", action="store_true", help=argparse.SUPPRESS)
    given = begin(parser)
    if given.measure:
        print(json.dumps(measure_here(given.measure, given.threads[0], given.cold)))
        return
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory(prefix=NAME) as folder:
        path = Path(folder) / "features.npy"
        write_features(path, given.rows)
        runs = {
            f"{threads} thread{'s' * (threads > 1)}": [measured(path, threads) for _ in range(given.runs)]
            for threads in given.threads
        }
        runs[COLD] = [measured(path, 1, "--cold") for _ in range(3)]
    middle = {
        name: {key: statistics.median(row[key] for row in rows) for key in rows[0]} for name, rows in runs.items()
    }
    payload = {"rows": given.rows, "width": WIDTH, "targets": TARGETS, "kept": KEPT, "chunk": CHUNK}
    payload |= {"load_average_before": load, "medians": middle, "runs": runs}  # load: of other work on the machine
    print(json.dumps(middle, indent=1))
    print(f"written: {record(NAME, payload)}")


def write_features(path: Path, count: int) -> None:
    """Features around 1,000 class means, of uneven lengths, a chunk at a time."""
    rng, means = np.random.default_rng(0), class_means()
    header = {"descr": "<f4", "fortran_order": False, "shape": (count, WIDTH)}
    with path.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, header)
        for first in range(0, count, CHUNK):
            rows = min(CHUNK, count - first)
            features = means[rng.integers(CLASSES, size=rows)]
            features += rng.standard_normal((rows, WIDTH), dtype=np.float32)
            features *= rng.uniform(0.5, 20, (rows, 1)).astype(np.float32)
            file.write(features.data)


def class_means() -> np.ndarray:
    """What features lie around."""
    return np.random.default_rng(1).standard_normal((CLASSES, WIDTH), dtype=np.float32)


def measure_here(path: Path, threads: int, cold: bool) -> dict[str, float]:
    """One scan in this process for targets near some of the class means, then plain products."""
    torch.set_num_threads(threads)
    count = len(np.load(path, mmap_mode="r"))
    targets = class_means()[:TARGETS] + np.random.default_rng(2).standard_normal((TARGETS, WIDTH), dtype=np.float32)
    names = [f"{k:03d}" for k in range(TARGETS)]
    if cold:
        forget_file(path)
    before = peak_mib()
    settings: dict[str, Any] = {"method": "nearest", "granularity": "pictures", "centre": False}
    settings |= {"budget": min(KEPT, count), "source_labels": np.full(count, "any")}
    with stopwatch() as spent:
        transport.select_source(targets, path, None, target_labels=names, **settings)
    peak, flops = peak_mib(), 2 * count * WIDTH * TARGETS
    rate = flops / spent["seconds"]
    product, square = product_rates(CHUNK, WIDTH, TARGETS), product_rates(SQUARE, SQUARE, SQUARE)
    return {
        "seconds": spent["seconds"],
        "gflops": rate / 1e9,
        "product_gflops": product["seconds"] / 1e9,
        "square_gflops": square["seconds"] / 1e9,
        "ratio_to_product": rate / product["seconds"],
        "ratio_to_square": rate / square["seconds"],
        "processor_seconds": spent["cpu_seconds"],
        "ratio_in_processor_time": flops / spent["cpu_seconds"] / product["cpu_seconds"],
        "imported_mib": before,
        "peak_mib": peak,
    }


def product_rates(rows: int, inner: int, columns: int) -> dict[str, float]:
    """Median flops of a float32 matrix product, by "seconds" on the clock and by "cpu_seconds"."""
    left, right, out = torch.rand(rows, inner), torch.rand(inner, columns), torch.empty(rows, columns)
    taken = alternating({"product": lambda: torch.mm(left, right, out=out)}, PRODUCTS)
    return {
        clock: 2 * rows * inner * columns / medians(taken, clock)["product"] for clock in ("seconds", "cpu_seconds")
    }


def peak_mib() -> float:
    """Highest resident memory of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def forget_file(path: Path) -> None:
    """Ask the system to drop its copy of a file in memory, so that the next pass reads the disk."""
    handle = os.open(path, os.O_RDONLY)
    os.fsync(handle)
    os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(handle)


def measured(path: Path, threads: int, *more: str) -> dict[str, float]:
    """`measure_here` in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.scoring_rate.run", "--measure", str(path), "--threads", str(threads)]
    # Threads that spin while others' work holds their core would be all that is measured on a shared machine.
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "OMP_WAIT_POLICY": "passive"}
    options: Sequence[str] = ["--scratch", *more]  # it stores nothing
    done = subprocess.run([*command, *options], cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


if __name__ == "__main__":
    main()
