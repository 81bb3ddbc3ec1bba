"""What a fit will cost, from one trial batch and one matrix product: seconds and peak bytes."""

from __future__ import annotations

import time
from typing import Any

import torch

from tangentune.jacobian.layers import Pairs
from tangentune.jacobian.rows import RowPlan, batch_rows
from tangentune.kernels.batches import PictureBatches
from tangentune.kernels.collect import plan_passes, views_of
from tangentune.kernels.gram import strategy
from tangentune.kernels.pilot import POWERS, pilot_pictures
from tangentune.kernels.stages import FitSettings, room_for_rows


def estimate_cost(tangent: RowPlan, pictures: PictureBatches, settings: FitSettings, outputs: int) -> dict[str, Any]:
    """Estimate a fit before starting it, usually within a factor of two; `layers` say how rows are held, and Gram
    strategy.
    """
    count = pictures.count
    x = next(iter(pictures.batches(list(range(min(16, count))))))
    features = tangent.features(tangent.module, x[:1]).shape[1]
    probes = torch.randn(settings.probes, features).to(x)
    batch_rows(tangent, views_of(x[:1], settings.mirrored), probes)  # the first call pays for set-up
    start = time.perf_counter()
    entries = batch_rows(tangent, views_of(x, settings.mirrored), probes).entries
    per_picture = (time.perf_counter() - start) / len(x)
    sizes = {name: -(-entry.nbytes // len(x)) for name, entry in entries.items()}
    passes = plan_passes(sizes, count, room_for_rows(tangent, pictures, settings, outputs)) or [[]]
    free = settings.power is None or settings.fixed.body_scale is None
    pilot = len(pilot_pictures(count, outputs)) if free else 0
    work = 0.0
    for entry in entries.values():
        whitening = _whitening_work(entry) if settings.power != 0 else 0.0
        work += (count + (len(POWERS) - 1) * pilot) * whitening
        work += 0.6 * (count**2 + len(POWERS) * pilot**2) * entry.width
    solver = (25 if settings.fixed.body_scale is None else 4) * 10 * count**3
    seconds = len(passes) * count * per_picture * 1.3 + (work + solver) / _multiply_adds_per_second(x)
    held = max(sum(sizes[name] for name in group) + 2 * max([0, *(sizes[name] for name in group)]) for group in passes)
    return {
        "n": count,
        "seconds": seconds,
        "peak_bytes": int(held * count + count**2 * 8 * 12 + 500 * 2**20),
        "passes": len(passes),
        "parameters": sum(p.numel() for name, p in tangent.module.named_parameters() if name in set(tangent.names)),
        "layers": [
            {
                "name": name,
                "held_as": "pairs" if isinstance(entry, Pairs) else "rows",
                "gram": strategy(entry),
                "bytes_per_picture": sizes[name],
            }
            for name, entry in entries.items()
        ],
    }


def _whitening_work(entry: Any) -> float:
    """Multiply-adds a picture to bring a row into the metric."""
    if isinstance(entry, Pairs):
        return entry.a.shape[1] * (entry.a.shape[2] ** 2 + entry.probes * entry.g.shape[3] ** 2)
    outputs, inputs = entry.values.shape[3:]
    return entry.width * (outputs + inputs)


def _multiply_adds_per_second(like: torch.Tensor) -> float:
    """Rate of a matrix product of a typical tile, in the rows' precision."""
    a = torch.randn(256, 8192).to(like)
    float((a @ a.T).sum())
    start = time.perf_counter()
    float((a @ a.T).sum())
    return 256 * 256 * 8192 / (time.perf_counter() - start)
