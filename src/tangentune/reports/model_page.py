"""One self-contained HTML page about a fitted model: how good it is, what moved, which labels look wrong.

Everything on the page comes from exact leave-one-out predictions: each picture is judged by the model fitted
to all others. The page loads nothing from anywhere and is whole without its script.
"""

from __future__ import annotations

import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup

from tangentune._torch import usual_torch
from tangentune.errors import StoreError, nice_number
from tangentune.estimators.classifier import TangentClassifier
from tangentune.estimators.summary import (
    Summary,
    label_positions,
    nice_bytes,
    nice_seconds,
    nice_setting,
    nice_settings,
    summarise,
)
from tangentune.estimators.user_input import check_pictures_known
from tangentune.estimators.worth import next_steps, verdict
from tangentune.reports import figures as plots
from tangentune.reports import tables
from tangentune.reports.gallery import Link, gallery, links
from tangentune.reports.pages import Estimator, is_classifier, render, write_page
from tangentune.solvers import metrics


@usual_torch
def write_report(
    model: Estimator,
    path: str | os.PathLike[str],
    place: str | os.PathLike[str] | None = None,
    originals: str | os.PathLike[str] | None = None,
) -> Path:
    """Write the page of `render_report` to a file, whole or not at all; returns the path.

    Args:
        model: fitted.
        path: of the page.
        place: where the model is saved, for the commands on the page that correct a label.
        originals: the folder of the fit's pictures, for links from the page to their files; none if not given.

    Raises:
        StoreError: the file cannot be written, its folder is not there, or holds another model than this one.
    """
    target = Path(path)
    try:
        os.stat(os.path.join(target.parent, ""))  # beside a saved model: no folder is made for it
    except OSError as error:
        raise StoreError(f"cannot write the report to {target} ({error.strerror}); make its folder first") from error
    fitted = getattr(model, "fitted_", None)  # pages need no more than the public attributes
    return write_page(render_report(model, place, links(originals, target)), target, fitted and fitted.version)


def render_report(model: Estimator, place: str | os.PathLike[str] | None = None, link: Link | None = None) -> str:
    """A fitted model as one HTML page, always the same; costs seconds, mostly drawing, and under 3 MB of page."""
    facts = summarise(model)
    if not facts.scores:
        check_pictures_known([])
    context = {
        "facts": facts,
        "kind": "classifier" if facts.classification else "regressor",
        "tiles": _headline(facts),
        "figures": _figures(facts),
        "verdict": verdict(facts),
        "next_steps": next_steps(facts),
        "setup": _setup(facts),
        "chosen": nice_settings(facts),
        "damping_svg": _damping(model),
        "blocks_svg": _blocks(model),
        "scales": _scales(model),
        "gallery": gallery(model.pictures_, tables.hardest(model, facts, place), link),
        "selection": tables.tried_rows(model, facts),
        "stages": tables.stage_rows(facts),
    }
    if is_classifier(model):
        context |= _several_labels(model, facts) if facts.several else _classification(model, facts)
    else:
        context |= _regression(model)
    return render("report.html.j2", context)


def _headline(facts: Summary) -> list[dict[str, str]]:
    """The large numbers at the top: value, name, what to hold it against, and the word that explains it."""
    scores = facts.scores
    labels = "label" if facts.doubtful == 1 else "labels"
    doubtful = (f"{facts.doubtful:,}", f"{labels} to look at again", "whose chance to be right is below 5 %", "")
    if facts.several:
        tiles = [*tables.label_tiles(scores), doubtful]
    elif facts.classification and facts.interval:
        low, high = facts.interval
        note = f"leave-one-out accuracy; 95 % interval {100 * low:.1f} to {100 * high:.1f} %; "
        note += f"always naming the largest class: {100 * facts.largest_class:.1f} %"
        tiles = [(f"{100 * scores['accuracy']:.1f} %", "of the pictures are named right", note, "accuracy"), doubtful]
    else:
        tiles = tables.number_tiles(scores, "in the targets' unit")
    if facts.classification:
        tiles.append(tables.calibration_tile(scores))
    memory = f"peak memory {nice_bytes(facts.peak_bytes)}"
    tiles.append((nice_seconds(facts.seconds), "to fit and choose everything", memory, ""))
    return tables.shown_tiles(tiles)


