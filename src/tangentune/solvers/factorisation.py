"""The one place where matrices are factored: in float64 unless told, tried again before it fails, no raw error.

LAPACK's fastest drivers, by divide and conquer, now and then give up on matrices of low rank or bad scale; slower ones
do not. What no driver factors as it is gets a little more on its diagonal, and a RuntimeWarning tells how much. Of a
symmetric matrix the lower triangle is read and stands for the whole: rounding in the other one does no harm. Nobody
else calls `torch.linalg` for these (`tests/test_house.py`). `what` names the matrix in messages.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any

import numpy as np
import scipy.linalg
import torch
from torch import Tensor

from tangentune.errors import InputError, SingularError

SINGULAR = "{} cannot be factored in float64: singular, or badly scaled; use a larger damping"
JITTERS = (1e-14, 1e-12, 1e-10, 1e-8)  # of the largest entry on the diagonal
EIGH_DRIVERS = [partial(scipy.linalg.eigh, driver=name) for name in ("evr", "ev")]
SVD_DRIVERS = [partial(scipy.linalg.svd, full_matrices=False, lapack_driver=name) for name in ("gesdd", "gesvd")]


def eigh(matrix: Tensor, what: str, *, quick: bool = False) -> tuple[Tensor, Tensor]:
    """Eigenvalues (..., n), ascending, and eigenvectors (..., n, n) of symmetric matrices; about 10 n^3.

    `quick` tries their own precision first, and gives their own back: twice as fast, where rounding is no error.
    """
    own, matrix = matrix, _finite(matrix, what)
    for attempt in (own, matrix) if quick else (matrix,):
        with suppress(torch.linalg.LinAlgError):
            values, vectors = torch.linalg.eigh(attempt)
            if attempt is matrix or bool(torch.isfinite(values).all()):
                break
    else:
        values, vectors = _one_by_one(matrix, what, EIGH_DRIVERS)
    return (values.to(own), vectors.to(own)) if quick else (values, vectors)


def svd(matrix: Tensor, what: str) -> tuple[Tensor, Tensor, Tensor]:
    """Thin singular value decomposition `U diag(s) V^T` of (m, n): U, s, V^T."""
    matrix = _finite(matrix, what)
    try:
        left, values, right = torch.linalg.svd(matrix, full_matrices=False)
    except torch.linalg.LinAlgError:
        left, values, right = _one_by_one(matrix, what, SVD_DRIVERS)
    return left, values, right


def cholesky(matrix: Tensor, what: str, *, as_it_is: bool = False) -> Tensor:
    """Lower factor L, `L L^T` being a positive definite matrix (..., n, n); n^3 / 3, differentiable.

    A SingularError where it is not positive definite, with `as_it_is` not even by a rounding error.
    """
    return _factored(torch.linalg.cholesky_ex, _finite(matrix, what), what, () if as_it_is else JITTERS)


def inverse(matrix: Tensor, what: str) -> Tensor:
    """Inverse of (..., n, n), symmetric or not; raises as `cholesky`."""
    return _factored(torch.linalg.inv_ex, _finite(matrix, what), what)


def solve(matrix: Tensor, right: Tensor, what: str, *, left: bool = True) -> Tensor:
    """`matrix^-1 right`, or `right matrix^-1` if not `left`, of (..., n, n), symmetric or not; raises as `cholesky`."""
    right = _finite(right, f"the right-hand side of {what}")
    return _factored(lambda own: torch.linalg.solve_ex(own, right, left=left), _finite(matrix, what), what)


def complement(basis: Tensor, what: str) -> Tensor:
    """Orthonormal (..., n, n - q) of what is orthogonal to the columns of (..., n, q), q <= n."""
    return torch.linalg.qr(_finite(basis, what), mode="complete").Q[..., basis.shape[-1] :]


def _finite(matrix: Tensor, what: str) -> Tensor:
    """In float64, proven finite."""
    if not bool(torch.isfinite(matrix).all()):
        raise InputError(f"{what} holds NaN or infinite values; look for broken pictures or an overflowing network")
    return matrix.double()


def _factored(attempt: Callable[[Tensor], Any], matrix: Tensor, what: str, jitters: tuple[float, ...] = JITTERS) -> Any:
    """The result for stacked matrices; those that fail as they are get the least jitter that helps, which is told.

    `attempt` gives the result, and (...) numbers that are not 0 where it failed.
    """
    found, failed = attempt(matrix)
    if not bool(failed.any()):
        return found
    for jitter in jitters:
        added = _jitter(matrix, jitter)
        found, still = attempt(torch.where((failed != 0)[..., None, None], matrix + added, matrix))
        if not bool(still.any()):
            _tell(what, added)
            return found
    raise SingularError(SINGULAR.format(what))


def _one_by_one(matrix: Tensor, what: str, drivers: list[partial[Any]]) -> Any:
    """Stacked matrices factored on the CPU, each alone, as it is or, if square, with jitter, by any of the drivers."""
    single = matrix.detach().cpu().reshape(-1, *matrix.shape[-2:])
    parts = zip(*(_by_any(own, what, drivers) for own in single), strict=True)
    stacked = [torch.from_numpy(np.stack(part)).to(matrix.device) for part in parts]
    return [part.reshape(*matrix.shape[:-2], *part.shape[1:]) for part in stacked]


def _by_any(matrix: Tensor, what: str, drivers: list[partial[Any]]) -> Any:
    square = len(matrix) == matrix.shape[1]
    for jitter in (0.0, *JITTERS) if square else (0.0,):
        added = _jitter(matrix, jitter) if jitter else torch.zeros(1).to(matrix)
        for driver in drivers:
            with suppress(scipy.linalg.LinAlgError):
                found = driver((matrix + added).numpy())
                if jitter:
                    _tell(what, added)
                return found
    raise SingularError(SINGULAR.format(what))


def _jitter(matrix: Tensor, share: float) -> Tensor:
    """Diagonal matrices of one to two times a share of the largest diagonal entry of each (..., n, n)."""
    scale = matrix.detach().diagonal(dim1=-2, dim2=-1).abs().amax(-1, keepdim=True)
    ramp = torch.linspace(1, 2, matrix.shape[-1]).to(matrix)  # a shift alone would not part equal eigenvalues
    return torch.diag_embed(share * torch.where(scale > 0, scale, 1.0) * ramp)


def _tell(what: str, added: Tensor) -> None:
    message = f"{what} is singular to rounding; up to {float(added.max()):.1e} was added to its diagonal"
    warnings.warn(message, RuntimeWarning, stacklevel=4)
