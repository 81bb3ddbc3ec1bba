"""The passes over data that fill K-FAC factors: one forward a batch, one backward an output, no weight gradients."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor
from tqdm.auto import tqdm

from tangentune.jacobian.kfac_factors import EigenBlock, FactorSums
from tangentune.jacobian.layers import Entry, Pairs, Use, add_uses
from tangentune.jacobian.linearization import Linearization
from tangentune.jacobian.recorder import watch
from tangentune.jacobian.rows import first_samples, sample_count
from tangentune.jacobian.survey import linearization_ways
from tangentune.networks.network_function import Inputs

# Largest side of a factor, of matrices and of vectors; a parameter beyond gets a multiple of the identity.
MATRIX_LIMIT, VECTOR_LIMIT = 8192, 4096
TILE_BYTES = 64 * 2**20
Layout = tuple[int, int, int]


@final
@dataclass(frozen=True)
class Cotangents:
    """Which cotangents stand for the outputs: all of them, one backward pass each, if `exact`, or random signs.

    Never residuals. `draws` independent signs also estimate the parameters without a rule.
    """

    exact: bool
    draws: int
    generator: torch.Generator

    def of(self, output: Tensor) -> Iterator[Tensor]:
        """Cotangents (n, C) whose outer products sum to the identity, exactly or on average."""
        if not self.exact:
            yield from self.signs(output)
            return
        yield from (unit.expand_as(output) for unit in torch.eye(output.shape[1]).to(output))

    def signs(self, output: Tensor) -> Iterator[Tensor]:
        """Random signs, scaled so that the draws average."""
        for _ in range(self.draws):
            bits = torch.randint(0, 2, output.shape, generator=self.generator)
            yield (2 * bits - 1).to(output) / self.draws**0.5


@final
@dataclass(frozen=True)
class Plan:
    """How parameters are treated: `matrices` as Kronecker products, `vectors` exactly, `generic` by mean square."""

    matrices: dict[str, Layout]
    vectors: dict[str, Layout]
    generic: dict[str, Layout]

    @property
    def layouts(self) -> dict[str, Layout]:
        """(groups, outputs, inputs) of every parameter."""
        return {**self.matrices, **self.vectors, **self.generic}


def plan(linearization: Linearization, x: Inputs) -> Plan:
    """Choose a treatment for every parameter: by its rows' proven way, by how its uses see it, and by its size."""
    x = first_samples(x, 3)
    ruled = linearization_ways(linearization, x).ruled
    _, recorder = watch(linearization.function, ruled, x, lambda *_: None)
    shapes = {name: p.shape for name, p in linearization.point().items()}
    layouts = {name: _layout(uses, shapes[name]) for name, uses in recorder.places().items()}
    fit = {name: layouts[name] for name in ruled if _small(layouts[name])}
    matrices = {name: layout for name, layout in fit.items() if layout[1] > 1 and layout[2] > 1}
    return Plan(
        matrices,
        {name: layout for name, layout in fit.items() if name not in matrices},
        {name: (1, 1, shape.numel()) for name, shape in shapes.items() if name not in fit},
    )


