"""Small figures of a fitted model, as matplotlib `Figure` objects and as SVG that follows a page's colours.

Nothing here touches pyplot or leaves a global setting changed. Every colour of `PALETTE` becomes a CSS
variable in the SVG (`var(--ink, #1b2733)`), so a figure is readable on a light and on a dark page.
"""

from __future__ import annotations

import contextlib
import io
import math
import re
import threading
import warnings
from collections.abc import Iterator
from html import escape
from typing import Any

import matplotlib as mpl
import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter, PercentFormatter
from numpy.typing import ArrayLike, NDArray

from tangentune.errors import nice_number
from tangentune.solvers.metrics import Reliability, accuracy_interval, reliability

PALETTE = {
    "ink": "#1b2733",
    "muted": "#5a6979",
    "grid": "#dde4ea",
    "accent": "#2563c4",
    "warm": "#b5560a",
    "surface": "#fefefe",
}
WIDTH = 4.6  # inches; narrow on purpose, so that the lettering stays readable on a telephone
_FONT = "ui-sans-serif, system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"
_STYLE: dict[Any, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 8.5,
    "axes.labelsize": 8.5,
    "axes.facecolor": "none",
    "axes.edgecolor": PALETTE["muted"],
    "axes.labelcolor": PALETTE["muted"],
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": PALETTE["grid"],
    "grid.linewidth": 0.6,
    "xtick.color": PALETTE["muted"],
    "ytick.color": PALETTE["muted"],
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "text.color": PALETTE["ink"],
    "text.parse_math": False,
    "svg.fonttype": "none",
    "svg.hashsalt": "tangentune",
}
_SETTINGS = threading.Lock()  # matplotlib's settings are global: one figure at a time
_MANY_POINTS = 2000
MANY_BLOCKS = 30


@contextlib.contextmanager
def house_style() -> Iterator[None]:
    """The lettering, lines and colours of every figure, for the making and the saving of one."""
    with _SETTINGS, mpl.rc_context(_STYLE):
        yield


def damping_figure(damping: ArrayLike, loo_error: ArrayLike, chosen: float) -> Figure:
    """Leave-one-out error against damping, with the chosen point marked; both arrays of shape (steps,)."""
    with house_style():
        figure = _figure(2.5)
        draw_damping(figure.subplots(), damping, loo_error, chosen)
    return figure


def draw_damping(axes: Axes, damping: ArrayLike, loo_error: ArrayLike, chosen: float) -> None:
    """The same on axes."""
    x, y = np.asarray(damping, np.float64), np.asarray(loo_error, np.float64)
    usable = (x > 0) & np.isfinite(y) & (y > 0)
    x, y = x[usable], y[usable]
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(FuncFormatter(_power_of_ten))
    if len(x):
        near = y <= 30 * y.min()  # the far wing of a log axis says nothing and flattens the rest
        x, y = x[near], y[near]
        if y.max() > 3 * y.min():
            axes.set_yscale("log")
            axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
            axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            axes.yaxis.set_minor_formatter(NullFormatter())
        axes.plot(x, y, color=PALETTE["accent"], linewidth=1.8)
        if len(x) == 1:
            axes.set_xlim(x[0] / 10, x[0] * 10)
        if chosen > 0:
            _mark_chosen(axes, x, y, chosen)
    axes.set(xlabel="damping λ", ylabel="leave-one-out error")


def _power_of_ten(value: float, _: object = None) -> str:
    exponent = str(round(math.log10(value)))
    return "10" + exponent.translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))


def _mark_chosen(axes: Axes, x: np.ndarray, y: np.ndarray, chosen: float) -> None:
    height = float(np.exp(np.interp(np.log(chosen), np.log(x), np.log(y))))
    axes.axvline(chosen, color=PALETTE["muted"], linewidth=0.7, linestyle=(0, (3, 3)))
    axes.plot([chosen], [height], "o", color=PALETTE["warm"], markersize=6.5, markeredgecolor=PALETTE["surface"])
    right = math.log(chosen) > np.log(x).mean()
    side: dict[str, Any] = {"xytext": (-6, 0), "ha": "right"} if right else {"xytext": (6, 0), "ha": "left"}
    place: dict[str, Any] = {"xycoords": ("data", "axes fraction"), "textcoords": "offset points", "va": "top"}
    axes.annotate(f"chosen: λ = {nice_number(chosen)}", (chosen, 0.97), **place, **side)


