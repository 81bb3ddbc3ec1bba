"""The passes over data that fill K-FAC factors: one forward a batch, one backward an output, no weight gradients."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from tangentune.jacobian.kfac_factors import EigenBlock, FactorSums
from tangentune.jacobian.layers import Entry, Pairs, Use, add_uses
from tangentune.jacobian.linearization import Linearization
from tangentune.jacobian.recorder import watch
from tangentune.jacobian.rows import first_samples, sample_count
from tangentune.jacobian.survey import survey_linearization
from tangentune.networks.network_function import Inputs

# Largest side of a factor, of matrices and of vectors; a parameter beyond gets a multiple of the identity.
MATRIX_LIMIT, VECTOR_LIMIT = 8192, 4096
TILE_BYTES = 64 * 2**20
Layout = tuple[int, int, int]


@final
@dataclass(frozen=True)
class Cotangents:
    """Which cotangents stand for the outputs, never residuals: all outputs, one backward pass each, or random signs."""

    exact: bool
    draws: int  # of signs, which also estimate the parameters without a rule
    generator: torch.Generator

    def of(self, output: Tensor) -> Iterator[Tensor]:
        """Cotangents (n, C) whose outer products sum to the identity, exactly or on average."""
        units = (unit.expand_as(output) for unit in torch.eye(output.shape[1]).to(output))
        return units if self.exact else self.signs(output)

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
    ruled = survey_linearization(linearization, x).ways.ruled
    _, recorder = watch(linearization.function, ruled, x, lambda *_: None)
    shapes = {name: p.shape for name, p in linearization.point().items()}
    layouts = {name: _layout(uses, shapes[name]) for name, uses in recorder.places().items()}
    fit = {}
    for name in ruled:
        _, *sides = layouts[name]
        if max(sides) <= (MATRIX_LIMIT if min(sides) > 1 else VECTOR_LIMIT):
            fit[name] = layouts[name]
    matrices = {name: layout for name, layout in fit.items() if min(layout[1:]) > 1}
    return Plan(
        matrices,
        {name: layout for name, layout in fit.items() if name not in matrices},
        {name: (1, 1, shape.numel()) for name, shape in shapes.items() if name not in fit},
    )


def factor_sums(
    linearization: Linearization, blocks: Plan, cotangents: Cotangents, batches: Iterable[Inputs]
) -> dict[str, FactorSums]:
    """First pass: sums of `a a^T` and `g g^T` for matrices, of whole rows for vectors and depthwise filters."""
    a: dict[str, Tensor] = {}
    s: dict[str, Tensor] = {}
    count = dict.fromkeys(linearization.names, 0)
    for name, like in linearization.point().items():
        groups, outputs, inputs = blocks.layouts[name]
        exact_filter = name in blocks.vectors and inputs > 1
        if name in blocks.matrices or exact_filter:
            a[name] = like.new_zeros(groups, inputs, inputs, dtype=torch.float64)
        if not exact_filter:
            s[name] = like.new_zeros(groups, outputs, outputs, dtype=torch.float64)

    def add(x: Inputs) -> None:
        rows: dict[str, Tensor] = {}
        first, n = True, sample_count(x)

        def sink(_: int, use: Use, role: str, name: str, g: Tensor) -> None:
            if name in blocks.matrices:
                if first:
                    own = use.inputs(role, g, n)
                    count[name] += own.shape[1]
                    a[name] += own.mT @ own
                back = use.cotangents(role, g, n)
                s[name] += back.mT @ back
            elif name in blocks.vectors:
                own = use.rows(role, g, n).explicit().reshape(n, *blocks.vectors[name])
                rows[name] = rows[name] + own if name in rows else own

        output, recorder = watch(linearization.function, blocks.layouts, x, sink)
        for _ in recorder.backward(output, cotangents.of(output)):
            for name, values in rows.items():
                by_group = values.flatten(2).transpose(0, 1)
                (s if values.shape[3] == 1 else a)[name] += by_group.mT @ by_group
            rows.clear()
            first = False
        if blocks.generic:  # the mean square of the rows' entries: |J^T signs|^2 is unbiased over the signs
            for signs in cotangents.signs(output.detach()):
                pulled = linearization.vjp(x, signs)
                for name in blocks.generic:
                    s[name] += pulled[name].double().square().mean()

    for x in batches:
        add(x)
    return {name: FactorSums(a.get(name), s.get(name), positions) for name, positions in count.items()}


def second_moments(
    linearization: Linearization, blocks: Plan, cotangents: Cotangents, batches: Iterable[Inputs],
    bases: dict[str, EigenBlock],
) -> dict[str, Tensor]:  # fmt: skip
    """Second pass of EKFAC: `sum (Q_S^T G Q_A)^2`, G the whole gradient of one sample and output."""
    moments: dict[str, Tensor] = {}

    def square(name: str, entry: Entry) -> None:
        layout = blocks.matrices[name]
        step = max(1, TILE_BYTES // (torch.Size(layout).numel() * entry.dtype.itemsize))
        for low in range(0, len(entry), step):
            rotated = _rotated(entry.select(slice(low, low + step)), bases[name]).reshape(-1, *layout)
            moments[name] = moments.get(name, 0) + rotated.square().sum(0).double()

    def add(x: Inputs) -> None:
        waiting: dict[str, Entry] = {}
        n = sample_count(x)

        def sink(_: int, use: Use, role: str, name: str, g: Tensor) -> None:
            if name not in blocks.matrices:
                return
            entry = use.rows(role, g, n)
            if uses[name] == 1:
                square(name, entry)
            else:
                waiting[name] = add_uses(waiting[name], entry) if name in waiting else entry

        output, recorder = watch(linearization.function, blocks.layouts, x, sink)
        uses = {name: len(places) for name, places in recorder.places().items()}
        for _ in recorder.backward(output, cotangents.of(output)):
            for name, entry in waiting.items():
                square(name, entry)
            waiting.clear()

    for x in batches:
        add(x)
    return moments


def _rotated(entry: Entry, basis: EigenBlock) -> Tensor:
    """Rows in the eigenbasis, positions or rows turned, whichever is less work."""
    if isinstance(entry, Pairs):
        positions, outputs, inputs = entry.a.shape[1], entry.g.shape[3], entry.a.shape[2]
        if positions < min(outputs, inputs):
            g = entry.g if basis.left is None else entry.g @ basis.left[0]
            a = entry.a if basis.right is None else entry.a @ basis.right[0]
            return Pairs(a, g).explicit()
    return basis.rotate(entry.explicit()[:, 0])


def _layout(uses: list[tuple[Use, str]], shape: torch.Size) -> Layout:
    """As matrices if all uses agree on them, else as one vector."""
    found = {use.matrix(role) for use, role in uses}
    matrix = found.pop() if len(found) == 1 else None
    return (1, shape.numel(), 1) if matrix is None else matrix
