"""Error bars without the training pictures: the leading directions of a fit's inverse as further columns of weights.

The variance that pictures take off the prior is `b(x)^T W^-1 b(x)` with `b(x) = [k(x, X) D^1/2, 1]`. With the
eigenvectors `u_j` of the inverse and its eigenvalues `m_j` it is `sum_j m_j (u_j^T b(x))^2`, and `u_j^T b(x)` is a
score like any other: the weights of a dual solution `D^1/2 u_j`. All n + 1 directions are exact; a file has room for
a few. Those left out take nothing off, so that the bars are too wide, never too narrow.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import final

import torch
from torch import Tensor

from tangentune.errors import InputError
from tangentune.estimators.fitted import FittedModel, solved, with_rows
from tangentune.estimators.training_set import PictureReader
from tangentune.kernels.feature_map import TangentMap, TangentModel, primal
from tangentune.solvers.factorisation import eigh
from tangentune.solvers.posterior import noise_variance
from tangentune.solvers.system import design

MOST = 64  # directions, each as large as the weights of one class


@final
@dataclass(frozen=True, eq=False)
class ErrorBars:
    """`std_c = sqrt(scale_c (own(x) - sum_j signs_j score_j(x)^2))` of the scores of `columns`."""

    columns: TangentModel
    signs: Tensor  # (M,) of the eigenvalues, whose sizes are in the weights
    scale: Tensor  # (C,) noise / damping

    def deviations(self, scores: Tensor, own: Tensor) -> Tensor:
        """(n, C) standard deviations from scores (n, M) and each picture's kernel with itself (n,)."""
        left = (own - (self.signs.to(scores) * scores.square()).sum(1)).clamp_min(0)
        return (left[:, None] * self.scale.to(scores)).sqrt()


def error_bars(fitted: FittedModel, reader: PictureReader, most: int = MOST) -> ErrorBars:
    """The directions that take most off the variance of the training pictures; cost n^3, and one pass over their rows.

    Raises:
        InputError: the model has no pictures, a source, landmarks, or scales that its lengths do not share.
    """
    fitted.check_pictures()
    system = solved(fitted).system
    if fitted.training.source is not None or not isinstance(system.inverse, Tensor):
        raise InputError("error bars of a fit with a source or on landmarks are not in files; ask the model itself")
    body_share(fitted.feature_map)
    fitted = with_rows(fitted, reader)
    values, vectors = eigh(system.inverse, "the inverse of a fit")
    assert isinstance(system.kernel, Tensor)
    seen = design(system, system.kernel) @ vectors
    taken = values * seen.square().mean(0)
    taken[values < 0] = torch.inf  # the intercept's, which adds variance, is never left out
    kept = taken.argsort(descending=True)[:most]
    columns = vectors[:, kept] * values[kept].abs().sqrt()
    dual = columns.new_zeros(len(fitted.training), len(kept))
    dual[torch.from_numpy(fitted.active.positions)] = system.roots[:, None] * columns[:-1]
    model = primal(fitted.feature_map, fitted.rows(reader).parts(fitted.training), dual, columns[-1])
    return ErrorBars(model, values[kept].sign(), noise_variance(system) / system.damping)


def body_share(own: TangentMap) -> float:
    """A body row's kernel with itself where the map normalises, less the body's scale: one number for all pictures."""
    names = [name for name, length in own.length_scales.items() if length]
    shares = [own.block_scales[name] / own.length_scales[name] for name in names]
    if own.normalize and shares and max(shares) - min(shares) > 1e-9 * max(shares):
        raise InputError("error bars of a fit whose block scales were learnt are not in files; ask the model itself")
    return shares[0] if shares else 0.0


def stacked(first: TangentModel, second: TangentModel) -> TangentModel:
    """Two functions of one map as one with the columns of both."""
    body = {name: torch.cat([weights, second.body[name]]) for name, weights in first.body.items()}
    intercept = torch.cat([first.intercept, second.intercept.to(first.intercept)])
    return replace(first, intercept=intercept, head=torch.cat([first.head, second.head]), body=body)
