"""The commands that give a saved model new pictures: `tangentune predict` and `tangentune evaluate`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from tangentune.cli.models import MODEL, PICTURES, load, reading, saved_model, skipped
from tangentune.cli.options import Command, shared_options
from tangentune.cli.run import print_json, working
from tangentune.cli.tables import folded, new_table, percent, print_facts, print_table, score_rows

if TYPE_CHECKING:
    from tangentune.cli.models import Estimator
    from tangentune.pictures.pictures import Pictures


@click.command(cls=Command, short_help="Predict the labels of pictures.")
@click.argument("model", type=MODEL)
@click.argument("pictures", type=PICTURES)
@shared_options
def predict(model: str, pictures: str, as_json: bool, quiet: bool, **options: Any) -> None:
    """Predict the labels of PICTURES with the saved MODEL.

    PICTURES is a picture, any folder of pictures, or a CSV file with the column path.
    """
    read = reading(options)
    with working(quiet) as stdout:
        fitted = saved_model(model, quiet, options)
        loaded = load(pictures, fitted.backbone_, fitted, read, False)
        rows = _predictions(fitted, loaded)
    if as_json:
        print_json({"model": model, "n": len(rows), "predictions": rows, "skipped": skipped(loaded)})
        return
    sure = bool(rows) and "confidence" in rows[0]
    table = new_table("Picture", "Prediction", *(["Confidence"] if sure else []), numbers=(2,) if sure else (1,))
    for row in rows:
        answer = [row["label"], percent(row["confidence"])] if sure else [_numbers(row["value"])]
        table.add_row(*folded(row["id"], *answer))
    print_table(table, stdout)


def _predictions(model: Estimator, pictures: Pictures) -> list[dict[str, Any]]:
    """One row a picture: id, label, confidence and all probabilities; or id and value."""
    from tangentune import TangentRegressor

    if isinstance(model, TangentRegressor):
        values = model.predict(pictures).tolist()
        return [{"id": name, "value": value} for name, value in zip(pictures.ids, values, strict=True)]
    names = [str(name) for name in model.classes_]
    rows = []
    for name, proba in zip(pictures.ids, model.predict_proba(pictures).tolist(), strict=True):
        best = max(range(len(proba)), key=proba.__getitem__)
        probabilities = dict(zip(names, proba, strict=True))
        rows.append({"id": name, "label": names[best], "confidence": proba[best], "probabilities": probabilities})
    return rows


def _numbers(value: float | list[float]) -> str:
    return ", ".join(f"{number:.4g}" for number in (value if isinstance(value, list) else [value]))


@click.command(cls=Command, short_help="Score a model on labelled pictures.")
@click.argument("model", type=MODEL)
@click.argument("pictures", type=PICTURES)
@shared_options
def evaluate(model: str, pictures: str, as_json: bool, quiet: bool, **options: Any) -> None:
    """Score the saved MODEL on labelled PICTURES that it has not seen.

    PICTURES is a folder with one sub-folder for each class, or a CSV file with the columns path,label.
    """
    from tangentune.estimators.scores import score_pictures
    from tangentune.metrics import accuracy_interval

    read = reading(options)
    with working(quiet) as stdout:
        fitted = saved_model(model, quiet, options)
        loaded = load(pictures, fitted.backbone_, fitted, read, True)
        scores = score_pictures(fitted, loaded)
    if as_json:
        print_json({**scores, "n": len(loaded), "skipped": skipped(loaded)})
        return
    interval = accuracy_interval(scores["accuracy"], len(loaded)) if "accuracy" in scores else None
    print_facts([("pictures", f"{len(loaded):,}"), *score_rows(scores, interval)], stdout)