def _figures(facts: Summary) -> list[dict[str, str]]:
    """All scores by the names that the field has for them."""
    scores = facts.scores
    if facts.several:
        rows = [("macro F1", scores["macro_f1"], "", "F1"), ("micro F1", scores["micro_f1"], "", "F1")]
        rows += [("all labels right", scores["subset_accuracy"], "share of the pictures", "")]
        rows += [("log-loss", scores["nll"], "nats a label", "log-loss")]
    elif facts.classification:
        guessing = f"nats a picture; even guessing: {np.log(len(facts.classes)):.3f}"
        rows = [("log-loss", scores["nll"], guessing, "log-loss")]
        rows += [("Brier score", scores["brier"], "0 is perfect", "")]
    else:
        rows = [("leave-one-out R²", scores["r2"], "1 is perfect, 0 is the mean", "")]
        rows += [("root mean squared error", scores["rmse"], "", "")]
    texts = [f"{value:.3f}" if abs(value) < 10 else nice_number(value, 4) for _, value, _, _ in rows]
    named = zip(texts, rows, strict=True)
    return tables.shown_tiles([(text, name, note, term) for text, (name, _, note, term) in named])


def _setup(facts: Summary) -> list[tuple[str, str]]:
    """What was fitted on what, as (term, description) pairs."""
    contract = facts.contract
    size = contract["input_size"]
    pictures = f"{facts.n:,}"
    if facts.several:
        least, most = min(facts.counts), max(facts.counts)
        pictures += f" with {len(facts.classes)} labels (given to {least:,} to {most:,} pictures)"
    elif facts.classes:
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


def _damping(model: Estimator) -> Markup:
    path = model.damping_path_
    figure = plots.damping_figure(path["damping"], path["loo_error"], model.damping_)
    alt = f"Leave-one-out error against damping; the chosen damping is {nice_number(model.damping_)}."
    return plots.to_svg(figure, key="damping", alt=alt)


def _blocks(model: Estimator) -> Markup:
    shares = model.block_shares_
    top = sorted(shares, key=lambda name: -shares[name])[:3]
    words = ", ".join(f"{name} {100 * shares[name]:.0f} %" for name in top)
    alt = f"Share of the solution in each block of the network; largest: {words}."
    return plots.to_svg(plots.blocks_figure(shares, model.block_scales_), key="blocks", alt=alt)


def _scales(model: Estimator) -> str:
    """What the block chart shows, with the kernel's weights in words when the body shares one."""
    body = {scale for name, scale in model.block_scales_.items() if name != "head"}
    if not body:
        return "Only the head: no block of the network was worth moving, so this is a linear probe."
    share = 100 * model.block_shares_.get("head", 0.0)
    words = f"The head carries {share:.0f} % of the solution, the blocks {100 - share:.0f} %. Input at the top."
    count = len(model.block_shares_) - 1
    if count > plots.MANY_BLOCKS:
        words += f" Only the {plots.MANY_BLOCKS} largest of {count} blocks are drawn."
    if len(body) != 1:
        return f"{words} The numbers at the right are the blocks' weights in the kernel."
    head = model.block_scales_.get("head", 0.0)
    return (
        f"{words} In the kernel the head has weight {nice_number(head)}, every other block {nice_number(body.pop())}."
    )


def _classification(model: TangentClassifier, facts: Summary) -> dict[str, Any]:
    labels, proba = label_positions(model), np.asarray(model.loo_proba_, np.float64)
    table = metrics.confusion_matrix(labels, proba.argmax(axis=1), len(facts.classes))
    shown = tables.class_tables(table, facts.classes)
    return shown | {"reliability_svg": plots.reliability_svg(labels, proba, facts.scores)}


def _several_labels(model: TangentClassifier, facts: Summary) -> dict[str, Any]:
    """Each label by itself, and whether the probabilities of all together can be believed."""
    return {
        "reliability_svg": plots.label_reliability_svg(model.targets_, model.loo_proba_, facts.scores),
        "labels": [asdict(row) | {"share": row.pictures / facts.n} for row in facts.labels],
    }


def _regression(model: Estimator) -> dict[str, Any]:
    targets = np.asarray(model.targets_, np.float64)
    predicted = np.asarray(model.loo_predictions_, np.float64).reshape(targets.shape)
    return {"scatter_svg": plots.scatter_svg(targets, predicted, "leave-one-out prediction")}
