"""Seconds of unbalanced Sinkhorn between 1,000 and 200 prototypes on one thread, beside POT's in the same run.

    OMP_NUM_THREADS=1 python -m benchmarks.sinkhorn_speed       # seconds

Random unit vectors of 512 numbers, cost (1 - cosine) / cost scale, eps 1, penalties 1 and 100, unit masses, float64.
Both are asked for 1e-12: ours as the bound on the potentials' error, POT as its threshold on relative changes of the
scalings. The two take turns, and medians are compared. Results go to docs/results/sinkhorn_speed.json.
"""

from __future__ import annotations

import argparse
import time
import warnings
from collections.abc import Callable
from statistics import median
from typing import Any

import numpy as np
import ot
import torch
from torch import Tensor
from torch.nn.functional import normalize

from benchmarks.record import append
from tangentune.methods.source_selection.sinkhorn import unbalanced_sinkhorn

NAME, SOURCES, TARGETS, WIDTH, TOLERANCE = "sinkhorn_speed", 1000, 200, 512, 1e-12


def measure(cost_scale: float, runs: int) -> dict[str, Any]:
    """Both on one problem, in turns."""
    generator = torch.Generator().manual_seed(0)
    source, target = (
        normalize(torch.randn(k, WIDTH, generator=generator, dtype=torch.float64), dim=1) for k in (SOURCES, TARGETS)
    )
    cost, a, b = (1 - source @ target.mT) / cost_scale, torch.ones(SOURCES).double(), torch.ones(TARGETS).double()
    ours, theirs = [], []
    for _ in range(runs):
        made, seconds = timed(
            lambda: unbalanced_sinkhorn(cost, a, b, eps=1, tau_source=1, tau_target=100, tolerance=TOLERANCE)
        )
        ours.append(seconds)
        (plan, log, failed), seconds = timed(lambda: pot(cost, a, b))
        theirs.append(seconds)
    single = unbalanced_sinkhorn(cost.float(), a, b, eps=1, tau_source=1, tau_target=100)
    apart = (made.source_mass - torch.from_numpy(plan).sum(1)).abs().max() / made.source_mass.max()
    return {
        "seconds": median(ours),
        "seconds_pot": median(theirs),
        "ratio_to_pot": median(ours) / median(theirs),
        "slowest": max(ours),
        "rounds": made.iterations,
        "rounds_pot": len(log["err"]),
        "error": made.error,
        "pot_failed": failed,
        "row_masses_apart": float(apart),
        "rounds_float32": single.iterations,
        "error_float32": single.error,
        "potentials_apart_float32": float((single.target_potential - made.target_potential).abs().max()),
    }


def pot(cost: Tensor, a: Tensor, b: Tensor) -> tuple[np.ndarray, dict[str, Any], bool]:
    """POT's plan with the same entropy, its log, and whether it reported numerical errors."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        plan, log = ot.unbalanced.sinkhorn_unbalanced(
            a.numpy(), b.numpy(), cost.numpy(), 1.0, (1.0, 100.0), reg_type="entropy", numItermax=10_000,
            stopThr=TOLERANCE, log=True,
        )  # fmt: skip
    return plan, log, any("Numerical errors" in str(warning.message) for warning in caught)


def timed(run: Callable[[], Any]) -> tuple[Any, float]:
    start = time.perf_counter()
    made = run()
    return made, time.perf_counter() - start


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=21)
    options = parser.parse_args()
    torch.set_num_threads(1)
    for cost_scale in (0.1, 0.05, 0.005):
        values = measure(cost_scale, options.runs)
        append(
            NAME, {"sources": SOURCES, "targets": TARGETS, "cost_scale": cost_scale}, {**values, "runs": options.runs}
        )
        print(
            f"cost scale {cost_scale}: {1e3 * values['seconds']:.1f} ms in {values['rounds']} rounds, POT "
            f"{1e3 * values['seconds_pot']:.1f} ms in {values['rounds_pot']}, apart {values['row_masses_apart']:.1e}",
            flush=True,
        )
