"""One self-contained HTML page about a fitted model: how good it is, what moved, which labels look wrong.

Everything on the page comes from exact leave-one-out predictions: each picture is judged by the model fitted
to all others. The page loads nothing from anywhere and needs no script.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from tangentune import metrics
from tangentune.errors import StoreError
from tangentune.estimators.summary import (
    Summary,
    label_positions,
    nice_bytes,
    nice_seconds,
    nice_setting,
    nice_settings,
    summarise,
)
from tangentune.reports import figures as plots
from tangentune.reports import tables


def write_report(model: Any, path: str | os.PathLike[str]) -> Path:
    """Write the page of `render_report` to a file, whole or not at all; returns the path.

    Raises:
        StoreError: the file cannot be written.
    """
    target = Path(path)
    page = render_report(model)
    partial = target.with_name(f".{target.name}.partial")
    try:
        partial.write_text(page, encoding="utf-8", errors="backslashreplace")
        os.replace(partial, target)
    except OSError as error:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
        message = f"cannot write the report to {target}: {error.strerror or error}"
        raise StoreError(message) from error
    return target


def render_report(model: Any) -> str:
    """The report of a fitted `TangentClassifier` or `TangentRegressor` as one HTML page.

    Cost: seconds, mostly drawing; memory for 24 thumbnails. The same model gives the same page.
    """
    facts = summarise(model)
    context = {
        "facts": facts,
        "kind": "classifier" if facts.classification else "regressor",
        "headline": _headline(facts),
        "setup": _setup(facts),
        "chosen": nice_settings(facts),
        "damping_svg": _damping(model),
        "blocks_svg": _blocks(model),
        "scales": _scales(model),
        "suspects": tables.suspects(model, facts),
        "selection": tables.tried_rows(model, facts),
        "stages": tables.stage_rows(facts),
    }
    context |= _classification(model, facts) if facts.classification else _regression(model)
    return environment().get_template("report.html.j2").render(context)


def environment() -> Environment:
    """The templates of every page, with the filters they use."""
    folder = Path(__file__).parent / "templates"
    templates = Environment(
        loader=FileSystemLoader(folder),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    templates.filters["percent"] = lambda share, digits=1: f"{100 * share:.{digits}f} %"
    templates.filters["shortened"] = _shortened
    return templates


def _shortened(path: str, length: int = 22) -> str:
    """The file's name without its folders, its middle cut out if it is long."""
    name = path.rsplit("/", 1)[-1]
    return name if len(name) <= length else f"{name[: length // 2 - 2]}…{name[-length // 2 - 1 :]}"


def _headline(facts: Summary) -> list[dict[str, str]]:
    """The large numbers at the top: value, name, and what to hold it against."""
    tiles = []
    if facts.classification and facts.interval:
        low, high = facts.interval
        tiles += [
            {
                "value": f"{100 * facts.scores['accuracy']:.1f} %",
                "name": "leave-one-out accuracy",
                "note": f"95 % interval {100 * low:.1f} to {100 * high:.1f} %; "
                f"always naming the largest class: {100 * facts.largest_class:.1f} %",
            },
            {
                "value": f"{facts.scores['nll']:.3f}",
                "name": "negative log-likelihood",
                "note": f"nats a picture; even guessing: {np.log(len(facts.classes)):.3f}",
            },
            {
                "value": f"{100 * facts.scores['ece']:.1f} %",
                "name": "calibration error",
                "note": "mean gap between confidence and share right (15 bins)",
            },
        ]
    else:
        tiles += [
            {
                "value": f"{facts.scores['r2']:.3f}",
                "name": "leave-one-out R²",
                "note": "1 is perfect, 0 is the mean",
            },
            {
                "value": f"{facts.scores['rmse']:.4g}",
                "name": "root mean squared error",
                "note": "in the targets' unit",
            },
        ]
    tiles.append(
        {
            "value": nice_seconds(facts.seconds),
            "name": "to fit and choose everything",
            "note": f"peak memory {nice_bytes(facts.peak_bytes)}",
        }
    )
    return tiles


