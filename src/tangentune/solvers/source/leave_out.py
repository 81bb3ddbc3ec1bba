"""Exact leave-one-out of target pictures when source pictures take part: both ways in which a label acts are undone.

Source pictures give target pictures a prior mean `R L`: response R, (n, S), of the kernels alone, times the targets
L, (S, C), of the source classes. The system is ridge regression of what is left, `y - R L`. But L is itself made from
the labels of target pictures (`coupling`), so that a picture's label acts twice: as a row of the system, and in L.
Write `g[t]` for leave-one-out predictions with targets t, `g[t]_i` never using row i, and L' for L made without
picture i. Leave-one-out is linear in its targets, so that the whole fit without picture i predicts for it

    R_i L' + g[y - R L']_i = R_i L + g[y - R L]_i + (R_i - g[R]_i) (L' - L):

the usual prediction with L held, plus a correction: the residual of the response when it is itself predicted by
leave-one-out, times the change of L. That residual is what a score gains by one unit more of a source class's target.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from tangentune.solvers.edits import retarget
from tangentune.solvers.leave_out import leave_out, loo
from tangentune.solvers.source.coupling import ClassMeans, coupling_shift
from tangentune.solvers.system import System


@final
@dataclass(frozen=True, eq=False)
class SourcePrediction:
    """What source pictures alone predict for target pictures: the prior mean of the target problem."""

    means: ClassMeans  # what the coupling is made from, the same pictures' labels among it
    response: Tensor  # (n, S) R, what a picture's prior mean gains by one unit of a source class's target
    labels: Tensor  # (S, C) L, those targets

    @property
    def offset(self) -> Tensor:
        """(n, C) the prior mean `R L`, to be taken off the targets and added to predictions."""
        return self.response @ self.labels


def target_loo(system: System, source: SourcePrediction) -> Tensor:
    """Predictions (n, C) for every target picture by the fit without it, its label gone from the coupling as well.

    The system's targets are less `source.offset`. Cost n^2 S, and n S C exponentials.
    """
    # R_i - g[R]_i is the leave-one-out residual (W^-1 D^1/2 R)_i / ([W^-1]_ii d_i), d the roots of the weights. At
    # weight 0 it is 0 / 0, and the label is not in the coupling: no correction.
    n, roots = len(source.response), system.roots
    assert isinstance(system.inverse, Tensor)
    residual = system.inverse[:n, :n] @ (roots[:, None] * source.response)
    heights = (system.inverse.diagonal()[:n] * roots)[:, None]
    residual = torch.where(heights > 0, residual / heights.clamp_min(torch.finfo(residual.dtype).tiny), 0.0)
    return loo(system) + source.offset + coupling_shift(source.means, residual)


def target_leave_out(system: System, source: SourcePrediction, groups: Tensor) -> Tensor:
    """As `target_loo`, without a picture's whole group: (n, C).

    Cost n^2 S, the sum of `R^3` over groups of R pictures, and n^2 for each class of each group.
    """
    groups = groups.to(source.response.device)
    residual = source.response - leave_out(retarget(system, source.response), groups)
    shift = coupling_shift(source.means, residual, groups)
    return leave_out(system, groups) + source.offset + shift
