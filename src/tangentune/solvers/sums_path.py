"""What chooses a damping from sums alone, without a look at the rows: evidence and generalised cross-validation.

With the centred sums `S = V diag(s) V^T`, `T`, and `Y^T A Y` of the centred targets, `z = T^T (S + damping I)^-1 T` is
all of the data that both need: the kernel's own matrix `K + damping I` (n - 1 directions beside the intercept) has the
eigenvalues `s + damping`, and `damping` itself in the n - 1 - D others.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from tangentune.solvers.sums import TangentSums


def log_evidence(sums: TangentSums, count: int, dampings: Tensor) -> Tensor:
    """`ridge.log_evidence` of the kernel of `count` rows, for dampings (k,): D^3 once, then k D C.

    Restricted log marginal likelihood, the common scale at its optimum; weights are those of the sums, whose logarithms
    are left out as there.
    """
    values, met, square = _spectrum(sums)
    others, outputs = count - 1 - len(values), len(square)
    found = []
    for damping in dampings.tolist():
        quadratic = float((square.sum() - (met / (values + damping)[:, None]).sum()) / damping)
        scale = quadratic / ((count - 1) * outputs)
        logs = float((values + damping).log().sum()) + others * math.log(damping)
        found.append(-0.5 * ((count - 1) * outputs * (1 + math.log(2 * math.pi * scale)) + outputs * logs))
    return torch.tensor(found, dtype=torch.float64)


def generalised_errors(sums: TangentSums, count: int, dampings: Tensor) -> Tensor:
    """Generalised cross-validation along dampings (k,): mean squared residual over the squared mean of `1 - h_i`.

    Source: Golub, Heath and Wahba (1979). Cost D^3 once, then k D C.
    """
    values, met, square = _spectrum(sums)
    found = []
    for damping in dampings.tolist():
        shrunk = 1 / (values + damping)
        # |Y - F|^2 = Y^T A Y - 2 T^T B T + T^T B S B T with B = (S + damping I)^-1.
        residual = float(square.sum() - (met * (2 * shrunk - values * shrunk.square())[:, None]).sum())
        free = 1 - (1 + float((values * shrunk).sum())) / count
        found.append(residual / float(sums.weight) / free**2)
    return torch.tensor(found, dtype=torch.float64)


def _spectrum(sums: TangentSums) -> tuple[Tensor, Tensor, Tensor]:
    """Eigenvalues (D,), squares of T along the eigenvectors (D, C), and of the centred targets (C,)."""
    factor = sums.factor()
    return factor.values, factor.turned.square(), sums.target_squares.diagonal() - sums.weight * factor.aim.square()
