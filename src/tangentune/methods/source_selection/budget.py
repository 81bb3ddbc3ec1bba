"""From scored candidates to a choice: how many, how many for each target, and what each chosen one weighs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from tangentune.errors import InputError
from tangentune.methods.source_selection.rankings import descending
from tangentune.methods.source_selection.settings import Budget

# No picture counts for more than this many average ones.
WEIGHT_CAP = 10.0


@final
@dataclass(frozen=True, eq=False)
class Picks:
    """What was chosen, best first.

    Attributes:
        chosen: (k,) positions of candidates.
        pictures: (k,) how many pictures of each to take: all, but of the last one of a budget of pictures maybe fewer.
        weights: (k,) importance of a picture of each, mean 1 over the pictures, see `importance_weights`.
        targets: (k,) the target of which each has the largest share.
        coverage: (K,) of the mass that goes to each target, the share that comes from the chosen pictures; NaN for a
            target that nothing goes to.
        notes: sentences about what was asked for and could not be had.
    """

    chosen: Tensor
    pictures: Tensor
    weights: Tensor
    targets: Tensor
    coverage: Tensor
    notes: tuple[str, ...]


def choose(
    scores: Tensor,
    shares: Tensor,
    budget: Budget,
    *,
    masses: Tensor | None = None,
    counts: Tensor | None = None,
    quota: int = 0,
    target_totals: Tensor | None = None,
) -> Picks:
    """Take the best candidates (classes, clusters or single pictures) up to a budget, each target's quota first.

    With a quota, every target first gets its best candidates (those that have their largest share there), then the
    best of the rest fill the budget. Equal scores go by position. A class is taken with all its pictures, except that
    the last one of a budget of pictures gives what is left of the budget. A budget beyond what is there takes all, and
    a note says so.

    Args:
        scores: (n,) higher is better.
        shares: (n, K) for which target each candidate serves.
        budget: how much.
        masses: (n,) row mass of each candidate; None: its count.
        counts: (n,) pictures in each, at least 1; None: 1.
        quota: least number of candidates for every target.
        target_totals: (K,) mass that goes to each target, where the candidates are only the best of a longer list;
            None: that of the candidates. Its sum is the whole that a budget of mass is a share of.
    """
    targets, number = shares.argmax(1), shares.shape[1]
    counts = torch.ones(len(scores), dtype=torch.int64) if counts is None else counts
    masses = counts.double() if masses is None else masses
    totals = _to_targets(masses, shares) if target_totals is None else target_totals
    order = descending(scores)
    place = order.argsort()
    first = first_of_each(targets[order], quota, number)
    order = torch.cat([order[first], order[~first]])
    reserved = int(first.sum())
    _check_quota(budget, quota * number, int(counts[order[:reserved]].sum()), quota)
    taken, notes = _taken(budget, counts[order], masses[order], float(totals.sum()), reserved)
    chosen = order[: len(taken)]
    again = place[chosen].argsort()  # best first, quota or not
    chosen, taken = chosen[again], taken[again]
    per_picture = masses[chosen] / counts[chosen]
    return Picks(
        chosen=chosen,
        pictures=taken,
        weights=importance_weights(per_picture, taken),
        targets=targets[chosen],
        coverage=_to_targets(per_picture * taken, shares[chosen]) / totals,
        notes=notes,
    )


def importance_weights(masses: Tensor, pictures: Tensor | None = None, *, cap: float = WEIGHT_CAP) -> Tensor:
    """Weights (n,) in proportion to row mass, with mean 1 and none above a cap: `min(c m, cap)`, c for the mean.

    A cap keeps one picture from being worth a whole batch: the effective number of pictures,
    `(sum w)^2 / sum w^2`, stays at least their number over the cap. Where too few masses are positive to reach the
    mean under the cap, those have the cap and the others share the rest evenly. `pictures` (n,) have each mass.
    """
    masses = masses.double()
    number = torch.ones_like(masses) if pictures is None else pictures.to(masses)
    if not bool((torch.isfinite(masses) & (masses >= 0)).all()) or not bool((masses > 0).any()):
        message = "masses must be finite, none negative and not all 0; if they underflow, use a larger cost scale"
        raise InputError(message)
    total, order = number.sum(), torch.argsort(masses, descending=True, stable=True)
    sizes, held = number[order], (number * masses)[order]
    # With the j heaviest at the cap, scale j brings the rest to mean 1; the first under the cap is the right one.
    rest = held.flip(0).cumsum(0).flip(0)
    scales = (total - cap * (sizes.cumsum(0) - sizes)) / rest
    fits = ((scales * masses[order] <= cap) & (rest > 0)).nonzero()
    if len(fits):
        return (masses * scales[fits[0, 0]]).clamp_(max=cap)
    light = masses == 0
    left = (total - cap * number[~light].sum()).clamp(min=0) / number[light].sum().clamp(min=1)
    return torch.where(light, left, cap)


def _to_targets(masses: Tensor, shares: Tensor) -> Tensor:
    """Mass that goes to each target, (K,) in float64, without a copy of the shares in float64."""
    unit = masses.max().clamp(min=torch.finfo(masses.dtype).tiny)  # shares of float32 have a shorter range
    return ((masses / unit).to(shares.dtype) @ shares).double() * unit


def first_of_each(targets: Tensor, quota: int, number: int) -> Tensor:
    """Which candidates, best first, are among the first `quota` of their own of the `number` targets, (n,) bool."""
    held, grouped = torch.bincount(targets, minlength=number), torch.argsort(targets, stable=True)
    place = torch.arange(len(targets)) - (held.cumsum(0) - held)[targets[grouped]]
    return torch.empty(len(targets), dtype=torch.bool).index_copy_(0, grouped, place < quota)


def _check_quota(budget: Budget, asked: int, pictures: int, quota: int) -> None:
    if budget.kind != "mass" and asked > budget.amount:
        message = f"a quota of {quota} for every target asks for {asked}, more than the budget of {budget.amount:.0f}"
        message += f" {budget.kind}; lower the quota or raise the budget"
        raise InputError(message)
    if budget.kind == "pictures" and pictures > budget.amount:
        message = f"a quota of {quota} for every target takes classes of {pictures} pictures, more than the budget "
        message += f"of {budget.amount:.0f}; lower the quota or raise the budget"
        raise InputError(message)


def _taken(
    budget: Budget, counts: Tensor, masses: Tensor, total: float, reserved: int
) -> tuple[Tensor, tuple[str, ...]]:
    """Pictures to take of each candidate, in the order they come, cut at the last one taken; and notes."""
    if budget.kind == "mass":
        return _up_to_mass(budget.amount, counts, masses, total, reserved)
    limit, there = int(budget.amount), len(counts) if budget.kind == "classes" else int(counts.sum())
    if limit >= there:
        beyond = f"the budget is {limit} {budget.kind} and there are {there}, all of which are taken"
        return counts, (beyond,) if limit > there else ()
    if budget.kind == "classes":
        return counts[:limit], ()
    before = counts.cumsum(0) - counts
    return torch.minimum(counts, limit - before)[before < limit], ()


def _up_to_mass(
    share: float, counts: Tensor, masses: Tensor, total: float, reserved: int
) -> tuple[Tensor, tuple[str, ...]]:
    """As many as reach a share of the mass, and all of the quota."""
    reached = masses.cumsum(0)
    enough = (reached >= share * total * (1 - 1e-12)).nonzero()
    if share == 1 or not len(enough):
        held = float(reached[-1]) / total if total > 0 else 1.0
        note = f"the budget is {share:.4g} of the mass and the candidates hold {held:.4g} of it; all are taken"
        return counts, (note,) if held < share - 1e-9 else ()
    needed = int(enough[0, 0]) + 1
    if needed >= reserved:
        return counts[:needed], ()
    held = float(reached[reserved - 1]) / total
    return counts[:reserved], (f"the quotas alone take {held:.4g} of the mass, more than the budget of {share:.4g}",)
