"""The commands that ask a saved model about itself: `tangentune explain` and `tangentune suspects`."""

from __future__ import annotations

from typing import IO, TYPE_CHECKING, Any

import click

from tangentune.cli.models import MODEL, PICTURES, load, saved_model, skipped
from tangentune.cli.options import COUNT, STREAMS, Command, model_options, option, shared_options
from tangentune.cli.run import print_json, working

if TYPE_CHECKING:
    from tangentune.reports.explanation import Explanation, PictureEffect

MOST = 20  # pictures that one page explains
_OUT = option(STREAMS, "--out", "Also write an HTML page that stands alone.", metavar="FILE.html", type=click.Path())


@click.command(cls=Command, short_help="Say which training pictures made an answer.")
@click.argument("model", type=MODEL)
@click.argument("pictures", type=PICTURES)
@option(STREAMS, "--top", "Training pictures to name in either direction.", type=COUNT, default=8, metavar="COUNT")
@_OUT
@shared_options
def explain(
    model: str, pictures: str, top: int, out: str | None, on_error: str, as_json: bool, quiet: bool, **options: Any
) -> None:
    """Say which training pictures of the saved MODEL made its answer about PICTURES, and which spoke against it.

    PICTURES is a picture, a folder of up to 20, or a CSV file with the column path. Each influence is exact: what
    the answer would lose if the model had been fitted without that training picture.
    """
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
        _show_explanation(one, stdout)
    if out is not None:
        stdout.write(f"Page written to {out}\n")


def _show_explanation(one: Explanation, stream: IO[str]) -> None:
    """An answer, how familiar the picture is, and the training pictures that made the answer."""
    from tangentune.cli.tables import folded, new_table, percent, print_table
    from tangentune.reports.explanation import familiarity

    if one.given is not None:
        stream.write(f"{one.id} is a training picture, labelled {one.given}: the model without it answers.\n")
    for attribution in one.attributions:
        answer, rival, strongest = attribution.answer, attribution.against, attribution.strongest
        says = f"{answer.label} ({percent(answer.confidence)})" if rival else answer.label
        more = f", ahead of {rival.label} by {attribution.total:.3f}" if rival else f" ± {attribution.error:.2g}"
        stream.write(f"{one.id}: {attribution.name + ' ' if attribution.name else ''}{says}{more}\n")
        stream.write(f"{familiarity(one.distance)}\n")
        if strongest is not None and strongest.without is not None:
            then = strongest.without
            changed = f"{then.label} ({percent(then.confidence)})" if rival else then.label
            stream.write(f"Without {strongest.id} the answer would be {changed}.\n")
        table = new_table("Influence", "Label", "Without it", "Training picture", numbers=(0,))
        for effect in (*attribution.raised, *reversed(attribution.lowered)):
            number = f"{effect.influence:+.3f}" if rival else f"{effect.influence:+.3g}"
            table.add_row(number, *folded(effect.label, _without(effect), effect.id))
        print_table(table, stream)
        stream.write("\n")


def _without(effect: PictureEffect) -> str:
    from tangentune.cli.tables import percent

    if effect.without is None:
        return ""
    sure = "" if effect.without.confidence is None else f" {percent(effect.without.confidence)}"
    return effect.without.label + sure


@click.command(cls=Command, short_help="List the labels most likely to be mistakes.")
@click.argument("model", type=MODEL)
@option(STREAMS, "--top", "How many labels to list.", type=COUNT, default=20, metavar="COUNT")
@_OUT
@model_options
def suspects(model: str, top: int, out: str | None, as_json: bool, quiet: bool, **options: Any) -> None:
    """List the training pictures of the saved MODEL whose labels are most likely mistakes, worst first.

    Each label is held against what all other pictures say in its place.
    """
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
    _show_suspects(rows, model, stdout)
    if out is not None:
        stdout.write(f"Page written to {out}\n")


def _show_suspects(rows: list[dict[str, Any]], directory: str, stream: IO[str]) -> None:
    """One line a doubtful label, worst first, and how to correct one."""
    from tangentune.cli.tables import folded, new_table, percent, print_table

    sure = bool(rows) and rows[0]["probability"] is not None
    names = ("Doubt", "Given", *(["Probability"] if sure else []), "Suggested", "Training picture")
    table = new_table(*names, numbers=(0, 2) if sure else (0,))
    for row in rows:
        doubt = f"{row['score']:.2f}" if sure else f"{row['score']:.3g}"
        cells = [row["label"], *([percent(row["probability"])] if sure else []), row["suggestion"], row["id"]]
        table.add_row(doubt, *folded(*cells))
    print_table(table, stream)
    stream.write(f"Look at each; correct one with: tangentune relabel {directory} ID LABEL\n")
