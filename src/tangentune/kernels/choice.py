"""Choose damping, body scale, block profile, normalisation and metric power by leave-one-out error or evidence.

All of it is algebra on n x n block kernels: the network is never run again. `search` walks over profiles of one
number; `learn_scales` goes on from where it has ended, with a scale for every block by evidence.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import torch
from torch import Tensor

from tangentune.kernels.gram import cosine, inverse_lengths
from tangentune.solvers.evidence import maximise_block_evidence
from tangentune.solvers.ridge import RidgeFactor, Solution, factor_ridge, log_evidence, loo_errors, solve

RELATIVE_DAMPINGS = torch.logspace(-4, 2, 37, dtype=torch.float64)
# Tried as well where the best of those is at an end. Below, float64 soon carries no exact leave-one-out.
BELOW, ABOVE = (torch.logspace(low, low + 2, 13, dtype=torch.float64) for low in (-6, 2))
LEAST_GAIN = 1e-3  # share of the criterion that a step outside a first grid must gain
SAME = 1e-12  # share of a kernel's diagonal that is rounding of float32 rows
SLOPES = (0.0, 3.0)
FAR = 1e3  # how far from even weights of head and body the search goes
SCALES = (0.5, 2.0)
COARSE = 500  # pictures that decide where the search begins: their factorisations are an eighth of a thousand's


@dataclass(frozen=True)
class KernelChoice:
    """One way to build the kernel from its blocks, made with the metric `power`."""

    power: float
    normalize: bool  # head and body are cosines, each apart
    body_scale: float  # factor of the body, head at 1; 0: a linear probe
    slope: float = 0.0  # block scales grow like exp(slope * depth), depth from 0 (the first block kept) to 1 (last)
    first: str = ""  # block kept; those before it have scale 0
    factors: tuple[float, ...] = ()  # of each block kept, beside its scale, in network order; not in the lengths

    def scales(self, blocks: Sequence[str]) -> dict[str, float]:
        """Scale of each block within the body."""
        profile = block_scales(list(blocks), self.slope)
        factors = self.factors or (1.0,) * len(profile)
        return {block: scale * factor for (block, scale), factor in zip(profile.items(), factors, strict=True)}


@dataclass(frozen=True)
class Scored:
    """A choice with its best damping and its criterion (smaller is better) on so many pictures."""

    choice: KernelChoice
    damping: float
    relative_damping: float
    loo_error: float
    criterion: float
    pictures: int

    def row(self) -> dict[str, Any]:
        """One line of the table of what was tried."""
        return {
            "pictures": self.pictures,
            "metric_power": self.choice.power,
            "normalize": self.choice.normalize,
            "body_scale": self.choice.body_scale,
            "first_block": self.choice.first,
            "block_slope": self.choice.slope,
            "damping": self.damping,
            "relative_damping": self.relative_damping,
            "loo_error": self.loo_error,
        }


@dataclass(frozen=True)
class KernelCandidates:
    """What selection works on: block kernels of one power, head kernel, targets and weights."""

    head: Tensor
    blocks: dict[str, Tensor]
    targets: Tensor
    weights: Tensor

    def every(self, step: int) -> KernelCandidates:
        """Those of every so many pictures."""
        blocks = {block: kernel[::step, ::step] for block, kernel in self.blocks.items()}
        return KernelCandidates(self.head[::step, ::step], blocks, self.targets[::step], self.weights[::step])


@dataclass(frozen=True)
class FixedChoices:
    """What the user has fixed; None is free."""

    normalize: bool | None = None
    body_scale: float | None = None
    damping: float | None = None


def block_scales(blocks: list[str], slope: float) -> dict[str, float]:
    """exp(slope * depth), scaled to mean 1, for blocks in network order."""
    last = max(1, len(blocks) - 1)
    raw = {block: math.exp(slope * (i / last - 1)) for i, block in enumerate(blocks)}
    mean = sum(raw.values()) / max(1, len(raw))
    return {block: value / mean for block, value in raw.items()}


def combine(problem: KernelCandidates, choice: KernelChoice) -> Tensor:
    """The (n, n) kernel of a choice, float64."""
    head = cosine(problem.head.double()) if choice.normalize else problem.head.double()
    if choice.body_scale == 0 or not problem.blocks:
        return head
    scales, lengths = choice.scales(list(problem.blocks)), body_lengths(problem, choice)
    body = torch.zeros_like(problem.head, dtype=torch.float64)
    for block, scale in scales.items():
        body = body + scale * problem.blocks[block].double()
    return head + choice.body_scale * lengths[:, None] * body * lengths


def body_lengths(problem: KernelCandidates, choice: KernelChoice) -> Tensor:
    """(n,) inverse lengths of the body's rows; ones where they are not normalised."""
    profile = block_scales(list(problem.blocks), choice.slope)
    diagonal = torch.zeros_like(problem.head[0], dtype=torch.float64)
    for block, scale in profile.items():
        diagonal = diagonal + scale * problem.blocks[block].diagonal().double()
    return inverse_lengths(diagonal) if choice.normalize else torch.ones_like(diagonal)


