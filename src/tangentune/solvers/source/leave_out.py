"""Leave-one-out of target pictures with a source behind them: their labels leave the coupling of the classes, too.

A source class gets its target from the target pictures, so that each picture's label speaks twice. Both go: the
residual of the problem that is left, and, times what the score gains by it, the change of the source's targets.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from tangentune.solvers.leave_out import leave_out, loo
from tangentune.solvers.source.coupling import ClassMeans, shifted_targets
from tangentune.solvers.system import System, solved


@final
@dataclass(frozen=True, eq=False)
class Said:
    """What the source says about target pictures.

    Attributes:
        means: what the coupling of the classes is made from.
        targets: (n, C) one-hot.
        response: (n, S) what a picture's score gains by one unit of a source class's target.
        labels: (S, C) those targets.
    """

    means: ClassMeans
    targets: Tensor
    response: Tensor
    labels: Tensor

    @property
    def offset(self) -> Tensor:
        """(n, C) what the source says."""
        return self.response @ self.labels


def target_loo(system: System, said: Said) -> Tensor:
    """Scores (n, C) of every target picture by the fit without it, without it also in the coupling of the classes.

    Args:
        system: of the target pictures less what the source says.
        said: by the source, about the same pictures.

    Returns:
        (n, C); n^2 S, and n S C exponentials.
    """
    n, roots = len(said.targets), system.roots
    pull = system.inverse[:n, :n] @ (roots[:, None] * said.response)
    heights = (system.inverse.diagonal()[:n] * roots)[:, None]
    pull = torch.where(heights > 0, pull / heights.clamp_min(torch.finfo(pull.dtype).tiny), 0.0)
    return loo(system) + said.offset + shifted_targets(said.means, said.targets, system.weights, pull)


def target_leave_out(system: System, said: Said, groups: Tensor) -> Tensor:
    """As `target_loo`, without a picture's whole group: (n, C).

    Args:
        system: of the target pictures less what the source says.
        said: by the source, about the same pictures.
        groups: (n,) integers; equal ones are left out together.

    Returns:
        (n, C). Cost n^2 S, the sum of `R^3` over groups of R pictures, and n^2 for each class of each group.
    """
    groups = groups.to(said.response.device)
    echo = solved(system.kernel, system.inverse, said.response, system.weights, system.damping, system.width)
    pull = said.response - leave_out(echo, groups)
    shift = shifted_targets(said.means, said.targets, system.weights, pull, groups)
    return leave_out(system, groups) + said.offset + shift
