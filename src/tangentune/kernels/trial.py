"""What a few pictures tell of a fit: how each parameter's rows are held, and what a batch takes in memory and time."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, replace
from typing import final

import torch

from tangentune.errors import BudgetError
from tangentune.jacobian.layers import Entry, Pairs
from tangentune.jacobian.rows import RowPlan, batch_rows
from tangentune.kernels.batches import PictureBatches
from tangentune.kernels.collect import FACTOR_POSITIONS, views_of
from tangentune.kernels.gram import pairs_are_cheaper
from tangentune.memory import Meter, nice_mebibytes, resident_bytes

PICTURES = 8  # that go through the network
KEPT_SIDE = 0.35  # of a side's directions usually hold `metric.KEPT` of it
SCATTER = 1.2  # what the pieces of freed memory cost, batch after batch


@final
@dataclass(frozen=True)
class LayerRows:
    """One parameter's rows as they are held: R `probes`, each `groups` matrices of `outputs` x `inputs`."""

    positions: int  # whose outer products add up to a row are held instead of it; 0: the row itself
    groups: int
    outputs: int
    inputs: int
    probes: int
    itemsize: int

    @property
    def width(self) -> int:
        """Numbers in one picture's row, all probes."""
        return self.probes * self.groups * self.outputs * self.inputs

    @property
    def size(self) -> int:
        """Bytes held for a picture."""
        pairs = self.positions * (self.inputs + self.probes * self.outputs)
        return self.itemsize * (pairs if self.positions else self.width)

    @property
    def factors(self) -> int:
        """Numbers in its two K-FAC factors."""
        matrix = self.outputs * self.inputs > 1
        return self.groups * (self.outputs**2 + self.inputs**2) if matrix else 0

    @property
    def in_metric(self) -> LayerRows:
        """About what is left of it in a metric's leading directions; they are known once there are rows."""
        if self.groups > 1 or self.outputs * self.inputs == 1:
            return self
        outputs, inputs = (math.ceil(KEPT_SIDE * side) for side in (self.outputs, self.inputs))
        return replace(self, outputs=outputs, inputs=inputs)

    @property
    def gram(self) -> str:
        """How the Gram is formed: from "pairs" of positions, or from "rows"."""
        thickness = self.inputs + self.probes * self.outputs
        return "pairs" if self.positions and pairs_are_cheaper(self.positions**2, thickness, self.width) else "rows"


@final
@dataclass(frozen=True)
class Trial:
    """What was found with a few pictures."""

    layers: dict[str, LayerRows]  # rows of each parameter, with all probes
    resident: int  # bytes that the process holds before the fit: itself, libraries, network, pictures
    batch_bytes: int  # what one batch takes beyond that, its rows not counted
    picture_bytes: int  # of it, each picture
    features: int  # that the network has
    forward: float = math.nan  # seconds a picture; NaN where no time was taken
    backward: float = math.nan  # seconds a picture and probe


def run_trial(
    tangent: RowPlan, pictures: PictureBatches, probes: int, mirrored: bool, budget: int, *, timed: bool = False
) -> Trial:
    """Take the rows of one picture, and of as many as the memory budget has room for, up to eight.

    `timed` tells the seconds as well, for another forward pass. A budget that has no room for one is a BudgetError.
    """
    device = next(tangent.module.parameters()).device
    few = next(iter(pictures.batches(list(range(min(PICTURES, pictures.count))))))
    features = tangent.features(tangent.module, few[:1]).shape[1]
    directions = torch.randn(1, features, generator=torch.Generator().manual_seed(0)).to(few)

    def measure(count: int, along: int) -> tuple[float, int, dict[str, Entry]]:
        """Seconds, bytes taken beyond what was held, rows."""
        meter = Meter(device)
        with meter.stage("trial"):
            before, start = resident_bytes(device), time.perf_counter()
            entries = batch_rows(tangent, views_of(few[:count], mirrored), directions[:along], FACTOR_POSITIONS).entries
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            seconds = time.perf_counter() - start
        return seconds, max(0, meter.stages[0]["peak_bytes"] - before), entries

    _, one, entries = measure(1, 1)  # pays for set-up too, and what set-up leaves behind stays
    resident = resident_bytes(device)
    if resident + one > budget:
        raise BudgetError(
            f"one picture in the network takes {nice_mebibytes(one)} beside the {nice_mebibytes(resident)} that this "
            f"process already holds, more than the memory budget of {nice_mebibytes(budget)}, which counts the whole "
            "process; raise memory_budget or lower the input size"
        )
    count = max(1, min(len(few), (budget - resident) // max(1, one)))
    seconds, several, entries = measure(count, 1)
    layers = {name: _layer(entries[name], probes) for name in tangent.names if name in entries}
    rows = sum(layer.size for layer in layers.values()) // probes  # about those of one probe
    growth = max(0, several - one) / (count - 1) if count > 1 else float(one)
    at_once = min(pictures.batch, pictures.count)
    batch = SCATTER * (one + growth * (at_once - 1) - rows * at_once)
    trial = Trial(layers, resident, max(0, int(batch)), int(growth), features)
    if not timed:
        return trial
    forward = min(measure(count, 0)[0], seconds)
    return replace(trial, forward=forward / count, backward=(seconds - forward) / count)


def _layer(entry: Entry, probes: int) -> LayerRows:
    if isinstance(entry, Pairs):
        return LayerRows(entry.a.shape[1], 1, entry.g.shape[3], entry.a.shape[2], probes, entry.dtype.itemsize)
    groups, outputs, inputs = entry.values.shape[2:]
    return LayerRows(0, groups, outputs, inputs, probes, entry.dtype.itemsize)
