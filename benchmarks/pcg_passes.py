"""Passes over the data to a relative residual of 1e-3: plain conjugate gradients against K-FAC's.

    python -m benchmarks.pcg_passes                  # 500 CIFAR-10 pictures, all blocks, about an hour on one core
    python -m benchmarks.pcg_passes --pictures 60    # a look

The problem is the logit linearisation of MobileNetV2 at 96 px in float32: head = `probe_head` on the features of the
same pictures, r = one-hot targets - f0, damping = 1e-3 x trace(J J^T) / (n C), its trace that of EKFAC (exact for
all layers here). A pass is one product with `J^T J` over all pictures: one dual forward, one backward. What a
curvature costs to make is counted in the same unit, by seconds. Results go to docs/results/pcg_passes.json; a kind
that is there is not measured again, and a curvature that was made is kept in .cache.
"""

from __future__ import annotations

import argparse
import time
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from benchmarks.datasets import ROOT, cifar10, few_shot
from benchmarks.record import append, done
from tangentune import load_backbone, load_pictures
from tangentune.jacobian.kfac import KroneckerCurvature, kfac
from tangentune.jacobian.linearization import Linearization
from tangentune.jacobian.tangents import flatten, unflatten
from tangentune.memory import warm_pages
from tangentune.networks.heads import probe_head
from tangentune.pictures.load import normalise
from tangentune.solvers.pcg import pcg

NAME, TOLERANCE, BATCH, KINDS = "pcg_passes", 1e-3, 25, ("ekfac", "kfac", "block_diagonal", "none")


def problem(pictures: int, size: int) -> tuple[Linearization, list[Tensor], list[Tensor]]:
    """The linearised network, its batches, and the residuals batch by batch."""
    data, backbone = cifar10(), load_backbone("mobilenet_v2").with_size(size)
    chosen = few_shot(data.train_labels, pictures // 10, seed=0)
    given = load_pictures(data.train[chosen], data.train_labels[chosen], contract=backbone.contract)
    batches = list(normalise(given.pixels, backbone.contract).split(BATCH))
    labels = torch.as_tensor(data.train_labels[chosen])
    head = probe_head(torch.cat([backbone.features(x) for x in batches]), labels)
    lin = Linearization(backbone, "all", head)
    targets = one_hot(labels).split(BATCH)
    return lin, batches, [y.to(x) - lin.f0(x) for x, y in zip(batches, targets, strict=True)]


def curvature(lin: Linearization, batches: list[Tensor], kind: str, folder: Path) -> tuple[KroneckerCurvature, float]:
    """A curvature and the seconds it took, made once."""
    path = folder / f"{kind}.safetensors"
    if path.exists():
        return KroneckerCurvature.load(path), float((folder / f"{kind}.seconds").read_text())
    start = time.perf_counter()
    made = kfac(lin, batches, kind=kind, verbose=1)
    seconds = time.perf_counter() - start
    made.save(path)
    (folder / f"{kind}.seconds").write_text(f"{seconds}")
    return made, seconds


def measure(pictures: int, size: int, cap: int, kinds: tuple[str, ...]) -> None:
    """All kinds that are not measured yet."""
    lin, batches, residuals = problem(pictures, size)
    folder = ROOT / ".cache" / NAME / f"{pictures}-{size}"
    folder.mkdir(parents=True, exist_ok=True)
    exact, _ = curvature(lin, batches, "ekfac", folder)
    damping = 1e-3 * exact.trace() / sum(len(r) * r.shape[1] for r in residuals)
    shapes = {name: p.shape for name, p in lin.point().items()}

    def normal(v: Tensor) -> Tensor:
        total = damping * v.double()
        for x in batches:
            total += flatten(lin.normal(x, unflatten(v, shapes)))
        return total.to(v)

    pulled = [flatten(lin.vjp(x, r)).double() for x, r in zip(batches, residuals, strict=True)]
    b = torch.stack(pulled).sum(0).float()
    for kind in kinds:
        key = {"pictures": pictures, "size": size, "preconditioner": kind, "cap": cap}
        if done(NAME, key) is not None:
            continue
        made, seconds = (None, 0.0) if kind == "none" else curvature(lin, batches, kind, folder)
        precondition = None
        if made is not None:
            precondition = lambda r, made=made: flatten(made.solve(unflatten(r, shapes), damping))  # noqa: E731
        start = time.perf_counter()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # the cap: recorded as converged false
            result = pcg(
                normal, b, precondition=precondition, tolerance=TOLERANCE, max_iterations=cap,
                callback=lambda k, r, _, kind=kind: print(f"{kind} {k} {r:.2e}", flush=True),
            )  # fmt: skip
        spent = time.perf_counter() - start
        values: dict[str, Any] = {
            "damping": damping,
            "converged": result.converged,
            "passes": result.iterations,
            "relative_residuals": result.relative_residuals,
            "seconds_per_pass": spent / result.products,
            "seconds_curvature": seconds,
        }
        append(NAME, key, values)
        print(f"{kind}: {result.iterations} passes to {result.relative_residuals[-1]:.1e}, {spent:.0f} s", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=500, help="a multiple of 10")
    parser.add_argument("--size", type=int, default=96, help="pixels")
    parser.add_argument("--cap", type=int, default=1000, help="most passes a pre-conditioner gets")
    parser.add_argument("--kinds", default=",".join(KINDS))
    options = parser.parse_args()
    torch.set_num_threads(1)
    with warm_pages():
        measure(options.pictures, options.size, options.cap, tuple(options.kinds.split(",")))
