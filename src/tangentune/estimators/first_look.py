"""Cheap looks before a fit: what a ridge probe on the network's features makes of a choice, by leave-one-out."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from tangentune.methods.fine_tuning.labelled import spread_over, view_outputs
from tangentune.networks.backbone import Backbone
from tangentune.pictures.pictures import Pictures
from tangentune.solvers.ridge import RidgeFactor, factor_ridge, loo_errors, solve
from tangentune.solvers.sums import SumsFactor, TangentSums

RELATIVE_DAMPINGS = torch.logspace(-4, 3, 29, dtype=torch.float64)
FEW = 40  # pictures; with fewer, leave-one-out is mostly noise
LOOKED_AT = 500  # pictures that decide about mirroring


def probe_errors(features: Tensor, targets: Tensor) -> Tensor:
    """(n,) squared leave-one-out errors of a ridge probe on features (n, d) of length one, at its best damping."""
    unit = F.normalize(features.double(), dim=1)
    if len(unit) > unit.shape[1]:
        found, dampings = _probe_of_many(unit, targets)
        best = float(dampings[found.loo_errors(unit, targets, dampings).argmin()])
        return (targets - found.leave_one_out(unit, targets, best)).square().sum(1)
    factor, dampings = _probe(unit)
    best = dampings[loo_errors(factor, targets, dampings).argmin()]
    return (targets - solve(factor, targets, float(best)).loo).square().sum(1)


def held_out_errors(features: Tensor, targets: Tensor, held_out: Tensor) -> Tensor:
    """(m,) squared errors on held-out pictures (n,) of a probe fitted to the others, at the damping that suits them."""
    unit = F.normalize(features.double(), dim=1)
    known, new, labels, wanted = unit[~held_out], unit[held_out], targets[~held_out], targets[held_out]
    if len(known) > unit.shape[1]:
        found, dampings = _probe_of_many(known, labels)
        tried = [(wanted - found.fit(one).predict(new)).square().sum(1) for one in dampings.tolist()]
    else:
        factor, dampings = _probe(known)
        solutions = (solve(factor, labels, one) for one in dampings.tolist())
        tried = [(wanted - new @ known.T @ one.dual - one.intercept).square().sum(1) for one in solutions]
    return min(tried, key=lambda errors: float(errors.sum()))


def lower(errors: Tensor, than: Tensor, margin: float) -> bool:
    """Whether errors (n,) are the lower ones, in the mean by so many standard errors of the paired difference.

    A margin of 1 is the rule of one standard error (Breiman et al. 1984, section 3.4.3), `than` being the errors of the
    simpler choice; with -1 that choice must itself be better by as much to be kept.
    """
    gains = than - errors
    doubt = float(gains.std()) / len(gains) ** 0.5 if margin and len(gains) > 1 else 0.0
    return float(gains.mean()) > margin * doubt


@torch.no_grad()
def mirroring_helps(backbone: Backbone, pictures: Pictures, targets: Tensor, batch_size: int) -> bool:
    """Whether a probe does better on features that are means over a picture and its mirror image.

    Digits, letters and arrows lose by it what they are told by; most photographs gain. Targets are (n, C); at most 500
    pictures, spread over all, are looked at. Cost: two forward passes over these.
    """
    if pictures.pixels.ndim != 4:
        return False
    chosen = spread_over(len(pictures), LOOKED_AT)
    few = pictures.select(chosen)
    views = view_outputs(backbone.features, backbone, few, batch_size, True)
    wanted = targets[torch.from_numpy(chosen)].to(views.device)
    margin = 1.0 if len(few) < FEW else 0.0
    return lower(probe_errors(views.mean(0), wanted), probe_errors(views[0], wanted), margin)


def _probe(unit: Tensor) -> tuple[RidgeFactor, Tensor]:
    """By the kernel, n^3, and dampings to try."""
    factor = factor_ridge(unit @ unit.T)
    return factor, (factor.mean_eigenvalue or 1.0) * RELATIVE_DAMPINGS


def _probe_of_many(unit: Tensor, targets: Tensor) -> tuple[SumsFactor, Tensor]:
    """The same by sums of the features, n d^2 + d^3."""
    factor = TangentSums.of(unit, targets, "features").factor()
    return factor, (float(factor.values.sum()) / (len(unit) - 1) or 1.0) * RELATIVE_DAMPINGS
