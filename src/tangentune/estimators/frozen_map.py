"""A feature map of finite width that is frozen for good: the same numbers for everybody who has it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from tangentune.estimators.training_set import PictureReader, RowReader
from tangentune.kernels.feature_map import FeatureRows, TangentMap, TangentModel, portion_rows
from tangentune.kernels.landmark_map import LandmarkMap
from tangentune.kernels.sketch import SketchMap
from tangentune.memory import warm_pages
from tangentune.networks.backbone import Backbone
from tangentune.pictures.pictures import Pictures


@final
@dataclass(frozen=True, eq=False)
class FrozenMap:
    """Rows of pictures, spanned by landmarks or sketched, and the fitted function of coefficients in them."""

    backbone: Backbone
    finite: LandmarkMap | SketchMap
    landmarks: Pictures | None  # None of a sketch, in which no picture has part
    fingerprint: str
    power: float  # of the metric
    damping: float | None  # as chosen at the landmarks

    @property
    def feature_map(self) -> TangentMap:
        """The map of any width."""
        return self.finite.feature_map

    @torch.no_grad()
    def rows(self, reader: PictureReader, pictures: Pictures) -> Iterator[Tensor]:
        """(b, width) float64 rows of some pictures, batch by batch."""
        with warm_pages():
            for portion in reader.open(pictures).portions(None):
                yield self.finite.rows(portion_rows(self.feature_map, portion))

    @torch.no_grad()
    def model(self, coefficients: Tensor, intercept: Tensor) -> TangentModel:
        """The function `intercept + row(x) coefficients`, (width, C), with weights of its own: no map is needed."""
        return self.finite.primal(torch.cat([intercept[None], coefficients]))


@torch.no_grad()
def rows_in_memory(feature_map: TangentMap, reader: PictureReader, pictures: Pictures) -> FeatureRows:
    """Rows of landmark pictures, all at once."""
    with warm_pages():
        return RowReader(feature_map, reader.open, 0).collect(pictures)


def fingerprint_of(backbone: Backbone, finite: LandmarkMap | SketchMap, landmarks: Pictures | None) -> str:
    """A hash of everything that a row depends on."""
    feature_map = finite.feature_map
    chosen = feature_map.mirrored, feature_map.normalize, feature_map.body_scale, feature_map.block_scales
    told = hashlib.sha256(repr((sorted(backbone.describe().items(), key=str), chosen)).encode())
    tensors = [feature_map.probes]
    for name, metric in sorted(feature_map.metric.items()):
        told.update(name.encode())
        tensors += [metric.left, metric.right]
    if isinstance(finite, LandmarkMap):
        assert landmarks is not None
        told.update(repr(landmarks.digests).encode())
        tensors.append(finite.root)
    else:
        sketch = finite.sketch
        told.update(repr(sorted(sketch.sizes.items())).encode())
        tensors += [side[name] for side in (sketch.left, sketch.right) for name in sorted(side)]
    for tensor in tensors:
        told.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return told.hexdigest()
