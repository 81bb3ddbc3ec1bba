"""From pictures to a solved problem: probes, rows, block kernels, selection, solution, primal weights."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor
from tqdm import tqdm

from tangentune.collect import Batches, RowSet, collect, entry_bytes, kronecker_factors, plan_passes, restrict, views_of
from tangentune.errors import BudgetError
from tangentune.kernel import block_grams
from tangentune.layers import Entry
from tangentune.linearization import Tangent, batch_rows
from tangentune.memory import Meter
from tangentune.metric import KroneckerFactors, Whitening, whitening
from tangentune.model import TangentMap, TangentModel, accumulate, body_weights, inverse_lengths
from tangentune.selection import Choice, Fixed, Problem, Scored, block_scales, combine, score, search
from tangentune.solvers.ridge import RidgeFactor, Solution, factor_ridge, solve
from tangentune.subset import block_of, group_blocks

PCA_PICTURES = 512
PCA_COMPONENTS = 50
POWER_PICTURES = 300
POWERS = (0.25, 0.0, 0.5)
WORKING_BYTES = 400 * 2**20  # the interpreter, libraries and one batch in flight


@dataclass(frozen=True)
class Settings:
    """Everything the user may fix; None leaves a choice to `criterion` ("loo" or "evidence")."""

    probes: int
    probe_space: str
    power: float | None
    fixed: Fixed
    criterion: str
    mirrored: bool
    seed: int
    memory_budget: int
    verbose: int


@dataclass(frozen=True)
class Source:
    """Pictures as network inputs: `batches(positions or None)` gives them in order, afresh at every call."""

    count: int
    batches: Callable[[list[int] | None], Iterable[Tensor]]


@dataclass(frozen=True)
class Fitted:
    """The result: model, solution, its factor, the kernel's choice and everything tried."""

    model: TangentModel
    solution: Solution
    factor: RidgeFactor
    scored: Scored
    tried: list[Scored]
    shares: dict[str, float]
    passes: int


