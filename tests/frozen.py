"""Fits of a frozen feature map to other pictures, from explicit features: what edits and explanations must equal."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from reference import dense_solve, rebalanced
from sklearn.utils.class_weight import compute_sample_weight
from small import fitted_features, normalised
from torch import Tensor

_KNOWN: dict[int, tuple[Any, dict[bytes, Tensor]]] = {}  # with the map itself, so that its id stays its own


@dataclass(frozen=True, eq=False)
class Frozen:
    """Rows (n, p), targets (n, C), weights (n,) and damping; every method solves its problem outright."""

    rows: Tensor
    targets: Tensor
    weights: Tensor
    damping: float
    balanced: bool = False  # weights of fewer pictures are taken anew

    def solution(self, without: Any = ()) -> tuple[Tensor, Tensor]:
        """Dual coefficients (n, C), 0 for the absent and weightless, and the intercept (C,)."""
        there = torch.ones_like(self.weights, dtype=torch.bool)
        there[np.asarray(without, int)] = False
        weights = rebalanced(self.weights, self.targets, there) if self.balanced else self.weights
        kept = there & (weights > 0)
        rows, dual = self.rows[kept], torch.zeros_like(self.targets)
        dual[kept], bias = dense_solve(rows @ rows.T, self.targets[kept], self.damping, weights[kept])
        return dual, bias

    def predict(self, new: Tensor, without: Any = ()) -> Tensor:
        dual, bias = self.solution(without)
        return bias + new @ (self.rows.T @ dual)

    def leave_out(self, groups: NDArray) -> Tensor:
        """Predictions for every picture by the fit without its group."""
        out = torch.empty_like(self.targets)
        for group in np.unique(groups):
            own = np.flatnonzero(groups == group)
            out[own] = self.predict(self.rows[own], own)
        return out

    def loo(self) -> Tensor:
        return self.leave_out(np.arange(len(self.rows)))


def frozen(model: Any, x: NDArray, y: NDArray, weights: NDArray | None = None) -> Frozen:
    """The problem of a fitted model's map and damping with these pictures, labels and sample weights."""
    given = np.ones(len(y)) if weights is None else weights
    if hasattr(model, "classes_"):
        positions = torch.from_numpy(np.unique(y, return_inverse=True)[1])
        targets = torch.nn.functional.one_hot(positions).double()
        named: Any = model.class_weight
        if isinstance(named, dict):
            given = given * np.array([named.get(name, 1.0) for name in y.tolist()])
        else:
            given = given * balance(named, y, given)
    else:
        targets = torch.from_numpy(y.reshape(len(y), -1).astype(float))
    return Frozen(rows_of(model, x), targets, torch.from_numpy(given), model.damping_, model.class_weight == "balanced")


def balance(named: str | None, y: NDArray, given: NDArray) -> NDArray:
    """Class weights (n,), pictures of weight 0 not counted."""
    out = np.ones(len(y))
    out[given > 0] = compute_sample_weight(named, y[given > 0])
    return out


def rows_of(model: Any, x: NDArray) -> Tensor:
    """Explicit features (n, p) of pictures in a model's map; those taken before are remembered."""
    known = _KNOWN.setdefault(id(model.model_.map), (model.model_.map, {}))[1]
    names = [picture.tobytes() for picture in x]
    new = [i for i, name in enumerate(names) if name not in known]
    if new:
        known |= dict(zip([names[i] for i in new], fitted_features(model, normalised(x[new])), strict=True))
    return torch.stack([known[name] for name in names])


def scores(model: Any, x: Any) -> NDArray:
    """Raw scores (m, C)."""
    return model._scores(x)
