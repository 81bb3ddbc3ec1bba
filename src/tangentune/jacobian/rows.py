"""Rows of a network's Jacobian, `J(x)^T c`: of every picture, cotangent c of its outputs, and parameter.

One forward and one backward pass per cotangent and batch, without weight gradients, give the rows of all parameters
whose functions have a layer rule; others go by `vmap(grad)`, or picture by picture. The cotangents are probes of a
feature space, or each output by itself.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import reduce
from operator import add
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.func import grad, vmap

from tangentune._torch import usual_torch
from tangentune.errors import InputError
from tangentune.jacobian.forward_mode import math_attention, weight_gradients
from tangentune.jacobian.kfac_factors import FactorSums, outer_sums
from tangentune.jacobian.layers import Entry, Rows, Use, add_uses, average_views, join_entries, stack_probes
from tangentune.jacobian.linearization import Linearization
from tangentune.jacobian.recorder import Function, watch
from tangentune.memory import in_halves
from tangentune.networks.features import FeatureFunction, Features, features_at
from tangentune.networks.network_function import Inputs

WAITING_BYTES = 2**24  # cotangents of one call that wait for those of further outputs, to share its work


@dataclass(frozen=True)
class Ways:
    """How the rows of each parameter are got; parameters in none of the three stay fixed, or no output uses them."""

    ruled: tuple[str, ...] = ()  # by layer rules
    generic: tuple[str, ...] = ()  # by `vmap(grad)`, about one more forward and backward pass a cotangent
    single: tuple[str, ...] = ()  # by a forward pass a picture, and a backward pass a picture and cotangent

    def restrict(self, names: Iterable[str]) -> Ways:
        """The same ways of fewer parameters."""
        kept = set(names)
        return Ways(*(tuple(n for n in own if n in kept) for own in (self.ruled, self.generic, self.single)))


@dataclass(frozen=True)
class RowSet:
    """Rows of n pictures: outputs `phi` (n, d), `entries` and, of explicit ones, K-FAC `factors` by parameter name."""

    phi: Tensor
    entries: dict[str, Entry]
    factors: dict[str, FactorSums]

    @classmethod
    def joined(cls, parts: list[RowSet]) -> RowSet:
        """Several sets as one, in order."""
        entries = {name: join_entries([part.entries[name] for part in parts]) for name in parts[0].entries}
        factors = {name: reduce(add, (part.factors[name] for part in parts)) for name in parts[0].factors}
        return cls(torch.cat([part.phi for part in parts]), entries, factors)

    @classmethod
    def beside(cls, parts: list[RowSet]) -> RowSet:
        """Sets of the same pictures as one, of the parameters of all."""
        entries = {name: entry for part in parts for name, entry in part.entries.items()}
        return cls(parts[0].phi, entries, {name: own for part in parts for name, own in part.factors.items()})

    def restrict(self, names: Iterable[str]) -> RowSet:
        """The rows of fewer parameters."""
        kept = set(names)
        entries = {name: entry for name, entry in self.entries.items() if name in kept}
        return RowSet(self.phi, entries, {name: own for name, own in self.factors.items() if name in kept})

    def select(self, index: Tensor) -> RowSet:
        """The rows of fewer pictures."""
        entries = {name: entry.select(index) for name, entry in self.entries.items()}
        return RowSet(self.phi[index], entries, self.factors)


def rows(
    function: Function,
    ways: Ways,
    x: Inputs,
    cotangents: Tensor | None = None,
    *,
    views: int = 1,
    positions: int = 0,
    together: bool = True,
) -> RowSet:
    """Outputs and Jacobian rows of one batch x; with `views`, all views of it one after the other, averaged.

    `ways`: which parameters, and how, proven by `survey`. `cotangents` (R, outputs), each the same for every picture;
    None: the unit vectors, so every output's own row. So many `positions` a picture enter the K-FAC sums of explicit
    rows. `together` lets the uses that gain by it wait for several cotangents; rounding then differs.
    """
    n = sample_count(x)
    collected: dict[tuple[int, str], list[Entry]] = {}
    waiting: dict[tuple[int, str], tuple[Use, str, list[Tensor]]] = {}
    factors: dict[str, FactorSums] = {}

    def keep(place: tuple[int, str], entry: Entry) -> None:
        collected.setdefault(place, []).append(average_views(entry, views))

    def contract(place: tuple[int, str]) -> None:
        use, role, own = waiting.pop(place)
        keep(place, use.rows_together(role, own, n))

    def sink(position: int, use: Use, role: str, name: str, g: Tensor) -> None:
        place = (position, name)
        if together and use.shares(role):
            own = waiting.setdefault(place, (use, role, []))[2]
            own.append(g)
            if len(own) * g.nbytes >= WAITING_BYTES:
                contract(place)
            return
        entry = use.rows(role, g, n)
        keep(place, entry)
        # Pairs hold their own second moments; explicit rows have lost them, so sum them here.
        if positions and isinstance(entry, Rows) and use.matrix(role) is not None:
            sample = outer_sums(use.inputs(role, g, n, positions), use.cotangents(role, g, n, positions))
            factors[name] = factors[name] + sample if name in factors else sample

    output, recorder = watch(function, ways.ruled, x, sink)
    directions = torch.eye(output.shape[1]) if cotangents is None else cotangents
    for _ in recorder.backward(output, (c.to(output).expand_as(output) for c in directions)):
        pass
    for place in list(waiting):
        contract(place)
    entries: dict[str, Entry] = {}
    for (_, name), per_cotangent in collected.items():
        entry = stack_probes(per_cotangent)
        entries[name] = add_uses(entries[name], entry) if name in entries else entry
    for names, by in ((ways.generic, _by_vmap), (ways.single, _one_by_one)):
        if names:
            found = by(function, names, x, directions)
            entries |= {name: average_views(Rows(v[:, :, :, None, None]), views) for name, v in found.items()}
    return RowSet(output.detach().unflatten(0, (views, n // views)).mean(0), entries, factors)


def _by_vmap(function: Function, names: tuple[str, ...], x: Inputs, cotangents: Tensor) -> dict[str, Tensor]:
    """Flat rows (n, R, p), all pictures at once; in full precision, for autocast does not go through `vmap(grad)`."""
    function = function.in_full() if isinstance(function, RowPlan) else function
    parameters = function.parameters()
    moving = {name: parameters[name].detach() for name in names}

    def along(params: dict[str, Tensor], one: Any, cotangent: Tensor) -> Tensor:
        value = function(mapped(one, lambda t: t[None]), params)[0]
        return value @ cotangent.to(value)  # not of the inputs' type: they may be token numbers

    with math_attention():  # fused attention has no batching rule
        held = x if isinstance(x, Tensor) else dict(x)  # vmap opens plain dicts only
        found = [vmap(grad(along), in_dims=(None, 0, None))(moving, held, c) for c in cotangents]
    return {name: torch.stack([own[name].flatten(1) for own in found], 1) for name in names}


def _one_by_one(function: Function, names: tuple[str, ...], x: Inputs, cotangents: Tensor) -> dict[str, Tensor]:
    """Flat rows (n, R, p) by plain autograd, picture by picture."""
    parameters = function.parameters()
    leaves = {name: parameters[name].detach().requires_grad_() for name in names}
    found: dict[str, list[Tensor]] = {name: [] for name in names}
    for i in range(sample_count(x)):
        with torch.enable_grad(), weight_gradients():
            output = function(mapped(x, lambda t, i=i: t[i : i + 1]), leaves)
        for c in cotangents.to(output):
            pulled = torch.autograd.grad(output, list(leaves.values()), c[None], retain_graph=True, allow_unused=True)
            for (name, leaf), g in zip(leaves.items(), pulled, strict=True):
                found[name].append((torch.zeros_like(leaf) if g is None else g).reshape(-1))
    return {name: torch.stack(own).unflatten(0, (-1, len(cotangents))) for name, own in found.items()}


@dataclass(frozen=True)
class RowPlan:
    """What feature rows are taken of: a network, its feature function, and the `Ways` that `survey` has proven."""

    module: nn.Module
    features: Features
    ruled: tuple[str, ...]
    generic: tuple[str, ...]
    points: tuple[nn.Module, ...] = ()  # the network at other weights, for pictures whose rows are taken there

    def __call__(self, x: Inputs, replaced: Mapping[str, Tensor]) -> Tensor:
        """Features (n, d)."""
        assert isinstance(x, Tensor)
        return features_at(self.module, self.features, replaced, x)

    def parameters(self) -> dict[str, nn.Parameter]:
        """All parameters of the network."""
        return dict(self.module.named_parameters())

    def at(self, point: int | None) -> RowPlan:
        """The same rows at one of the `points`; None stays."""
        return self if point is None else replace(self, module=self.points[point])

    def in_full(self) -> RowPlan:
        """The same rows by passes without autocast."""
        features = self.features
        return replace(self, features=features.in_full()) if isinstance(features, FeatureFunction) else self

    @property
    def names(self) -> tuple[str, ...]:
        """All parameters that move."""
        return self.ruled + self.generic


def batch_rows(plan: RowPlan, views: list[Tensor], probes: Tensor, positions: int = 0) -> RowSet:
    """Features and tangent rows of one batch, averaged over its views (n, ...), say plain and mirrored.

    `probes` (R, d) are directions in feature space; `positions` a picture enter the K-FAC sums of explicit rows. Cost:
    one forward, R backwards, no weight gradients. Where the device's memory is full, halves of the batch are taken.
    """
    ways = Ways(plan.ruled, plan.generic)

    def run(some: list[Tensor]) -> RowSet:
        x = torch.cat(some) if len(some) > 1 else some[0]
        return rows(plan, ways, x, probes, views=len(some), positions=positions, together=False)

    return in_halves(run, RowSet.joined, views, plan.module)


@final
@dataclass(frozen=True, eq=False)
class TangentRows:
    """A network, frozen, whose rows are wanted for all C outputs; made by `survey_rows`."""

    linearization: Linearization
    ways: Ways
    held: dict[str, int]  # bytes of a picture's rows, by parameter; without those that no output depends on
    outputs: int
    channels_last: bool  # the memory order in which pictures go through the network

    @property
    def width(self) -> int:
        """Parameters that move, p."""
        return sum(p.numel() for p in self.linearization.point().values())

    @property
    def like(self) -> Tensor:
        """A parameter, for the network's device and precision."""
        return next(iter(self.linearization.point().values()))

    @property
    def dtype(self) -> torch.dtype:
        """Precision of the network."""
        return self.like.dtype

    def prepare(self, x: Tensor) -> Tensor:
        """Inputs as the network wants them: its device, precision and memory order; finite, and at least one."""
        x = torch.as_tensor(x)
        x = x.clone() if x.is_inference() else x
        if x.dim() < 2 or not len(x):
            raise InputError(f"inputs have shape {tuple(x.shape)}; give a batch (n, ...) of at least one")
        broken = ~torch.isfinite(x).flatten(1).all(1)
        if bool(broken.any()):
            raise InputError(f"input {int(broken.nonzero()[0])} holds NaN or infinite values; repair or leave it out")
        x = x.to(self.like) if x.is_floating_point() else x.to(self.like.device)
        return x.contiguous(memory_format=torch.channels_last) if self.channels_last and x.dim() == 4 else x

    def entries(self, x: Inputs, names: Collection[str] | None = None) -> dict[str, Entry]:
        """Rows of one prepared batch by parameter, Pairs or Rows with C probes."""
        ways = self.ways if names is None else self.ways.restrict(names)
        return rows(self.linearization.function, ways, x).entries

    @usual_torch
    def explicit(self, x: Tensor) -> Tensor:
        """The Jacobian of one prepared batch, (n, C, p), columns in network order."""
        entries = self.entries(x)
        parts = []
        for name, p in self.linearization.point().items():
            zeros = p.new_zeros(()).expand(len(x), self.outputs, p.numel())
            parts.append(entries[name].explicit().flatten(2) if name in entries else zeros)
        return torch.cat(parts, 2)


def memory_groups(held: Mapping[str, int], pictures: int, budget: int, spare: int = 0) -> list[list[str]]:
    """Parameters, last layers first, in groups whose rows fit into a budget: a sweep over the pictures each.

    `held` are bytes a picture of each parameter's rows, in network order; what does not fit even alone gets a group of
    its own. `spare` further copies of a group's largest entry must fit too.
    """
    groups: list[list[str]] = []
    total = largest = 0
    for name in reversed(list(held)):
        size = held[name] * pictures
        if not groups or total + size + spare * max(largest, size) > budget:
            groups.append([])
            total = largest = 0
        groups[-1].append(name)
        total, largest = total + size, max(largest, size)
    return [group[::-1] for group in groups]


def sample_count(x: Inputs) -> int:
    """Samples of a batch."""
    return len(x if isinstance(x, Tensor) else next(iter(x.values())))


def first_samples(x: Inputs, count: int) -> Inputs:
    """The first samples of a batch."""
    return mapped(x, lambda t: t[:count])


def mapped(x: Inputs, change: Callable[[Tensor], Tensor]) -> Any:
    """Inputs with every tensor changed."""
    return change(x) if isinstance(x, Tensor) else {key: change(value) for key, value in x.items()}
