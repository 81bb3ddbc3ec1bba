"""The command `tangentune evaluate`."""

from __future__ import annotations

from typing import Any

import click

from tangentune.cli.models import MODEL, PICTURES, load, saved_model, skipped
from tangentune.cli.options import Command, shared_options
from tangentune.cli.run import print_json, working


@click.command(cls=Command, short_help="Score a model on labelled pictures.")
@click.argument("model", type=MODEL)
@click.argument("pictures", type=PICTURES)
@shared_options
def evaluate(model: str, pictures: str, on_error: str, as_json: bool, quiet: bool, **options: Any) -> None:
    """Score the saved MODEL on labelled PICTURES that it has not seen.

    PICTURES is a folder with one sub-folder for each class, or a CSV file with the columns path,label.
    """
    from tangentune.cli.tables import new_table, print_table, score_rows
    from tangentune.estimators.scores import score_pictures
    from tangentune.metrics import accuracy_interval

    with working(quiet) as stdout:
        fitted = saved_model(model, quiet, options)
        loaded = load(pictures, fitted.backbone_, fitted, on_error, True)
        scores = score_pictures(fitted, loaded)
    if as_json:
        print_json({**scores, "n": len(loaded), "skipped": skipped(loaded)})
        return
    interval = accuracy_interval(scores["accuracy"], len(loaded)) if "accuracy" in scores else None
    table = new_table("", "", header=False)
    for name, value in [("pictures", f"{len(loaded):,}"), *score_rows(scores, interval)]:
        table.add_row(name, value)
    print_table(table, stdout)
