"""What a fitted estimator shows of itself in a notebook: pages, explanations with pictures, plots.

The room of the reports stands on this one, so it is reached by name, and only when something is to be shown.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

from tangentune._torch import usual_torch


@usual_torch
class Shown:
    """Methods for people, of both estimators; everything shown is a leave-one-out result."""

    def report(self) -> Any:
        """The page of `write_report`, to be shown in a notebook.

        Returns:
            An object that a notebook shows; `save(path)` writes the page, `to_frame()` is a row for each picture of the
            fit (pandas), `scores` are its figures.
        """
        return _room("notebook").Report(self)

    def explain(self, X: Any, top: int = 8) -> Any:
        """Which training pictures made the answer about each of m pictures, and which spoke against it; exact.

        Args:
            X: m pictures, as in `predict`; one of the fit itself is answered by the model without it.
            top: training pictures to name in either direction.

        Returns:
            A sequence of m explanations, which a notebook shows with pictures; `to_frame()` is a row for each training
            picture named (pandas). Cost: as of `influence`.
        """
        return _room("notebook").explanations_of(self, X, top)

    def plot_confusion(self, ax: Any = None) -> Any:
        """Which classes are taken for which, by the leave-one-out predictions: rows are given, columns predicted.

        Args:
            ax: matplotlib axes to draw on; None makes a figure of its own.

        Returns:
            The axes, as of all these plots.
        """
        return _room("plots").plot_confusion(self, ax)

    def plot_reliability(self, ax: Any = None) -> Any:
        """Share right against confidence, with 95 % intervals: on the diagonal confidences can be believed."""
        return _room("plots").plot_reliability(self, ax)

    def plot_damping_path(self, ax: Any = None) -> Any:
        """Leave-one-out error against damping, with the chosen one."""
        return _room("plots").plot_damping_path(self, ax)

    def plot_block_shares(self, ax: Any = None) -> Any:
        """Which blocks of the network moved: their shares of the solution."""
        return _room("plots").plot_block_shares(self, ax)

    def plot_predictions(self, ax: Any = None) -> Any:
        """Of a regressor of one number, leave-one-out prediction against the true value."""
        return _room("plots").plot_predictions(self, ax)


def _room(name: str) -> Any:
    return import_module(f"tangentune.reports.{name}")
