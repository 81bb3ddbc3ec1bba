"""A fit on a map of fixed width: the kernel is chosen on a part of the pictures, then solved on the rows of all."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from tangentune.jacobian.rows import RowPlan, batch_rows
from tangentune.kernels.batches import PictureBatches
from tangentune.kernels.collect import restrict
from tangentune.kernels.feature_map import TangentMap
from tangentune.kernels.landmark_map import GROUP, LandmarkMap, map_rows
from tangentune.kernels.reestimate import blank_job, on_all
from tangentune.kernels.row_shards import SHARD
from tangentune.kernels.stages import FitJob, FitSettings, spread
from tangentune.pictures.pictures import allocate
from tangentune.solvers.landmarks import choose_landmarks

AMONG = 2  # times as many pictures as landmarks are looked at to choose them
KEPT_OF_LANDMARKS = 0.65  # of the metric, less than of a kernel: the rest is mostly what they cannot span (decision 36)
JUDGES = 2000  # pictures whose leave-one-out error chooses the damping


def landmark_room(job: FitJob, feature_map: TangentMap) -> int:
    """How many landmarks' rows fit into memory in the metric, beside plain ones of a layer and what works on them."""
    plain = max((job.trial.layers[name].size for name in feature_map.tangent.names), default=0)
    room = job.room // max(1, _kept(job, feature_map) + 3 * plain)
    return max(2, room - min(GROUP, room // 2))


def _kept(job: FitJob, feature_map: TangentMap) -> int:
    """Bytes of a landmark's rows in the metric, if one was chosen."""
    layers = (job.trial.layers[name] for name in feature_map.tangent.names)
    return sum((layer.in_metric if feature_map.metric else layer).size for layer in layers)


def landmark_places(job: FitJob, count: int) -> list[int]:
    """Positions of `count` landmarks, by pivoted Cholesky on the features of a few times as many pictures."""
    looked = spread(job.pictures.count, AMONG * count)
    if count >= job.pictures.count:
        return looked
    still = restrict(job.tangent, ())
    parts = [batch_rows(still, [x], torch.empty(0)).phi for x in job.pictures.batches(looked)]
    features = F.normalize(torch.cat(parts).double(), dim=1)
    return [looked[i] for i in choose_landmarks(features, count, job.settings.seed).tolist()]


def mapped(job: FitJob, feature_map: TangentMap, power: float, places: list[int]) -> tuple[LandmarkMap, Tensor]:
    """The map with the landmarks at some positions, its metric taken from them, and the rows (n, D) of all pictures.

    Very many rows lie in a temporary file. They are made shard by shard, and taken from the job's if it has any. At the
    end they go where the network is, as those of a saved model do: the factors of their problem are made there.
    """
    room = job.room - len(places) * _kept(job, feature_map)
    part = replace(job.part(places), tangent=feature_map.tangent, room=room)
    kept = None if len(places) == job.pictures.count else KEPT_OF_LANDMARKS  # all of them are the kernel itself
    found = on_all(feature_map, part, power, keep=True, kept=kept)
    assert found.rows is not None
    with job.meter.stage("map"):
        made = LandmarkMap.of(found.feature_map, found.rows)
        rows = allocate((job.pictures.count, made.width), feature_map.probes.dtype)
        spans = [(start, min(start + SHARD, len(rows))) for start in range(0, len(rows), SHARD)]

        def make(start: int, stop: int) -> Tensor:
            label = f"rows of pictures {start + 1} to {stop}"
            return map_rows(made, job.batches(label, list(range(start, stop))), stop - start)

        if job.shards is not None:
            job.shards.share(made, spans, make)
        for span in spans:
            one = partial(make, *span)
            rows[slice(*span)] = one() if job.shards is None else job.shards.kept(made, *span, one)
    return made, rows.to(feature_map.probes.device)


def remapped(
    feature_map: TangentMap,
    tangent: RowPlan,
    pictures: PictureBatches,
    settings: FitSettings,
    power: float,
    outputs: int,
    count: int,
) -> tuple[LandmarkMap, list[int], Tensor]:
    """The map of other pictures, every choice staying: landmarks, probes and metric anew; as `reestimate`."""
    job = blank_job(tangent, pictures, replace(settings, landmarks=count), outputs)
    places = landmark_places(job, min(count, pictures.count))
    made, rows = mapped(job, replace(feature_map, tangent=tangent), power, places)
    return made, places, rows


def judges(count: int, landmarks: list[int]) -> Tensor:
    """Positions of the pictures that judge a damping: no landmarks, unless there are no others."""
    others = sorted(set(range(count)) - set(landmarks))
    if len(others) < 2:
        others = list(range(count))
    return torch.tensor(others)[spread(len(others), JUDGES)]
