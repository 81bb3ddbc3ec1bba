"""What the closed forms say of trainings without some pictures, and whether they are exact."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import logsumexp
from torch import Tensor
from torch.nn import functional as F

from benchmarks.study import cross_kernel, labels_of, mean_features, quietly, solved
from tangentune import Backbone, Pictures, TangentClassifier

Array = NDArray[np.float64]
FITS: dict[str, dict[str, Any]] = {
    "tangent": {},
    "tangent, 32 outer steps": {"outer_steps": 32},
    "linear probe": {"subset": "none"},
}
FROZEN: dict[str, Any] = {"metric_power": 0.25, "normalize": True, "body_scale": 2.0, "probe_space": "isotropic"}
REFITTED = 5  # pictures for which the whole fit is made anew
MAIN = "tangent, exact group"  # what the plot shows


@dataclass(frozen=True, eq=False)
class Predictions:
    """Predicted margins.

    Attributes:
        halves: method -> (subsets, tests) margins.
        singles: method -> (pictures, tests) effects on margins.
        chosen: the pictures of `singles`.
        exact: how the closed form compares with systems solved without a picture.
        pairs: predicted and real effects on scores, for a plot.
    """

    halves: dict[str, Array]
    singles: dict[str, Array]
    chosen: list[int]
    exact: dict[str, float]
    pairs: list[list[float]]


def margins(scores: Array, labels: NDArray[np.int64]) -> Array:
    """(..., m) score of the true class minus the log-sum-exp of the others, from (..., m, C)."""
    rows = np.arange(len(labels))
    others = scores.copy()
    others[..., rows, labels] = -np.inf
    return scores[..., rows, labels] - logsumexp(others, axis=-1)


def predict_all(
    backbone: Backbone, train: Pictures, test: Pictures, subsets: NDArray[np.bool_], chosen: int
) -> Predictions:
    """Fit the models and predict every training; the closed forms are those of the estimator."""
    halves, singles, checked = {}, {}, None
    targets = F.one_hot(torch.from_numpy(labels_of(train))).double()
    for name, options in FITS.items():
        model = fitted(backbone, train, options)
        kernel, cross = torch.from_numpy(model.kernel_), cross_kernel(model, test)

        def margin(scores: Tensor, model: TangentClassifier = model) -> Array:
            return margins(scores.numpy() / model.temperature_, labels_of(test))

        def without(
            kept: Tensor, kernel: Tensor = kernel, cross: Tensor = cross, damping: float = model.damping_
        ) -> Tensor:
            """(m, C) scores of the pictures kept, solved anew."""
            dual, intercept = solved(kernel[kept][:, kept], targets[kept], damping)
            return intercept + cross[:, kept] @ dual

        masks, everything = torch.from_numpy(subsets), torch.ones(len(train), dtype=torch.bool)
        scores, effects = without(everything), torch.from_numpy(model.influence(test))
        shares = torch.from_numpy(model.contributions(test))
        start = scores - shares.sum(1)  # the intercept
        halves[f"{name}, exact group"] = np.stack([margin(without(kept)) for kept in masks])
        halves[f"{name}, sum of LOO effects"] = additive(margin, scores, -effects, ~masks)
        halves[f"{name}, contributions"] = additive(margin, start, shares, masks)
        singles[name] = margin(scores) - np.stack([margin(scores - part) for part in effects.unbind(1)])
        if checked is None:
            real = torch.stack([scores - without(torch.arange(len(train)) != i) for i in range(len(train))], 1)
            checked = agreement(effects, real), [sample(values) for values in (effects, real)]
    halves["likeness of features"] = likeness(backbone, train, test, subsets)
    largest = np.argsort(-np.abs(singles["tangent"]).mean(1))[:chosen].tolist()
    assert checked is not None
    return Predictions(halves, {name: values[largest] for name, values in singles.items()}, largest, *checked)


def fitted(backbone: Backbone, train: Pictures, options: dict[str, Any]) -> TangentClassifier:
    """With flips averaged."""
    with quietly():
        return TangentClassifier(backbone, augment="flip", **options).fit(train)


def additive(margin: Callable[[Tensor], Array], start: Tensor, parts: Tensor, masks: Tensor) -> Array:
    """Margins of `start` plus the parts (m, n, C) of the pictures in each mask."""
    return np.stack([margin(start + parts[:, row].sum(1)) for row in masks])


def likeness(backbone: Backbone, train: Pictures, test: Pictures, subsets: NDArray[np.bool_]) -> Array:
    """A simple rival: cosines with the kept pictures of the true class, minus those with the kept of the others."""
    units = [F.normalize(mean_features(backbone, part, flip=True).double(), dim=1).numpy() for part in (train, test)]
    same = labels_of(test)[:, None] == labels_of(train)[None]
    return subsets.astype(np.float64) @ ((units[1] @ units[0].T) * np.where(same, 1.0, -1 / 9)).T


def whole_fits(backbone: Backbone, train: Pictures, test: Pictures) -> dict[str, dict[str, float]]:
    """The closed form against fits made anew without some pictures, all choices fixed."""
    out = {}
    for space in ("isotropic", "pca"):
        model = fitted(backbone, train, FROZEN | {"probe_space": space})
        picked = np.linspace(0, len(train) - 1, REFITTED).round().astype(int).tolist()
        predicted = torch.from_numpy(model.influence(test))[:, picked]
        whole = torch.from_numpy(model.decision_function(test))
        options = FROZEN | {"probe_space": space, "damping": model.damping_}
        without = [
            fitted(backbone, train.select(np.flatnonzero(np.arange(len(train)) != i)), options).decision_function(test)
            for i in picked
        ]
        real = torch.stack([whole - torch.from_numpy(scores) for scores in without], 1)
        out[f"whole fit anew, {space} probes, {REFITTED} pictures"] = agreement(predicted, real)
    return out


def agreement(predicted: Tensor, real: Tensor) -> dict[str, float]:
    """Correlation over all effects, and the largest difference over the largest effect."""
    pair = torch.stack([predicted.flatten(), real.flatten()])
    worst = float((predicted - real).abs().max() / real.abs().max())
    return {"correlation": float(torch.corrcoef(pair)[0, 1]), "largest_relative_difference": worst}


def sample(values: Tensor, count: int = 1500) -> list[float]:
    """Some of the effects, the same of every table."""
    keep = np.random.default_rng(1).permutation(values.numel())[:count].tolist()
    return [round(float(values.flatten()[k]), 6) for k in keep]
