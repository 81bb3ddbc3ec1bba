"""A least-squares problem kept with its inverse: every edit and every explanation is algebra on the two.

Minimises `1/2 sum_i a_i ||y_i - b - f(x_i)||^2 + damping/2 ||f||^2`. With `D = diag(a)` and `d = sqrt(a)` the symmetric
system `W [e; b] = [D^1/2 y; 0]`, `W = [[D^1/2 K D^1/2 + damping I, d], [d^T, 0]]`, gives `c = D^1/2 e` and
`f(x) = b + k(x, X) c`. Nothing is divided by a weight: at weight 0 a row decouples, as if it were not there.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, final

import torch
from torch import Tensor

from tangentune.errors import InputError, SingularError
from tangentune.solvers.factorisation import cholesky
from tangentune.solvers.low_rank import FeatureInverse, FeatureKernel, sums_of
from tangentune.solvers.sums import TangentSums

SPOTS = 32  # rows and columns
LEAST_SHARE = 1e-3  # of the weight: below it what stays determines an old inverse too poorly to start an edit from it
SINGULAR = "damping {:g} leaves the least-squares problem singular; use a larger damping"


@final
@dataclass(frozen=True, eq=False)
class System:
    """A solved problem with the inverse of its matrix; picture i owns the rows from i width to (i + 1) width.

    One kernel for all outputs: width 1, C columns of targets. Logits, whose kernel `J J^T` couples outputs: width C,
    one column of residuals `y - f0`, no intercept; the tangent is `J^T c`.

    Kernel and inverse are matrices, or, of very many pictures, what stands for them on feature rows (`low_rank.py`).
    """

    kernel: Tensor | FeatureKernel  # (N, N) float64; N is the number of pictures times `width`
    inverse: Tensor | FeatureInverse  # (N+1, N+1) of W, the intercept last; (N, N) without intercept
    targets: Tensor  # (N, C)
    weights: Tensor  # (N,) a, not negative; 0 leaves the row out
    damping: float  # positive, absolute
    intercept: bool  # whether there is an unpenalised b
    width: int  # rows of a picture
    dual: Tensor  # (N, C) c
    bias: Tensor  # (C,) b; zeros without intercept

    @property
    def pictures(self) -> int:
        """n: their number."""
        return len(self.kernel) // self.width

    @property
    def roots(self) -> Tensor:
        """(N,) square roots of the weights."""
        return self.weights.sqrt()

    @property
    def unknowns(self) -> Tensor:
        """`[e; b]`, (N+1, C), or e without intercept: what `inverse` times the right-hand side gives."""
        roots = self.roots[:, None]
        e = torch.where(roots > 0, self.dual / roots, 0.0)
        return torch.cat([e, self.bias[None]]) if self.intercept else e


def build(
    kernel: Tensor | FeatureKernel,
    targets: Tensor,
    damping: float,
    weights: Tensor | None = None,
    *,
    intercept: bool = True,
    width: int = 1,
) -> System:
    """Solve a problem and invert its matrix: one Cholesky factorisation, N^3 multiply-adds in all.

    Kernel (N, N) positive semi-definite, targets (N, C), damping absolute, weights (N,) not negative, None being ones.
    On D features a row, with an intercept and one row a picture, N D^2 + D^3.
    """
    if isinstance(kernel, FeatureKernel):
        return build_on_rows(kernel, targets, damping, weights)
    kernel, targets = kernel.double(), targets.to(kernel.device, torch.float64)
    weights = kernel.new_ones(len(kernel)) if weights is None else weights.to(kernel)
    _check(kernel, targets, weights, damping, width)
    roots = weights.sqrt()
    matrix = roots[:, None] * kernel * roots
    matrix.diagonal().add_(damping)
    try:
        factor = cholesky(matrix, "the least-squares problem", as_it_is=True)
    except SingularError as error:
        raise SingularError(SINGULAR.format(damping)) from error
    inverse = torch.cholesky_inverse(factor)
    inverse = _bordered(inverse, roots) if intercept else inverse
    # Dual and bias follow.
    unsolved = System(kernel, inverse, targets, weights, damping, intercept, width, targets, targets[0])
    return with_inverse(unsolved, inverse)


def build_on_rows(
    kernel: FeatureKernel,
    targets: Tensor,
    damping: float,
    weights: Tensor | None = None,
    sums: TangentSums | None = None,
) -> System:
    """The same on feature rows, from their `sums` where those are known: n D^2 + D^3."""
    kernel, targets = kernel.measured(), targets.to(kernel.lost)
    weights = torch.ones_like(targets[:, 0]) if weights is None else weights.to(targets)
    _check(kernel, targets, weights, damping, 1)
    try:
        inverse = FeatureInverse.of(kernel, weights, sums or sums_of(kernel, targets, weights), damping)
    except SingularError as error:
        raise SingularError(SINGULAR.format(damping)) from error
    return with_inverse(System(kernel, inverse, targets, weights, damping, True, 1, targets, targets[0]), inverse)


def refresh(system: System, **changes: Any) -> System:
    """The same problem, or one with `changes`, solved anew from its kernel: rounding gathered by edits is gone.

    Feature rows that are the same at another damping keep their sums.
    """
    new = replace(system, **changes)
    if isinstance(system.inverse, FeatureInverse) and changes.keys() == {"damping"}:
        return with_inverse(new, system.inverse.at(new.damping))
    return build(new.kernel, new.targets, new.damping, new.weights, intercept=new.intercept, width=new.width)


def with_inverse(
    system: System, inverse: Tensor | FeatureInverse, unknowns: Tensor | None = None, **changes: Any
) -> System:
    """The problem with `changes` of its fields, whose inverse is known; finding `unknowns` `[e; b]` costs N^2 C."""
    new = replace(system, inverse=inverse, **changes)
    n, roots = len(new.kernel), new.roots[:, None]
    if isinstance(inverse, FeatureInverse):  # of each picture, its weighted residual over the damping
        dual = new.weights[:, None] * (new.targets - inverse.fitted) / new.damping
        return replace(new, dual=dual, bias=inverse.coef[0])
    if unknowns is None:
        unknowns = inverse[:, :n] @ (roots * new.targets)
    bias = unknowns[n] if new.intercept else torch.zeros_like(new.targets[0])
    return replace(new, dual=roots * unknowns[:n], bias=bias)


def design(system: System, cross: Tensor) -> Tensor:
    """What multiplies `[e; b]` in predictions: `[k(x, X) D^1/2, 1]`, (m, N+1), or (m, N) without intercept."""
    scaled = checked_cross(system, cross) * system.roots
    return torch.cat([scaled, torch.ones_like(scaled[:, :1])], 1) if system.intercept else scaled


def checked_cross(system: System, cross: Tensor) -> Tensor:
    """The (m, N) kernel between new rows and the system's, in float64."""
    n = len(system.kernel)
    if cross.dim() != 2 or cross.shape[1] != n:
        raise InputError(f"the kernel with the {n} rows of the system must be (m, {n}), not {tuple(cross.shape)}")
    return cross.to(system.targets)


