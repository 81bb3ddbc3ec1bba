"""What every picture gives to every target, and what all pictures give to each."""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor

from tangentune.methods.source_selection.scorer import WITH_MASS, Scorer


def log_masses(scorer: Scorer, cosines: Tensor, out: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Scores and what each row gives each target, without exponentials beyond those of the scores.

    For "uot" the plan's entry of a row with score s is `T_ij = exp(s_i) share_ij`, so that its logarithm is
    `log v_j - (1 - cos_ij) / temperature + s_i (1 - 1 / power)`.

    Args:
        scorer: with K targets.
        cosines: (n, K); overwritten.
        out: (n, K) room for the second result.

    Returns:
        (n,) scores; (n, K) log of transported mass for "uot" and "kernel_sum", the cosines for the other methods.

    Example:
        >>> from tangentune.methods.source_selection.scorer import kernel_sum_scorer
        >>> scorer, cosines = kernel_sum_scorer(torch.eye(2), temperature=0.5), torch.tensor([[0.25, 0.5]])
        >>> shares = scorer.shares(cosines)
        >>> scores, served = log_masses(scorer, cosines)
        >>> torch.allclose(served.exp(), scores.exp()[:, None] * shares)
        True
    """
    if not TargetMass.is_mass(scorer):
        served = torch.clone(cosines) if out is None else out.copy_(cosines)
        return scorer.scores(cosines), served
    scale = 1 / scorer.temperature
    served = torch.add(scorer.log_weights - scale, cosines, alpha=scale, out=out)
    scores = scorer.scores(cosines)
    if scorer.power != 1:
        served += (scores * (1 - 1 / scorer.power))[:, None]
    return scores, served


@final
class TargetMass:
    """Running sums over rows of what each of K targets gets, as logarithms: no small cost scale under- or overflows.

    Args:
        scorer: whose masses are summed; for methods without masses, rows are counted at their nearest target.
        total: (K,) float64 to go on from.
    """

    def __init__(self, scorer: Scorer, total: Tensor | None = None) -> None:
        self._mass, self._targets = self.is_mass(scorer), len(scorer.prototypes)
        self.total = torch.full((self._targets,), -torch.inf, dtype=torch.float64) if total is None else total

    @staticmethod
    def is_mass(scorer: Scorer) -> bool:
        """Whether the scores are logarithms of masses."""
        return scorer.method in WITH_MASS

    def add(self, served: Tensor) -> None:
        """Add rows, (m, K) as `log_masses` gives them; overwritten."""
        if self._mass:
            top = served.amax(0)
            sums = served.sub_(top).exp_().sum(0).double()
            part = top.double() + sums.log()
        else:
            part = torch.bincount(served.argmax(1), minlength=self._targets).double().log()
        self.total = torch.logaddexp(self.total, part)
