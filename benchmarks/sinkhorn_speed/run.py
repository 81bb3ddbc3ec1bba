"""Seconds of unbalanced Sinkhorn between 1,000 and 200 prototypes on one thread, beside POT's in the same run.

    OMP_NUM_THREADS=1 python -m benchmarks.sinkhorn_speed.run       # seconds

Random unit vectors of 512 numbers, cost (1 - cosine) / cost scale, eps 1, penalties 1 and 100, unit masses, float64.
Both are asked for 1e-12: ours as the bound on the potentials' error, POT as its threshold on relative changes of the
scalings. The two take turns, and medians are compared. Results go to docs/results/sinkhorn_speed.json.
"""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import ot
import torch
from torch import Tensor
from torch.nn.functional import normalize

from benchmarks.record import append
from benchmarks.study import alternating, begin, medians, study_parser
from tangentune import transport

NAME, SOURCES, TARGETS, WIDTH, TOLERANCE = "sinkhorn_speed", 1000, 200, 512, 1e-12


def main() -> None:
    """Measure at three cost scales, print, store."""
    given = begin(study_parser(__doc__, runs=21))
    for scale in (0.1, 0.05, 0.005):
        found = measure(scale, given.runs)
        append(NAME, {"sources": SOURCES, "targets": TARGETS, "cost_scale": scale}, {**found, "runs": given.runs})
        print(f"cost scale {scale}", found, flush=True)


def measure(cost_scale: float, runs: int) -> dict[str, Any]:
    """Both on one problem, in turns."""
    generator = torch.Generator().manual_seed(0)
    source, target = (
        normalize(torch.randn(k, WIDTH, generator=generator, dtype=torch.float64), dim=1) for k in (SOURCES, TARGETS)
    )
    cost, masses = (1 - source @ target.T) / cost_scale, (torch.ones(SOURCES).double(), torch.ones(TARGETS).double())

    def ours(cost: Tensor = cost, **more: Any) -> transport.TransportPlan:
        return transport.unbalanced_sinkhorn(cost, *masses, eps=1, tau_source=1, tau_target=100, **more)

    taken = alternating(
        {"ours": lambda: ours(tolerance=TOLERANCE), "pot": lambda: pot(cost, *masses)}, runs, warm_up=False
    )
    made, single, (plan, log, failed) = ours(tolerance=TOLERANCE), ours(cost.float()), pot(cost, *masses)
    apart = (made.source_mass - torch.from_numpy(plan).sum(1)).abs().max() / made.source_mass.max()
    seconds = medians(taken)
    return {
        "seconds": seconds["ours"],
        "seconds_pot": seconds["pot"],
        "ratio_to_pot": seconds["ours"] / seconds["pot"],
        "slowest": max(spent["seconds"] for spent in taken["ours"]),
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


if __name__ == "__main__":
    main()
