"""From pictures to a solved problem: probes, block kernels, selection, solution, primal weights.

Of more than about 1,500 pictures everything is chosen on an even part of them. What a kernel of many pictures costs is
then its rows and one Gram, not one factorisation and one Gram more for everything that is tried.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import final

from torch import Tensor

from tangentune.jacobian.rows import RowPlan
from tangentune.kernels.batches import PictureBatches
from tangentune.kernels.block_kernels import BlockKernels, block_kernels, frozen_map
from tangentune.kernels.choice import (
    KernelCandidates,
    Scored,
    combine,
    damping_path,
    damping_unit,
    learn_scales,
    probe_loo,
    search,
)
from tangentune.kernels.feature_map import (
    FeatureRows,
    TangentMap,
    TangentModel,
    feature_rows,
    norm_shares,
    primal,
    row_parts,
)
from tangentune.kernels.landmark_fit import judges, landmark_places, landmark_room, mapped
from tangentune.kernels.landmark_map import LandmarkMap
from tangentune.kernels.large import probe_predictions, walk, walk_rows
from tangentune.kernels.pilot import choosing_pictures
from tangentune.kernels.reestimate import on_all
from tangentune.kernels.row_shards import RowShards
from tangentune.kernels.stages import PCA_PICTURES, FitJob, FitSettings, draw_probes
from tangentune.kernels.trial import Trial
from tangentune.memory import Meter
from tangentune.solvers.low_rank import FeatureInverse, FeatureKernel
from tangentune.solvers.ridge import factor_ridge, solve


@final
@dataclass(frozen=True)
class Fitted:
    """A solved problem, and how it was chosen.

    `kernel` of all pictures (on rows of `landmarks`, their map and positions, if any), which is `flat` if it tells none
    of them from another; their `rows`, if they were in memory at once; `tried` is everything that was; `shares` of the
    solution's squared norm, by block; `passes` over the pictures; `path`: dampings, and the leave-one-out error along
    them; `probe` (n, C): leave-one-out predictions of the best linear probe, if one was tried, and `probe_seconds`
    about what it would have taken alone.
    """

    model: TangentModel
    kernel: Tensor | FeatureKernel
    flat: bool
    rows: FeatureRows | None
    scored: Scored
    tried: list[Scored]
    shares: dict[str, float]
    passes: int
    path: tuple[Tensor, Tensor]
    probe: Tensor | None
    probe_seconds: float
    landmarks: tuple[LandmarkMap, list[int]] | None = None


def fit_tangent(
    tangent: RowPlan,
    pictures: PictureBatches,
    targets: Tensor,
    weights: Tensor,
    settings: FitSettings,
    meter: Meter,
    trial: Trial,
    room: int,
    shards: RowShards | None = None,
) -> Fitted:
    """Solve the least-squares problem of the feature linearisation, for targets (n, C) and weights (n,) > 0 in float64.

    `meter` is filled with the seconds and bytes of each stage; `trial` is of this linearisation, `room` the bytes that
    its rows may take; `shards` keep those of a fit on landmarks.
    """
    with meter.stage("features"):
        probes = draw_probes(tangent, pictures, settings)
    targets, weights = targets.to(probes.device), weights.to(probes.device)
    job = FitJob(tangent, pictures, targets, weights, settings, meter, probes, trial, room, shards)
    index = choosing_pictures(pictures.count, targets.shape[1])
    if settings.landmarks:
        return _fit_landmarks(job, index)
    return _fit_whole(job) if index is None else _fit_large(job, index)


@final
@dataclass(frozen=True)
class _Chosen:
    """The best choice for some pictures, and all that was tried."""

    problem: KernelCandidates
    made: BlockKernels
    best: Scored
    tried: list[Scored]


def _choose(job: FitJob) -> _Chosen:
    """Block kernels of the job's pictures, and the best way to join them."""
    made, settings = block_kernels(job), job.settings
    with job.meter.stage("selection"):
        phi = made.phi.double()
        problem = KernelCandidates(phi @ phi.T, made.blocks, job.targets, job.weights)
        best, tried = search(problem, made.power, settings.fixed, settings.criterion)
        free = settings.fixed.body_scale is None and settings.fixed.damping is None
        if settings.criterion == "evidence" and free and best.choice.body_scale > 0:
            best = learn_scales(problem, best)
            tried = [*tried, best]
    return _Chosen(problem, made, best, made.tried + tried)