def blocks_figure(shares: dict[str, float], scales: dict[str, float]) -> Figure:
    """Which blocks of the network carry the solution: one bar each, input first, head last in its own colour.

    The `shares` of its squared norm sum to 1; `scales`, weights in the kernel, are written at the right if they differ.
    """
    with house_style():
        figure = _figure(blocks_height(shares))
        draw_blocks(figure.subplots(), shares, scales)
    return figure


def blocks_height(shares: dict[str, float]) -> float:
    """Inches that so many bars take."""
    return 0.62 + 0.172 * len(_drawn(shares))


def _drawn(shares: dict[str, float]) -> list[str]:
    """The blocks that have a bar, in the order of the network, the head last."""
    names = [name for name in shares if name != "head"]
    if len(names) > MANY_BLOCKS:  # keep the order of the network, drop the smallest
        floor = sorted((shares[name] for name in names), reverse=True)[MANY_BLOCKS - 1]
        names = [name for name in names if shares[name] >= floor][:MANY_BLOCKS]
    names += [name for name in shares if name == "head"]
    return names


def draw_blocks(axes: Axes, shares: dict[str, float], scales: dict[str, float]) -> None:
    """The same on axes."""
    names = _drawn(shares)
    values = np.array([shares[name] for name in names], np.float64)
    colours = [PALETTE["warm"] if name == "head" else PALETTE["accent"] for name in names]
    rows = np.arange(len(names))[::-1]
    axes.barh(rows, values, height=0.66, color=colours)
    axes.set_yticks(rows, names)
    axes.set_ylim(-0.7, len(names) - 0.3)
    axes.set_xlim(0, max(float(values.max()), 1e-9) * 1.3)
    axes.xaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
    axes.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0 if values.max() > 0.05 else 1))
    axes.tick_params(axis="y", length=0, labelcolor=PALETTE["ink"])
    axes.grid(axis="y", visible=False)
    axes.spines["left"].set_visible(False)
    for row, value in zip(rows, values, strict=True):
        axes.text(value, row, f"\u2009{100 * value:.1f}", va="center", fontsize=7, color=PALETTE["muted"])
    if len({scale for name, scale in scales.items() if name != "head"}) > 1:
        edge = axes.get_xlim()[1]
        for row, name in zip(rows, names, strict=True):
            words = f"× {nice_number(scales[name], 2)}" if name in scales else ""
            axes.text(edge, row, words, va="center", ha="right", fontsize=7, color=PALETTE["ink"])
    axes.set_xlabel("share of the solution's squared norm")


def reliability_figure(curve: Reliability) -> Figure:
    """Accuracy against confidence with 95 % bars, above a histogram of the confidences."""
    width = float(curve.edges[1] - curve.edges[0])
    centre = curve.edges[:-1] + width / 2
    with house_style():
        figure = _figure(3.7)
        upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
        draw_reliability(upper, curve)
        lower.bar(centre, curve.counts, width * 0.9, color=PALETTE["accent"], alpha=0.55)
        lower.set(xlabel="confidence of the predicted class", ylabel="pictures")
        lower.grid(axis="x", visible=False)
        lower.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    return figure


def draw_reliability(axes: Axes, curve: Reliability) -> None:
    """Accuracy against confidence on axes; the larger a point, the more pictures."""
    filled = curve.counts > 0
    confidence, accuracy, counts = (values[filled] for values in (curve.confidence, curve.accuracy, curve.counts))
    axes.plot([0, 1], [0, 1], color=PALETTE["muted"], linewidth=0.8, linestyle=(0, (3, 3)))
    for x, share, count in zip(confidence, accuracy, counts, strict=True):
        axes.plot([x, x], accuracy_interval(share, int(count)), color=PALETTE["accent"], linewidth=1, alpha=0.45)
    area = 14 + 90 * counts / max(int(curve.counts.max()), 1)
    axes.scatter(confidence, accuracy, s=area, color=PALETTE["accent"], zorder=3, clip_on=False)
    axes.set(xlim=(0, 1), ylim=(-0.03, 1.03), ylabel="share right")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(PercentFormatter(1.0, decimals=0))


