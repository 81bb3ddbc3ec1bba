"""One use of parameters by one torch function: what every layer rule must provide."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor

from tangentune.jacobian.layers.entry import Entry, Pairs, Rows


class Use(ABC):
    """A function call whose arguments include tracked parameters.

    `roles` maps the role of a parameter in the call ("weight", "bias") to its tensor. Rules see the function's own
    arguments, never the module: subclasses that pad by themselves, modules called twice and tied weights need no rule.
    """

    roles: dict[str, Tensor]
    held: Tensor  # inputs of the call, in the precision in which they came

    @property
    def x(self) -> Tensor:
        """Inputs in the parameters' precision, in which rows are; autocast may have rounded them for the call."""
        return self.held.to(next(iter(self.roles.values())).dtype)

    def output(self) -> Tensor | None:
        """The call's output where the rule knows a cheaper way to it; None means: call the function."""
        return None

    @abstractmethod
    def rows(self, role: str, g: Tensor, n: int) -> Entry:
        """Per-sample gradient for one role, from the output's cotangent `g`; LayoutError where samples are lost."""

    def shares(self, role: str) -> bool:
        """Whether the cotangents of several outputs are best turned into rows together, by `rows_together`."""
        return False

    def rows_together(self, role: str, cotangents: list[Tensor], n: int) -> Entry:
        """`rows` of many cotangents, a probe each, for the roles that share work."""
        raise NotImplementedError

    def matrix(self, role: str) -> tuple[int, int, int] | None:
        """(groups, outputs, inputs) where every position applies these matrices to its input; None otherwise."""
        return None

    def inputs(self, role: str, g: Tensor, n: int, most: int | None = None) -> Tensor:
        """Inputs of a `matrix` role (groups, positions, inputs); with `most`, at about so many positions a sample."""
        raise NotImplementedError

    def cotangents(self, role: str, g: Tensor, n: int, most: int | None = None) -> Tensor:
        """Cotangents of a `matrix` role at the same positions: (groups, positions, outputs)."""
        raise NotImplementedError


class LayoutError(ValueError):
    """The call does not keep samples on its first axis: the parameter needs the generic rule."""


RuleT = TypeVar("RuleT", bound=Callable[..., Any])


def registry(table: dict[Any, Any]) -> Callable[..., Callable[[RuleT], RuleT]]:
    """A decorator `rule(function, ...)` that enters a rule, of the functions' own signature, into a table."""

    def rule(*functions: Any) -> Callable[[RuleT], RuleT]:
        def register(given: RuleT) -> RuleT:
            table.update(dict.fromkeys(functions, given))
            return given

        return register

    return rule


RULES: dict[Any, Callable[..., Use | None]] = {}  # turns a call into a `Use`; None: this call has no rule
rule = registry(RULES)


def roles(**tensors: Tensor | None) -> dict[str, Tensor]:
    """Keep the roles that are filled."""
    return {role: tensor for role, tensor in tensors.items() if tensor is not None}


def by_sample(x: Tensor, n: int) -> Tensor:
    """(n * k, ...) -> (n, k * rest...): positions folded into the batch axis belong to their sample."""
    if x.shape[0] == n:
        return x
    if x.shape[0] % n:
        raise LayoutError(f"first axis {x.shape[0]} does not hold {n} samples")
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


def thinned(x: Tensor, most: int | None) -> Tensor:
    """(n, T, k) positions as (1, n T', k), T' at most `most`, evenly spaced."""
    step = 1 if most is None else max(1, -(-x.shape[1] // most))
    return x[:, ::step].reshape(1, -1, x.shape[2])
