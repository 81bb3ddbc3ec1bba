"""Class probabilities by other likelihoods than least squares, on the same kernel."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tangentune.errors import InputError
from tangentune.solvers.dirichlet import DirichletSolution, fit_dirichlet, predict_dirichlet
from tangentune.solvers.laplace import LaplaceSolution, fit_laplace, predict_laplace
from tangentune.solvers.system import System

LEAST_SQUARES = "least_squares"
LIKELIHOODS = (LEAST_SQUARES, "dirichlet", "laplace")
LikelihoodSolution = DirichletSolution | LaplaceSolution


def check_likelihood(name: Any) -> None:
    """Refuse a likelihood that does not exist."""
    if name not in LIKELIHOODS:
        raise InputError(f"likelihood is {name!r}; it must be 'least_squares', 'dirichlet' or 'laplace'")


def fit_likelihood(name: str, system: System, known: dict[str, float] | None = None) -> LikelihoodSolution:
    """Solve for a system's one-hot targets, weight 0 taking no part; `known` parameters save the search."""
    kept = torch.nonzero(system.weights > 0)[:, 0]
    kernel, classes = system.kernel[kept][:, kept], system.targets[kept].argmax(1)
    fit = fit_dirichlet if name == "dirichlet" else fit_laplace
    return fit(kernel, classes, system.targets.shape[1], system.weights[kept], **(known or {}))


def parameters(solution: LikelihoodSolution) -> dict[str, float]:
    """What the search of a solution found."""
    found = {"scale": solution.scale}
    return found | {"pseudocount": solution.pseudocount} if isinstance(solution, DirichletSolution) else found


def predict_likelihood(solution: LikelihoodSolution, system: System, cross: Tensor, own: Tensor) -> Tensor:
    """Class probabilities (m, C) from the kernel (m, n) with the system's pictures and (m,) of each with itself."""
    kernel = cross[:, system.weights > 0]
    if isinstance(solution, DirichletSolution):
        return predict_dirichlet(solution, kernel, own)
    return predict_laplace(solution, kernel, own)


def loo_likelihood(solution: LikelihoodSolution, system: System) -> Tensor:
    """Leave-one-out probabilities (n, C); a picture of weight 0 has that of a plain prediction."""
    out = torch.empty_like(system.targets)
    kept = system.weights > 0
    out[kept] = solution.loo.to(out)
    if not kept.all():
        rest = system.kernel[~kept]
        out[~kept] = predict_likelihood(solution, system, rest, system.kernel.diagonal()[~kept]).to(out)
    return out
