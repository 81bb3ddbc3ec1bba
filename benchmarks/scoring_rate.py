"""Rate, memory and resuming of the second pass: 1,000,000 features from disk against 200 targets.

    python -m benchmarks.scoring_rate            # about three minutes, 2 GB of disk for that time
    taskset -c 1 python -m benchmarks.scoring_rate --threads 1

Each scan is followed by plain matrix products in the same process: at the scan's own shape (8,192 x 512 times
512 x 200) and square. The ratio of the two rates is what is held to, in seconds by the clock; beside it stands the one
in seconds of processor time, reading thread included, which other work on the machine does not move. Peak memory is
that of the whole scanning process, interpreter and torch included, read before the plain products are made.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from benchmarks.record import ROOT, record
from tangentune.methods.source_selection.features import CHUNK
from tangentune.methods.source_selection.picking import Scored as Scanned
from tangentune.methods.source_selection.picking import score_rows as scan
from tangentune.methods.source_selection.rankings import rank
from tangentune.methods.source_selection.settings import SelectionSettings

COUNT, WIDTH, CLASSES, TARGETS, KEPT = 1_000_000, 512, 1000, 200, 10_000
SQUARE, PRODUCTS = 1024, 15


def write_features(path: Path) -> None:
    """Features around 1,000 class means, of uneven lengths, a chunk at a time."""
    rng = np.random.default_rng(0)
    means = rng.standard_normal((CLASSES, WIDTH), dtype=np.float32)
    header = {"descr": "<f4", "fortran_order": False, "shape": (COUNT, WIDTH)}
    with path.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, header)
        for first in range(0, COUNT, CHUNK):
            rows = min(CHUNK, COUNT - first)
            features = means[rng.integers(CLASSES, size=rows)]
            features += rng.standard_normal((rows, WIDTH), dtype=np.float32)
            features *= rng.uniform(0.5, 20, (rows, 1)).astype(np.float32)
            file.write(features.data)


def scan_once(path: Path, checkpoint: Path | None, every: float) -> Scanned:
    """The pass that is measured; targets lie near some of the class means."""
    rng = np.random.default_rng(0)
    means = rng.standard_normal((CLASSES, WIDTH), dtype=np.float32)
    targets = means[:TARGETS] + rng.standard_normal((TARGETS, WIDTH), dtype=np.float32)
    scorer = rank(SelectionSettings(budget=1), *(torch.from_numpy(x).double() for x in (means, targets))).scorer
    return scan(path, scorer, k=KEPT, checkpoint=checkpoint, every=every)


def product_rates(rows: int, inner: int, columns: int) -> tuple[float, float]:
    """Median flops of a float32 matrix product by the second on the clock and of processor time."""
    left, right, out = torch.rand(rows, inner), torch.rand(inner, columns), torch.empty(rows, columns)
    pairs = [timed(lambda: torch.mm(left, right, out=out)) for _ in range(PRODUCTS)]
    clock, processor = (2 * rows * inner * columns / statistics.median(seconds) for seconds in zip(*pairs, strict=True))
    return clock, processor


def timed(function: Callable[[], Any]) -> tuple[float, float]:
    """Seconds on the clock and of processor time, all threads together."""
    clock, processor = time.perf_counter(), time.process_time()
    function()
    return time.perf_counter() - clock, time.process_time() - processor


def peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def forget_file(path: Path) -> None:
    """Ask the system to drop its copy of a file in memory, so that the next pass reads the disk."""
    handle = os.open(path, os.O_RDONLY)
    os.fsync(handle)
    os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(handle)


def measure_here(path: Path, threads: int, cold: bool) -> dict[str, float]:
    """One scan in this process, then plain products."""
    torch.set_num_threads(threads)
    if cold:
        forget_file(path)
    before = peak_mib()
    seconds, processor = timed(lambda: scan_once(path, None, 10.0))
    peak, flops = peak_mib(), 2 * COUNT * WIDTH * TARGETS
    rate = flops / seconds
    (product, product_processor), (square, _) = product_rates(CHUNK, WIDTH, TARGETS), product_rates(*[SQUARE] * 3)
    return {
        "seconds": seconds,
        "gflops": rate / 1e9,
        "product_gflops": product / 1e9,
        "square_gflops": square / 1e9,
        "ratio_to_product": rate / product,
        "ratio_to_square": rate / square,
        "processor_seconds": processor,
        "ratio_in_processor_time": flops / processor / product_processor,
        "imported_mib": before,
        "peak_mib": peak,
    }


def store_here(path: Path, checkpoint: Path, out: Path) -> None:
    """One scan with a checkpoint, its result in a file."""
    torch.set_num_threads(1)
    found = scan_once(path, checkpoint, 0.2)
    fields = {name: value for name, value in vars(found).items() if isinstance(value, torch.Tensor)}
    save_file({name: value.contiguous() for name, value in fields.items()}, out)


def child(*arguments: object, threads: int = 1) -> subprocess.Popen[str]:
    """This script as another process."""
    command = [sys.executable, "-m", "benchmarks.scoring_rate", *map(str, arguments)]
    # Threads that spin while others' work holds their core would be all that is measured on a shared machine.
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "OMP_WAIT_POLICY": "passive"}
    return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True)


def measured(path: Path, threads: int, cold: bool) -> dict[str, float]:
    process = child("--measure", path, "--threads", threads, *(["--cold"] if cold else []), threads=threads)
    out, _ = process.communicate()
    if process.returncode:
        raise RuntimeError(f"the scan ended with {process.returncode}")
    return json.loads(out)


def rows_done(checkpoint: Path) -> int:
    """How far the state on disk is; 0 where there is none."""
    try:
        with safe_open(checkpoint, framework="pt") as file:
            return json.loads((file.metadata() or {})["book"])["done"]
    except (FileNotFoundError, SafetensorError):
        return 0


def killed_and_resumed(folder: Path, path: Path) -> dict[str, Any]:
    """Kill a scan half way, start it again, and compare its stored result with that of a whole run, byte by byte."""
    whole, again, checkpoint = folder / "whole", folder / "again", folder / "state"
    child("--store", path, folder / "other", whole).wait()
    process = child("--store", path, checkpoint, again)
    while rows_done(checkpoint) < COUNT // 2 and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    code, begun_at = process.wait(), rows_done(checkpoint)
    if again.exists() or not 0 < begun_at < COUNT:
        raise RuntimeError(f"the scan was not killed half way ({begun_at} rows, code {code})")
    child("--store", path, checkpoint, again).wait()
    same = whole.read_bytes() == again.read_bytes()
    return {"killed_with": -code, "resumed_at_row": begun_at, "result_bytes": whole.stat().st_size, "identical": same}


def medians(rows: list[dict[str, float]]) -> dict[str, float]:
    return {name: statistics.median(row[name] for row in rows) for name in rows[0]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--cold", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--store", type=Path, nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        print(json.dumps(measure_here(arguments.measure, arguments.threads[0], arguments.cold)))
        return
    if arguments.store:
        store_here(*arguments.store)
        return
    folder, load = Path(tempfile.mkdtemp(prefix="scoring_rate")), os.getloadavg()[0]
    try:
        path = folder / "features.npy"
        write_features(path)
        runs = {
            f"{threads} thread{'s' * (threads > 1)}": [measured(path, threads, False) for _ in range(arguments.runs)]
            for threads in arguments.threads
        }
        runs["1 thread, file not in the system's cache"] = [measured(path, 1, True) for _ in range(3)]
        payload = {
            "rows": COUNT,
            "width": WIDTH,
            "targets": TARGETS,
            "kept": KEPT,
            "chunk": CHUNK,
            "load_average_before": load,  # of other work on the machine
            "medians": {name: medians(rows) for name, rows in runs.items()},
            "runs": runs,
            "killed_half_way": killed_and_resumed(folder, path),
        }
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    print(json.dumps({"medians": payload["medians"], "killed_half_way": payload["killed_half_way"]}, indent=1))
    print(f"written: {record('scoring_rate', payload)}")


if __name__ == "__main__":
    main()
