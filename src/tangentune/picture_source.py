"""Pictures as the stages of a fit, and predictions, take them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from sklearn.utils.validation import validate_data
from torch import Tensor
from tqdm import tqdm

from tangentune.backbone import Backbone
from tangentune.data import Pictures
from tangentune.expansion import Expansion
from tangentune.work import Source


def picture_source(pictures: Pictures, backbone: Backbone, batch: int, expansion: Expansion | None = None) -> Source:
    """Pictures as network inputs, in the memory order convolutions like best."""
    points = None if expansion is None else tuple(expansion.fold.tolist())

    def batches(index: list[int] | None) -> Any:
        chosen = pictures if index is None else pictures.select(index)
        for x in chosen.batches(backbone.contract, batch, backbone.dtype, backbone.device):
            yield x.contiguous(memory_format=torch.channels_last) if x.dim() == 4 else x

    return Source(len(pictures), batches, points)


def with_progress(source: Source, verbose: int) -> Iterator[Tensor]:
    """All batches in order, with a progress bar."""
    with tqdm(total=source.count, desc="predicting", unit="picture", delay=1.0, disable=not verbose) as bar:
        for x in source.batches(None):
            yield x
            bar.update(len(x))


def load_vectors(estimator: Any, X: Any, y: Any, labelled: bool, reset: bool) -> Pictures:
    """Vectors (n, k) checked as scikit-learn does, for a backbone without input size."""
    if isinstance(X, Pictures):
        X, y = X.pixels, X.labels if y is None else y
    X = X.numpy() if isinstance(X, Tensor) else X
    if labelled:
        X, y = validate_data(estimator, X, y, dtype="numeric", multi_output=True, y_numeric=False, ensure_min_samples=2)
    else:
        X, y = validate_data(estimator, X, dtype="numeric", reset=reset), None
    X = X if X.dtype.kind == "f" else X.astype(np.float64)
    X = np.require(X, requirements=["C", "W"])  # a copy if the array is read-only, which torch does not take
    return Pictures(torch.from_numpy(X), y, [str(i) for i in range(len(X))])