def damping_unit(factor: RidgeFactor) -> float:
    """Mean eigenvalue of the centred kernel; where all rows are the same to rounding, their mean squared length."""
    size = float((factor.roots.square() * factor.kernel.diagonal()).mean())
    return factor.mean_eigenvalue if factor.mean_eigenvalue > max(SAME * size, rounding(factor)) else size or 1.0


def rounding(factor: RidgeFactor) -> float:
    """How far rounding has moved eigenvalues: the exact ones are not negative. Less damping leaves nothing to solve."""
    return float(-factor.values[0].clamp_max(0))


def solvable(factor: RidgeFactor, relative: Tensor) -> Tensor:
    """Those of the relative dampings that rounding leaves a meaning, absolute."""
    dampings = relative * damping_unit(factor)
    return dampings[dampings > 2 * rounding(factor)]


def damping_path(factor: RidgeFactor, targets: Tensor, criterion: str) -> tuple[Tensor, Tensor, Tensor]:
    """`along` the grid of dampings, which goes on where its best is at an end, if that gains anything."""
    first = along(factor, targets, solvable(factor, RELATIVE_DAMPINGS), criterion)
    best, last = int(first[2].argmin()), len(first[0]) - 1
    beyond = solvable(factor, ABOVE[1:] if best else BELOW[:-1])
    if 0 < best < last or not len(beyond):
        return first
    more = along(factor, targets, beyond, criterion)
    least = first[2].min()
    if not more[2].min() < least - LEAST_GAIN * least.abs():
        return first
    dampings, errors, values = map(torch.cat, zip(*((first, more) if best else (more, first)), strict=True))
    return dampings, errors, values


def along(factor: RidgeFactor, targets: Tensor, dampings: Tensor, criterion: str) -> tuple[Tensor, Tensor, Tensor]:
    """Dampings, and along them the leave-one-out error and the criterion, smaller being better."""
    errors = loo_errors(factor, targets, dampings)
    return dampings, errors, errors if criterion == "loo" else -log_evidence(factor, targets, dampings)


def edge_words(relative: float) -> str:
    """What to say of a chosen relative damping at an end of those that were tried; nothing of others."""
    ends = {
        BELOW[0]: "the least that is tried",
        RELATIVE_DAMPINGS[0]: "less was tried and gains below 0.1 %",
        RELATIVE_DAMPINGS[-1]: "more was tried and gains below 0.1 %",
        ABOVE[-1]: "the most that is tried: the pictures say little about their labels",
    }
    return next((words for end, words in ends.items() if math.isclose(relative, end, rel_tol=1e-9)), "")