def _fit_whole(job: FitJob) -> Fitted:
    """Everything chosen on all pictures."""
    chosen, settings, meter = _choose(job), job.settings, job.meter
    problem, made, best = chosen.problem, chosen.made, chosen.best
    with meter.stage("selection"):
        kernel = combine(problem, best.choice)
        factor = factor_ridge(kernel, job.weights)
        solution = solve(factor, job.targets, best.damping)
        probe = solution.loo if best.choice.body_scale == 0 else None
        if probe is None and settings.fixed.damping is None:  # a damping that was given for the body is no probe's best
            probe = probe_loo(problem, chosen.tried[len(made.tried) :])
    with meter.stage("weights"):
        feature_map = frozen_map(job, best.choice, made)
        rows = None
        if (own := made.rows) is not None:
            rows = feature_rows(feature_map, own.phi, own.entries, own=True, turned=bool(made.metric))
        parts = row_parts(rows, feature_map, job.batches("weights"))
        model = primal(feature_map, parts, solution.dual, solution.intercept)
    path = damping_path(factor, job.targets, settings.criterion)[:2]
    flat, passes = damping_unit(factor) != factor.mean_eigenvalue, made.passes
    seconds = _probe_seconds(job, len(chosen.tried) - len(made.tried))
    tried = chosen.tried
    return Fitted(model, kernel, flat, rows, best, tried, norm_shares(model), passes, path, probe, seconds)


def _fit_large(job: FitJob, index: list[int]) -> Fitted:
    """Everything but the damping chosen on some pictures, then the kernel of all."""
    meter = job.meter
    feature_map, best, tried = _chosen_map(job.part(index))
    found = on_all(feature_map, replace(job, tangent=feature_map.tangent), best.choice.power)
    with meter.stage("selection"):
        walked = walk(found.kernel, job.targets, job.weights, best.relative_damping, job.settings)
        best = walked.scored(best.choice)
        probe = walked.solution.loo if best.choice.body_scale == 0 else None
        if probe is None and job.settings.fixed.damping is None:
            probe = probe_predictions(found.phi, job.targets, job.weights, best.choice.normalize)
    with meter.stage("weights"):
        parts = row_parts(found.rows, found.feature_map, job.batches("weights"))
        model = primal(found.feature_map, parts, walked.solution.dual, walked.solution.intercept)
    seconds, tried = _probe_seconds(job, len(tried)), [*tried, best]
    kernel, flat, path, passes = found.kernel, walked.flat, walked.path, found.passes + 1
    return Fitted(model, kernel, flat, found.rows, best, tried, norm_shares(model), passes, path, probe, seconds)


def _fit_landmarks(job: FitJob, index: list[int] | None) -> Fitted:
    """Everything chosen as by a large fit, then solved on rows of fixed width, which landmarks give."""
    meter, settings = job.meter, job.settings
    feature_map, best, tried = _chosen_map(job if index is None else job.part(index))
    with meter.stage("landmarks"):
        places = landmark_places(job, min(settings.landmarks, landmark_room(job, feature_map), job.pictures.count))
    made, rows = mapped(job, feature_map, best.choice.power, places)
    kernel, judged = FeatureKernel.of(rows), judges(job.pictures.count, places)
    with meter.stage("selection"):
        walked, system = walk_rows(kernel, job.targets, job.weights, best.relative_damping, settings, judged)
        best = walked.scored(best.choice)
        probe = walked.solution.loo if best.choice.body_scale == 0 else None
        if probe is None and settings.fixed.damping is None:
            head = FeatureKernel.of(rows[:, : made.landmarks.phi.shape[1]])
            probe = walk_rows(head, job.targets, job.weights, 1.0, settings, judged)[0].solution.loo
    with meter.stage("weights"):
        assert isinstance(system.inverse, FeatureInverse)
        model = made.primal(system.inverse.coef)
    seconds, tried = _probe_seconds(job, len(tried)), [*tried, best]
    shares = norm_shares(model)
    return Fitted(model, kernel, walked.flat, None, best, tried, shares, 2, walked.path, probe, seconds, (made, places))


def _chosen_map(part: FitJob) -> tuple[TangentMap, Scored, list[Scored]]:
    """The map that is best for some pictures, and all that was tried; their rows and kernels are let go."""
    chosen = _choose(part)
    return frozen_map(part, chosen.best.choice, chosen.made), chosen.best, chosen.tried


def _probe_seconds(job: FitJob, tried: int) -> float:
    """One forward pass over all pictures, of which the probes took a part, and two of the choices tried."""
    seconds = {row["stage"]: row["seconds"] for row in job.meter.stages}
    part = min(PCA_PICTURES, job.pictures.count) if job.settings.probe_space == "pca" else 1
    return seconds["features"] * job.pictures.count / part + seconds["selection"] * min(2, tried) / tried
