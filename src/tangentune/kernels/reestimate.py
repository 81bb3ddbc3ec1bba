"""The feature map of a fit, its statistics taken anew from other pictures while every choice stays."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import final

import torch
from torch import Tensor

from tangentune.jacobian.layers import Entry
from tangentune.jacobian.rows import RowPlan
from tangentune.kernels.batches import PictureBatches
from tangentune.kernels.collect import kronecker_factors, restrict
from tangentune.kernels.cost import Problem
from tangentune.kernels.feature_map import FeatureRows, TangentMap
from tangentune.kernels.gram import gram, inverse_lengths
from tangentune.kernels.landmark_cost import plan
from tangentune.kernels.metric import Whitening, whiten_own, whitening
from tangentune.kernels.stages import FitJob, FitSettings, draw_probes
from tangentune.kernels.trial import run_trial
from tangentune.memory import Meter
from tangentune.networks.parameters import block_of


@final
@dataclass(frozen=True, eq=False)
class Reestimated:
    """The map, the features (n, d) of its pictures as the network gives them, their kernel (n, n), and the rows if they
    were kept.
    """

    feature_map: TangentMap
    phi: Tensor
    kernel: Tensor
    rows: FeatureRows | None
    passes: int


def reestimate(
    feature_map: TangentMap,
    tangent: RowPlan,
    pictures: PictureBatches,
    settings: FitSettings,
    power: float,
    outputs: int,
) -> Reestimated:
    """Probes and metric from other pictures, and their (n, n) kernel; the map's scales and normalisation stay.

    `outputs` columns of the targets count in the memory plan. Cost: rows of the pictures, in as many passes as memory
    demands, and the Grams.
    """
    return on_all(feature_map, blank_job(tangent, pictures, settings, outputs), power)


def blank_job(tangent: RowPlan, pictures: PictureBatches, settings: FitSettings, outputs: int) -> FitJob:
    """A job without targets, all that the statistics of pictures need."""
    probes = draw_probes(tangent, pictures, settings)
    blank = torch.zeros(pictures.count, outputs, dtype=torch.float64)
    trial = run_trial(tangent, pictures, settings.probes, settings.mirrored, settings.memory_budget)
    room = plan(trial, settings, Problem(pictures.count, pictures.batch, outputs)).room
    return FitJob(tangent, pictures, blank, blank[:, 0], settings, Meter(probes.device), probes, trial, room)


def on_all(
    feature_map: TangentMap, job: FitJob, power: float, *, keep: bool = False, kept: float | None = None
) -> Reestimated:
    """The same with the job's probes: metric (of which so much is `kept`) and kernel of all its pictures.

    Rows are kept where those of all parameters are in memory at once anyway; `keep` takes them along, pass by pass.
    """
    count, device, meter, passes = job.pictures.count, job.probes.device, job.meter, job.passes(job.tangent)
    metric: dict[str, Whitening] = {}
    entries: dict[str, Entry] = {}
    keep, phi = keep or len(passes) == 1, torch.empty(0)
    square = torch.zeros(count, dtype=torch.float64, device=device)
    body = torch.zeros(count, count, dtype=torch.float64, device=device)
    for number, names in enumerate(passes):
        with meter.stage("rows"):
            label = "rows" if len(passes) == 1 else f"rows, pass {number + 1} of {len(passes)}"
            found = job.collect(restrict(job.tangent, names), label)
        with meter.stage("metric"):
            factors = kronecker_factors(found) if power > 0 else {}
        phi = found.phi
        with meter.stage("kernels"):
            for name in list(found.entries):
                entry = found.entries.pop(name)
                if power > 0:
                    metric[name] = whitening(factors[name], power, kept)
                    entry = whiten_own(entry, metric[name])
                if keep:
                    entries[name] = entry
                own = gram(entry).div_(entry.probes)
                square += feature_map.length_scales[block_of(name)] * own.diagonal()
                body.add_(own, alpha=feature_map.block_scales[block_of(name)])
    lengths = inverse_lengths(square) if feature_map.normalize else torch.ones_like(square)
    seen = phi.double()
    if feature_map.normalize:
        seen = seen * inverse_lengths(seen.square().sum(1))[:, None]
    kernel = body.mul_(lengths[:, None]).mul_(lengths).mul_(feature_map.body_scale).addmm_(seen, seen.T)
    new = replace(feature_map, tangent=job.tangent, probes=job.probes, metric=metric)
    rows = FeatureRows(seen, entries, lengths) if keep else None
    return Reestimated(new, phi, kernel, rows, len(passes))
