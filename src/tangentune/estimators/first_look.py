"""Cheap looks before a fit: what a ridge probe on the network's features makes of a choice, by leave-one-out."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from tangentune.methods.fine_tuning.labelled import spread_over, view_outputs
from tangentune.networks.backbone import Backbone
from tangentune.pictures.pictures import Pictures
from tangentune.solvers.probe import Probe

RELATIVE_DAMPINGS = torch.logspace(-4, 3, 29, dtype=torch.float64)
FEW = 40  # pictures; with fewer, leave-one-out is mostly noise
LOOKED_AT = 500  # pictures that decide about mirroring


def probe_errors(features: Tensor, targets: Tensor) -> Tensor:
    """(n,) squared leave-one-out errors of a ridge probe on features (n, d) of length one, at its best damping."""
    probe = Probe.of(F.normalize(features.double(), dim=1), targets)
    return (targets - probe.loo(probe.best(_dampings(probe)))).square().sum(1)


def held_out_errors(features: Tensor, targets: Tensor, held_out: Tensor) -> Tensor:
    """(m,) squared errors on held-out pictures (n,) of a probe fitted to the others, at the damping that suits them."""
    unit = F.normalize(features.double(), dim=1)
    probe, new, wanted = Probe.of(unit[~held_out], targets[~held_out]), unit[held_out], targets[held_out]
    solutions = map(probe.weights, _dampings(probe).tolist())
    tried = [(wanted - new @ weights - intercept).square().sum(1) for weights, intercept in solutions]
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


def _dampings(probe: Probe) -> Tensor:
    """To try; of features that are all the same, absolute ones."""
    return (probe.unit or 1.0) * RELATIVE_DAMPINGS
