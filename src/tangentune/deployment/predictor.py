"""The fitted function as one module of stock operators: pictures as bytes in, scores and probabilities out.

What `kernels/feature_map.py` answers with rows held in memory is answered here from each operator's inputs and the
cotangent of its output: one forward and R backward passes, C inner products and one length for every parameter.
"""

from __future__ import annotations

from collections import defaultdict
from typing import final

import torch
from torch import Tensor, nn

from tangentune.deployment.error_bars import body_share
from tangentune.deployment.forms import (
    ConvolutionRow,
    Row,
    at_positions,
    by_pairs,
    folded,
    joined,
    pair_length,
    position_products,
    row_length,
    side_by_side,
    squared,
    whole_row,
)
from tangentune.deployment.network_graph import NetworkGraph
from tangentune.deployment.sites import Watched
from tangentune.kernels.feature_map import TangentModel
from tangentune.kernels.gram import inverse_lengths
from tangentune.kernels.metric import Whitening
from tangentune.networks.parameters import block_of

TINY = 1e-30  # that float32 still holds


@final
class Predictor(nn.Module):
    """`forward(network inputs) -> scores (n, C)`, in the network's own precision."""

    def __init__(self, model: TangentModel, network: NetworkGraph, *, prior: bool = False):
        super().__init__()
        self.model, self.prior = model, prior
        own, probes = model.map, len(model.map.probes)
        scales = own.length_scales if own.normalize else own.block_scales
        share = 1 / probes if own.normalize or self.prior else 0.0
        self.lengths = {name: scales[block_of(name)] * share for name in model.body}
        names = [name for name, weights in model.body.items() if self.lengths[name] or bool(weights.any())]
        whole = frozenset(name for name in names if name not in own.metric and self.lengths[name])
        self.watched = Watched(network, frozenset(names), 2 if own.mirrored else 1, whole)
        self.metric = {name: self._with_scale(name) for name in names if name in own.metric}
        self.inside = frozenset(name for name in self.metric if self._inside(name))
        self.weights = {
            name: [self._folded(name, part) for part in model.body[name].chunk(probes, 1)] for name in names
        }
        shapes = {name: parameter.shape for name, parameter in own.tangent.parameters().items()}
        self.vectors = [name for name in names if len(shapes[name]) < 2]

    def _with_scale(self, name: str) -> Whitening:
        """A metric that also does what a norm behind the kernel does to its rows."""
        metric, scale = self.model.map.metric[name], self.watched.scales.get(name)
        left = metric.left if scale is None else scale.reshape(*metric.left.shape[:2], 1) * metric.left
        return side_by_side(Whitening(left, metric.right))

    def _folded(self, name: str, weights: Tensor) -> Tensor:
        """Weights of rows as they come."""
        if name in self.metric:
            return weights if name in self.inside else folded(weights, self.metric[name])
        scale = self.watched.scales.get(name)
        if scale is None:
            return weights
        return (weights.unflatten(1, (len(scale), -1)) * scale[:, None]).flatten(1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Scores (n, C) of a batch, and, if it is wanted, each picture's kernel with itself (n,)."""
        own, views = self.model.map, 2 if self.model.map.mirrored else 1
        phi, passes = self._rows(torch.cat([x, x.flip(-1)]) if views == 2 else x, views)
        if own.normalize:
            phi = phi * inverse_lengths(squared(phi).sum(1), TINY)[:, None]
        scores = self.model.intercept.to(phi) + phi @ self.model.head.T
        prior = squared(phi).sum(1)
        if not self.weights:
            return scores, prior
        body, squares = torch.zeros_like(scores), torch.zeros_like(scores[:, 0])
        for r, rows in enumerate(passes):
            vectors = {name: whole_row(rows.pop(name)) for name in self.vectors}
            products, length = self._of_vectors(r, vectors, views)
            body, squares = body + products, squares + length
            for name, parts in rows.items():
                products, length = self._of_matrix(name, r, parts)
                body, squares = body + products, squares + self.lengths[name] * length
        share = body_share(own) * (squares > 0).to(squares) if own.normalize and self.prior else squares
        prior = prior + own.body_scale * share
        return scores + (body * inverse_lengths(squares, TINY)[:, None] if own.normalize else body), prior

    def _rows(self, x: Tensor, views: int) -> tuple[Tensor, list[dict[str, list[Row]]]]:
        """Mean features of all views, and for each probe the rows of every parameter, one for each use."""
        with torch.enable_grad():
            phi, sites, grads = self.watched.features(x), self.watched.sites, []
            for probe in self.model.map.probes if sites else ():
                scalar = (phi * (probe / views).to(phi)).sum()
                grads.append(torch.autograd.grad(scalar, [site.output for site in sites], retain_graph=True))
        with torch.no_grad():
            passes = []
            for own in grads:
                rows = defaultdict[str, list[Row]](list)
                for site, g in zip(sites, own, strict=True):
                    for name, row in site.rows.items():
                        found = row(g)
                        if isinstance(found, Tensor) and name not in self.vectors:
                            found = _added(found, views)
                        rows[name].append(found)
                passes.append(rows)
            return _added(phi.detach(), views) / views, passes

    def _of_vectors(self, r: int, rows: dict[str, Tensor], views: int) -> tuple[Tensor, Tensor | float]:
        """Inner products and squared lengths of all vectors at once: for each alone they would be many small steps."""
        if not rows:
            return self.model.head.new_zeros(()), 0.0
        whole = _added(torch.cat(list(rows.values()), 1), views)
        products = whole @ torch.cat([self.weights[name][r] for name in rows], 1).T
        if not any(self.lengths[name] for name in rows):
            return products, 0.0
        scales = torch.cat([self._scales(name, row.shape[1]) for name, row in rows.items()])
        return products, (squared(whole) * scales).sum(1)

    def _scales(self, name: str, width: int) -> Tensor:
        """What a vector's squared entries weigh."""
        metric = self.metric.get(name)
        ones = self.model.head.new_ones(width)
        return self.lengths[name] * (ones if metric is None else (metric.left * metric.right).flatten().square())

    def _inside(self, name: str) -> bool:
        """Whether everything is asked of a matrix's rows in their metric: for their length, or if they are shorter."""
        left, right = self.model.map.metric[name].left.shape, self.model.map.metric[name].right.shape
        fewer = left[2] < left[1] or right[2] < right[1]
        return left[0] == 1 and left[1] * right[1] > 1 and (fewer or bool(self.lengths[name]))

    def _of_matrix(self, name: str, r: int, parts: list[Row]) -> tuple[Tensor, Tensor | float]:
        """Inner products (n, C) and squared lengths (n,) of one parameter's rows of probe r, each the cheaper way."""
        weights, wanted, inside = self.weights[name][r], bool(self.lengths[name]), name in self.inside
        metric = self.metric.get(name)
        whole = None
        if inside and metric is not None and len(parts) == 1 and isinstance(parts[0], ConvolutionRow):
            whole = parts[0].one_side_first(metric)
        row = None if whole is not None else joined(parts, metric if inside else None)
        if inside:
            metric = None
        pairs = row is not None and metric is None and by_pairs(row)
        if row is not None and (pairs or not wanted) and at_positions(row, len(weights)):
            return position_products(row, weights), pair_length(row) if wanted else 0.0
        if whole is None:
            whole = whole_row(parts) if row is None else row.explicit()
        products = whole @ weights.T
        if not wanted:
            return products, 0.0
        return products, pair_length(row) if row is not None and pairs else row_length(whole, metric)


def _added(values: Tensor, views: int) -> Tensor:
    """The sum over views, one after the other."""
    return values if views == 1 else values.unflatten(0, (views, -1)).sum(0)
