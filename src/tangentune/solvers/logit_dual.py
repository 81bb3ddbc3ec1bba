"""The exact solution for logits in the dual: `c = (K + damping I)^{-1} r`, tangent `u = J^T c`; exact leave-one-out.

`K = J J^T` couples pictures and outputs, (n C, n C); one eigendecomposition serves every damping (papers.md section
7). Minimises `1/2 sum_i ||J_i u - r_i||^2 + damping/2 ||u||^2` with r = targets - f0. There is no free intercept:
the head's bias is part of u and penalised like the rest.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from tangentune.errors import InputError


@final
@dataclass(frozen=True, eq=False)
class DualFactor:
    """Eigenpairs of K.

    Attributes:
        values: (n C,) eigenvalues, ascending, not negative.
        vectors: (n C, n C) eigenvectors; row i C + c belongs to picture i, output c.
        outputs: C.
    """

    values: Tensor
    vectors: Tensor
    outputs: int

    @property
    def mean_eigenvalue(self) -> float:
        """`trace(J J^T) / (n C)`: the unit of relative damping."""
        return float(self.values.mean())


@final
@dataclass(frozen=True, eq=False)
class DualSolution:
    """A solved problem.

    Attributes:
        dual: (n, C) coefficients c; the tangent is `J^T c`, the fit at the training pictures `r - damping c`.
        loo: (n, C) what `J u` is at every picture when it is fitted without it; add f0 for outputs. Exact.
        damping: the one it was solved for.
    """

    dual: Tensor
    loo: Tensor
    damping: float


def factor_dual(kernel: Tensor, outputs: int) -> DualFactor:
    """Factor the Gram matrix (n C, n C) of the logits; (n C)^3 once, in float64.

    Raises:
        InputError: the matrix is not square, no multiple of C, or not finite.

    Example:
        >>> factor = factor_dual(torch.eye(4), outputs=2)
        >>> solve_dual(factor, torch.ones(2, 2), damping=1.0).dual.tolist()
        [[0.5, 0.5], [0.5, 0.5]]
    """
    if kernel.dim() != 2 or kernel.shape[0] != kernel.shape[1] or not len(kernel) or len(kernel) % outputs:
        message = f"the Gram matrix of n pictures and {outputs} outputs is (n C, n C), not {tuple(kernel.shape)}"
        raise InputError(message)
    if not bool(torch.isfinite(kernel).all()):
        message = "the Gram matrix holds NaN or infinite values; look for broken pictures or an overflowing network"
        raise InputError(message)
    values, vectors = torch.linalg.eigh(kernel.double())
    return DualFactor(values.clamp_min(0), vectors, outputs)


def solve_dual(factor: DualFactor, residuals: Tensor, damping: float) -> DualSolution:
    """Solve for r = targets - f0, (n, C), at one damping; cost `(n C)^2 C`.

    Leave-one-out leaves out whole pictures, all outputs at once: `J_i u_{-i} = r_i - ([G^{-1}]_{ii})^{-1} c_i` with
    C x C blocks of the inverse of `G = K + damping I`.

    Raises:
        InputError: the damping is not positive, or the residuals have another shape.
    """
    inverse = 1 / _spectrum(factor, damping)
    r = _checked(factor, residuals)
    dual = (factor.vectors @ (inverse * (factor.vectors.T @ r.reshape(-1)))).reshape(r.shape)
    rows = factor.vectors.unflatten(0, r.shape)
    blocks = (rows * inverse) @ rows.mT
    error = torch.linalg.solve(blocks, dual)
    return DualSolution(dual, r - error, damping)


def loo_errors(factor: DualFactor, residuals: Tensor, dampings: Tensor) -> Tensor:
    """Mean over pictures of the squared leave-one-out error, all outputs summed, for each damping: (k,).

    Raises:
        InputError: as `solve_dual`.
    """
    r = _checked(factor, residuals)
    found = [solve_dual(factor, r, damping).loo for damping in dampings.tolist()]
    return torch.stack([(loo - r).square().sum(1).mean() for loo in found])


def log_evidence(factor: DualFactor, residuals: Tensor, dampings: Tensor) -> Tensor:
    """Log density of r under `N(0, t (K + damping I))` for each damping, the common scale t at its optimum: (k,).

    Cost `(n C)^2` once and `n C` a damping (papers.md 7.2).

    Raises:
        InputError: as `solve_dual`.
    """
    projected = factor.vectors.T @ _checked(factor, residuals).reshape(-1)
    out = []
    for damping in dampings.tolist():
        spectrum = _spectrum(factor, damping)
        scale = (projected.square() / spectrum).mean()
        out.append(-0.5 * (len(spectrum) * (1 + torch.log(2 * torch.pi * scale)) + spectrum.log().sum()))
    return torch.stack(out)


def _spectrum(factor: DualFactor, damping: float) -> Tensor:
    if not damping > 0:
        message = f"damping is {damping}; it must be positive"
        raise InputError(message)
    return factor.values + damping


def _checked(factor: DualFactor, residuals: Tensor) -> Tensor:
    shape = (len(factor.values) // factor.outputs, factor.outputs)
    if tuple(residuals.shape) != shape:
        message = f"residuals are {tuple(residuals.shape)}; the Gram matrix was made for {shape}"
        raise InputError(message)
    return residuals.to(factor.values)
