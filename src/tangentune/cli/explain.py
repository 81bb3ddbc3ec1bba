"""The commands that ask a saved model about itself: `tangentune explain` and `tangentune suspects`."""

from __future__ import annotations

from typing import Any

import click

from tangentune.cli.models import MODEL, PICTURES, load, saved_model, skipped
from tangentune.cli.options import COUNT, STREAMS, Command, model_options, option, shared_options
from tangentune.cli.run import print_json, working

MOST = 20  # pictures that one page explains
_OUT = option(STREAMS, "--out", "Also write an HTML page that stands alone.", metavar="FILE.html", type=click.Path())


@click.command(cls=Command, short_help="Say which training pictures made an answer.")
@click.argument("model", type=MODEL)
@click.argument("pictures", type=PICTURES)
@option(
    STREAMS,
    "--top",
    "Training pictures to name in either direction.",
    type=COUNT,
    default=8,
    metavar="COUNT",
)
@_OUT
@shared_options
def explain(
    model: str,
    pictures: str,
    top: int,
    out: str | None,
    on_error: str,
    as_json: bool,
    quiet: bool,
    **options: Any,
) -> None:
    """Say which training pictures of the saved MODEL made its answer about PICTURES, and which spoke against it.

    PICTURES is a picture, a folder of up to 20, or a CSV file with the column path. Each influence is exact: what
    the answer would lose if the model had been fitted without that training picture.
    """
    from tangentune.cli.tables import show_explanation
    from tangentune.errors import InputError
    from tangentune.pictures.files import find_files
    from tangentune.reports.explanation import document
    from tangentune.reports.explanation import explain as explanations_of

    with working(quiet) as stdout:
        count = len(find_files(pictures, need_labels=False).paths)
        if count > MOST:
            message = f"{pictures} holds {count} pictures; up to {MOST} can be explained at a time, so name fewer"
            raise InputError(message)
        fitted = saved_model(model, quiet, options)
        loaded = load(pictures, fitted.backbone_, fitted, on_error, False)
        found = explanations_of(fitted, loaded, top)
        if out is not None:
            from tangentune.reports.explanation_page import render_explanations
            from tangentune.reports.pages import write_page

            write_page(render_explanations(fitted, loaded, found), out)
    if as_json:
        documents = [document(one) for one in found]
        print_json({"model": model, "n": len(fitted.ids_), "explanations": documents, "skipped": skipped(loaded)})
        return
    for one in found:
        show_explanation(one, stdout)
    if out is not None:
        stdout.write(f"Page written to {out}\n")


@click.command(cls=Command, short_help="List the labels most likely to be mistakes.")
@click.argument("model", type=MODEL)
@option(STREAMS, "--top", "How many labels to list.", type=COUNT, default=20, metavar="COUNT")
@_OUT
@model_options
def suspects(model: str, top: int, out: str | None, as_json: bool, quiet: bool, **options: Any) -> None:
    """List the training pictures of the saved MODEL whose labels are most likely mistakes, worst first.

    Each label is held against what all other pictures say in its place.
    """
    from tangentune.cli.tables import show_suspects
    from tangentune.reports.explanation import label_text

    with working(quiet) as stdout:
        fitted = saved_model(model, quiet, options)
        found = fitted.suspects(top)
        if out is not None:
            from tangentune.reports.explanation_page import render_suspects
            from tangentune.reports.pages import write_page

            write_page(render_suspects(fitted, found), out)
    rows = [
        one._asdict() | {"label": label_text(fitted, one.label), "suggestion": label_text(fitted, one.suggestion)}
        for one in found
    ]
    if as_json:
        print_json({"model": model, "n": len(fitted.ids_), "suspects": [one._asdict() for one in found]})
        return
    show_suspects(rows, model, stdout)
    if out is not None:
        stdout.write(f"Page written to {out}\n")
