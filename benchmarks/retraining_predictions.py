"""What the closed forms say of trainings without some pictures, and whether they are exact."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import logsumexp
from torch import Tensor
from torch.nn import functional as F

from tangentune import Backbone, Pictures, TangentClassifier
from tangentune.methods.fine_tuning.labelled import mean_features
from tangentune.solvers.edits import remove
from tangentune.solvers.leave_out import contributions, influence
from tangentune.solvers.system import System, build

Array = NDArray[np.float64]
FITS: dict[str, dict[str, Any]] = {
    "tangent": {},
    "tangent, 32 outer steps": {"outer_steps": 32},
    "linear probe": {"subset": "none"},
}
FROZEN: dict[str, Any] = {"metric_power": 0.25, "normalize": True, "body_scale": 2.0, "probe_space": "isotropic"}
REFITTED = 5  # pictures for which the whole fit is made anew


@dataclass(frozen=True, eq=False)
class Predictions:
    """Predicted margins.

    Attributes:
        halves: method -> (subsets, tests) margins.
        singles: method -> (pictures, tests) effects on margins.
        chosen: the pictures of `singles`.
        exact: how the closed form compares with systems solved without a picture.
        pairs: predicted and real effects on scores, for a plot.
        main: the method that a plot should show.
    """

    halves: dict[str, Array]
    singles: dict[str, Array]
    chosen: list[int]
    exact: dict[str, float]
    pairs: list[list[float]]
    main: str


@dataclass(frozen=True, eq=False)
class _Fit:
    """A fitted model as arrays: system, kernel (m, n) with the test pictures, temperature."""

    system: System
    cross: Tensor
    temperature: float

    def scores(self, system: System | None = None, cross: Tensor | None = None) -> Tensor:
        system, cross = system or self.system, self.cross if cross is None else cross
        return system.bias + cross @ system.dual


def margins(scores: Array, labels: NDArray[np.int64]) -> Array:
    """(..., m) score of the true class minus the log-sum-exp of the others, from (..., m, C)."""
    rows = np.arange(len(labels))
    others = scores.copy()
    others[..., rows, labels] = -np.inf
    return scores[..., rows, labels] - logsumexp(others, axis=-1)


def predict_all(
    backbone: Backbone, train: Pictures, test: Pictures, subsets: NDArray[np.bool_], chosen: int
) -> Predictions:
    """Fit the models and predict every training."""
    labels = np.asarray(test.labels)
    fits = {name: _fit(backbone, train, test, options) for name, options in FITS.items()}
    halves, singles = {}, {}
    for name, fit in fits.items():
        scale = fit.temperature

        def margin(scores: Tensor, scale: float = scale) -> Array:
            return margins(scores.numpy() / scale, labels)

        groups = [_without(fit, kept) for kept in subsets]
        halves[f"{name}, exact group"] = np.stack([margin(scores) for scores in groups])
        effects = influence(fit.system, fit.cross)
        halves[f"{name}, sum of LOO effects"] = _additive(subsets, fit.scores(), -effects, margin, left_out=True)
        shares = contributions(fit.system, fit.cross)
        start = fit.system.bias.expand(len(labels), -1)
        halves[f"{name}, contributions"] = _additive(subsets, start, shares, margin, left_out=False)
        singles[name] = margin(fit.scores()) - np.stack([margin(fit.scores() - part) for part in effects.unbind(1)])
    halves["likeness of features"] = _likeness(backbone, train, test, subsets)
    largest = np.argsort(-np.abs(singles["tangent"]).mean(1))[:chosen].tolist()
    exact, pairs = _solved_anew(fits["tangent"])
    singles = {name: values[largest] for name, values in singles.items()}
    return Predictions(halves, singles, largest, exact, pairs, "tangent, exact group")


def _fit(backbone: Backbone, train: Pictures, test: Pictures, options: dict[str, Any]) -> _Fit:
    model = _fitted(backbone, train, options)
    targets = F.one_hot(torch.from_numpy(np.asarray(train.labels))).double()
    system = build(torch.from_numpy(model.kernel_), targets, model.damping_)
    return _Fit(system, _cross(model, test), model.temperature_)


def _fitted(backbone: Backbone, train: Pictures, options: dict[str, Any]) -> TangentClassifier:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*the same picture")
        return TangentClassifier(backbone, augment="flip", **options).fit(train)


def _cross(model: TangentClassifier, test: Pictures) -> Tensor:
    """(m, n) kernel with the training pictures, from `contributions` = k(x, x_i) c_i."""
    shares, dual = torch.from_numpy(model.contributions(test)), torch.from_numpy(model.dual_coef_)
    return (shares * dual).sum(2) / dual.square().sum(1)


def _without(fit: _Fit, kept: NDArray[np.bool_]) -> Tensor:
    """(m, C) scores of the exact solution for the pictures kept."""
    rest = torch.from_numpy(kept)
    return fit.scores(remove(fit.system, (~rest).nonzero().flatten()), fit.cross[:, rest])


def _additive(
    subsets: NDArray[np.bool_], start: Tensor, parts: Tensor, margin: Callable[[Tensor], Array], *, left_out: bool
) -> Array:
    """Margins of `start` plus the parts (m, n, C) of the pictures left out, or of those kept."""
    chosen = ~subsets if left_out else subsets
    return np.stack([margin(start + parts[:, torch.from_numpy(row)].sum(1)) for row in chosen])


def _likeness(backbone: Backbone, train: Pictures, test: Pictures, subsets: NDArray[np.bool_]) -> Array:
    """A simple rival: cosines with the kept pictures of the true class, minus those with the kept of the others."""
    units = [F.normalize(mean_features(backbone, part, 64, True).double(), dim=1).numpy() for part in (train, test)]
    same = np.asarray(test.labels)[:, None] == np.asarray(train.labels)[None]
    signed = (units[1] @ units[0].T) * np.where(same, 1.0, -1 / 9)
    return subsets.astype(np.float64) @ signed.T


def whole_fits(backbone: Backbone, train: Pictures, test: Pictures) -> dict[str, dict[str, float]]:
    """The closed form against fits made anew without some pictures, all choices fixed."""
    out = {}
    for space in ("isotropic", "pca"):
        model = _fitted(backbone, train, FROZEN | {"probe_space": space})
        picked = np.linspace(0, len(train) - 1, REFITTED).round().astype(int).tolist()
        predicted = torch.from_numpy(model.influence(test))[:, picked]
        whole = torch.from_numpy(model.decision_function(test))
        options = FROZEN | {"probe_space": space, "damping": model.damping_}
        without = [_fitted(backbone, _but(train, i), options).decision_function(test) for i in picked]
        real = torch.stack([whole - torch.from_numpy(scores) for scores in without], 1)
        out[f"whole fit anew, {space} probes, {REFITTED} pictures"] = _agreement(predicted, real)
    return out


def _solved_anew(fit: _Fit) -> tuple[dict[str, float], list[list[float]]]:
    """The closed form against systems solved without each picture, and some pairs of both for a plot."""
    predicted = influence(fit.system, fit.cross)
    full = _solve(fit.system.kernel, fit.system.targets, fit.system.damping, fit.cross)
    real = torch.stack([full - _resolved(fit, i) for i in range(len(fit.system.kernel))], 1)
    return _agreement(predicted, real), [_sample(values) for values in (predicted, real)]


def _but(train: Pictures, i: int) -> Pictures:
    return train.select(np.flatnonzero(np.arange(len(train)) != i))


def _resolved(fit: _Fit, i: int) -> Tensor:
    """(m, C) scores of the fit without picture i, solved from scratch."""
    rest = torch.arange(len(fit.system.kernel)) != i
    kernel, targets = fit.system.kernel[rest][:, rest], fit.system.targets[rest]
    return _solve(kernel, targets, fit.system.damping, fit.cross[:, rest])


def _solve(kernel: Tensor, targets: Tensor, damping: float, cross: Tensor) -> Tensor:
    n = len(kernel)
    matrix = torch.ones(n + 1, n + 1, dtype=torch.float64)
    matrix[:n, :n] = kernel + damping * torch.eye(n, dtype=torch.float64)
    matrix[n, n] = 0
    solution = torch.linalg.solve(matrix, torch.cat([targets, torch.zeros_like(targets[:1])]))
    return solution[n] + cross @ solution[:n]


def _agreement(predicted: Tensor, real: Tensor) -> dict[str, float]:
    """Correlation over all effects, and the largest difference over the largest effect."""
    pair = torch.stack([predicted.flatten(), real.flatten()])
    worst = float((predicted - real).abs().max() / real.abs().max())
    return {"correlation": float(torch.corrcoef(pair)[0, 1]), "largest_relative_difference": worst}


def _sample(values: Tensor, count: int = 1500) -> list[float]:
    keep: Sequence[int] = np.random.default_rng(1).permutation(values.numel())[:count].tolist()
    return [round(float(values.flatten()[k]), 6) for k in keep]
