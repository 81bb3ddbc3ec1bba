"""What chooses a damping from sums alone, without a look at the rows: evidence and generalised cross-validation.

With the centred sums `S = V diag(s) V^T`, `T`, and `Y^T A Y` of the centred targets, `z = T^T (S + damping I)^-1 T` is
all of the data that both need: the kernel's own matrix `K + damping I` (n - 1 directions beside the intercept) has the
eigenvalues `s + damping`, and `damping` itself in the n - 1 - D others.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from tangentune.errors import InputError
from tangentune.solvers.sums import SumsFactor, TangentSums

LOWEST, HIGHEST, STEPS = -6.0, 4.0, 201  # powers of ten of relative dampings that are tried, and how many
MOST_FREE = 0.99  # share of the pictures that the fit may use up as degrees of freedom, or nothing is left to judge


def log_evidence(sums: TangentSums, count: int, dampings: Tensor) -> Tensor:
    """`ridge.log_evidence` of the kernel of `count` rows, for dampings (k,): D^3 once, then k D C.

    Restricted log marginal likelihood, the common scale at its optimum; weights are those of the sums, whose logarithms
    are left out as there.
    """
    factor = sums.factor()
    values, met, square = factor.values, factor.turned.square(), factor.spread
    others, outputs = count - 1 - len(values), len(square)
    found = []
    for damping in dampings.tolist():
        quadratic = float((square.sum() - (met / (values + damping)[:, None]).sum()) / damping)
        scale = quadratic / ((count - 1) * outputs)
        logs = float((values + damping).log().sum()) + others * math.log(damping)
        found.append(-0.5 * ((count - 1) * outputs * (1 + math.log(2 * math.pi * scale)) + outputs * logs))
    return torch.tensor(found, dtype=torch.float64)


def generalised_errors(factor: SumsFactor, dampings: Tensor) -> Tensor:
    """(k, C) mean squared error of a new picture along dampings: generalised cross-validation.

    The squared residuals of the fit, `R / sum a`, over `(1 - tr H / n)^2`: the mean leverage stands for each picture's
    own. Infinite where the fit takes up nearly every picture. Cost k D C.

    Source: Golub, Heath and Wahba (1979).
    """
    shrunk = 1 / (factor.values + dampings[:, None])  # (k, D)
    # |Y - F|^2 = Y^T A Y - 2 T^T B T + T^T B S B T with B = (S + damping I)^-1, direction by direction.
    taken = 2 * shrunk - factor.values * shrunk.square()
    residual = (factor.spread - taken @ factor.turned.square()).clamp_min(0) / factor.weight
    free = (1 + (factor.values * shrunk).sum(1))[:, None] / factor.pictures
    return torch.where(free < MOST_FREE, residual / (1 - free).square(), torch.inf)


def choose_damping(factor: SumsFactor) -> float:
    """The damping with the least estimated error of a new picture; relative ones from 1e-6 to 1e4 are tried."""
    steps = torch.logspace(LOWEST, HIGHEST, STEPS, dtype=torch.float64)
    dampings = factor.mean_eigenvalue * steps.to(factor.values)
    errors = generalised_errors(factor, dampings).sum(1)
    if not factor.mean_eigenvalue > 0 or not bool(torch.isfinite(errors).any()):
        raise InputError("no damping can be chosen from these sums: the rows are all alike, or too few; give one")
    return float(dampings[int(errors.argmin())])
