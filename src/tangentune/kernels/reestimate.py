"""The feature map of a fit, its statistics taken anew from other pictures while every choice stays."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from tangentune.jacobian.rows import RowPlan
from tangentune.kernels.batches import PictureBatches
from tangentune.kernels.collect import kronecker_factors, restrict
from tangentune.kernels.cost import Problem, plan_memory
from tangentune.kernels.feature_map import TangentMap
from tangentune.kernels.gram import cosine, gram, inverse_lengths
from tangentune.kernels.metric import Whitening, whiten, whitening
from tangentune.kernels.stages import FitJob, FitSettings, draw_probes
from tangentune.kernels.trial import run_trial
from tangentune.memory import Meter
from tangentune.networks.parameters import block_of


def reestimate(
    feature_map: TangentMap,
    tangent: RowPlan,
    pictures: PictureBatches,
    settings: FitSettings,
    power: float,
    outputs: int,
) -> tuple[TangentMap, Tensor]:
    """Probes and metric from other pictures, and their (n, n) kernel; the map's scales and normalisation stay.

    `outputs` columns of the targets count in the memory plan. Cost: rows of the pictures, in as many passes as memory
    demands, and the Grams.
    """
    probes = draw_probes(tangent, pictures, settings)
    blank = torch.zeros(pictures.count, outputs, dtype=torch.float64)
    trial = run_trial(tangent, pictures, settings.probes, settings.mirrored, settings.memory_budget)
    room = plan_memory(trial, settings, Problem(pictures.count, pictures.batch, outputs)).room
    job = FitJob(tangent, pictures, blank, blank[:, 0], settings, Meter(probes.device), probes, trial, room)
    metric: dict[str, Whitening] = {}
    square = torch.zeros(pictures.count, dtype=torch.float64, device=probes.device)
    head = body = torch.zeros(pictures.count, pictures.count, dtype=torch.float64, device=probes.device)
    for names in job.passes(tangent):
        rows = job.collect(restrict(tangent, names), "rows")
        head = rows.phi.double() @ rows.phi.double().T
        factors = kronecker_factors(rows) if power > 0 else {}
        for name, entry in rows.entries.items():
            if power > 0:
                metric[name] = whitening(factors[name], power)
                entry = whiten(entry, metric[name])
            own = gram(entry) / entry.probes
            body = body + feature_map.block_scales[block_of(name)] * own
            square = square + feature_map.length_scales[block_of(name)] * own.diagonal()
    if feature_map.normalize:
        lengths = inverse_lengths(square)
        head, body = cosine(head), lengths[:, None] * body * lengths
    new = replace(feature_map, tangent=tangent, probes=probes, metric=metric)
    return new, head + feature_map.body_scale * body
