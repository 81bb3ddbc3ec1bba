"""From pictures to a solved problem: probes, pilot, rows, block kernels, selection, solution, primal weights."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from tangentune.jacobian.rows import RowPlan
from tangentune.kernels.batches import PictureBatches
from tangentune.kernels.choice import (
    KernelCandidates,
    KernelChoice,
    Scored,
    block_scales,
    combine,
    damping_path,
    energies,
    learn_scales,
    probe_loo,
    search,
)
from tangentune.kernels.collect import RowSet, kronecker_factors, restrict
from tangentune.kernels.feature_map import FeatureRows, TangentMap, TangentModel, feature_rows, primal, row_parts
from tangentune.kernels.metric import KroneckerFactors, Whitening, whitening
from tangentune.kernels.pilot import choose_on_all, choose_power, pilot_pictures, run_pilot
from tangentune.kernels.stages import PCA_PICTURES, FitJob, FitSettings, draw_probes
from tangentune.kernels.trial import Trial
from tangentune.memory import Meter
from tangentune.networks.parameters import block_of, group_blocks
from tangentune.solvers.ridge import RidgeFactor, Solution, factor_ridge, solve


@dataclass(frozen=True)
class Fitted:
    """A solved problem, and how it was chosen.

    `rows` of all pictures, if they were in memory at once; `tried` is everything that was; `shares` of the solution's
    squared norm, by block; `passes` over the pictures; `path`: dampings, and the leave-one-out error along them;
    `probe` (n, C): leave-one-out predictions of the best linear probe, if one was tried on all pictures, and
    `probe_seconds` about what it would have taken alone.
    """

    model: TangentModel
    solution: Solution
    factor: RidgeFactor
    rows: FeatureRows | None
    scored: Scored
    tried: list[Scored]
    shares: dict[str, float]
    passes: int
    path: tuple[Tensor, Tensor]
    probe: Tensor | None
    probe_seconds: float


def fit_tangent(
    tangent: RowPlan,
    pictures: PictureBatches,
    targets: Tensor,
    weights: Tensor,
    settings: FitSettings,
    meter: Meter,
    trial: Trial,
    room: int,
) -> Fitted:
    """Solve the least-squares problem of the feature linearisation, for targets (n, C) and weights (n,) > 0 in float64.

    `meter` is filled with the seconds and bytes of each stage; `trial` is of this linearisation, `room` the bytes that
    its rows may take.
    """
    with meter.stage("features"):
        probes = draw_probes(tangent, pictures, settings)
    job = FitJob(tangent, pictures, targets, weights, settings, meter, probes, trial, room)
    made = _kernels(job)
    with meter.stage("selection"):
        phi = made.phi.double()
        problem = KernelCandidates(phi @ phi.T, made.blocks, targets, weights)
        best, tried = search(problem, made.power, settings.fixed, settings.criterion)
        free = settings.fixed.body_scale is None and settings.fixed.damping is None
        if settings.criterion == "evidence" and free and best.choice.body_scale > 0:
            best = learn_scales(problem, best)
            tried = [*tried, best]
        kernel = combine(problem, best.choice)
        factor = factor_ridge(kernel, weights)
        solution = solve(factor, targets, best.damping)
        probe = solution.loo if best.choice.body_scale == 0 else None
        if probe is None and settings.fixed.damping is None:  # a damping that was given for the body is no probe's best
            probe = probe_loo(problem, tried)
    with meter.stage("weights"):
        feature_map = _feature_map(job, best.choice, made)
        rows = None if made.rows is None else feature_rows(feature_map, made.rows.phi, made.rows.entries, own=True)
        parts = row_parts(rows, feature_map, job.batches("weights"))
        model = primal(feature_map, parts, solution.dual, solution.intercept)
        energy = energies(problem, best.choice, solution.dual)
        total = sum(energy.values()) or 1.0
        shares = {block: value / total for block, value in energy.items()}
    path = damping_path(factor, targets, settings.criterion)[:2]
    # One forward pass over all pictures, of which the probes took a part, and two of the choices tried.
    seconds = {row["stage"]: row["seconds"] for row in meter.stages}
    part = min(PCA_PICTURES, pictures.count) if settings.probe_space == "pca" else 1
    alone = seconds["features"] * pictures.count / part + seconds["selection"] * min(2, len(tried)) / len(tried)
    return Fitted(model, solution, factor, rows, best, made.tried + tried, shares, made.passes, path, probe, alone)


@dataclass(frozen=True)
class _Kernels:
    """Features, block kernels in network order, metric factors, and the rows if they are all in memory."""

    phi: Tensor
    blocks: dict[str, Tensor]
    factors: dict[str, KroneckerFactors]
    power: float
    rows: RowSet | None
    passes: int
    tried: list[Scored]


def _kernels(job: FitJob) -> _Kernels:
    """Pilot, metric power, then the block kernels of all pictures; small sets try everything on all pictures."""
    settings, tangent, count = job.settings, job.tangent, job.pictures.count
    tried: list[Scored] = []
    leading = next(iter(group_blocks(tangent.names)), "")
    if tangent.names and settings.fixed.body_scale is None:
        index = pilot_pictures(count, job.targets.shape[1])
        if len(index) == count and len(job.passes(tangent)) == 1:
            return _small_kernels(job)
        with job.meter.stage("pilot"):
            pilot = run_pilot(job, index)
        tried, leading = pilot.tried, pilot.leading
        tangent = restrict(tangent, [name for name in tangent.names if block_of(name) in pilot.kept])
    passes, rows = job.passes(tangent), None
    whole = len(passes) == 1  # the rows of all parameters are in memory at once
    if whole:
        with job.meter.stage("rows"):
            rows = job.collect(tangent, "rows")
    power = settings.power if tangent.names else 0.0
    factors: dict[str, KroneckerFactors] = {}
    if rows is not None and power != 0:
        with job.meter.stage("metric"):
            factors = kronecker_factors(rows)
    if power is None:
        # The last layers of the leading block, where not even that fits into memory at once.
        names = job.passes(restrict(tangent, [name for name in tangent.names if block_of(name) == leading]))[0]
        with job.meter.stage("metric power"):
            part = rows.restrict(names) if rows else job.collect(restrict(tangent, names), "rows, leading block")
            power, more = choose_power(job, part, factors or kronecker_factors(part))
            del part
        tried += more
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
            done = job.grams(rows.entries, factors, power)
        for block, gram in done.items():
            grams[block] = grams[block] + gram if block in grams else gram
    assert rows is not None
    blocks = {block: grams[block] for block in group_blocks(tangent.names)}
    return _Kernels(rows.phi, blocks, factors, power, rows if whole else None, len(passes), tried)


def _small_kernels(job: FitJob) -> _Kernels:
    with job.meter.stage("rows"):
        rows = job.collect(job.tangent, "rows")
    with job.meter.stage("metric"):
        factors = kronecker_factors(rows) if job.settings.power != 0 else {}
    with job.meter.stage("kernels"):
        power, blocks, tried = choose_on_all(job, rows, factors)
    kept = rows.restrict(name for name in job.tangent.names if block_of(name) in blocks)
    return _Kernels(rows.phi, blocks, factors, power, kept, 1, tried)


def _feature_map(job: FitJob, choice: KernelChoice, made: _Kernels) -> TangentMap:
    moving = choice.body_scale > 0
    tangent = restrict(job.tangent, [n for n in job.tangent.names if moving and block_of(n) in made.blocks])
    metric: dict[str, Whitening] = {}
    if choice.power > 0:
        metric = {name: whitening(made.factors[name], choice.power) for name in tangent.names}
    scales = dict.fromkeys(group_blocks(job.tangent.names), 0.0)
    scales |= choice.scales(list(made.blocks)) if moving else {}
    lengths = block_scales(list(made.blocks), choice.slope) if moving else {}
    mirrored, normalize = job.settings.mirrored, choice.normalize
    return TangentMap(tangent, job.probes, mirrored, metric, scales, choice.body_scale, normalize, lengths)
