"""Pre-conditioned conjugate gradients: exact step lengths, no learning rate, the residual always reported."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from tangentune.errors import InputError

Map = Callable[[Tensor], Tensor]


@final
@dataclass(frozen=True, eq=False)
class PCGResult:
    """Where conjugate gradients ended, and how.

    The last of the residuals is measured from x itself, the others follow the recursion, which drifts by rounding only.
    """

    x: Tensor  # in the shape and precision of b
    relative_residuals: list[float]  # `||b - A x|| / ||b||` at the start and after every iteration
    iterations: int
    converged: bool  # the measured residual is within the tolerance


def pcg(
    matvec: Map,
    b: Tensor,
    *,
    precondition: Map | None = None,
    tolerance: float = 1e-10,
    max_iterations: int,
    callback: Callable[[int, float, Tensor], None] | None = None,
) -> PCGResult:
    """Solve `A x = b` for a symmetric positive definite A that is only known by its products `matvec`, v -> A v.

    b (p,); `precondition` is r -> M^{-1} r with M symmetric positive definite; it starts from zero, and stops when
    `||b - A x|| <= tolerance ||b||`, or warns (RuntimeWarning) at the cap, or where rounding allows no better;
    `callback` gets the number, relative residual and x of every step. Vectors in b's precision, inner products in
    float64. Cost: one product with A and one with M^{-1} a step, four vectors. Steps are exact minimisers along
    conjugate directions (Hestenes and Stiefel 1952).
    """
    size, x, r = _norm(b), torch.zeros_like(b), b.clone()
    if size == 0:
        return PCGResult(x, [0.0], 0, True)
    residuals = [_finite(_norm(r) / size)]
    best = residuals[0]  # measured, not from the recursion
    iterations, converged = 0, best <= tolerance
    direction, inner = torch.zeros_like(b), 0.0
    while not converged and iterations < max_iterations:
        z = r if precondition is None else precondition(r)
        previous, inner = inner, _positive(_dot(r, z), "the pre-conditioner")
        direction = z.clone() if previous == 0 else z + (inner / previous) * direction
        product = matvec(direction)
        step = inner / _positive(_dot(direction, product), "the matrix")
        x = x + step * direction
        r = r - step * product
        iterations += 1
        residuals.append(_finite(_norm(r) / size))
        if callback is not None:
            callback(iterations, residuals[-1], x)
        if residuals[-1] <= tolerance or iterations == max_iterations:
            r = b - matvec(x)
            residuals[-1] = _finite(_norm(r) / size)
            converged = residuals[-1] <= tolerance
            if not converged and residuals[-1] > best / 2:
                break  # a fresh start from the true residual no longer gains
            best, inner = residuals[-1], 0.0
    if not converged:
        why = f"its cap of {max_iterations} steps" if iterations >= max_iterations else "the limit of rounding"
        message = (
            f"conjugate gradients stopped at {why} with relative residual {residuals[-1]:.1e}, above the tolerance "
            f"{tolerance:.1e}; allow more steps, raise the damping, pre-condition, or work in float64"
        )
        warnings.warn(message, RuntimeWarning, stacklevel=2)
    return PCGResult(x, residuals, iterations, converged)


def _dot(a: Tensor, b: Tensor) -> float:
    return float((a.double() * b.double()).sum())


def _norm(a: Tensor) -> float:
    return float(torch.linalg.vector_norm(a, dtype=torch.float64))


def _positive(value: float, what: str) -> float:
    if not 0 < value < float("inf"):
        raise InputError(f"{what} is not positive definite (a quadratic form came out as {value:.3g}); add damping")
    return value


def _finite(value: float) -> float:
    if not value < float("inf"):
        raise InputError("conjugate gradients met values that are not finite; look for broken inputs or an overflow")
    return value
