"""One use of parameters by one torch function: what every layer rule must provide."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tangentune.jacobian.layers.entry import Entry, Pairs, Rows


@dataclass(frozen=True)
class FactorSample:
    """A batch's share of the K-FAC factors: sums over positions, `a` (groups, i, i), `g` (groups, o, o)."""

    a: Tensor
    g: Tensor
    a_count: int
    g_count: int

    def __add__(self, other: FactorSample) -> FactorSample:
        """Sums over both."""
        counts = (self.a_count + other.a_count, self.g_count + other.g_count)
        return FactorSample(self.a + other.a, self.g + other.g, *counts)


class Use(ABC):
    """A function call whose arguments include tracked parameters.

    `roles` maps the role of a parameter in the call ("weight", "bias") to its tensor. Rules see the
    function's own arguments, never the module, so subclasses that pad or reshape by themselves,
    modules called twice and tied weights need no rule of their own.
    """

    roles: dict[str, Tensor]

    def output(self) -> Tensor | None:
        """The call's output where the rule knows a cheaper way to it; None means: call the function."""
        return None

    @abstractmethod
    def rows(self, role: str, g: Tensor, n: int) -> Entry:
        """Per-sample gradient for one role, from the cotangent `g` of the call's output, `n` samples.

        Raises:
            LayoutError: if the first axis does not hold the samples.
        """

    def matrix(self, role: str) -> tuple[int, int, int] | None:
        """(groups, outputs, inputs) where every position applies these matrices to its input; None otherwise."""
        return None

    def inputs(self, role: str, g: Tensor) -> Tensor:
        """Inputs of a `matrix` role at all positions of all samples: (groups, positions, inputs)."""
        raise NotImplementedError

    def cotangents(self, role: str, g: Tensor) -> Tensor:
        """Cotangents of a `matrix` role in the order of `inputs`: (groups, positions, outputs)."""
        raise NotImplementedError

    def factors(self, role: str, g: Tensor, n: int, positions: int) -> FactorSample | None:
        """K-FAC sums from at most `positions` positions a sample; None means a diagonal metric from rows."""
        return None


class LayoutError(ValueError):
    """The call does not keep samples on its first axis: the parameter needs the generic rule."""


Parser = Callable[..., Use | None]  # None: this call has no rule
RULES: dict[Any, Parser] = {}


def rule(*functions: Any) -> Callable[[Parser], Parser]:
    """Register a parser (same signature as the function) that turns a call into a `Use`."""

    def register(parser: Parser) -> Parser:
        for function in functions:
            RULES[function] = parser
        return parser

    return register


def roles(**tensors: Tensor | None) -> dict[str, Tensor]:
    """Keep the roles that are filled."""
    return {role: tensor for role, tensor in tensors.items() if tensor is not None}


def by_sample(x: Tensor, n: int) -> Tensor:
    """(n * k, ...) -> (n, k * rest...): positions folded into the batch axis belong to their sample."""
    if x.shape[0] == n:
        return x
    if x.shape[0] % n:
        message = f"first axis {x.shape[0]} does not hold {n} samples"
        raise LayoutError(message)
    return x.unflatten(0, (n, -1)).flatten(1, 2)


def vector_rows(values: Tensor) -> Rows:
    """(n, k) gradients of a vector as rows of k scalar blocks."""
    return Rows(values[:, None, :, None, None])


def pairs_or_rows(a: Tensor, g: Tensor) -> Entry:
    """Positions (n, T, i) and (n, T, o): keep them, or contract them when the row is smaller."""
    positions, inputs, outputs = a.shape[1], a.shape[2], g.shape[2]
    if positions * (inputs + outputs) <= inputs * outputs:
        return Pairs(a, g[:, :, None, :])
    return Rows(torch.bmm(g.transpose(1, 2), a)[:, None, None])


def matrix_factors(a: Tensor, g: Tensor, positions: int) -> FactorSample:
    """Sums of `a a^T` and `g g^T` over evenly spaced positions of (n, T, i) and (n, T, o)."""
    step = max(1, -(-a.shape[1] // positions))
    a, g = a[:, ::step].flatten(0, 1), g[:, ::step].flatten(0, 1)
    return FactorSample((a.T @ a)[None], (g.T @ g)[None], len(a), len(g))
