"""The look of the studies' figures, as matplotlib `Figure` objects."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import wraps
from typing import Any, ParamSpec

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

P = ParamSpec("P")
INK, MUTED, GRID = "#1b2733", "#5f6f80", "#dde4ea"
COLOURS = ("#2563c4", "#c9640f", "#2f8a5b", "#8a4fb0", "#5f6f80")
STYLE: dict[Any, Any] = {
    "font.size": 9,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": GRID,
    "xtick.color": MUTED,
    "ytick.color": INK,
    "text.color": INK,
    "legend.frameon": False,
}


def styled(draw: Callable[P, Figure]) -> Callable[P, Figure]:
    """Let a function draw in the common style."""

    @wraps(draw)
    def drawn(*args: P.args, **kwargs: P.kwargs) -> Figure:
        with mpl.rc_context(STYLE):
            return draw(*args, **kwargs)

    return drawn


def panels(size: tuple[float, float], rows: int, columns: int, **shared: Any) -> tuple[Figure, NDArray[Any]]:
    """A figure of this size in inches, and its axes (rows, columns)."""
    figure = Figure(figsize=size, layout="constrained")
    return figure, np.asarray(figure.subplots(rows, columns, squeeze=False, **shared))


def legend_below(
    figure: Figure,
    axes: Axes,
    entries: Iterable[tuple[str, str]],
    marker: str = "o",
    title: str | None = None,
    **more: Any,
) -> None:
    """A legend under all panels, from (label, colour) pairs."""
    handles = [axes.plot([], [], marker, color=colour, label=label, **more)[0] for label, colour in entries]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), title=title)
