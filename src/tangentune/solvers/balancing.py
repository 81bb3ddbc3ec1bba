"""Balanced class weights, `n / (C n_c)` of pictures with weight: leaving one out changes those of all the others.

Which picture of a class leaves makes no difference to the weights of the rest. So each class has one problem, with the
weights that it leaves when it has a picture less, and the usual formulas on it are exact for the pictures of the class.
A common factor of all weights is as good as a damping: with it taken out, a class's problem is an edit of the weights
of its own pictures, and all classes together cost about 5 n^3, however many they are.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from tangentune.solvers import leave_out as exact
from tangentune.solvers.edits import reweight
from tangentune.solvers.posterior import loo_variance
from tangentune.solvers.system import System, design, refresh


def views(system: System, classes: Tensor | None) -> Iterator[tuple[Tensor, System]]:
    """Positions of pictures, with a problem whose leave-one-out is exact for them; together all pictures.

    The system itself, unless its weights are balanced ones for `classes` (n,); then one a class, whose weights are
    relative to its damping. One row a picture.
    """
    if classes is None:
        yield torch.arange(system.pictures, device=system.targets.device), system
        return
    classes, weighty = classes.to(system.targets.device), system.weights > 0
    if not bool(weighty.all()):  # without them nothing changes
        yield (~weighty).nonzero().flatten(), system
    counts, known = torch.bincount(classes[weighty]), dict[float, System]()
    n, kinds = int(counts.sum()), int((counts > 0).sum())
    for label in counts.nonzero().flatten().tolist():
        count, members = int(counts[label]), weighty & (classes == label)
        common = (n - 1) / n * kinds / (kinds - (count == 1))
        if common not in known:
            known[common] = refresh(system, damping=system.damping / common)
        base, own = known[common], count / max(1, count - 1)
        yield members.nonzero().flatten(), reweight(base, torch.where(members, own * base.weights, base.weights))


def without(system: System, classes: Tensor | None, gone: Tensor) -> System:
    """The problem, its weights those of a fit without the pictures at some positions; it still holds them. n^3."""
    if classes is None:
        return system
    classes, stays = classes.to(system.targets.device), system.weights > 0
    before = torch.bincount(classes[stays], minlength=system.targets.shape[1])
    stays[gone] = False
    left = torch.bincount(classes[stays], minlength=len(before))
    new, old = (n.sum() / ((n > 0).sum() * n.clamp_min(1)) for n in (left.double(), before.double()))
    return refresh(system, weights=system.weights * (new / old)[classes])


def influence(system: System, classes: Tensor | None, cross: Tensor) -> Tensor:
    """`leave_out.influence`, (m, n, C), with what a picture does to the weights of the others."""
    if classes is None:
        return exact.influence(system, cross)
    out = torch.empty(*cross.shape, system.targets.shape[1]).to(system.targets)
    for members, other in views(system, classes):
        through = design(other, cross) @ other.inverse[members].mT
        own = exact.scaled_residuals(other)[members, 0]
        moved = cross.to(system.dual) @ (system.dual - other.dual) + system.bias - other.bias
        out[:, members] = moved[:, None] + through[:, :, None] * own
    return out


def unique_information(system: System, classes: Tensor | None, cross: Tensor | None = None) -> Tensor:
    """`leave_out.unique_information`, (n,), with what a picture does to the weights of the others."""
    if classes is None:
        return exact.unique_information(system, cross)
    if cross is not None:
        return influence(system, classes, cross).square().sum(2).mean(0)
    out = torch.empty_like(system.weights)
    for members, other in views(system, classes):
        # f - f_-i has the coefficients `moved + s_i g_i`, s_i a column of D^1/2 W^-1.
        own, moved = exact.scaled_residuals(other)[members, 0], system.dual - other.dual
        through = other.roots[:, None] * other.inverse[members].mT[: len(system.kernel)]
        spread = system.kernel @ through
        square = (moved * (system.kernel @ moved)).sum() + 2 * ((spread.mT @ moved) * own).sum(1)
        out[members] = square + (through * spread).sum(0) * own.square().sum(1)
    return out.clamp_min(0)


def left_out_variance(system: System, classes: Tensor | None) -> Tensor:
    """`posterior.loo_variance`, (n,), with what a picture does to the weights of the others."""
    out = torch.empty_like(system.weights)
    for members, other in views(system, classes):
        out[members] = loo_variance(other)[members]
    return out
