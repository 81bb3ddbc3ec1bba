"""Make the README's picture from real plankton pictures: `python docs/make_images.py`, about a minute.

Left: the pictures whose exact leave-one-out prediction contradicts their label most. Middle: leave-one-out error
along the damping, with the chosen point. Right: which blocks of the network carry the solution.
"""

from __future__ import annotations

from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator
from PIL import Image

from tangentune import TangentClassifier
from tangentune.reports.figures import PALETTE

TARGET = Path(__file__).parent / "images" / "quickstart.png"
STYLE: dict[Any, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 8,
    "axes.edgecolor": PALETTE["muted"],
    "axes.labelcolor": PALETTE["muted"],
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": PALETTE["muted"],
    "ytick.color": PALETTE["muted"],
    "text.color": PALETTE["ink"],
}


def main() -> None:
    """Fit, draw, save."""
    with as_file(files("planktonclass") / "resources" / "demo-images") as folder:
        model = TangentClassifier("mobilenet_v2", input_size=64).fit(folder)
        with mpl.rc_context(STYLE):
            figure = draw(model, folder)
            TARGET.parent.mkdir(exist_ok=True)
            figure.savefig(TARGET, dpi=170)
    with Image.open(TARGET) as picture:
        picture.convert("P", palette=Image.Palette.ADAPTIVE, colors=256).save(TARGET, optimize=True)
    print(f"{TARGET}: {TARGET.stat().st_size / 1000:.0f} kB")


def draw(model: TangentClassifier, folder: Path) -> Figure:
    """The three panels."""
    figure = Figure(figsize=(10.2, 3.7), facecolor=PALETTE["surface"])
    grid = {"left": 0.01, "right": 0.99, "top": 0.87, "bottom": 0.13, "wspace": 0.22}
    outer = figure.add_gridspec(1, 3, width_ratios=[1.4, 1, 1], **grid)
    cells = outer[0].subgridspec(2, 3, wspace=0.3, hspace=0.42)
    titles = (
        "Given label, and what the other pictures say",
        "Exact leave-one-out error, no refits",
        "Which blocks moved, in %",
    )
    for i, title in enumerate(titles):
        figure.text(outer[i].get_position(figure).x0, 0.93, title, fontsize=9, fontweight="bold")
    draw_suspects([figure.add_subplot(cells[i // 3, i % 3]) for i in range(6)], model, folder)
    draw_damping(figure.add_subplot(outer[1]), model)
    draw_blocks(figure.add_subplot(outer[2]), model)
    return figure


def draw_suspects(cells: list[Axes], model: TangentClassifier, folder: Path) -> None:
    """Pictures with the surest contradiction of their label, squared onto white."""
    said, sure = model.classes_[model.loo_proba_.argmax(1)], model.loo_proba_.max(1)
    wrong = np.flatnonzero(said != model.targets_)
    for axes, i in zip(cells, wrong[np.argsort(-sure[wrong])], strict=False):
        with Image.open(folder / model.ids_[i]) as opened:
            picture = opened.convert("RGB")
        side = max(picture.size)
        square = Image.new("RGB", (side, side), "white")
        square.paste(picture, ((side - picture.width) // 2, (side - picture.height) // 2))
        axes.imshow(square.resize((240, 240), Image.Resampling.LANCZOS))
        axes.set_xticks([])
        axes.set_yticks([])
        for spine in axes.spines.values():
            spine.set(visible=True, color=PALETTE["grid"], linewidth=0.8)
        axes.text(0.5, -0.06, str(model.targets_[i]), transform=axes.transAxes, ha="center", va="top", fontsize=6.8)
        axes.text(
            0.5, -0.19, f"{said[i]} {sure[i]:.0%}",
            transform=axes.transAxes, ha="center", va="top", fontsize=6.8, color=PALETTE["warm"], fontweight="bold",
        )  # fmt: skip


def draw_damping(axes: Axes, model: TangentClassifier) -> None:
    """Leave-one-out error along the damping."""
    damping, error = model.damping_path_["damping"], model.damping_path_["loo_error"]
    axes.plot(damping, error, color=PALETTE["accent"], linewidth=2)
    lowest = float(np.exp(np.interp(np.log(model.damping_), np.log(damping), np.log(error))))
    axes.plot([model.damping_], [lowest], "o", color=PALETTE["warm"], markersize=8, markeredgecolor="white")
    left = np.log(model.damping_) < np.log(damping).mean()
    axes.annotate(
        f"chosen: λ = {model.damping_:.2g}", (model.damping_, lowest),
        xytext=(-4 if left else 4, 12), textcoords="offset points", ha="left" if left else "right", va="bottom",
    )  # fmt: skip
    axes.set_xscale("log")
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlabel("damping λ")
    axes.grid(axis="y", color=PALETTE["grid"], linewidth=0.6)
    axes.set_axisbelow(True)
    axes.set_ylim(bottom=0)


def draw_blocks(axes: Axes, model: TangentClassifier) -> None:
    """Share of each block in the solution, input at the left, head last."""
    names = [name for name in model.block_shares_ if name != "head"] + ["head"]
    shares = [100 * model.block_shares_[name] for name in names]
    colours = [PALETTE["accent"]] * (len(names) - 1) + [PALETTE["warm"]]
    axes.bar(range(len(names)), shares, color=colours, width=0.72)
    axes.grid(axis="y", color=PALETTE["grid"], linewidth=0.6)
    axes.set_axisbelow(True)
    axes.xaxis.set_major_locator(FixedLocator(list(range(len(names)))))
    short = [name.removeprefix("features.") for name in names]
    axes.xaxis.set_major_formatter(FuncFormatter(lambda at, _: short[round(at)]))
    axes.tick_params(axis="x", length=0, labelsize=7)
    axes.set_xlabel("block of MobileNetV2, input to output")


if __name__ == "__main__":
    main()
