"""Vectors as inputs of an estimator, checked by scikit-learn's own rules."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from sklearn.utils.validation import validate_data
from torch import Tensor

from tangentune.pictures.load import Pictures


def load_vectors(estimator: Any, X: Any, y: Any, labelled: bool, reset: bool) -> Pictures:
    """Vectors (n, k) checked as scikit-learn does, for a backbone without input size."""
    if isinstance(X, Pictures):
        X, y = X.pixels, X.labels if y is None else y
    X = X.numpy() if isinstance(X, Tensor) else X
    if labelled:
        rules: dict[str, Any] = {"multi_output": True, "y_numeric": False, "ensure_min_samples": 2 if reset else 1}
        X, y = validate_data(estimator, X, y, dtype="numeric", reset=reset, **rules)
    else:
        X, y = validate_data(estimator, X, dtype="numeric", reset=reset), None
    X = X if X.dtype.kind == "f" else X.astype(np.float64)
    X = np.require(X, requirements=["C", "W"])  # a copy if the array is read-only, which torch does not take
    return Pictures(torch.from_numpy(X), y, [str(i) for i in range(len(X))])