def scale_words(scale: float, normalize: bool) -> str:
    """What to say of a chosen body scale where the search has stopped; only cosines have a scale to tell it by."""
    if normalize and scale >= FAR:
        return "the most that is tried: the head hardly counts"
    return "the least that is tried: the body hardly counts" if normalize and 0 < scale <= 1 / FAR else ""


def score(problem: KernelCandidates, choice: KernelChoice, damping: float | None, criterion: str) -> Scored:
    """Best damping of one choice (or the given one) and its error; one n^3 factorisation."""
    factor = factor_ridge(combine(problem, choice), problem.weights)
    if damping is None:
        grid, errors, values = damping_path(factor, problem.targets, criterion)
    else:
        grid, errors, values = along(factor, problem.targets, torch.tensor([damping], dtype=torch.float64), criterion)
    best, count = int(values.argmin()), len(problem.targets)
    chosen = float(grid[best])
    return Scored(choice, chosen, chosen / damping_unit(factor), float(errors[best]), float(values[best]), count)


def solution_of(problem: KernelCandidates, scored: Scored) -> Solution:
    """Solve with a scored choice."""
    return solve(factor_ridge(combine(problem, scored.choice), problem.weights), problem.targets, scored.damping)


def probe_loo(problem: KernelCandidates, tried: Sequence[Scored]) -> Tensor | None:
    """(n, C) leave-one-out predictions of the best linear probe among what was tried; None where none was. n^3."""
    probes = [one for one in tried if one.choice.body_scale == 0 and one.pictures == len(problem.targets)]
    return solution_of(problem, min(probes, key=lambda s: s.criterion)).loo if probes else None


def picture_errors(problem: KernelCandidates, scored: Scored) -> Tensor:
    """(n,) weighted squared leave-one-out error of every picture for a scored choice."""
    return problem.weights * (problem.targets - solution_of(problem, scored).loo).square().sum(1)


def energies(problem: KernelCandidates, choice: KernelChoice, dual: Tensor) -> dict[str, float]:
    """Squared norm of a solution in each block, `s_l sum_c dual_c^T K_l dual_c`, "head" first; they sum to it all."""
    head = problem.head.double()
    scaled = dual * inverse_lengths(head.diagonal())[:, None] if choice.normalize else dual
    out = {"head": float((scaled * (head @ scaled)).sum())}
    if choice.body_scale == 0 or not problem.blocks:
        return out
    scales, dual = choice.scales(list(problem.blocks)), dual * body_lengths(problem, choice)[:, None]
    for block, scale in scales.items():
        out[block] = choice.body_scale * scale * float((dual * (problem.blocks[block].double() @ dual)).sum())
    return out


def unit_scale(problem: KernelCandidates, normalize: bool) -> float:
    """Body scale at which head and body weigh the same: 1 for cosines, the ratio of traces otherwise."""
    if normalize or not problem.blocks:
        return 1.0
    body = sum(float(kernel.diagonal().double().sum()) for kernel in problem.blocks.values())
    head = float(problem.head.diagonal().double().sum())
    return head / body if body > 0 and head > 0 else 1.0


def first_choices(
    problem: KernelCandidates, power: float, fixed: FixedChoices, slopes: Sequence[float]
) -> list[KernelChoice]:
    """A coarse grid over everything that is free; always with the plain linear probe in it."""
    choices, first = list[KernelChoice](), next(iter(problem.blocks), "")
    for normalize in (True, False) if fixed.normalize is None else (fixed.normalize,):
        unit = unit_scale(problem, normalize)
        if fixed.body_scale is not None:
            choices.append(KernelChoice(power, normalize, fixed.body_scale, first=first))
            continue
        choices.append(KernelChoice(power, normalize, 0.0))
        if problem.blocks:
            choices += [KernelChoice(power, normalize, s * unit, slope, first) for s in SCALES for slope in slopes]
    return choices


