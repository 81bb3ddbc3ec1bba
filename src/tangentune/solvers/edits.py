"""Edits of a solved least-squares problem, exact: forget, add, relabel and reweight without solving it again.

Each gives a new `System`, the same as `build` on the edited data up to rounding; `system.residual` watches that.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tangentune.errors import InputError
from tangentune.solvers.factorisation import cholesky
from tangentune.solvers.low_rank import FeatureKernel
from tangentune.solvers.row_edits import edited
from tangentune.solvers.system import LEAST_SHARE, System, check_weights, design, refresh, with_inverse

FEW = 8  # gaps among the rows that stay, which are then copied run by run
SHARE = 8  # 1 / the share of the rows below which what they change is added, rather than all calculated anew
TILE = 128  # rows
CORNER = "what an edit changes of the least-squares problem"


def remove(system: System, pictures: Tensor, kernel: Tensor | FeatureKernel | None = None) -> System:
    """The problem without some pictures, named by position; `k^2 R + R^3`, or a new solution where that is cheaper.

    `W'^-1 = W^-1_kk - W^-1_kR (W^-1_RR)^-1 W^-1_Rk` for the kept rows k, the intercept among them, and the removed R.
    `kernel` is what is left of the kernel, where that is at hand already.
    """
    gone = rows_of(system, pictures)
    if not len(gone):
        return system
    n = len(system.kernel)
    stays = torch.ones(n, dtype=torch.bool, device=gone.device)
    stays[gone] = False
    kept = stays.nonzero().flatten()
    weights = system.weights[kept]
    check_weights(weights, system.width)
    if kernel is None:
        kernel = _without(system.kernel, kept)
    targets = system.targets[kept]
    if len(gone) > len(kept) or weights.sum() < LEAST_SHARE * system.weights.sum():
        return refresh(system, kernel=kernel, targets=targets, weights=weights)
    if isinstance(kernel, FeatureKernel):
        return edited([system], kernel, kept, targets, weights)[0]
    assert isinstance(system.inverse, Tensor)
    kept = _with_border(system, kept)
    factor = cholesky(system.inverse[gone][:, gone], CORNER, as_it_is=True)
    strip = torch.linalg.solve_triangular(factor, system.inverse[gone].index_select(1, kept), upper=False)
    inverse = _reduced(system.inverse, kept, strip)
    unknowns = system.unknowns
    step = torch.linalg.solve_triangular(factor, unknowns[gone], upper=False)
    moved = unknowns[kept] - strip.mT @ step
    return with_inverse(system, inverse, moved, kernel=kernel, targets=targets, weights=weights)


def append(
    system: System,
    cross: Tensor,
    own: Tensor,
    targets: Tensor,
    weights: Tensor | None = None,
    kernel: Tensor | FeatureKernel | None = None,
) -> System:
    """The problem with k more pictures at the end; cost `N^2 k` for width 1.

    `cross` (k width, N) and `own` (k width, k width) kernels of the new rows, targets (k width, C), weights (k width,);
    `kernel` the whole one that they make, where that is at hand already.
    """
    assert isinstance(system.kernel, Tensor)
    assert isinstance(system.inverse, Tensor)
    cross, own, targets = (tensor.to(system.kernel) for tensor in (cross, own, targets))
    weights = own.new_ones(len(own)) if weights is None else weights.to(own)
    _check_new(system, cross, own, targets, weights)
    new, old = len(own), len(system.kernel)
    if not new:
        return system
    roots = weights.sqrt()[:, None]
    sides = roots * design(system, cross)
    through = sides @ system.inverse
    schur = roots * own * roots.mT - through @ sides.mT
    schur.diagonal().add_(system.damping)
    factor = cholesky((schur + schur.mT) / 2, CORNER, as_it_is=True)
    # Old rows, new rows, intercept: the update is the square of one strip, with -1 at the new rows.
    strip = torch.cat([through[:, :old], -torch.eye(new).to(own), through[:, old:]], 1)
    strip = torch.linalg.solve_triangular(factor, strip, upper=False)
    inverse = _with_gap(system.inverse, old, new)
    add_square(inverse, strip, 1.0)
    unknowns = system.unknowns
    unmet = torch.linalg.solve_triangular(factor, roots * targets - sides @ unknowns, upper=False)
    gap = torch.zeros_like(targets)
    moved = torch.cat([unknowns[:old], gap, unknowns[old:]]) - strip.mT @ unmet
    if kernel is None:
        kernel = _with_gap(system.kernel, old, new)
        kernel[old:, :old], kernel[:old, old:], kernel[old:, old:] = cross, cross.mT, own
    targets, weights = torch.cat([system.targets, targets]), torch.cat([system.weights, weights])
    return with_inverse(system, inverse, moved, kernel=kernel, targets=targets, weights=weights)


def retarget(system: System, targets: Tensor) -> System:
    """The problem with other targets, (N, C) for any C; cost `N R C` for R rows that change, at most `N^2 C`."""
    targets = targets.to(system.targets)
    if targets.dim() != 2 or len(targets) != len(system.kernel) or not bool(torch.isfinite(targets).all()):
        raise InputError(f"targets must be finite and ({len(system.kernel)}, C), not {tuple(targets.shape)}")
    if isinstance(system.kernel, FeatureKernel):
        stays = torch.arange(len(targets), device=targets.device)
        return edited([system], system.kernel, stays, targets, system.weights)[0]
    if targets.shape != system.targets.shape:
        return with_inverse(system, system.inverse, targets=targets)
    changed = (targets != system.targets).any(1).nonzero().flatten()
    if len(changed) * SHARE > len(targets):
        return with_inverse(system, system.inverse, targets=targets)
    moved = system.roots[changed, None] * (targets[changed] - system.targets[changed])
    unknowns = system.unknowns + system.inverse[changed].mT @ moved
    return with_inverse(system, system.inverse, unknowns, targets=targets)


def reweight(system: System, weights: Tensor) -> System:
    """The problem with other sample weights (N,), 0 leaving a row out; `4 N^2 R` multiply-adds for R changed ones.

    Their rows are taken out of the inverse and put back; where solving anew is cheaper, that.
    """
    weights = weights.to(system.targets)
    if weights.shape != system.weights.shape or not bool(torch.isfinite(weights).all()):
        raise InputError(f"weights must be {len(system.kernel)} finite numbers, one a row, not {tuple(weights.shape)}")
    check_weights(weights, system.width)
    same = weights == system.weights
    changed = (~same).nonzero().flatten()
    if not len(changed):
        return system
    share = system.weights[same].sum() / system.weights.sum()
    if 4 * len(changed) > len(weights) or share < LEAST_SHARE:
        return refresh(system, weights=weights)
    if isinstance(system.kernel, FeatureKernel):
        stays = torch.arange(len(weights), device=weights.device)
        return edited([system], system.kernel, stays, system.targets, weights)[0]
    return with_inverse(system, _reweighted(system, weights, changed), weights=weights)


def rows_of(system: System, pictures: Tensor) -> Tensor:
    """Rows of pictures, ascending, each once."""
    if pictures.dtype == torch.bool or pictures.is_floating_point():
        raise InputError(f"pictures are named by their positions, as integers, not by {pictures.dtype}")
    found = torch.unique(pictures.to(system.targets.device))
    if len(found) and not (found[0] >= 0 and found[-1] < system.pictures):
        wrong = int(found[0] if found[0] < 0 else found[-1])
        raise InputError(f"there is no picture {wrong}; positions go from 0 to {system.pictures - 1}")
    return (found[:, None] * system.width + torch.arange(system.width, device=found.device)).flatten()


def _without(kernel: Tensor | FeatureKernel, kept: Tensor) -> Tensor | FeatureKernel:
    return kernel.select(kept) if isinstance(kernel, FeatureKernel) else submatrix(kernel, kept)


def submatrix(matrix: Tensor, kept: Tensor) -> Tensor:
    """`matrix[kept][:, kept]`."""
    if matrix.device.type != "cpu":
        return matrix[kept[:, None], kept]
    # Fresh memory costs more than the copy: one large block (numpy's comes in large pages), strips that stay cached.
    positions, source = kept.numpy(), matrix.numpy()
    out = np.empty((len(positions), len(positions)), source.dtype)
    for low, high, columns in _strips(positions, TILE):
        _gather(out, source, positions, low, high, columns)
    return torch.from_numpy(out)


def add_square(matrix: Tensor, strip: Tensor, sign: float) -> None:
    """Add `sign strip^T strip` in place, the upper triangle calculated and mirrored: exactly symmetric."""
    for low in range(0, len(matrix), TILE):
        high = min(low + TILE, len(matrix))
        part = matrix[low:high, low:].addmm_(strip[:, low:high].mT, strip[:, low:], alpha=sign)
        own = part[:, : high - low]
        own.copy_((own + own.mT) / 2)
        matrix[high:, low:high] = part[:, high - low :].mT


def _reduced(matrix: Tensor, kept: Tensor, strip: Tensor) -> Tensor:
    """`matrix[kept][:, kept] - strip^T strip` of a symmetric matrix, no less symmetric.

    Rows are copied a few at a time and changed while they are cached: from the diagonal on, and mirrored from those
    above. Of one removed row the products are the same on both sides, and to mirror them would take longer.
    """
    if matrix.device.type != "cpu":
        out = submatrix(matrix, kept)
        add_square(out, strip, -1.0)
        return out
    positions, source = kept.numpy(), matrix.numpy()
    array = np.empty((len(positions), len(positions)))
    out = torch.from_numpy(array)
    if len(strip) == 1:
        for low, high, columns in _strips(positions, TILE // 2):
            _gather(array, source, positions, low, high, columns)
            out[low:high].addmm_(strip[:, low:high].mT, strip, alpha=-1.0)
        return out
    for low in range(0, len(positions), TILE):
        high = min(low + TILE, len(positions))
        part = torch.from_numpy(np.take(source[positions[low:high]], positions[low:], 1, mode="clip"))
        part.addmm_(strip[:, low:high].mT, strip[:, low:], alpha=-1.0)
        own = part[:, : high - low]
        own.copy_((own + own.mT) / 2)
        out[low:high, low:] = part
        out[low:high, :low] = out[:low, low:high].mT
    return out


Runs = list[tuple[int, int]]  # where neighbours begin and end


def _strips(positions: NDArray[np.int64], height: int) -> Iterator[tuple[int, int, Runs]]:
    """Strips of rows of at most a height; with each the runs of columns that stay neighbours, none where many do not.

    A strip then lies within one run as well.
    """
    cuts = (np.flatnonzero(np.diff(positions) != 1) + 1).tolist()
    runs = list(pairwise([0, *cuts, len(positions)])) if len(cuts) <= FEW else []
    for start, stop in runs or [(0, len(positions))]:
        for low in range(start, stop, height):
            yield low, min(low + height, stop), runs


def _gather(out: NDArray, source: NDArray, positions: NDArray[np.int64], low: int, high: int, runs: Runs) -> None:
    """A strip of rows and all columns at some positions; neighbours are copied together, which is quicker."""
    if not runs:  # other modes would buffer it
        np.take(source[positions[low:high]], positions, 1, out=out[low:high], mode="clip")
        return
    rows = source[positions[low] : positions[low] + high - low]
    for first, last in runs:
        out[low:high, first:last] = rows[:, positions[first] : positions[first] + last - first]


def _reweighted(system: System, weights: Tensor, changed: Tensor) -> Tensor:
    """The inverse with other weights on some rows: taken out as by `remove`, put back in place as by `append`."""
    assert isinstance(system.kernel, Tensor)
    assert isinstance(system.inverse, Tensor)
    roots = weights.sqrt()
    out = _empty(system.inverse, len(system.inverse)).copy_(system.inverse)
    factor = cholesky(out[changed][:, changed], CORNER, as_it_is=True)
    add_square(out, torch.linalg.solve_triangular(factor, out[changed], upper=False), -1.0)
    out[changed] = 0
    out[:, changed] = 0
    sides = roots[changed, None] * system.kernel[changed] * roots
    own = sides[:, changed]
    own.diagonal().add_(system.damping)
    if system.intercept:
        sides = torch.cat([sides, roots[changed, None]], 1)
    through = sides @ out
    schur = own - through @ sides.mT
    factor = cholesky((schur + schur.mT) / 2, CORNER, as_it_is=True)
    through[:, changed] = -torch.eye(len(changed)).to(through)
    add_square(out, torch.linalg.solve_triangular(factor, through, upper=False), 1.0)
    return out


def _empty(like: Tensor, size: int) -> Tensor:
    """Square matrix, not filled; in large pages on the CPU."""
    return like.new_empty(size, size) if like.device.type != "cpu" else torch.from_numpy(np.empty((size, size)))


def _with_gap(inverse: Tensor, at: int, wide: int) -> Tensor:
    """A copy with `wide` rows and columns of zeros before position `at`."""
    out = _empty(inverse, len(inverse) + wide)
    out[at : at + wide] = 0
    out[:, at : at + wide] = 0
    out[:at, :at] = inverse[:at, :at]
    out[at + wide :, :at] = inverse[at:, :at]
    out[:at, at + wide :] = inverse[:at, at:]
    out[at + wide :, at + wide :] = inverse[at:, at:]
    return out


def _with_border(system: System, rows: Tensor) -> Tensor:
    """Rows, and the intercept's if there is one."""
    return torch.cat([rows, rows.new_tensor([len(system.kernel)])]) if system.intercept else rows


def _check_new(system: System, cross: Tensor, own: Tensor, targets: Tensor, weights: Tensor) -> None:
    n, k, outputs = len(system.kernel), len(own), system.targets.shape[1]
    shapes = [tuple(tensor.shape) for tensor in (cross, own, targets, weights)]
    if shapes != [(k, n), (k, k), (k, outputs), (k,)] or k % system.width:
        raise InputError(
            f"k new rows need kernels (k, {n}) and (k, k), targets (k, {outputs}) and weights (k,), k a multiple of "
            f"{system.width}, not {', '.join(map(str, shapes))}"
        )
    if not all(bool(torch.isfinite(tensor).all()) for tensor in (cross, own, targets, weights)):
        raise InputError("kernels, targets and weights of new pictures must be finite; look for broken pictures")
    if not bool((weights >= 0).all()):
        raise InputError("sample weights must not be negative; 0 leaves a picture out")
