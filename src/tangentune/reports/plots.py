"""Plots of a fitted model on matplotlib axes, for notebooks and papers; those of the pages are in `figures`."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.axes import Axes

from tangentune.errors import InputError
from tangentune.estimators.summary import label_positions
from tangentune.reports import figures
from tangentune.reports.pages import Estimator, is_classifier
from tangentune.solvers import metrics


def plot_confusion(model: Estimator, ax: Axes | None = None) -> Axes:
    """Leave-one-out predictions against given labels: counts, shaded by their share of the row."""
    names, labels, proba = _left_out(model)
    table = metrics.confusion_matrix(labels, proba.argmax(1), len(names))
    ax = _axes(ax, 1.2 + 0.42 * len(names))
    share = table / np.maximum(table.sum(1, keepdims=True), 1)
    ax.imshow(share, cmap="Blues", vmin=0, vmax=1)
    for i, j in np.argwhere(table):
        ax.text(j, i, str(table[i, j]), ha="center", va="center", color="white" if share[i, j] > 0.5 else "black")
    ax.set_xticks(range(len(names)), names, rotation=90)
    ax.set_yticks(range(len(names)), names)
    ax.grid(visible=False)
    ax.set(xlabel="predicted without the picture", ylabel="given")
    return ax


def plot_reliability(model: Estimator, ax: Axes | None = None) -> Axes:
    """Share right against confidence of the leave-one-out predictions."""
    _, labels, proba = _left_out(model)
    ax = _axes(ax, 3.4)
    figures.draw_reliability(ax, metrics.reliability(labels, proba))
    ax.set(xlabel="confidence of the predicted class")
    return ax


def plot_damping_path(model: Estimator, ax: Axes | None = None) -> Axes:
    """Leave-one-out error against damping."""
    ax, path = _axes(ax, 2.5), model.damping_path_
    figures.draw_damping(ax, path["damping"], path["loo_error"], model.damping_)
    return ax


def plot_block_shares(model: Estimator, ax: Axes | None = None) -> Axes:
    """Share of the solution in each block of the network."""
    ax = _axes(ax, figures.blocks_height(model.block_shares_))
    figures.draw_blocks(ax, model.block_shares_, model.block_scales_)
    return ax


def plot_predictions(model: Estimator, ax: Axes | None = None) -> Axes:
    """Leave-one-out predictions of one number against the true values."""
    targets = np.asarray(model.targets_)
    if is_classifier(model) or targets.size != len(targets):
        raise InputError("plot_predictions is for regressors of one number; a classifier has plot_confusion")
    ax = _axes(ax, 3.9)
    figures.draw_scatter(ax, targets.ravel().astype(float), model.loo_predictions_.ravel(), "leave-one-out prediction")
    return ax


def _left_out(model: Estimator) -> tuple[list[str], Any, Any]:
    """Names of the classes, given labels by position, leave-one-out probabilities."""
    if not is_classifier(model):
        raise InputError("a regressor has no classes to plot; use plot_predictions")
    return [str(name) for name in model.classes_], label_positions(model), np.asarray(model.loo_proba_, np.float64)


def _axes(ax: Axes | None, height: float) -> Axes:
    """Those given, or new ones in the style of the pages, on white."""
    if ax is not None:
        return ax
    from matplotlib import pyplot

    with figures.house_style():
        return pyplot.subplots(figsize=(figures.WIDTH, height), layout="constrained")[1]
