"""A frozen feature map of finite width: rows of pictures in it, and the fitted function of coefficients in it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor

from tangentune.estimators.training_set import PictureReader, RowReader
from tangentune.kernels.feature_map import (
    FeatureRows,
    TangentMap,
    TangentModel,
    cross_kernel,
    portion_rows,
    primal,
)
from tangentune.kernels.sketch import Sketch, sketched, unsketched
from tangentune.memory import warm_pages
from tangentune.networks.backbone import Backbone
from tangentune.pictures.pictures import Pictures
from tangentune.solvers.landmarks import inverse_root


@final
@dataclass(frozen=True, eq=False)
class Landmarks:
    """`phi_body(x) = K_uu^(-1/2) k_body(u, x)` for landmarks u: products are the kernel's part that they span."""

    pictures: Pictures
    rows: FeatureRows  # (m,)
    root: Tensor  # (m, width) with `root root^T = K_uu^-1` on what the landmarks span

    @property
    def width(self) -> int:
        """Numbers of a picture's body."""
        return self.root.shape[1]

    def body(self, feature_map: TangentMap, own: FeatureRows) -> Tensor:
        """(n, width) float64."""
        return body_kernel(feature_map, own, self.rows) @ self.root

    def weights(self, feature_map: TangentMap, coefficients: Tensor) -> dict[str, Tensor]:
        """Primal weights `sum_j (root theta)_j psi(u_j)` of coefficients theta (width, C)."""
        parts = [(torch.arange(len(self.rows)), self.rows)]
        bias = coefficients.new_zeros(coefficients.shape[1])
        return primal(feature_map, parts, self.root @ coefficients, bias).body


@final
@dataclass(frozen=True, eq=False)
class SketchedBody:
    """Random numbers whose products are the body's kernel on average: no picture has part in the map."""

    sketch: Sketch

    @property
    def width(self) -> int:
        """Numbers of a picture's body."""
        return self.sketch.width

    def body(self, feature_map: TangentMap, own: FeatureRows) -> Tensor:
        """(n, width) float64."""
        return sketched(feature_map, self.sketch, own)

    def weights(self, feature_map: TangentMap, coefficients: Tensor) -> dict[str, Tensor]:
        """Primal weights of coefficients (width, C)."""
        return unsketched(feature_map, self.sketch, coefficients.to(feature_map.probes))


@final
@dataclass(frozen=True, eq=False)
class FrozenMap:
    """`[phi_head(x), phi_body(x)]`, the same for everybody who has it."""

    backbone: Backbone
    feature_map: TangentMap
    span: Landmarks | SketchedBody
    fingerprint: str
    power: float  # of the metric
    damping: float | None  # as chosen at the landmarks

    @property
    def width(self) -> int:
        """Numbers a picture."""
        return self.feature_map.probes.shape[1] + self.span.width

    @torch.no_grad()
    def rows(self, reader: PictureReader, pictures: Pictures) -> Iterator[Tensor]:
        """(b, width) float64 rows of some pictures, batch by batch."""
        with warm_pages():
            for portion in reader.open(pictures).portions(None):
                own = portion_rows(self.feature_map, portion)
                yield torch.cat([own.phi, self.span.body(self.feature_map, own)], 1)

    @torch.no_grad()
    def model(self, coefficients: Tensor, intercept: Tensor) -> TangentModel:
        """The function `intercept + row(x) coefficients`, (width, C), with weights of its own: no map is needed."""
        feature_map, d = self.feature_map, self.feature_map.probes.shape[1]
        head, body = coefficients[:d].T.to(feature_map.probes), self.span.weights(feature_map, coefficients[d:])
        # In the memory order of a model that was read: then that predicts the same bits.
        body = {name: weights.contiguous() for name, weights in body.items()}
        return TangentModel(feature_map, intercept, head.contiguous(), body)


@torch.no_grad()
def landmark_rows(feature_map: TangentMap, reader: PictureReader, pictures: Pictures) -> FeatureRows:
    """Rows of landmark pictures, in memory."""
    with warm_pages():
        return RowReader(feature_map, reader.open, 0).collect(pictures)


@torch.no_grad()
def span_of(feature_map: TangentMap, reader: PictureReader, pictures: Pictures) -> Landmarks:
    """What landmark pictures span; m^3."""
    rows = landmark_rows(feature_map, reader, pictures)
    return Landmarks(pictures, rows, inverse_root(body_kernel(feature_map, rows, rows)))


def fingerprint_of(backbone: Backbone, feature_map: TangentMap, span: Landmarks | SketchedBody) -> str:
    """A hash of everything that a row depends on."""
    chosen: Any = feature_map.mirrored, feature_map.normalize, feature_map.body_scale, feature_map.block_scales
    told = hashlib.sha256(repr((sorted(backbone.describe().items(), key=str), chosen)).encode())
    tensors = [feature_map.probes]
    for name, metric in sorted(feature_map.metric.items()):
        told.update(name.encode())
        tensors += [metric.left, metric.right]
    if isinstance(span, Landmarks):
        told.update(repr(span.pictures.digests).encode())
        tensors.append(span.root)
    else:
        told.update(repr(sorted(span.sketch.sizes.items())).encode())
        tensors += [side[name] for side in (span.sketch.left, span.sketch.right) for name in sorted(side)]
    for tensor in tensors:
        told.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return told.hexdigest()


def body_kernel(feature_map: TangentMap, own: FeatureRows, landmarks: FeatureRows) -> Tensor:
    """(n, m) kernel of the body alone."""
    return cross_kernel(feature_map, own, landmarks) - own.phi @ landmarks.phi.T