def written_out(system: System) -> Tensor:
    """The kernel as a matrix (N, N); on feature rows N^2 D."""
    return system.kernel[torch.arange(len(system.kernel), device=system.targets.device)]


def fitted(system: System, rows: Tensor | slice = slice(None)) -> Tensor:
    """Predictions at the training pictures, (N, C), or at some rows; N^2 C, feature rows keep them."""
    if isinstance(system.inverse, FeatureInverse):
        return system.inverse.fitted[rows]
    return system.kernel[rows] @ system.dual + system.bias


def rows_at(system: System, row: int) -> tuple[Tensor, Tensor]:
    """A row of the inverse, (N+1,) or (N,), and that of the kernel (N,); one pass over feature rows for both."""
    if isinstance(system.inverse, FeatureInverse):
        return system.inverse.with_kernel(row)
    return system.inverse[row], system.kernel[row]


def residual(system: System, *, inverse: bool = True) -> tuple[float, Tensor]:
    """Relative error of the inverse, on a fixed random vector z, and of the solution; N^2 C. Of that alone, if so told.

    The larger of `|W (W^-1 z) - z| / |z|` and `|W [e; b] - [D^1/2 y; 0]| / |D^1/2 y|`. Rounding alone gives about the
    condition number of W times 1e-16; what exceeds the value after `build` has been gathered by edits. What the
    solution leaves, `W [e; b] - [D^1/2 y; 0]`, comes with it. On feature rows that of their normal equations, D^2 C.
    """
    if isinstance(system.inverse, FeatureInverse):
        return system.inverse.error(check_inverse=inverse)
    n, tiny = len(system.kernel), torch.finfo(torch.float64).tiny
    right = system.targets.new_zeros(len(system.inverse), system.targets.shape[1])
    right[:n] = system.roots[:, None] * system.targets
    found, wanted = system.unknowns, right
    if inverse:
        generator = torch.Generator().manual_seed(0)
        z = torch.randn(len(right), 1, generator=generator, dtype=torch.float64).to(right)
        found, wanted = torch.cat([found, system.inverse @ z], 1), torch.cat([right, z], 1)
    error = _multiplied(system, found) - wanted
    left, columns = error[:, : right.shape[1]], (slice(right.shape[1]), slice(right.shape[1], None))
    sizes = [float(error[:, one].norm() / wanted[:, one].norm().clamp_min(tiny)) for one in columns[: 1 + inverse]]
    return max(sizes), left