@final
class FactorPass:
    """First pass: sums of `a a^T` and `g g^T` for matrices, of whole rows for vectors and depthwise filters."""

    def __init__(self, linearization: Linearization, blocks: Plan, cotangents: Cotangents):
        self.lin, self.plan, self.cotangents = linearization, blocks, cotangents
        self.a: dict[str, Tensor] = {}
        self.s: dict[str, Tensor] = {}
        self.count = dict.fromkeys(linearization.names, 0)
        for name, like in linearization.point().items():
            groups, outputs, inputs = blocks.layouts[name]
            exact_filter = name in blocks.vectors and inputs > 1
            if name in blocks.matrices or exact_filter:
                self.a[name] = like.new_zeros(groups, inputs, inputs, dtype=torch.float64)
            if not exact_filter:
                self.s[name] = like.new_zeros(groups, outputs, outputs, dtype=torch.float64)

    def add(self, x: Inputs) -> None:
        """One batch."""
        rows: dict[str, Tensor] = {}
        first, n = True, sample_count(x)

        def sink(_: int, use: Use, role: str, name: str, g: Tensor) -> None:
            if name in self.plan.matrices:
                if first:
                    a = use.inputs(role, g, n)
                    self.count[name] += a.shape[1]
                    self.a[name] += a.mT @ a
                cotangents = use.cotangents(role, g, n)
                self.s[name] += cotangents.mT @ cotangents
            elif name in self.plan.vectors:
                own = use.rows(role, g, n).explicit().reshape(n, *self.plan.vectors[name])
                rows[name] = rows[name] + own if name in rows else own

        output, recorder = watch(self.lin.function, self.plan.layouts, x, sink)
        for _ in recorder.backward(output, self.cotangents.of(output)):
            for name, values in rows.items():
                by_group = values.flatten(2).transpose(0, 1)
                (self.s if values.shape[3] == 1 else self.a)[name] += by_group.mT @ by_group
            rows.clear()
            first = False
        if self.plan.generic:  # the mean square of the rows' entries: |J^T signs|^2 is unbiased over the signs
            for signs in self.cotangents.signs(output.detach()):
                pulled = self.lin.vjp(x, signs)
                for name in self.plan.generic:
                    self.s[name] += pulled[name].double().square().mean()

    def sums(self) -> dict[str, FactorSums]:
        """What was collected, in network order."""
        return {name: FactorSums(self.a.get(name), self.s.get(name), count) for name, count in self.count.items()}


@final
class SecondMomentPass:
    """Second pass of EKFAC: `sum (Q_S^T G Q_A)^2`, G the whole gradient of one sample and output."""

    def __init__(
        self, linearization: Linearization, blocks: Plan, cotangents: Cotangents, bases: dict[str, EigenBlock]
    ):
        self.lin, self.plan, self.cotangents, self.bases = linearization, blocks, cotangents, bases
        self.moments: dict[str, Tensor] = {}

    def add(self, x: Inputs) -> None:
        """One batch."""
        waiting: dict[str, Entry] = {}
        n = sample_count(x)

        def sink(_: int, use: Use, role: str, name: str, g: Tensor) -> None:
            if name not in self.plan.matrices:
                return
            entry = use.rows(role, g, n)
            if uses[name] == 1:
                self._square(name, entry)
            else:
                waiting[name] = add_uses(waiting[name], entry) if name in waiting else entry

        output, recorder = watch(self.lin.function, self.plan.layouts, x, sink)
        uses = {name: len(places) for name, places in recorder.places().items()}
        for _ in recorder.backward(output, self.cotangents.of(output)):
            for name, entry in waiting.items():
                self._square(name, entry)
            waiting.clear()

    def _square(self, name: str, entry: Entry) -> None:
        groups, outputs, inputs = self.plan.matrices[name]
        basis = self.bases[name]
        step = max(1, TILE_BYTES // (groups * outputs * inputs * entry.dtype.itemsize))
        for low in range(0, len(entry), step):
            part = entry.select(slice(low, low + step))
            rotated = _rotated(part, basis).reshape(-1, groups, outputs, inputs)
            self.moments[name] = self.moments.get(name, 0) + rotated.square().sum(0).double()


def _rotated(entry: Entry, basis: EigenBlock) -> Tensor:
    """Rows in the eigenbasis, positions or rows turned, whichever is less work."""
    if isinstance(entry, Pairs):
        positions, outputs, inputs = entry.a.shape[1], entry.g.shape[3], entry.a.shape[2]
        if positions < min(outputs, inputs):
            g = entry.g if basis.left is None else entry.g @ basis.left[0]
            a = entry.a if basis.right is None else entry.a @ basis.right[0]
            return Pairs(a, g).explicit()
    return basis.rotate(entry.explicit()[:, 0])


def progress(batches: Iterable[Inputs], what: str, verbose: int) -> Iterable[Inputs]:
    """A bar for whoever asked for one."""
    return tqdm(batches, desc=what, disable=not verbose, delay=1.0)


def _layout(uses: list[tuple[Use, str]], shape: torch.Size) -> Layout:
    """As matrices if all uses agree on them, else as one vector."""
    found = {use.matrix(role) for use, role in uses}
    matrix = found.pop() if len(found) == 1 else None
    return (1, shape.numel(), 1) if matrix is None else matrix


def _small(layout: Layout) -> bool:
    matrix = layout[1] > 1 and layout[2] > 1
    return max(layout[1], layout[2]) <= (MATRIX_LIMIT if matrix else VECTOR_LIMIT)
