"""A sketch of the body's rows: few random numbers a picture whose products are the body's kernel on average.

A row of one parameter is a matrix A of probes and outputs by inputs. With vectors u_j, v_j of random signs,

    s_j(A) = u_j^T A v_j,   E[s_j(A) s_j(B)] = <A, B>,

so w of them, divided by w^1/2, have the products <A, B> up to an error of order |A| |B| / w^1/2. Both sides are drawn
anew for every j (a Khatri-Rao product): with one projection a side, k x k numbers of a row of rank one would err by
order k^-1/2, the fourth root of their number.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from tangentune.jacobian.layers import Entry, Pairs
from tangentune.kernels.feature_map import FeatureRows, TangentMap, TangentModel, row_scale


@final
@dataclass(frozen=True, eq=False)
class Sketch:
    """Signs for each parameter, int8: `left` (w, probes x outputs), `right` (w, inputs); rows without stay whole."""

    sizes: dict[str, tuple[int, int]]  # (left, right) of every parameter's rows
    left: dict[str, Tensor]
    right: dict[str, Tensor]

    def count(self, name: str) -> int:
        """Numbers a picture of one parameter."""
        return len(self.left[name]) if name in self.left else self.sizes[name][0] * self.sizes[name][1]

    @property
    def width(self) -> int:
        """Numbers a picture."""
        return sum(map(self.count, self.sizes))


@final
@dataclass(frozen=True, eq=False)
class SketchMap:
    """`phi~(x) = [phi_head(x), sketch of the body's row]`: what a `LandmarkMap` is, without a picture in it."""

    feature_map: TangentMap
    sketch: Sketch

    @property
    def width(self) -> int:
        """D."""
        return self.feature_map.probes.shape[1] + self.sketch.width

    def rows(self, own: FeatureRows) -> Tensor:
        """(n, D) float64, of pictures in the coordinates of the feature map."""
        return torch.cat([own.phi, sketched(self.feature_map, self.sketch, own)], 1)

    def primal(self, coef: Tensor) -> TangentModel:
        """The function with weights of the network's parameters, from `coef` (D+1, C), the intercept first."""
        wide, like = self.feature_map.probes.shape[1] + 1, self.feature_map.probes
        body = unsketched(self.feature_map, self.sketch, coef[wide:].to(like))
        body = {name: weights.contiguous() for name, weights in body.items()}  # as a model that is read has them
        return TangentModel(self.feature_map, coef[0], coef[1:wide].T.to(like).contiguous(), body)


def draw_sketch(sizes: Mapping[str, tuple[int, int]], width: int, seed: int) -> Sketch:
    """Signs for parameters whose rows are (left, right) numbers, about `width` numbers a picture in all.

    Every parameter gets the same number, those with shorter rows keep these; what they leave goes to the others.
    """
    generator = torch.Generator().manual_seed(seed)
    left, right = dict[str, Tensor](), dict[str, Tensor]()
    room, waiting = width, len(sizes)
    for name, (rows, columns) in sorted(sizes.items(), key=lambda item: item[1][0] * item[1][1]):
        share = max(1, room // waiting)
        if rows * columns > share:
            left[name], right[name] = (_signs(share, length, generator) for length in (rows, columns))
        room, waiting = room - min(share, rows * columns), waiting - 1
    return Sketch(dict(sizes), left, right)


def _signs(count: int, length: int, generator: torch.Generator) -> Tensor:
    return (2 * torch.randint(0, 2, (count, length), generator=generator) - 1).to(torch.int8)


def row_sizes(rows: FeatureRows) -> dict[str, tuple[int, int]]:
    """(left, right) of each parameter's rows, seen as matrices."""
    sizes = dict[str, tuple[int, int]]()
    for name, entry in rows.entries.items():
        columns = (entry.a if isinstance(entry, Pairs) else entry.values).shape[-1]
        sizes[name] = entry.width // columns, columns
    return sizes


def sketched(feature_map: TangentMap, sketch: Sketch, own: FeatureRows) -> Tensor:
    """(n, w) float64 rows whose products are the body's kernel on average; n T (left + right) w a parameter."""
    parts = [own.phi[:, :0]]
    for name in feature_map.tangent.names:
        scale = (feature_map.body_scale * row_scale(feature_map, name)) ** 0.5
        parts.append(scale * _project(own.entries[name], sketch, name).double())
    return own.lengths[:, None] * torch.cat(parts, 1)


def unsketched(feature_map: TangentMap, sketch: Sketch, coefficients: Tensor) -> dict[str, Tensor]:
    """Weights (C, row width) of each parameter for coefficients (w, C) of sketched rows: the sketch transposed."""
    weights, start = dict[str, Tensor](), 0
    for name in feature_map.tangent.names:
        count = sketch.count(name)
        part, start = coefficients[start : start + count].T, start + count
        if name in sketch.left:
            left, right = (side[name].to(part) for side in (sketch.left, sketch.right))
            part = ((part[:, :, None] * left).transpose(1, 2) @ right).flatten(1) / count**0.5
        weights[name] = (feature_map.body_scale * row_scale(feature_map, name)) ** 0.5 * part
    return weights


def _project(entry: Entry, sketch: Sketch, name: str) -> Tensor:
    """(n, w) unscaled."""
    if name not in sketch.left:
        return entry.explicit().flatten(1)
    like = entry.a if isinstance(entry, Pairs) else entry.values
    left, right = (side[name].to(like) for side in (sketch.left, sketch.right))
    if isinstance(entry, Pairs):
        found = ((entry.a @ right.T) * (entry.g.flatten(2) @ left.T)).sum(1)
    else:
        found = ((entry.values.flatten(1, 3) @ right.T) * left.T).sum(1)
    return found / len(left) ** 0.5
