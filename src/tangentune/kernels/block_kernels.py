"""The block kernels of pictures, by way of the pilot and the metric power, and the map of a choice among them."""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor

from tangentune.kernels.choice import KernelChoice, Scored, block_scales
from tangentune.kernels.collect import RowSet, kronecker_factors, restrict
from tangentune.kernels.feature_map import TangentMap
from tangentune.kernels.metric import KroneckerFactors, Whitening, whiten_own, whitening
from tangentune.kernels.pilot import choose_on_all, choose_power, pilot_pictures, run_pilot
from tangentune.kernels.stages import FitJob
from tangentune.networks.parameters import block_of, group_blocks


@dataclass(frozen=True)
class BlockKernels:
    """Features, block kernels in network order, metric factors, and the rows if they are all in memory."""

    phi: Tensor
    blocks: dict[str, Tensor]
    factors: dict[str, KroneckerFactors]
    power: float
    rows: RowSet | None
    metric: dict[str, Whitening]  # of the rows, if they are in it
    passes: int
    tried: list[Scored]


def block_kernels(job: FitJob) -> BlockKernels:
    """Pilot, metric power, then the block kernels of all pictures; small sets try everything on all pictures."""
    settings, tangent, count = job.settings, job.tangent, job.pictures.count
    tried: list[Scored] = []
    leading, begun = next(iter(group_blocks(tangent.names)), ""), None
    if tangent.names and settings.fixed.body_scale is None:
        index = pilot_pictures(count, job.targets.shape[1])
        if len(index) == count and len(job.passes(tangent)) == 1:
            return _small_kernels(job)
        pilot = run_pilot(job, index)
        tried, leading, begun = pilot.tried, pilot.leading, pilot.begun
        tangent = restrict(tangent, [name for name in tangent.names if block_of(name) in pilot.kept])
    passes, rows = job.passes(tangent), None
    whole = len(passes) == 1  # the rows of all parameters are in memory at once
    if whole:
        with job.meter.stage("rows"):
            rows = job.collect(tangent, "rows", begun=begun)
    power = settings.power if tangent.names else 0.0
    factors: dict[str, KroneckerFactors] = {}
    if rows is not None and power != 0:
        with job.meter.stage("metric"):
            factors = kronecker_factors(rows)
    if power is None:
        with job.meter.stage("metric power"):
            part = rows
            if part is None:  # then of the leading block, or of its last layers
                names = job.passes(restrict(tangent, [name for name in tangent.names if block_of(name) == leading]))[0]
                part = job.collect(restrict(tangent, names), "rows, leading block")
            power, more = choose_power(job, part, factors or kronecker_factors(part), whole=whole)
            del part
        tried += more
    metric: dict[str, Whitening] = {}
    if rows is not None and power != 0:
        with job.meter.stage("kernels"):  # once: kernels and weights are made from them
            metric = {name: whitening(factors[name], power) for name in rows.entries}
            rows = replace(rows, entries={name: whiten_own(rows.entries.pop(name), metric[name]) for name in metric})
    grams: dict[str, Tensor] = {}
    for number, names in enumerate(passes):
        if not whole:
            rows = None  # free the last pass before the next
            with job.meter.stage("rows"):
                rows = job.collect(restrict(tangent, names), f"rows, pass {number + 1} of {len(passes)}")
            with job.meter.stage("metric"):
                factors |= kronecker_factors(rows) if power > 0 else {}
        assert rows is not None
        with job.meter.stage("kernels"):
            done = job.grams(rows.entries, factors, 0.0 if metric else power)
        for block, gram in done.items():
            grams[block] = grams[block] + gram if block in grams else gram
    assert rows is not None
    blocks = {block: grams[block] for block in group_blocks(tangent.names)}
    return BlockKernels(rows.phi, blocks, factors, power, rows if whole else None, metric, len(passes), tried)


def _small_kernels(job: FitJob) -> BlockKernels:
    with job.meter.stage("rows"):
        rows = job.collect(job.tangent, "rows")
    with job.meter.stage("metric"):
        factors = kronecker_factors(rows) if job.settings.power != 0 else {}
    with job.meter.stage("kernels"):
        power, blocks, tried = choose_on_all(job, rows, factors)
    kept = rows.restrict(name for name in job.tangent.names if block_of(name) in blocks)
    return BlockKernels(rows.phi, blocks, factors, power, kept, {}, 1, tried)


def frozen_map(job: FitJob, choice: KernelChoice, made: BlockKernels) -> TangentMap:
    """The feature map whose inner products are the chosen kernel."""
    moving = choice.body_scale > 0
    tangent = restrict(job.tangent, [n for n in job.tangent.names if moving and block_of(n) in made.blocks])
    metric: dict[str, Whitening] = {}
    if choice.power > 0:
        metric = {name: made.metric.get(name) or whitening(made.factors[name], choice.power) for name in tangent.names}
    scales = dict.fromkeys(group_blocks(job.tangent.names), 0.0)
    scales |= choice.scales(list(made.blocks)) if moving else {}
    lengths = block_scales(list(made.blocks), choice.slope) if moving else {}
    mirrored, normalize = job.settings.mirrored, choice.normalize
    return TangentMap(tangent, job.probes, mirrored, metric, scales, choice.body_scale, normalize, lengths)
