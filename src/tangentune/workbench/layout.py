"""Pictures as points in a plane: the two directions along which the model's kernel tells them apart most."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tangentune.estimators.fitted import FittedModel, solved
from tangentune.solvers.lanczos import lanczos_pairs
from tangentune.workbench.figures import positions_of

STEPS = 40  # of Lanczos: products with the kernel


@final
@dataclass(frozen=True)
class Point:
    """A picture on the map."""

    number: int
    id: str
    x: float
    y: float
    label: str
    margin: float  # probability of its label, left out, less that of the likeliest other class; below 0 is a mistake
    error: float  # squared distance of its label from the prediction without it


@final
@dataclass(frozen=True, eq=False)
class Components:
    """Two directions of a centred kernel of n pictures: a place in the plane for these and for any other one."""

    vectors: Tensor  # (n, 2)
    roots: Tensor  # (2,) of the eigenvalues; 0 where there is no second direction
    mean: Tensor  # (n,) of the kernel's rows
    numbers: NDArray[np.int64]  # (n,) of the pictures

    def place(self, kernel: Tensor) -> Tensor:
        """(m, 2) of other pictures by their kernel (m, n) with those of the components."""
        centred = kernel - kernel.mean(1, keepdim=True) - self.mean + self.mean.mean()
        return centred @ self.vectors / torch.where(self.roots > 0, self.roots, 1.0)


def components(fitted: FittedModel) -> Components:
    """Of the kernel of the pictures that count; their labels play no part. Cost `STEPS` n^2."""
    kernel, like = solved(fitted).system.kernel, solved(fitted).system.targets
    mean = kernel @ torch.full_like(like[:, 0], 1 / len(kernel))

    def product(v: Tensor) -> Tensor:
        """The centred kernel, not formed, times a vector."""
        found = kernel @ (v - v.mean())
        return found - found.mean()

    start = torch.randn(len(kernel), generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(like)
    values, vectors = lanczos_pairs(product, start - start.mean(), STEPS)
    two = torch.zeros(len(kernel), 2).to(like)
    roots = torch.zeros(2).to(like)
    found = min(2, len(values))
    two[:, :found], roots[:found] = vectors[:found].T, values[:found].sqrt()
    largest = two.abs().argmax(0)
    two = two * torch.sign(two[largest, [0, 1]] + (roots == 0))  # a sign that does not depend on the start
    return Components(two, roots, mean, fitted.numbers)


def points(fitted: FittedModel, found: Components) -> list[Point]:
    """Every picture of the model in the plane of components that were found before, perhaps of other pictures."""
    where = _places(fitted, found)
    given, proba, loo = positions_of(fitted), fitted.outcome.proba, fitted.outcome.loo
    own = proba[np.arange(len(given)), given]
    others = proba.copy()
    others[np.arange(len(given)), given] = -1
    margin = own - others.max(1)
    error = (solved(fitted).targets.targets.numpy() - loo) ** 2
    columns_of = (fitted.numbers.tolist(), fitted.ids, where[:, 0].tolist(), where[:, 1].tolist())
    names = [str(name) for name in fitted.active.labels.tolist()]
    return [Point(*row) for row in zip(*columns_of, names, margin.tolist(), error.sum(1).tolist(), strict=True)]


def _places(fitted: FittedModel, found: Components) -> NDArray[np.float64]:
    """(n, 2) of the pictures of a model; those that came later by their kernel with those of the components."""
    own = {number: i for i, number in enumerate(found.numbers.tolist())}
    rows = [own.get(number, -1) for number in fitted.numbers.tolist()]
    where = (found.vectors * found.roots)[rows]
    late = [i for i, row in enumerate(rows) if row < 0]
    if late:
        known = {number: i for i, number in enumerate(fitted.training.numbers.tolist())}
        columns = torch.tensor([known[number] for number in own])
        kernel = fitted.training.kernel[torch.from_numpy(fitted.active.positions[late])]
        where[late] = found.place(kernel[:, columns])
    return where.cpu().numpy()