def _setup(facts: Summary) -> list[tuple[str, str]]:
    """What was fitted on what, as (term, description) pairs."""
    contract = facts.contract
    size = contract["input_size"]
    pictures = f"{facts.n:,}"
    if facts.classes:
        least, most = min(facts.counts), max(facts.counts)
        pictures += f" in {len(facts.classes)} classes ({least:,} to {most:,} a class)"
    rows = [
        ("Pictures", pictures),
        ("Network", facts.backbone),
        ("Input", " × ".join(str(side) for side in size) if size else "vectors, as they come"),
        ("Weights from", contract["source"]),
        ("Weights' licence", contract["licence"]),
        ("Weights' sha256", contract["sha256"] or "unknown"),
    ]
    names = [name.replace("_", " ").capitalize() for name in facts.options]
    return rows + list(zip(names, map(nice_setting, facts.options.values()), strict=True))


def _damping(model: Any) -> Markup:
    path = model.damping_path_
    figure = plots.damping_figure(path["damping"], path["loo_error"], model.damping_)
    alt = f"Leave-one-out error against damping; the chosen damping is {model.damping_:.3g}."
    return Markup(plots.to_svg(figure, key="damping", alt=alt))


def _blocks(model: Any) -> Markup:
    shares = {str(name): float(share) for name, share in model.block_shares_.items()}
    top = sorted(shares, key=lambda name: -shares[name])[:3]
    words = ", ".join(f"{name} {100 * shares[name]:.0f} %" for name in top)
    alt = f"Share of the solution in each block of the network; largest: {words}."
    scales = {str(name): float(scale) for name, scale in model.block_scales_.items()}
    return Markup(plots.to_svg(plots.blocks_figure(shares, scales), key="blocks", alt=alt))


def _scales(model: Any) -> str:
    """What the block chart shows, with the kernel's weights in words when the body shares one."""
    body = {float(scale) for name, scale in model.block_scales_.items() if name != "head"}
    if not body:
        return "Only the head: no block of the network was worth moving, so this is a linear probe."
    share = 100 * float(model.block_shares_.get("head", 0.0))
    words = f"The head carries {share:.0f} % of the solution, the blocks {100 - share:.0f} %. Input at the top."
    if len(model.block_shares_) - 1 > plots.MANY_BLOCKS:
        count = len(model.block_shares_) - 1
        words += f" Only the {plots.MANY_BLOCKS} largest of {count} blocks are drawn."
    if len(body) != 1:
        return f"{words} The numbers at the right are the blocks' weights in the kernel."
    head = model.block_scales_.get("head", 0.0)
    return f"{words} In the kernel the head has weight {head:.3g}, every other block {body.pop():.3g}."


def _classification(model: Any, facts: Summary) -> dict[str, Any]:
    labels, proba = label_positions(model), np.asarray(model.loo_proba_, np.float64)
    table = metrics.confusion_matrix(labels, proba.argmax(axis=1), len(facts.classes))
    figure = plots.reliability_figure(metrics.reliability(labels, proba))
    error = 100 * facts.scores["ece"]
    alt = f"Share right against confidence; the expected calibration error is {error:.1f} percent."
    return {
        "reliability_svg": Markup(plots.to_svg(figure, key="reliability", alt=alt)),
        "confusion": tables.confusion_rows(table, facts.classes),
        "per_class": tables.class_rows(table, facts.classes),
        "pairs": tables.commonest_confusions(table, facts.classes),
    }


def _regression(model: Any) -> dict[str, Any]:
    targets = np.asarray(model.targets_, np.float64)
    predicted = np.asarray(model.loo_predictions_, np.float64).reshape(targets.shape)
    alt = "Leave-one-out predictions against true values; perfect predictions lie on the diagonal."
    figure = plots.scatter_figure(targets, predicted)
    return {"scatter_svg": Markup(plots.to_svg(figure, key="scatter", alt=alt))}
