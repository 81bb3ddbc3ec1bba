"""What every picture does to a solution, exact and without refitting: leaving it out, influence, share, doubt.

All from one block of the inverse. For the rows I of a picture, `g_I = ([W^-1]_II)^-1 e_I` is the root of the weight
times the residual of the fit without it, and `f(x) - f_-I(x) = [k(x, X) D^1/2, 1] [W^-1]_:I g_I`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tangentune.errors import InputError
from tangentune.solvers.factorisation import cholesky, solve
from tangentune.solvers.low_rank import FeatureInverse
from tangentune.solvers.system import System, checked_cross, design, refresh, rows_at

# Below this share of the largest weight a row's residual is not read off the inverse, where a root of its weight
# would be divided by.
LIGHT = 1e-6


def loo(system: System) -> Tensor:
    """Prediction at every row by the fit without its picture, (N, C); `n width^3 + N C`, width 1 without solves.

    Rows of weight 0 get the plain prediction, which never used them.
    """
    scaled = scaled_residuals(system)
    return _left_out(system, torch.arange(system.pictures, device=scaled.device), scaled.flatten(0, 1))


def leave_out(system: System, groups: Tensor) -> Tensor:
    """Prediction at every row by the fit without its picture's group, (N, C): K folds, a class, one photographer.

    `groups` (n,) integers, one a picture. Cost the sum of `R^3` over groups of R rows.
    """
    groups = groups.to(system.targets.device)
    if groups.shape != (system.pictures,) or groups.is_floating_point():
        raise InputError(f"groups must be {system.pictures} integers, one a picture, not {tuple(groups.shape)}")
    of_row = groups.repeat_interleave(system.width)
    unknowns, scaled = system.unknowns, torch.empty_like(system.targets)
    weighty = system.weights > 0
    for group in torch.unique(of_row).tolist():
        rows = (of_row == group).nonzero().flatten()
        if not bool(weighty[of_row != group].any()):
            raise InputError(f"group {group} holds every picture that has weight; nothing is left to fit without it")
        factor = cholesky(system.inverse[rows][:, rows], "a group's part of the inverse")
        scaled[rows] = torch.cholesky_solve(unknowns[rows], factor)
    return _left_out(system, groups, scaled)


def influence(system: System, cross: Tensor) -> Tensor:
    """Change of predictions by every training picture: `f(x) - f_without_i(x)`, (m, n, C); `m N^2 + m N C`.

    `cross` (m, N) is the kernel between new rows and the system's. Positive: picture i pushes the output up.
    """
    return torch.einsum("mnw,nwc->mnc", _through(system, cross), scaled_residuals(system))


def contributions(system: System, cross: Tensor) -> Tensor:
    """Share of every training picture in predictions: `k(x, x_i) c_i`, (m, n, C); with the bias they sum to f(x)."""
    by_picture = checked_cross(system, cross).unflatten(1, (system.pictures, system.width))
    return torch.einsum("mnw,nwc->mnc", by_picture, system.dual.unflatten(0, (system.pictures, system.width)))


def pair_influence(system: System, picture: int) -> tuple[Tensor, Tensor]:
    """What every picture j does to the prediction at picture i by the fit without i: `f_-i(x_i) - f_-ij(x_i)`, (n, C).

    With it its share in that prediction, `k(x_i, x_j)` times the dual of the fit without i; both 0 for i itself. From
    one row of the inverse, as `B_ij (B_ij e_i - B_ii e_j) / (B_ii B_jj - B_ij^2)` over `B_ii` and the root of the
    weight, `B = W^-1`, and one of the kernel: n C. One row a picture, and not a `light` one.
    """
    n, e = len(system.kernel), system.unknowns[: len(system.kernel)]
    row, kernel = rows_at(system, picture)
    row, diagonal = row[:n], system.inverse.diagonal()[:n]
    own = diagonal[picture]
    minor = own * diagonal - row.square()
    minor[picture] = 1.0
    moved = row[:, None] * (row[:, None] * e[picture] - own * e) / (minor * own * system.roots[picture])[:, None]
    dual = system.roots[:, None] * (e - row[:, None] * (e[picture] / own))
    moved[picture], dual[picture] = 0.0, 0.0
    return moved, kernel[:, None] * dual


def light(system: System, row: int) -> bool:
    """Whether a row has so little weight that its residual is not read off the inverse."""
    return bool(system.weights[row] <= LIGHT * system.weights.max())


def unique_information(system: System, cross: Tensor | None = None) -> Tensor:
    """How much a fit without a picture differs from the fit with it, (n,): its smooth unique information.

    On predictions: the mean over the rows of `cross` (m, N) of `||f - f_-i||^2`, outputs summed; `m N^2`. On weights,
    where `cross` is None: `||u - u_-i||^2`, the squared norm of `f - f_-i` in the kernel's space; `N^2`. Times
    `1 / (2 sigma^2)` it is the divergence of noisy predictions or weights; that factor is left to the caller. For a
    picture of several rows a mean over rows is `width` times smaller than one over new pictures. Source: Harutyunyan et
    al. 2021, "Estimating informativeness of samples with smooth unique information".
    """
    scaled = scaled_residuals(system)
    if cross is not None:
        if not len(cross):
            raise InputError("unique information needs at least one new row to predict")
        through = _through(system, cross)
        squares = torch.einsum("mnv,mnw->nvw", through, through) / len(cross)
    else:
        # u - u_-i has coefficients s = [W^-1]_:I g, and s^T (A - damping) s with s^T A s = g^T [W^-1]_II g.
        n = len(system.kernel)
        inverse = system.inverse
        if isinstance(inverse, FeatureInverse):
            squared = inverse.squared_diagonal()[:, None, None]
        else:
            columns = inverse[:n, :n].unflatten(1, (system.pictures, system.width))
            squared = torch.einsum("knv,knw->nvw", columns, columns)
        squares = diagonal_blocks(system) - system.damping * squared
    return torch.einsum("nvc,nvw,nwc->n", scaled, squares, scaled).clamp_min(0)


def distrusting(system: System, damping: float | None = None) -> System:
    """The problem at its damping or `mean_eigenvalue`, whichever is more, where no label is trusted by itself; N^3.

    With the damping of the lowest error labels are fitted as they are given, mistakes included. Where a picture's
    signal is believed to be as large as its noise, a few more of the mistakes come to the very top by squared distance
    to the leave-one-out prediction, and the rest are ranked as well (docs/results/label_mistakes.md). A `damping` that
    was found so before takes the place of the eigenvalue.
    """
    damping = mean_eigenvalue(system) if damping is None else damping
    return system if damping <= system.damping else refresh(system, damping=damping)


def mean_eigenvalue(system: System) -> float:
    """Mean eigenvalue of the weighted kernel over rows with weight, the intercept's direction projected out; N^2.

    The unit in which relative damping is given.
    """
    weights = system.weights
    trace, count = float(weights @ system.kernel.diagonal()), int((weights > 0).sum())
    if system.intercept:
        # The unit vector of the intercept is roots / |roots|.
        trace, count = trace - float(weights @ (system.kernel @ weights)) / float(weights.sum()), count - 1
    return trace / count


def scaled_residuals(system: System) -> Tensor:
    """`g_I = ([W^-1]_II)^-1 e_I` for every picture, (n, width, C): root of the weight times leave-one-out residual."""
    e = system.unknowns[: len(system.kernel)].unflatten(0, (system.pictures, system.width))
    blocks = diagonal_blocks(system)
    return e / blocks if system.width == 1 else solve(blocks, e, "a picture's part of the inverse")


def diagonal_blocks(system: System) -> Tensor:
    """Blocks `[W^-1]_II` of all pictures, (n, width, width); a view."""
    if isinstance(system.inverse, FeatureInverse):
        return system.inverse.diagonal()[:-1, None, None]
    size, step = (system.pictures, system.width, system.width), len(system.inverse) + 1
    return system.inverse.as_strided(size, (system.width * step, step - 1, 1))


def _through(system: System, cross: Tensor) -> Tensor:
    """`[k(x, X) D^1/2, 1] W^-1` by picture, (m, n, width)."""
    n, inverse = len(system.kernel), system.inverse
    left = design(system, cross)
    reached = left @ inverse[:, :n] if isinstance(inverse, Tensor) else (left @ inverse)[:, :n]
    return reached.unflatten(1, (system.pictures, system.width))


def _left_out(system: System, groups: Tensor, scaled: Tensor) -> Tensor:
    """Predictions without the own group, from scaled residuals (N, C)."""
    light = system.weights <= LIGHT * system.weights.max()
    out = system.targets - scaled / torch.where(light, 1.0, system.roots)[:, None]
    if not bool(light.any()):
        return out
    rows = light.nonzero().flatten()
    out[rows] = torch.addmm(system.bias, system.kernel[rows], system.dual)
    of_row = groups.repeat_interleave(system.width)
    for group in torch.unique(of_row[rows]).tolist():
        members = ((of_row == group) & (system.weights > 0)).nonzero().flatten()
        if len(members):
            mine = rows[of_row[rows] == group]
            out[mine] -= design(system, system.kernel[mine]) @ (system.inverse[members].mT @ scaled[members])
    return out
