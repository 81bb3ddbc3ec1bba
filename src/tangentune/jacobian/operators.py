"""A linearised network over a whole data set as operators on flat vectors, as the solvers want them."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import final

import torch
from torch import Tensor

from tangentune.errors import InputError
from tangentune.jacobian.kfac import KroneckerCurvature
from tangentune.jacobian.linearization import Linearization
from tangentune.networks.network_function import Inputs


@final
class NormalOperator:
    """`v -> J^T J v + damping v` over all batches, on flat vectors; and what turns vectors into tangents and back.

    Args:
        linearization: the network.
        batches: inputs, read once a product.
        damping: added to the diagonal, in the units of the sum over samples and outputs.

    Attributes:
        passes: products so far: each one dual forward and one backward over all data.

    Raises:
        InputError: the damping is negative.

    Example:
        >>> from torch import nn
        >>> from tangentune.solvers.pcg import pcg
        >>> lin, x = Linearization(nn.Linear(3, 2).double()), torch.randn(5, 3).double()
        >>> normal = NormalOperator(lin, [x], damping=0.1)
        >>> b = normal.pull_back([torch.ones(5, 2).double()])
        >>> pcg(normal, b, max_iterations=20).converged
        True
    """

    def __init__(self, linearization: Linearization, batches: Collection[Inputs], damping: float):
        if damping < 0:
            message = f"damping is {damping}; it must not be negative"
            raise InputError(message)
        self.linearization, self.batches, self.damping = linearization, batches, damping
        self.passes = 0

    def __call__(self, v: Tensor) -> Tensor:
        """One product, (p,) to (p,); batches are summed in float64."""
        tangent, total = self.tangent(v), self.damping * v.double()
        for x in self.batches:
            total += flatten(self.linearization.normal(x, tangent))
        self.passes += 1
        return total.to(v)

    def pull_back(self, cotangents: Sequence[Tensor]) -> Tensor:
        """`J^T r` (p,), for r given batch by batch, (n, C) each."""
        total = torch.zeros((), dtype=torch.float64)
        for x, r in zip(self.batches, cotangents, strict=True):
            total = total + flatten(self.linearization.vjp(x, r)).double()
        return total.to(next(iter(self.linearization.point().values())))

    def tangent(self, v: Tensor) -> dict[str, Tensor]:
        """A flat vector by parameter name."""
        shapes = {name: p.shape for name, p in self.linearization.point().items()}
        return unflatten(v, shapes)

    def preconditioner(self, curvature: KroneckerCurvature) -> _Inverse:
        """`r -> (M + damping I)^{-1} r` on flat vectors, at this operator's damping."""
        return _Inverse(self, curvature)


@final
class _Inverse:
    def __init__(self, normal: NormalOperator, curvature: KroneckerCurvature):
        self.normal, self.curvature = normal, curvature

    def __call__(self, r: Tensor) -> Tensor:
        solved = self.curvature.solve(self.normal.tangent(r), self.normal.damping)
        return flatten({name: solved[name] for name in self.normal.linearization.names})


def flatten(v: Mapping[str, Tensor]) -> Tensor:
    """All tensors end to end, (p,)."""
    return torch.cat([tensor.reshape(-1) for tensor in v.values()])


def unflatten(v: Tensor, shapes: Mapping[str, torch.Size]) -> dict[str, Tensor]:
    """The inverse of `flatten`: views of v."""
    parts = v.split([shape.numel() for shape in shapes.values()])
    return {name: part.reshape(shape) for part, (name, shape) in zip(parts, shapes.items(), strict=True)}
