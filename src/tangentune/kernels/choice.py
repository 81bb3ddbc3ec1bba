"""Choose damping, body scale, block profile, normalisation and metric power by leave-one-out error or evidence.

All of it is algebra on n x n block kernels: the network is never run again.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from tangentune.kernels.gram import cosine, inverse_lengths
from tangentune.solvers.ridge import RidgeFactor, Solution, factor_ridge, log_evidence, loo_errors, solve

RELATIVE_DAMPINGS = torch.logspace(-4, 2, 37, dtype=torch.float64)
SLOPES = (0.0, 3.0)
SCALES = (0.5, 2.0)


@dataclass(frozen=True)
class Choice:
    """One way to build the kernel from its blocks.

    Attributes:
        power: metric power the block kernels were made with.
        normalize: cosines of head and body apart, or raw inner products.
        body_scale: factor of the body, head at 1 (0: a linear probe).
        slope: block scales grow like exp(slope * depth), depth from 0 (first block kept) to 1 (last).
        first: first block kept; blocks before it have scale 0.
        factors: what further multiplies each block kept, in network order; empty: nothing. Lengths are without them.
    """

    power: float
    normalize: bool
    body_scale: float
    slope: float = 0.0
    first: str = ""
    factors: tuple[float, ...] = ()

    def scales(self, blocks: Sequence[str]) -> dict[str, float]:
        """Scale of each block within the body."""
        profile = block_scales(list(blocks), self.slope)
        factors = self.factors or (1.0,) * len(profile)
        return {block: scale * factor for (block, scale), factor in zip(profile.items(), factors, strict=True)}


@dataclass(frozen=True)
class Scored:
    """A choice with its best damping and its criterion (smaller is better) on so many pictures."""

    choice: Choice
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
class Problem:
    """What selection works on: block kernels of one power, head kernel, targets and weights."""

    head: Tensor
    blocks: dict[str, Tensor]
    targets: Tensor
    weights: Tensor


def block_scales(blocks: list[str], slope: float) -> dict[str, float]:
    """exp(slope * depth), scaled to mean 1, for blocks in network order."""
    last = max(1, len(blocks) - 1)
    raw = {block: math.exp(slope * (i / last - 1)) for i, block in enumerate(blocks)}
    mean = sum(raw.values()) / max(1, len(raw))
    return {block: value / mean for block, value in raw.items()}


def combine(problem: Problem, choice: Choice) -> Tensor:
    """The (n, n) kernel of a choice, float64."""
    head = problem.head.double()
    head = cosine(head) if choice.normalize else head
    if choice.body_scale == 0 or not problem.blocks:
        return head
    body = _body(problem, choice.scales(list(problem.blocks)))
    lengths = body_lengths(problem, choice)
    return head + choice.body_scale * lengths[:, None] * body * lengths


def body_lengths(problem: Problem, choice: Choice) -> Tensor:
    """(n,) inverse lengths of the body's rows; ones where they are not normalised."""
    profile = block_scales(list(problem.blocks), choice.slope)
    diagonal = torch.zeros_like(problem.head[0], dtype=torch.float64)
    for block, scale in profile.items():
        diagonal = diagonal + scale * problem.blocks[block].diagonal().double()
    return inverse_lengths(diagonal) if choice.normalize else torch.ones_like(diagonal)


def score(problem: Problem, choice: Choice, damping: float | None, criterion: str) -> tuple[Scored, RidgeFactor]:
    """Best damping of one choice (or the given one) and its error; one n^3 factorisation."""
    factor = factor_ridge(combine(problem, choice), problem.weights)
    unit = factor.mean_eigenvalue or 1.0
    grid = RELATIVE_DAMPINGS * unit if damping is None else torch.tensor([damping], dtype=torch.float64)
    errors = loo_errors(factor, problem.targets, grid)
    values = errors if criterion == "loo" else -log_evidence(factor, problem.targets, grid)
    best = int(values.argmin())
    chosen = float(grid[best])
    count = len(problem.targets)
    return Scored(choice, chosen, chosen / unit, float(errors[best]), float(values[best]), count), factor


def solution_of(problem: Problem, scored: Scored) -> Solution:
    """Solve with a scored choice."""
    return solve(factor_ridge(combine(problem, scored.choice), problem.weights), problem.targets, scored.damping)