def fit_tangent(
    tangent: Tangent, source: Source, targets: Tensor, weights: Tensor, settings: Settings, meter: Meter
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
        probes = _draw_probes(tangent, source, settings)
    work = _Work(tangent, source, targets, weights, settings, meter, probes)
    with meter.stage("rows"):
        passes = work.passes()
    phi, blocks, factors, power, kept, tried = _kernels(work, passes)
    with meter.stage("selection"):
        phi = phi.double()
        problem = Problem(phi @ phi.T, blocks, targets, weights)
        best, more = search(problem, power, settings.fixed, settings.criterion)
        kernel = combine(problem, best.choice)
        factor = factor_ridge(kernel, weights)
        solution = solve(factor, targets, best.damping)
    with meter.stage("weights"):
        feature_map = _feature_map(work, best.choice, factors, list(blocks))
        model, shares = _primal(work, feature_map, phi, problem, solution, kept)
    return Fitted(model, solution, factor, best, tried + more, shares, len(passes))


@dataclass(frozen=True)
class _Work:
    """What the stages share."""

    tangent: Tangent
    source: Source
    targets: Tensor
    weights: Tensor
    settings: Settings
    meter: Meter
    probes: Tensor

    def batches(self, label: str, index: list[int] | None = None) -> Batches:
        """Network inputs with a progress bar."""
        total = self.source.count if index is None else len(index)

        def run() -> Iterable[Tensor]:
            settings = {"total": total, "desc": label, "unit": "picture", "delay": 1.0}
            with tqdm(disable=not self.settings.verbose, **settings) as bar:
                for x in self.source.batches(index):
                    yield x
                    bar.update(len(x))

        return run

    def passes(self) -> list[list[str]]:
        """Groups of parameters, one pass over the pictures each, that keep the memory budget."""
        if not self.tangent.names:
            return [[]]
        x = next(iter(self.source.batches(list(range(min(2, self.source.count))))))
        sizes = entry_bytes(self.tangent, x, self.probes, self.settings.mirrored)
        room = room_for_rows(self.tangent, self.source, self.settings, self.targets.shape[1])
        return plan_passes(sizes, self.source.count, room)


def room_for_rows(tangent: Tangent, source: Source, settings: Settings, outputs: int) -> int:
    """Bytes of the memory budget left for rows, after kernels, network and primal weights.

    Raises:
        BudgetError: if nothing is left.
    """
    count, blocks = source.count, len(group_blocks(tangent.names))
    parameters = list(tangent.module.parameters())
    size = parameters[0].element_size()
    kernels = count**2 * (8 * 8 + size * blocks)
    network = sum(p.numel() for p in parameters) * size
    left = settings.memory_budget - kernels - (2 + 2 * outputs) * network - WORKING_BYTES
    if left <= 0:
        message = (
            f"{count} pictures need {(settings.memory_budget - left) / 2**20:.0f} MiB for kernels and weights alone, more "
            f"than the memory budget of {settings.memory_budget / 2**20:.0f} MiB; raise memory_budget or use fewer pictures"
        )
        raise BudgetError(message)
    return left


def _draw_probes(tangent: Tangent, source: Source, settings: Settings) -> Tensor:
    """(R, d) random directions: anywhere, or in the span of the pictures' top principal components."""
    generator = torch.Generator().manual_seed(settings.seed)
    if settings.probe_space == "isotropic" or not tangent.names:
        x = next(iter(source.batches([0])))
        width = batch_rows(restrict(tangent, ()), [x], torch.empty(0)).phi.shape[1]
        return torch.randn(settings.probes, width, generator=generator, dtype=torch.float64).to(x)
    index = torch.linspace(0, source.count - 1, min(source.count, PCA_PICTURES)).round().long().unique().tolist()
    still = restrict(tangent, ())
    parts = [batch_rows(still, [x], torch.empty(0)).phi for x in source.batches(index)]
    phi = torch.cat(parts)
    centred = phi.double() - phi.double().mean(0)
    components = torch.linalg.svd(centred, full_matrices=False).Vh[: min(PCA_COMPONENTS, max(1, len(phi) - 1))]
    # Fix the signs: the factorisation leaves them to chance.
    signs = torch.sign(components.gather(1, components.abs().argmax(1, keepdim=True)))
    draws = torch.randn(settings.probes, len(components), generator=generator, dtype=torch.float64)
    return (draws.to(components) @ (components * signs)).to(phi)


def _kernels(
    work: _Work, passes: list[list[str]]
) -> tuple[Tensor, dict[str, Tensor], dict[str, KroneckerFactors], float, RowSet | None, list[Scored]]:
    """Features, block kernels in network order, factors, the power, the rows if one pass held them, what was tried."""
    settings, meter, tangent = work.settings, work.meter, work.tangent
    tried: list[Scored] = []
    power = 0.0 if not tangent.names else settings.power
    rows: RowSet | None = None
    phi, grams, factors = None, {}, {}
    if len(passes) > 1 and power is None:
        index = _spread(work.source.count)
        with meter.stage("rows"):
            part = collect(tangent, work.batches("rows, sample", index), len(index), work.probes, settings.mirrored)
        power, tried, _ = _choose_power(work, part, kronecker_factors(part), index)
        del part
    for number, names in enumerate(passes):
        label = "rows" if len(passes) == 1 else f"rows, pass {number + 1} of {len(passes)}"
        with meter.stage("rows"):
            part = restrict(tangent, names)
            rows = collect(part, work.batches(label), work.source.count, work.probes, settings.mirrored)
        phi = rows.phi
        ready: dict[str, Tensor] | None = None
        with meter.stage("metric"):
            own = kronecker_factors(rows) if power != 0 else {}
        if power is None:
            power, tried, ready = _choose_power(work, rows, own, _spread(work.source.count))
        with meter.stage("kernels"):
            done = ready if ready is not None else _grams(work, rows.entries, own, power, None)
        factors |= own
        for block, gram in done.items():
            grams[block] = grams[block] + gram if block in grams else gram
    assert phi is not None and power is not None
    order = list(group_blocks(work.tangent.names))
    blocks = {block: grams[block] for block in order if block in grams}
    return phi, blocks, factors, power, rows if len(passes) == 1 else None, tried


def _grams(
    work: _Work, entries: dict[str, Entry], factors: dict[str, KroneckerFactors], power: float, index: Tensor | None
) -> dict[str, Tensor]:
    with tqdm(total=len(entries), desc="kernels", unit="layer", delay=1.0, disable=not work.settings.verbose) as bar:
        return block_grams(entries, factors, power, index, tick=lambda: bar.update())


def _spread(count: int) -> list[int]:
    """Positions of at most POWER_PICTURES pictures, evenly spread (folders are sorted by class)."""
    if count <= POWER_PICTURES:
        return list(range(count))
    return torch.linspace(0, count - 1, POWER_PICTURES).round().long().unique().tolist()


def _choose_power(
    work: _Work, rows: RowSet, factors: dict[str, KroneckerFactors], index: list[int]
) -> tuple[float, list[Scored], dict[str, Tensor] | None]:
    """Best metric power on a spread of pictures; its block kernels too when that spread is the whole set."""
    chosen, whole = torch.tensor(index), len(index) == work.source.count
    local = None if len(rows.phi) == len(index) else chosen
    phi = (rows.phi if local is None else rows.phi[local]).double()
    tried: list[Scored] = []
    best: tuple[Scored, dict[str, Tensor]] | None = None
    for power in POWERS:
        with work.meter.stage("kernels"):
            blocks = _grams(work, rows.entries, factors, power, local)
        with work.meter.stage("selection"):
            problem = Problem(phi @ phi.T, blocks, work.targets[chosen], work.weights[chosen])
            scored, more = search(problem, power, work.settings.fixed, work.settings.criterion, refine=False)
        tried += more
        if best is None or scored.criterion < best[0].criterion:
            best = scored, blocks
    assert best is not None
    return best[0].choice.power, [] if whole else tried, best[1] if whole else None


def _feature_map(
    work: _Work, choice: Choice, factors: dict[str, KroneckerFactors], blocks: list[str]
) -> TangentMap:
    tangent = work.tangent if choice.body_scale > 0 else restrict(work.tangent, ())
    metric: dict[str, Whitening] = {}
    if choice.power > 0:
        metric = {name: whitening(factors[name], choice.power) for name in tangent.names if name in factors}
    scales = block_scales(blocks, choice.slope) if choice.body_scale > 0 else {}
    return TangentMap(tangent, work.probes, work.settings.mirrored, metric, scales, choice.body_scale, choice.normalize)


def _primal(
    work: _Work, feature_map: TangentMap, phi: Tensor, problem: Problem, solution: Solution, rows: RowSet | None
) -> tuple[TangentModel, dict[str, float]]:
    """Primal weights, and each block's share of the fit's squared norm `sum_c dual_c^T K_block dual_c`."""
    normalize, scales = feature_map.normalize, feature_map.block_scales
    head_lengths = inverse_lengths(phi.square().sum(1)) if normalize else torch.ones_like(phi[:, 0])
    head_dual = solution.dual * head_lengths[:, None]
    dtype = work.probes.dtype
    head = (head_dual.T @ phi).to(dtype)
    energy = {"head": float((head_dual * (problem.head.double() @ head_dual)).sum())}
    body: dict[str, Tensor] = {}
    if feature_map.body_scale > 0 and scales:
        diagonal = sum((s * problem.blocks[b].diagonal().double() for b, s in scales.items()), torch.zeros_like(phi[:, 0]))
        dual = solution.dual * (inverse_lengths(diagonal) if normalize else torch.ones_like(diagonal))[:, None]
        for block, scale in scales.items():
            gram = problem.blocks[block].double()
            energy[block] = float((dual * (gram @ dual)).sum()) * scale * feature_map.body_scale
        raw = _row_sums(work, feature_map.tangent, dual.to(dtype), rows)
        for name in feature_map.tangent.names:  # in this order also when loaded: sums round alike
            total, like = raw[name]
            factor = feature_map.body_scale * scales[block_of(name)] / len(feature_map.probes)
            body[name] = body_weights(total, like, feature_map.metric.get(name)) * factor
    total = sum(energy.values()) or 1.0
    shares = {block: value / total for block, value in energy.items()}
    return TangentModel(feature_map, solution.intercept, head, body), shares


def _row_sums(
    work: _Work, tangent: Tangent, dual: Tensor, rows: RowSet | None
) -> dict[str, tuple[Tensor, Entry]]:
    """`dual^T rows` of every parameter: from the kept rows, or in one more pass over the pictures."""
    if rows is not None:
        return {name: (accumulate(entry, dual), entry) for name, entry in rows.entries.items()}
    sums: dict[str, tuple[Tensor, Entry]] = {}
    start = 0
    for x in work.batches("weights")():
        part = batch_rows(tangent, views_of(x, work.settings.mirrored), work.probes)
        for name, entry in part.entries.items():
            before = sums[name][0] if name in sums else None
            sums[name] = accumulate(entry, dual[start : start + len(x)], before), entry.select(slice(0, 1))
        start += len(x)
    return sums
