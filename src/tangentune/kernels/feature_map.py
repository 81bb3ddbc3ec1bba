"""Pictures in the coordinates of a frozen feature map, whose inner products are the kernel.

`k(x, x') = <phi, phi'> + body_scale * sum over blocks of s_l (1/R) <M psi, M psi'>`, head and body cosines if the map
normalises. Rows stay in their compact form; they are never written out for a whole set at once.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import final

import torch
from torch import Tensor

from tangentune.jacobian.layers import Entry, join_entries
from tangentune.jacobian.rows import RowPlan, batch_rows
from tangentune.kernels.batches import Batches, Portion
from tangentune.kernels.collect import collect, views_of
from tangentune.kernels.gram import gram, inverse_lengths, row_chunks
from tangentune.kernels.metric import Whitening, whiten, whiten_own
from tangentune.memory import in_halves
from tangentune.networks.parameters import block_of, group_blocks

SMALL_PART = 64  # pictures: parts of fewer are joined


@dataclass(frozen=True)
class TangentMap:
    """The feature map of `tangent`, network and parameters that move, frozen after `fit`."""

    tangent: RowPlan
    probes: Tensor  # (R, d) directions in feature space
    mirrored: bool  # features and rows are means over a picture and its mirror image
    metric: dict[str, Whitening]  # whitens each parameter's rows; empty for power 0
    block_scales: dict[str, float]
    body_scale: float  # of the body's kernel against the head's
    normalize: bool  # head rows and body rows have length one
    length_scales: dict[str, float]  # of each block in the lengths of body rows


@dataclass(frozen=True)
class TangentModel:
    """A feature map with its weights: `intercept` (C,), `head` (C, d), `body` name -> (C, row width)."""

    map: TangentMap
    intercept: Tensor
    head: Tensor
    body: dict[str, Tensor]


@final
@dataclass(frozen=True, eq=False)
class FeatureRows:
    """Rows of n pictures in one feature map."""

    phi: Tensor  # (n, d) float64, of length one if the map normalises
    entries: dict[str, Entry]  # of the body, by parameter name, in the metric
    lengths: Tensor  # (n,) float64, inverse ones of the whole body rows, or ones

    def __len__(self) -> int:
        return len(self.phi)

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return self.phi.nbytes + self.lengths.nbytes + sum(entry.nbytes for entry in self.entries.values())

    def select(self, index: slice | Tensor) -> FeatureRows:
        """The rows of some pictures."""
        entries = {name: entry.select(index) for name, entry in self.entries.items()}
        return FeatureRows(self.phi[index], entries, self.lengths[index])


@final
@dataclass(frozen=True, eq=False)
class KeptRows:
    """Rows of a set that has grown, in parts one after the other, so that what comes last copies nothing before it."""

    parts: tuple[FeatureRows, ...]
    mapped: int = 0  # parts, the first ones, that lie in a file

    def __len__(self) -> int:
        return sum(map(len, self.parts))

    @property
    def nbytes(self) -> int:
        """Bytes held in memory."""
        return sum(part.nbytes for part in self.parts[self.mapped :])

    def joined(self, new: FeatureRows) -> KeptRows:
        """Others behind these; a part that is small still grows."""
        last = self.parts[-1]
        if len(self.parts) > max(1, self.mapped) and len(last) < SMALL_PART:
            return KeptRows((*self.parts[:-1], join_rows(last, new)), self.mapped)
        return KeptRows((*self.parts, new), self.mapped)

    def first(self, count: int) -> KeptRows:
        """The rows of the first pictures only."""
        kept, left = list[FeatureRows](), count
        for part in self.parts:
            if left > 0:
                kept.append(part if len(part) <= left else part.select(slice(left)))
                left -= len(part)
        return KeptRows(tuple(kept), min(self.mapped, len(kept)))

    def select(self, index: Tensor) -> FeatureRows:
        """A copy of the rows of some pictures, in their order."""
        start, found, places = 0, None, list[Tensor]()
        for part in self.parts:
            own = ((index >= start) & (index < start + len(part))).nonzero().flatten()
            if len(own):
                taken = part.select(index[own] - start)
                found = taken if found is None else join_rows(found, taken)
                places.append(own)
            start += len(part)
        assert found is not None
        return found if len(places) == 1 else found.select(torch.cat(places).argsort())


def feature_rows(
    feature_map: TangentMap, phi: Tensor, entries: dict[str, Entry], *, own: bool = False, turned: bool = False
) -> FeatureRows:
    """Features and rows brought into a map's coordinates; consumes `entries`, and writes over them if `own`.

    Rows are plain, or in the map's metric if `turned`.
    """
    moved: dict[str, Entry] = {}
    move = whiten_own if own else whiten
    for name in feature_map.tangent.names:
        entry = entries.pop(name)
        moved[name] = move(entry, feature_map.metric[name]) if name in feature_map.metric and not turned else entry
    phi = phi.double()
    lengths = torch.ones_like(phi[:, 0])
    if feature_map.normalize:
        phi = phi * inverse_lengths(phi.square().sum(1))[:, None]
        if moved:
            scales = {name: feature_map.length_scales[block_of(name)] / len(feature_map.probes) for name in moved}
            squares = [scales[name] * entry.squared_norms() for name, entry in moved.items()]
            lengths = inverse_lengths(torch.stack(squares).sum(0))
    return FeatureRows(phi, moved, lengths)


def portion_rows(feature_map: TangentMap, portion: Portion) -> FeatureRows:
    """Rows of one batch, taken at its own point of expansion."""
    views = views_of(portion.x, feature_map.mirrored)
    part = batch_rows(feature_map.tangent.at(portion.point), views, feature_map.probes)
    return feature_rows(feature_map, part.phi, dict(part.entries))


def collect_rows(feature_map: TangentMap, batches: Batches, count: int) -> FeatureRows:
    """Rows of a whole set, kept in memory; cost one forward and R backward passes a view."""
    rows = collect(feature_map.tangent, batches, count, feature_map.probes, feature_map.mirrored, factors=False)
    return feature_rows(feature_map, rows.phi, rows.entries, own=True)


def join_rows(first: FeatureRows, second: FeatureRows) -> FeatureRows:
    """Two sets, one after the other."""
    entries = {name: join_entries([entry, second.entries[name]]) for name, entry in first.entries.items()}
    lengths = torch.cat([first.lengths, second.lengths])
    return FeatureRows(torch.cat([first.phi, second.phi]), entries, lengths)


def cross_kernel(feature_map: TangentMap, left: FeatureRows, right: FeatureRows | None = None) -> Tensor:
    """(m, n) float64 kernel between two sets, or of one with itself; cost as `gram`, parameter by parameter."""
    other = left if right is None else right
    head = left.phi @ other.phi.T
    if not left.entries:
        return head
    body = torch.zeros_like(head)
    for name, entry in left.entries.items():
        body += row_scale(feature_map, name) * gram(entry, None if right is None else right.entries[name])
    return head + feature_map.body_scale * left.lengths[:, None] * body * other.lengths


def own_diagonal(feature_map: TangentMap, rows: FeatureRows) -> Tensor:
    """(n,) kernel of each picture with itself."""
    head = rows.phi.square().sum(1)
    if not rows.entries:
        return head
    squares = [row_scale(feature_map, name) * entry.squared_norms() for name, entry in rows.entries.items()]
    return head + feature_map.body_scale * torch.stack(squares).sum(0) * rows.lengths.square()


def row_parts(
    rows: FeatureRows | KeptRows | None, feature_map: TangentMap, batches: Batches
) -> Iterator[tuple[Tensor, FeatureRows]]:
    """Positions and rows of a set: in the parts in which they are at hand, else batch by batch."""
    if rows is not None:
        start = 0
        for part in (rows,) if isinstance(rows, FeatureRows) else rows.parts:
            yield torch.arange(start, start + len(part), device=part.phi.device), part
            start += len(part)
        return
    for portion in batches():
        yield portion.rows, portion_rows(feature_map, portion)


def primal(
    feature_map: TangentMap, parts: Iterable[tuple[Tensor, FeatureRows]], dual: Tensor, bias: Tensor
) -> TangentModel:
    """The fitted function of a dual solution (n, C), with weights instead of pictures; one pass over the rows."""
    head: Tensor | None = None
    body: dict[str, Tensor] = {}
    for index, rows in parts:
        own = dual[index]
        head = own.T @ rows.phi if head is None else head + own.T @ rows.phi
        scaled = own * rows.lengths[:, None]
        for name, entry in rows.entries.items():
            body[name] = accumulate(entry, scaled.to(entry.dtype), body.get(name))
    assert head is not None
    for name in body:
        body[name] = body[name] * (feature_map.body_scale * row_scale(feature_map, name))
    ordered = {name: body[name] for name in feature_map.tangent.names}
    return TangentModel(feature_map, bias, head.to(feature_map.probes), ordered)


def norm_shares(model: TangentModel) -> dict[str, float]:
    """Each block's share of the squared norm of the fitted function, "head" first, by name: they sum to 1.

    A weight w of rows scaled by s stands for `w / s^1/2` in the feature space, so that `|w|^2 / s` is its share.
    """
    squares = {"head": float(model.head.double().square().sum())}
    for block in group_blocks(model.map.tangent.names):
        squares[block] = 0.0
    for name, weights in model.body.items():
        if scale := model.map.body_scale * row_scale(model.map, name):
            squares[block_of(name)] += float(weights.double().square().sum()) / scale
    total = sum(squares.values()) or 1.0
    return {block: square / total for block, square in squares.items()}


def accumulate(entry: Entry, coefficients: Tensor, out: Tensor | None = None) -> Tensor:
    """`coefficients^T rows` (C, row width), rows formed chunk by chunk; adds to `out` if given."""
    if out is None:
        out = torch.zeros(coefficients.shape[1], entry.width, dtype=coefficients.dtype, device=coefficients.device)
    for columns, part in row_chunks(entry):
        out[:, columns] += coefficients.T @ part
    return out


def decision(model: TangentModel, x: Tensor) -> Tensor:
    """Scores (n, C), float64, of a batch of inputs; one forward and R backwards, and C multiply-adds a row entry."""
    return in_halves(partial(_decision, model), torch.cat, views_of(x, model.map.mirrored), model.map.tangent.module)


def _decision(model: TangentModel, views: list[Tensor]) -> Tensor:
    feature_map = model.map
    part = batch_rows(feature_map.tangent, views, feature_map.probes)
    phi = part.phi
    if feature_map.normalize:
        phi = phi * inverse_lengths(phi.double().square().sum(1)).to(phi)[:, None]
    scores = model.intercept + (phi @ model.head.T).double()
    if not model.body:
        return scores
    body, squares = torch.zeros_like(scores), torch.zeros_like(scores[:, 0])
    for name, weights in model.body.items():
        entry = part.entries[name]
        if name in feature_map.metric:
            entry = whiten(entry, feature_map.metric[name])
        for columns, rows in row_chunks(entry):
            body += (rows @ weights[:, columns].T).double()
        if feature_map.normalize:
            scale = feature_map.length_scales[block_of(name)] / len(feature_map.probes)
            squares += scale * entry.squared_norms()
    return scores + (body * inverse_lengths(squares)[:, None] if feature_map.normalize else body)


def row_scale(feature_map: TangentMap, name: str) -> float:
    """Of the products of one parameter's rows in the body's kernel."""
    return feature_map.block_scales[block_of(name)] / len(feature_map.probes)
