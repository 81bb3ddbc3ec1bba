"""Which target class a source class stands for: semi-relaxed transport between class means, in the kernel's own space.

Cost `(1 - cosine) / scale` between the mean rows of a source and a target class; every target class is served with
mass 1, source classes give what they are asked for (a free source marginal), so that the plan has a closed form:
`T_st = exp(-cost_st) / sum_s' exp(-cost_s't)`. A source picture's target is its class's share of T over the target
classes; source classes named like a target class stand for that one alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

SCALE = 0.05  # of the cosines: half of it confuses classes on 5 pictures a class, twice it tells none apart
CHUNK_ENTRIES = 2**24  # of plans without one picture that are in memory at once
CANCELLED = 1e-4  # share of a class's squared norm; what is left of less is summed anew


@final
@dataclass(frozen=True, eq=False)
class ClassMeans:
    """All that the coupling depends on."""

    kernel: Tensor  # (n, n) of target pictures
    between: Tensor  # (n, S) of them and the means of source classes
    norms: Tensor  # (S,) lengths of those means
    named: Tensor  # (S, C) true where a source class has the name of a target class
    targets: Tensor  # (n, C) one-hot, of the target pictures
    weights: Tensor  # (n,) of them


def transport(means: ClassMeans) -> Tensor:
    """The plan (S, C): columns sum to 1; 0 for a target class without weight."""
    sums, squares = _class_sums(means, means.targets, means.weights)
    return _plan(_cosines(sums, squares, means.norms))


def coupling(means: ClassMeans) -> Tensor:
    """Targets (S, C) that the pictures of each source class get; rows sum to 1."""
    return _conditional(transport(means), means.named)


def coupling_without(means: ClassMeans, rows: Tensor) -> Tensor:
    """`coupling` (S, C) made without the target pictures at some positions; n^2 for each class they are of."""
    cosines = _cosines_without(means, rows, _class_sums(means, means.targets, means.weights))
    return _conditional(_plan(cosines), means.named)


def coupling_shift(means: ClassMeans, gains: Tensor, groups: Tensor | None = None) -> Tensor:
    """How leave-one-out scores change because the coupling, too, is made without the picture: (n, C).

    `sum_s gains_is (L_without_i - L)_sc`, `gains` (n, S) being what a picture's score without it gains by one unit more
    of a source class's target. `groups` (n,): equal ones are left out together. Cost n S C exponentials; with groups S
    C, and n^2 for each class of it, for each group.
    """
    targets, whole = means.targets, coupling(means)
    found = _class_sums(means, targets, means.weights)
    out = torch.empty_like(targets)
    if groups is not None:
        for group in torch.unique(groups).tolist():
            rows = (groups == group).nonzero().flatten()
            cosines = _cosines_without(means, rows, found)
            out[rows] = gains[rows] @ (_conditional(_plan(cosines), means.named) - whole)
        return out
    step, cross = max(1, CHUNK_ENTRIES // max(1, whole.numel())), means.kernel @ (means.weights[:, None] * targets)
    for start in range(0, len(targets), step):
        rows = torch.arange(start, min(start + step, len(targets)), device=targets.device)
        cosines = _cosines_one_by_one(means, rows, found, cross)
        out[rows] = torch.einsum("is,isc->ic", gains[rows], _conditional(_plan(cosines), means.named) - whole)
    return out


def _cosines_one_by_one(means: ClassMeans, rows: Tensor, found: tuple[Tensor, Tensor], cross: Tensor) -> Tensor:
    """Cosines (r, S, C) without each of r pictures by itself; `cross` (n, C) is the kernel's with the class sums."""
    (sums, squares), own, a = found, means.targets[rows].argmax(1), means.weights[rows]
    less = sums[:, own].T - a[:, None] * means.between[rows]
    # |s - a k_i|^2 = |s|^2 - 2 a <k_i, s> + a^2 k_ii for the weighted sum s of the picture's class.
    left = squares[own] - 2 * a * cross[rows, own] + a.square() * means.kernel.diagonal()[rows]
    cosines = _cosines(sums, squares, means.norms).expand(len(rows), -1, -1).clone()
    places = torch.arange(len(rows), device=rows.device)
    cosines[places, :, own] = _cosines(less.T, left, means.norms).T
    # Nearly equal numbers cancel there if the picture was nearly all of its class, or all: that class is summed anew.
    for place in ((left <= CANCELLED * squares[own]) & (a > 0)).nonzero().flatten().tolist():
        cosines[place] = _cosines_without(means, rows[place : place + 1], found)
    return cosines


def _cosines_without(means: ClassMeans, rows: Tensor, found: tuple[Tensor, Tensor]) -> Tensor:
    """Cosines (S, C) without some pictures, their classes summed anew."""
    left, touched = means.weights.clone(), (means.targets[rows] > 0).any(0)
    left[rows] = 0
    sums, squares = found[0].clone(), found[1].clone()
    sums[:, touched], squares[touched] = _class_sums(means, means.targets[:, touched], left)
    return _cosines(sums, squares, means.norms)


def _class_sums(means: ClassMeans, targets: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Of the weighted sums of target classes: (S, C) products with source means, (C,) squared norms."""
    weighted = weights[:, None] * targets
    return means.between.T @ weighted, (weighted * (means.kernel @ weighted)).sum(0)


def _cosines(sums: Tensor, squares: Tensor, norms: Tensor) -> Tensor:
    """(S, C); minus infinity for a target class that is empty."""
    tiny = torch.finfo(sums.dtype).tiny
    found = sums / norms.clamp_min(tiny)[:, None] / squares.clamp_min(tiny).sqrt()
    return torch.where(squares > 0, found, -torch.inf)


def _plan(cosines: Tensor) -> Tensor:
    """Softmax over source classes, (..., S, C)."""
    return torch.softmax(cosines / SCALE, -2).nan_to_num(0.0)  # an empty class has no plan


def _conditional(plan: Tensor, named: Tensor) -> Tensor:
    mass = plan.sum(-1, keepdim=True)
    shares = torch.where(mass > 0, plan / mass.clamp_min(torch.finfo(plan.dtype).tiny), 1 / plan.shape[-1])
    return torch.where(named.any(1)[:, None], named.to(plan), shares)
