"""The commands that give a saved model new pictures: `tangentune predict` and `tangentune evaluate`."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from tangentune.cli.models import MODEL, PICTURES, load, reading, saved_model, several, skipped
from tangentune.cli.options import Command, label_options, shared_options
from tangentune.cli.run import print_json, working
from tangentune.cli.tables import folded, new_table, percent, print_facts, print_labels, print_table, score_rows

if TYPE_CHECKING:
    from tangentune.cli.models import Estimator
    from tangentune.pictures.pictures import Pictures


@click.command(cls=Command, short_help="Predict the labels of pictures.")
@click.argument("model", type=MODEL)
@click.argument("pictures", type=PICTURES)
@shared_options
def predict(model: str, pictures: str, as_json: bool, quiet: bool, **options: Any) -> None:
    """Predict the labels of PICTURES with the saved MODEL.

    PICTURES is a picture, any folder of pictures, or a CSV file with the column path. A picture that the model was
    fitted on, known by its pixels, is answered by the model fitted without it (leave-one-out), and marked.
    """
    from tangentune.reports.explanation import label_text

    read = reading(options)
    with working(quiet) as stdout:
        fitted = saved_model(model, quiet, options)
        loaded = load(pictures, fitted.backbone_, fitted, read, False)
        rows = _predictions(fitted, loaded)
    if as_json:
        print_json({"model": model, "n": len(rows), "predictions": rows, "skipped": skipped(loaded)})
        return
    sure = bool(rows) and "confidence" in rows[0]
    known = ["Fitted on"] if any(row["fitted_on"] is not None for row in rows) else []
    columns = ["Picture", "Prediction", *(["Confidence"] if sure else []), *known]
    sets = several(fitted)
    table = new_table(*columns, numbers=() if sets else (2,) if sure else (1,))
    for row in rows:
        if sets:
            told = ", ".join(f"{name} {percent(row['probabilities'][name])}" for name in row["labels"]) or "none"
            table.add_row(*folded(row["id"], told, *([row["fitted_on"] or ""] if known else [])))
            continue
        answer = [row["label"], percent(row["confidence"])] if sure else [label_text(fitted, row["value"])]
        table.add_row(*folded(row["id"], *answer, *([row["fitted_on"] or ""] if known else [])))
    print_table(table, stdout)


def _predictions(model: Estimator, pictures: Pictures) -> list[dict[str, Any]]:
    """One row a picture: id, label, confidence and all probabilities, or id and value; and which of the fit it is."""
    from tangentune import TangentRegressor
    from tangentune.estimators.scores import honest_answers

    found = honest_answers(model, pictures)
    rows: list[dict[str, Any]] = [{"id": name} for name in pictures.ids]
    names = [] if isinstance(model, TangentRegressor) else [str(name) for name in model.classes_]
    least = model.thresholds_ if several(model) else None
    for row, value, known in zip(rows, found.values.tolist(), found.fitted_on, strict=True):
        if least is not None:
            row["labels"] = [name for name, sure, bar in zip(names, value, least, strict=True) if sure >= bar]
            row["probabilities"] = dict(zip(names, value, strict=True))
        elif names:
            best = max(range(len(value)), key=value.__getitem__)
            row |= {"label": names[best], "confidence": value[best]}
            row |= {"probabilities": dict(zip(names, value, strict=True))}
        else:
            row["value"] = value
        row["fitted_on"] = known
    return rows


@click.command(cls=Command, short_help="Score a model on labelled pictures.")
@click.argument("model", type=MODEL)
@click.argument("pictures", type=PICTURES)
@label_options
def evaluate(model: str, pictures: str, as_json: bool, quiet: bool, **options: Any) -> None:
    """Score the saved MODEL on labelled PICTURES that it has not seen.

    PICTURES is a folder with one sub-folder for each class, or a CSV file with the columns path,label. A picture
    that the model was fitted on all the same is answered by the model fitted without it (leave-one-out).
    """
    from tangentune.estimators.scores import score_labels, score_pictures
    from tangentune.solvers.metrics import accuracy_interval

    read = reading(options)
    with working(quiet) as stdout:
        fitted = saved_model(model, quiet, options)
        loaded = load(pictures, fitted.backbone_, fitted, read, True)
        labels = []
        if several(fitted):
            scores, labels, known = score_labels(fitted, loaded)
        else:
            scores, known = score_pictures(fitted, loaded)
    if as_json:
        scores |= {"labels": [asdict(row) for row in labels]} if labels else {}
        print_json({**scores, "n": len(loaded), "fitted_on": known, "skipped": skipped(loaded)})
        return
    interval = accuracy_interval(scores["accuracy"], len(loaded)) if "accuracy" in scores else None
    rows = [("pictures", f"{len(loaded):,}"), *score_rows(scores, interval)]
    if known:
        rows.insert(1, ("of them fitted on", f"{known:,}, each scored by the model fitted without it (leave-one-out)"))
    print_facts(rows, stdout)
    if labels:
        print_labels(labels, stdout)
