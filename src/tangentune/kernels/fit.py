"""From pictures to a solved problem: probes, pilot, rows, block kernels, selection, solution, primal weights."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from tangentune.jacobian.rows import RowPlan
from tangentune.kernels.block_evidence import learn_scales
from tangentune.kernels.choice import (
    RELATIVE_DAMPINGS,
    Choice,
    Problem,
    Scored,
    block_scales,
    combine,
    energies,
    search,
)
from tangentune.kernels.collect import RowSet, kronecker_factors, restrict
from tangentune.kernels.feature_map import FeatureRows, TangentMap, TangentModel, feature_rows, primal, row_parts
from tangentune.kernels.metric import KroneckerFactors, Whitening, whitening
from tangentune.kernels.pilot import choose_on_all, choose_power, pilot_pictures, run_pilot
from tangentune.kernels.stages import Settings, Source, Work, draw_probes
from tangentune.memory import Meter
from tangentune.networks.parameters import block_of, group_blocks
from tangentune.solvers.ridge import RidgeFactor, Solution, factor_ridge, loo_errors, solve


@dataclass(frozen=True)
class Fitted:
    """The result: model, solution, its factor, the rows if they were in memory at once, the kernel's choice,
    everything tried, errors along the damping.
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


def fit_tangent(
    tangent: RowPlan, source: Source, targets: Tensor, weights: Tensor, settings: Settings, meter: Meter
) -> Fitted:
    """Solve the least-squares problem of the feature linearisation.

    Args:
        tangent: network and parameters, from `survey`.
        source: the pictures.
        targets: (n, C) float64.
        weights: (n,) positive float64.
        settings: what is fixed, and how to choose the rest.
        meter: filled with the seconds and bytes of each stage.

    Raises:
        BudgetError: if the memory budget cannot be kept.
    """
    if settings.fixed.body_scale == 0:
        tangent = restrict(tangent, ())
    with meter.stage("features"):
        probes = draw_probes(tangent, source, settings)
    work = Work(tangent, source, targets, weights, settings, meter, probes)
    made = _kernels(work)
    with meter.stage("selection"):
        phi = made.phi.double()
        problem = Problem(phi @ phi.T, made.blocks, targets, weights)
        best, tried = search(problem, made.power, settings.fixed, settings.criterion)
        free = settings.fixed.body_scale is None and settings.fixed.damping is None
        if settings.criterion == "evidence" and free and best.choice.body_scale > 0:
            best = learn_scales(problem, best)
            tried = [*tried, best]
        kernel = combine(problem, best.choice)
        factor = factor_ridge(kernel, weights)
        solution = solve(factor, targets, best.damping)
    with meter.stage("weights"):
        feature_map = _feature_map(work, best.choice, made)
        rows = None if made.rows is None else feature_rows(feature_map, made.rows.phi, made.rows.entries)
        parts = row_parts(rows, feature_map, work.batches("weights"))
        model = primal(feature_map, parts, solution.dual, solution.intercept)
        energy = energies(problem, best.choice, solution.dual)
        total = sum(energy.values()) or 1.0
        shares = {block: value / total for block, value in energy.items()}
    dampings = RELATIVE_DAMPINGS * (factor.mean_eigenvalue or 1.0)
    path = dampings, loo_errors(factor, targets, dampings)
    return Fitted(model, solution, factor, rows, best, made.tried + tried, shares, made.passes, path)


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


def _kernels(work: Work) -> _Kernels:
    """Pilot, metric power, then the block kernels of all pictures; small sets try everything on all pictures."""
    settings, tangent, count = work.settings, work.tangent, work.source.count
    tried: list[Scored] = []
    leading = next(iter(group_blocks(tangent.names)), "")
    if tangent.names and settings.fixed.body_scale is None:
        index = pilot_pictures(count, work.targets.shape[1])
        if len(index) == count and len(work.passes(tangent)) == 1:
            return _small_kernels(work)
        with work.meter.stage("pilot"):
            pilot = run_pilot(work, index)
        tried, leading = pilot.tried, pilot.leading
        tangent = restrict(tangent, [name for name in tangent.names if block_of(name) in pilot.kept])
    passes, rows = work.passes(tangent), None
    if len(passes) == 1:
        with work.meter.stage("rows"):
            rows = work.collect(tangent, "rows")
    power = settings.power if tangent.names else 0.0
    factors: dict[str, KroneckerFactors] = {}
    if rows is not None and power != 0:
        with work.meter.stage("metric"):
            factors = kronecker_factors(rows)
    if power is None:
        names = [name for name in tangent.names if block_of(name) == leading]
        with work.meter.stage("metric power"):
            part = rows.restrict(names) if rows else work.collect(restrict(tangent, names), "rows, leading block")
            power, more = choose_power(work, part, factors or kronecker_factors(part))
            del part
        tried += more
    return _all_kernels(work, tangent, power, passes, rows, factors, tried)


def _small_kernels(work: Work) -> _Kernels:
    with work.meter.stage("rows"):
        rows = work.collect(work.tangent, "rows")
    with work.meter.stage("metric"):
        factors = kronecker_factors(rows) if work.settings.power != 0 else {}
    with work.meter.stage("kernels"):
        best = choose_on_all(work, rows, factors)
    kept = rows.restrict(name for name in work.tangent.names if block_of(name) in best.blocks)
    return _Kernels(rows.phi, best.blocks, factors, best.power, kept, 1, best.tried)


def _all_kernels(
    work: Work,
    tangent: RowPlan,
    power: float,
    passes: list[list[str]],
    rows: RowSet | None,
    factors: dict[str, KroneckerFactors],
    tried: list[Scored],
) -> _Kernels:
    """Block kernels of all pictures, from the rows at hand or in as many passes as memory demands."""
    grams: dict[str, Tensor] = {}
    factors = dict(factors)
    for number, names in enumerate(passes):
        if len(passes) > 1:
            rows = None  # free the last pass before the next
            with work.meter.stage("rows"):
                rows = work.collect(restrict(tangent, names), f"rows, pass {number + 1} of {len(passes)}")
            with work.meter.stage("metric"):
                factors |= kronecker_factors(rows) if power > 0 else {}
        assert rows is not None
        with work.meter.stage("kernels"):
            done = work.grams(rows.entries, factors, power)
        for block, gram in done.items():
            grams[block] = grams[block] + gram if block in grams else gram
    assert rows is not None
    blocks = {block: grams[block] for block in group_blocks(tangent.names)}
    return _Kernels(rows.phi, blocks, factors, power, rows if len(passes) == 1 else None, len(passes), tried)


def _feature_map(work: Work, choice: Choice, made: _Kernels) -> TangentMap:
    moving = choice.body_scale > 0
    tangent = restrict(work.tangent, [n for n in work.tangent.names if moving and block_of(n) in made.blocks])
    metric: dict[str, Whitening] = {}
    if choice.power > 0:
        metric = {name: whitening(made.factors[name], choice.power) for name in tangent.names}
    scales = dict.fromkeys(group_blocks(work.tangent.names), 0.0)
    scales |= choice.scales(list(made.blocks)) if moving else {}
    lengths = block_scales(list(made.blocks), choice.slope) if moving else {}
    mirrored, normalize = work.settings.mirrored, choice.normalize
    return TangentMap(tangent, work.probes, mirrored, metric, scales, choice.body_scale, normalize, lengths)