def reliability_svg(targets: ArrayLike, proba: ArrayLike, scores: dict[str, float], of: str = "") -> Markup:
    """The same of probabilities (n, C) for classes (n,), for a page; `of` says in words of what."""
    alt = f"Share right against confidence{of}; the expected calibration error is {100 * scores['ece']:.1f} percent."
    return to_svg(reliability_figure(reliability(targets, proba)), key="reliability", alt=alt)


def label_reliability_svg(given: ArrayLike, proba: ArrayLike, scores: dict[str, float]) -> Markup:
    """The same of several labels a picture, both (n, L), each label being a case of its own."""
    flat = np.ravel(proba)
    return reliability_svg(np.ravel(given), np.stack([1 - flat, flat], axis=1), scores, " over all labels")


def scatter_svg(targets: NDArray, predicted: NDArray, name: str) -> Markup:
    """`scatter_figure` of predictions, called by their name, for a page."""
    alt = f"{name[0].upper()}{name[1:]}s against true values; perfect predictions lie on the diagonal."
    return to_svg(scatter_figure(targets, predicted, name), key="scatter", alt=alt)


def scatter_figure(targets: ArrayLike, predicted: ArrayLike, name: str = "leave-one-out prediction") -> Figure:
    """Prediction, called by its `name`, against the true number, (n,) or (n, k); a panel for each of four outputs."""
    given = np.asarray(targets, np.float64).reshape(len(np.asarray(targets)), -1)
    guess = np.asarray(predicted, np.float64).reshape(given.shape)
    panels = min(given.shape[1], 4)
    columns = 1 if panels == 1 else 2
    with house_style():
        rows = math.ceil(panels / columns)
        figure = _figure(rows * (3.9 if columns == 1 else 2.3))
        grid = figure.subplots(rows, columns, squeeze=False).ravel()
        for i, axes in enumerate(grid):
            if i >= panels:
                axes.set_axis_off()
                continue
            draw_scatter(axes, given[:, i], guess[:, i], name)
            if panels > 1:
                axes.set_title(f"output {i + 1}", fontsize=8.5)
    return figure


def draw_scatter(axes: Axes, given: np.ndarray, guess: np.ndarray, name: str) -> None:
    """One prediction, called by its name, against the true number on axes."""
    low, high = float(min(given.min(), guess.min())), float(max(given.max(), guess.max()))
    pad = 0.04 * (high - low) or 1.0
    ends = (low - pad, high + pad)
    many = len(given) > _MANY_POINTS
    axes.plot(ends, ends, color=PALETTE["muted"], linewidth=0.8, linestyle=(0, (3, 3)))
    size, alpha = (4, 0.3) if many else (16, 0.6)
    axes.scatter(given, guess, s=size, color=PALETTE["accent"], alpha=alpha, linewidths=0, rasterized=many)
    axes.set(xlim=ends, ylim=ends, xlabel="true value", ylabel=name, aspect="equal")


def _figure(height: float) -> Figure:
    return Figure(figsize=(WIDTH, height), layout="constrained", facecolor="none")


def to_svg(figure: Figure, *, key: str, alt: str) -> Markup:
    """An `<svg>` element for HTML, in the page's colours, described by `alt`; `key`, unique there, begins its ids."""
    stream = io.StringIO()
    with house_style(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from")  # the browser draws the letters, not matplotlib
        figure.savefig(stream, format="svg", metadata={"Date": None}, dpi=150)
    text = stream.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    opening, rest = text.split(">", 1)
    opening = re.sub(r' (height|width|version|xmlns(:\w+)?)="[^"]*"', "", opening)  # HTML needs none of them
    text = f"{opening}>{rest}"
    text = re.sub(r'\b(id="|href="#|url\(#)', rf"\g<1>{key}-", text)
    for name, colour in PALETTE.items():
        text = text.replace(colour, f"var(--{name}, {colour})")
    text = text.replace("'DejaVu Sans'", _FONT)
    label = escape(alt, quote=True)
    text = text.replace("<svg", f'<svg role="img" aria-label="{label}"', 1)
    return Markup(text.replace(">", f"><title>{label}</title>", 1))