def picture_errors(problem: Problem, scored: Scored) -> Tensor:
    """(n,) weighted squared leave-one-out error of every picture for a scored choice."""
    return problem.weights * (problem.targets - solution_of(problem, scored).loo).square().sum(1)


def block_energies(problem: Problem, scored: Scored) -> dict[str, float]:
    """Squared norm of the solution in each block, `s_l sum_c dual_c^T K_l dual_c`, "head" first."""
    return energies(problem, scored.choice, solution_of(problem, scored).dual)


def energies(problem: Problem, choice: Choice, dual: Tensor) -> dict[str, float]:
    """Squared norm of a solution in each block; their sum is `sum_c dual_c^T K dual_c`."""
    head = problem.head.double()
    scaled = dual * inverse_lengths(head.diagonal())[:, None] if choice.normalize else dual
    out = {"head": float((scaled * (head @ scaled)).sum())}
    if choice.body_scale == 0 or not problem.blocks:
        return out
    scales, dual = choice.scales(list(problem.blocks)), dual * body_lengths(problem, choice)[:, None]
    for block, scale in scales.items():
        out[block] = choice.body_scale * scale * float((dual * (problem.blocks[block].double() @ dual)).sum())
    return out


def _body(problem: Problem, scales: dict[str, float]) -> Tensor:
    zero = torch.zeros_like(problem.head, dtype=torch.float64)
    return sum((scale * problem.blocks[block].double() for block, scale in scales.items()), zero)


@dataclass(frozen=True)
class Fixed:
    """What the user has fixed; None is free."""

    normalize: bool | None = None
    body_scale: float | None = None
    damping: float | None = None


def unit_scale(problem: Problem, normalize: bool) -> float:
    """Body scale at which head and body weigh the same: 1 for cosines, the ratio of traces otherwise."""
    if normalize or not problem.blocks:
        return 1.0
    body = sum(float(kernel.diagonal().double().sum()) for kernel in problem.blocks.values())
    head = float(problem.head.diagonal().double().sum())
    return head / body if body > 0 and head > 0 else 1.0


def first_choices(problem: Problem, power: float, fixed: Fixed, slopes: Sequence[float]) -> list[Choice]:
    """A coarse grid over everything that is free; always with the plain linear probe in it."""
    choices: list[Choice] = []
    first = next(iter(problem.blocks), "")
    for normalize in (True, False) if fixed.normalize is None else (fixed.normalize,):
        unit = unit_scale(problem, normalize)
        if fixed.body_scale is not None:
            choices.append(Choice(power, normalize, fixed.body_scale, first=first))
            continue
        choices.append(Choice(power, normalize, 0.0))
        if problem.blocks:
            choices += [Choice(power, normalize, s * unit, slope, first) for s in SCALES for slope in slopes]
    return choices


def search(
    problem: Problem,
    power: float,
    fixed: Fixed,
    criterion: str = "loo",
    slopes: Sequence[float] = SLOPES,
    refine: bool = True,
) -> tuple[Scored, list[Scored]]:
    """Best choice for block kernels of one power: coarse grid, then steps along scale and slope while they help.

    Cost: one n^3 factorisation a choice, 10 to 25 choices.

    Returns:
        The winner and everything tried.
    """
    tried: dict[Choice, Scored] = {}

    def attempt(choice: Choice) -> Scored:
        if choice not in tried:
            tried[choice] = score(problem, choice, fixed.damping, criterion)[0]
        return tried[choice]

    best = min((attempt(choice) for choice in first_choices(problem, power, fixed, slopes)), key=lambda s: s.criterion)
    while refine and fixed.body_scale is None and best.choice.body_scale > 0:
        start, here = best, best.choice
        neighbours = [replace(here, body_scale=here.body_scale * step) for step in (0.5, 2.0)]
        neighbours += [replace(here, slope=here.slope + step) for step in (-1.5, 1.5) if 0 <= here.slope + step <= 9]
        best = min([best, *(attempt(choice) for choice in neighbours)], key=lambda s: s.criterion)
        if best is start or not 1e-3 <= best.choice.body_scale / unit_scale(problem, best.choice.normalize) <= 1e3:
            break
    return best, list(tried.values())