def coarse_step(count: int) -> int:
    """Of so many pictures every how many-th decides where the search begins."""
    return max(1, round(count / COARSE))


def search(
    problem: KernelCandidates,
    power: float,
    fixed: FixedChoices,
    criterion: str = "loo",
    slopes: Sequence[float] = SLOPES,
    refine: bool = True,
) -> tuple[Scored, list[Scored]]:
    """Best choice for block kernels of one power, and all that was tried: 10 to 20 choices, an n^3 factorisation each.

    A coarse grid, on a part of many pictures; then, on all, steps along scale and slope while they gain something: the
    error often goes on falling by nothing, towards a head that does not count.
    """
    tried: list[Scored] = []

    @cache
    def attempt(choice: KernelChoice) -> Scored:
        tried.append(score(problem, choice, fixed.damping, criterion))
        return tried[-1]

    choices = first_choices(problem, power, fixed, slopes)
    if refine and (step := coarse_step(len(problem.targets))) > 1 and len(choices) > 2:
        tried += [score(problem.every(step), choice, fixed.damping, criterion) for choice in choices]
        kinds = ([one for one in tried if (one.choice.body_scale == 0) == probe] for probe in (True, False))
        choices = [min(kind, key=lambda s: s.criterion).choice for kind in kinds if kind]
    best = min(map(attempt, choices), key=lambda s: s.criterion)
    while refine and fixed.body_scale is None and best.choice.body_scale > 0:
        start, here = best, best.choice
        neighbours = [replace(here, body_scale=here.body_scale * step) for step in (0.5, 2.0)]
        neighbours += [replace(here, slope=here.slope + step) for step in (-1.5, 1.5) if 0 <= here.slope + step <= 9]
        best = min([best, *map(attempt, neighbours)], key=lambda s: s.criterion)
        gained = start.criterion - best.criterion > LEAST_GAIN * abs(start.criterion)
        if not gained or not 1 / FAR <= best.choice.body_scale / unit_scale(problem, here.normalize) <= FAR:
            break
    return best, tried


def learn_scales(problem: KernelCandidates, scored: Scored) -> Scored:
    """A choice whose blocks each have a scale of their own, with the damping, by about 30 evidences with gradient.

    A weak prior keeps scales near those of `scored`, the best of a search by evidence, its body not switched off. Rows
    keep the lengths that they were given. A kernel that is the same for all pictures has no scale to learn: the old
    choice comes back where the head's is, or every block's.
    """
    choice, names = scored.choice, list(problem.blocks)
    lengths = body_lengths(problem, choice)
    head = cosine(problem.head.double()) if choice.normalize else problem.head.double()
    scaled = {name: lengths[:, None] * problem.blocks[name].double() * lengths for name in names}
    profile = {name: s for name, s in choice.scales(names).items() if _varies(scaled[name], problem.weights)}
    if not profile or not _varies(head, problem.weights):
        return scored
    blocks = [scaled[name] for name in profile]
    start = torch.tensor([1.0, *(choice.body_scale * scale for scale in profile.values())], dtype=torch.float64)
    found = maximise_block_evidence(torch.stack([head, *blocks]), problem.targets, problem.weights, start=start)
    learned = dict(zip(profile, (found.scales[1:] / found.scales[0]).tolist(), strict=True))
    mean = sum(learned.values()) / len(names)
    factors = tuple(learned.get(name, 0.0) / mean / scale for name, scale in choice.scales(names).items())
    best = replace(choice, body_scale=mean, factors=factors)
    least = 2 * rounding(factor_ridge(combine(problem, best), problem.weights))
    return score(problem, best, max(found.damping / float(found.scales[0]), least), "evidence")


def _varies(kernel: Tensor, weights: Tensor) -> bool:
    """Whether rows tell pictures apart, beyond rounding: by the trace of their centred kernel."""
    total = weights @ kernel.diagonal()
    return bool(total - weights @ kernel @ weights / weights.sum() > SAME * total)
