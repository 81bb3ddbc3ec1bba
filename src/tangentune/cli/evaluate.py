"""The command that scores a saved model on labelled pictures: `tangentune evaluate`."""

from __future__ import annotations

from typing import Any

import click

from tangentune.cli.models import MODEL, PICTURES, load, reading, saved_model, skipped
from tangentune.cli.options import Command, shared_options
from tangentune.cli.run import print_json, working
from tangentune.cli.tables import print_facts, score_rows


@click.command(cls=Command, short_help="Score a model on labelled pictures.")
@click.argument("model", type=MODEL)
@click.argument("pictures", type=PICTURES)
@shared_options
def evaluate(model: str, pictures: str, as_json: bool, quiet: bool, **options: Any) -> None:
    """Score the saved MODEL on labelled PICTURES that it has not seen.

    PICTURES is a folder with one sub-folder for each class, or a CSV file with the columns path,label. A picture
    that the model was fitted on all the same is answered by the model fitted without it (leave-one-out).
    """
    from tangentune.estimators.scores import score_pictures
    from tangentune.solvers.metrics import accuracy_interval

    read = reading(options)
    with working(quiet) as stdout:
        fitted = saved_model(model, quiet, options)
        loaded = load(pictures, fitted.backbone_, fitted, read, True)
        scores, known = score_pictures(fitted, loaded)
    if as_json:
        print_json({**scores, "n": len(loaded), "fitted_on": known, "skipped": skipped(loaded)})
        return
    interval = accuracy_interval(scores["accuracy"], len(loaded)) if "accuracy" in scores else None
    rows = [("pictures", f"{len(loaded):,}"), *score_rows(scores, interval)]
    if known:
        rows.insert(1, ("of them fitted on", f"{known:,}, each scored by the model fitted without it (leave-one-out)"))
    print_facts(rows, stdout)