def spot_check(system: System) -> float:
    """Largest error of `W W^-1 = I` at a few rows and columns, in units of the identity; N SPOTS^2.

    What edits gather of rounding is spread over all of them, so that a few tell of it.
    """
    n, roots = len(system.kernel), system.roots
    spots = torch.linspace(0, n - 1, min(n, SPOTS), dtype=torch.float64).long().unique().to(roots.device)
    if isinstance(system.inverse, FeatureInverse):
        return system.inverse.error()[0]
    columns = system.inverse[spots].mT
    found = (
        roots[spots, None] * (system.kernel[spots] @ (roots[:, None] * columns[:n])) + system.damping * columns[spots]
    )
    if system.intercept:
        found = found + roots[spots, None] * columns[n:]
    return float((found - torch.eye(len(spots)).to(found)).abs().max())


def refinement(system: System, left: Tensor) -> float:
    """Relative size of one step of iterative refinement: an estimate of the solution's own error; N^2 C.

    `left` is what the solution leaves by `residual`.
    """
    if isinstance(system.inverse, FeatureInverse):
        return system.inverse.refinement(left)
    step = system.inverse @ left
    largest = system.dual.abs().max().clamp_min(torch.finfo(torch.float64).tiny)
    return float((system.roots[:, None] * step[: len(system.kernel)]).abs().max() / largest)


def on_rows(system: System, kernel: FeatureKernel) -> System:
    """The problem on rows of its own, with none beside them of pictures that are gone."""
    assert isinstance(system.inverse, FeatureInverse)
    inverse = system.inverse.on(kernel)
    return replace(system, kernel=kernel, inverse=inverse)


def held(*systems: System | None) -> dict[int, int]:
    """Bytes of all that problems hold beside feature rows, which states of a model have in common, by what tells apart.

    A part that several of them share is there once.
    """
    parts: list[Tensor] = []
    for one in systems:
        if one is not None:
            parts += [one.targets, one.dual, one.weights]
            parts += one.inverse.tensors if isinstance(one.inverse, FeatureInverse) else [one.inverse]
            parts += [one.kernel] if isinstance(one.kernel, Tensor) else []
    return {part.data_ptr(): part.nbytes for part in parts}


def _multiplied(system: System, x: Tensor) -> Tensor:
    """`W x`."""
    n, roots = len(system.kernel), system.roots[:, None]
    top = roots * (system.kernel @ (roots * x[:n])) + system.damping * x[:n]
    return torch.cat([top + roots * x[n:], roots.mT @ x[:n]]) if system.intercept else top


def _bordered(inverse: Tensor, roots: Tensor) -> Tensor:
    """Inverse of `[[A, d], [d^T, 0]]` from that of A, by the Schur complement `-d^T A^-1 d`."""
    n = len(roots)
    column = inverse @ roots
    scale = 1 / (roots @ column)
    out = inverse.new_empty(n + 1, n + 1)
    out[:n, :n] = inverse
    out[:n, :n].addr_(column, column, alpha=-float(scale))
    out[n, :n] = out[:n, n] = scale * column
    out[n, n] = -scale
    return out


def _check(kernel: Tensor | FeatureKernel, targets: Tensor, weights: Tensor, damping: float, width: int) -> None:
    n = len(kernel)
    if isinstance(kernel, Tensor) and (kernel.shape != (n, n) or width < 1 or n % width):
        shape = tuple(kernel.shape)
        raise InputError(f"the kernel of pictures with {width} rows each is square and a multiple of it, not {shape}")
    if targets.dim() != 2 or len(targets) != n or weights.shape != (n,):
        raise InputError(
            f"the kernel has {n} rows; targets must be ({n}, C) and weights ({n},), not {tuple(targets.shape)} and "
            f"{tuple(weights.shape)}"
        )
    for name, tensor in (("kernel", kernel), ("targets", targets), ("weights", weights)):
        if isinstance(tensor, Tensor) and not bool(torch.isfinite(tensor).all()):
            raise InputError(f"the {name} must be finite; look for broken pictures or an overflowing network")
    if not damping > 0:
        raise InputError(f"damping is {damping}; it must be positive")
    check_weights(weights, width)


def check_weights(weights: Tensor, width: int) -> None:
    """Refuse weights that leave no problem: negative ones, or fewer than 2 pictures with any."""
    if not bool((weights >= 0).all()):
        raise InputError("sample weights must not be negative; 0 leaves a picture out")
    left = int((weights.unflatten(0, (-1, width)) > 0).any(1).sum())
    if left < 2:
        raise InputError(
            f"least squares needs at least 2 pictures with positive weight, {left} would be left; keep more"
        )
