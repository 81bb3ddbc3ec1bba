"""The commands that ask a saved model about itself: `tangentune explain`, `suspects` and `report`."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import click

from tangentune.cli.models import MODEL, PICTURES, folder_of, load, reading, saved_model, several, skipped
from tangentune.cli.options import COUNT, STREAMS, Command, model_options, option, page_option, shared_options
from tangentune.cli.run import print_json, working
from tangentune.cli.tables import folded, new_table, percent, print_table
from tangentune.errors import InputError, nice_number, shown

if TYPE_CHECKING:
    from tangentune.cli.models import Estimator
    from tangentune.estimators.explanations import Suspect
    from tangentune.reports.explanation import Explanation, Prediction

MOST = 20  # pictures that one page explains
_ORIGINALS = option(
    STREAMS,
    "--originals",
    "The folder of the fit's pictures, for links from the page to their files.",
    metavar="DIR",
    type=click.Path(exists=True, file_okay=False),
)
_top = partial(option, STREAMS, "--top", type=COUNT, metavar="COUNT")


@click.command(cls=Command, short_help="Say which training pictures made an answer.")
@click.argument("model", type=MODEL)
@click.argument("pictures", type=PICTURES)
@_top("Training pictures to name in either direction.", default=8)
@page_option("--out")
@_ORIGINALS
@shared_options
def explain(
    model: str, pictures: str, top: int, out: str | None, originals: str | None, as_json: bool, quiet: bool,
    **options: Any,
) -> None:  # fmt: skip
    """Say which training pictures of the saved MODEL made its answer about PICTURES, and which spoke against it.

    PICTURES is a picture, a folder of up to 20, or a CSV file with the column path. Each influence is exact: what
    the answer would lose if the model had been fitted without that training picture.
    """
    from tangentune.pictures.listing import list_pictures
    from tangentune.pictures.tables import Columns
    from tangentune.reports import explanation

    read = reading(options)
    with working(quiet) as stdout:
        listing = list_pictures(pictures, False, Columns(read["path_column"], read["label_column"]))
        count = 0 if listing is None else len(listing)
        if count > MOST:
            raise InputError(
                f"{pictures} holds {count} pictures; up to {MOST} can be explained at a time, so name fewer"
            )
        fitted = saved_model(model, quiet, options)
        loaded = load(pictures, fitted.backbone_, fitted, read, False)
        found = explanation.explain(fitted, loaded, top)
    if as_json:
        documents = [explanation.document(one) for one in found]
        print_json(
            {"model": model, "n": len(fitted.ids_), "explanations": documents, "skipped": skipped(loaded.skipped)}
        )
    else:
        for one in found:
            _show_explanation(one, stdout)
    if out is not None:
        from tangentune.reports.explanation_page import render_explanations
        from tangentune.reports.gallery import links

        page = render_explanations(fitted, loaded, found, links(folder_of(pictures), out), links(originals, out))
        _write_page(page, out, fitted, None if as_json else stdout)


def _write_page(page: str, out: str, fitted: Estimator, stream: IO[str] | None) -> None:
    """Write a page once the answer is printed; say so, if there is a stream to say it on."""
    from tangentune.reports.pages import write_page

    write_page(page, out, fitted.fitted_.version)
    if stream is not None:
        stream.write(f"Page written to {shown(out)}\n")


def _show_explanation(one: Explanation, stream: IO[str]) -> None:
    """An answer, how familiar the picture is, and the training pictures that made the answer."""
    from tangentune.reports.explanation import familiarity

    if one.given is not None:
        known = f"{one.id} is a training picture, labelled {one.given}: the model without it answers."
        stream.write(f"{shown(known)}\n")
    if one.said is not None:
        stream.write(f"{shown(one.id)}: {shown(', '.join(one.said)) or 'no label'}\n")
    for attribution in one.attributions:
        rival, strongest = attribution.against, attribution.strongest
        more = (
            f" ± {nice_number(attribution.error, 2)}"
            if attribution.error is not None
            else f", score {attribution.total:.3f}"
        )
        more = f", ahead of {rival.label} by {attribution.total:.3f}" if rival else more
        name = f"{attribution.name} " if attribution.name and one.said is None else ""
        stream.write(shown(f"{one.id}: {name}{_words(attribution.answer, '({})')}{more}") + "\n")
        if one.said is None or attribution is one.attributions[0]:
            stream.write(f"{familiarity(one.distance)}\n")
        if strongest is not None and strongest.without is not None:
            without = _words(strongest.without, "({})")
            would = "the answer" if one.said is None else "it"
            stream.write(shown(f"Without {strongest.id} {would} would be {without}.") + "\n")
        table = new_table("Influence", "Label", "Without it", "Training picture", numbers=(0,))
        for effect in (*attribution.raised, *reversed(attribution.lowered)):
            number = (
                f"{effect.influence:+.3f}" if attribution.error is None else nice_number(effect.influence, sign=True)
            )
            table.add_row(number, *folded(effect.label, _words(effect.without, "{}"), effect.id))
        print_table(table, stream)
        stream.write("\n")


def _words(answer: Prediction | None, sure: str) -> str:
    """A class with its probability as `sure` writes it, a number by itself; nothing where there is none."""
    if answer is None:
        return ""
    return answer.label + ("" if answer.confidence is None else f" {sure.format(percent(answer.confidence))}")


@click.command(cls=Command, short_help="List the labels most likely to be mistakes.")
@click.argument("model", type=MODEL)
@_top("How many labels to list.", default=20)
@page_option("--out")
@_ORIGINALS
@model_options
def suspects(
    model: str, top: int, out: str | None, originals: str | None, as_json: bool, quiet: bool, **options: Any
) -> None:
    """List the training pictures of the saved MODEL whose labels are most likely mistakes, worst first.

    Each label is held against what all other pictures say in its place.
    """
    with working(quiet) as stdout:
        fitted = saved_model(model, quiet, options)
        found = fitted.suspects(top)
    if as_json:
        print_json({"model": model, "n": len(fitted.ids_), "suspects": [one._asdict() for one in found]})
    else:
        _show_suspects(fitted, found, model, stdout)
    if out is not None:
        from tangentune.reports.explanation_page import render_suspects
        from tangentune.reports.gallery import links

        page = render_suspects(fitted, found, model, links(originals, out))
        _write_page(page, out, fitted, None if as_json else stdout)


def _show_suspects(fitted: Estimator, found: list[Suspect], model: str, stream: IO[str]) -> None:
    """One line a label, worst first, and the command that corrects one."""
    from tangentune.reports.explanation import label_text
    from tangentune.reports.pages import is_classifier

    sure = bool(found) and found[0].probability is not None
    if several(fitted):
        _show_doubted(found, stream)
        _show_remedy(fitted, model, found[0].id, label_text(fitted, found[0].suggestion), stream)
        return
    names = ("Doubt", "Given", *(["Probability"] if sure else []), "Suggested", "Training picture")
    table = new_table(*names, numbers=(0, 2) if sure else (0,))
    for one in found:
        doubt = f"{one.score:.2f}" if sure else nice_number(one.score)
        given, better = label_text(fitted, one.label), label_text(fitted, one.suggestion)
        table.add_row(doubt, *folded(given, *([percent(one.probability)] if sure else []), better, one.id))
    print_table(table, stream)
    better = label_text(fitted, found[0].suggestion) if found and is_classifier(fitted) else "LABEL"
    _show_remedy(fitted, model, found[0].id if found else "ID", better, stream)


def _show_doubted(found: list[Suspect], stream: IO[str]) -> None:
    """One line a label that a picture has or lacks, most doubtful first."""
    table = new_table("Doubt", "Label", "Given", "Probability", "All labels", "Training picture", numbers=(0, 3))
    for one in found:
        given = "yes" if one.doubted in one.label else "no"
        told = (str(one.doubted), given, percent(one.probability), ", ".join(one.label), one.id)
        table.add_row(f"{one.score:.2f}", *folded(*told))
    print_table(table, stream)


def _show_remedy(fitted: Estimator, model: str, name: str, better: str, stream: IO[str]) -> None:
    """The command that corrects one label, where the model can be edited."""
    from tangentune.reports.pages import relabel_command

    remedy = f"What corrects the label of the first:\n{relabel_command(model, name, better)}"
    if not fitted.fitted_.training.has_pictures:
        remedy = "Labels are corrected in the model with its pictures; this one was saved without them."
    stream.write(f"Look at each. {remedy}\n")


@click.command(cls=Command, short_help="Write an HTML page about a model.")
@click.argument("model", type=MODEL)
@page_option("--out", "The page to write; MODEL/report.html if not given.")
@_ORIGINALS
def report(model: str, out: str | None, originals: str | None) -> None:
    """Write an HTML page about the saved MODEL.

    Scores, hardest pictures (the likely label mistakes), which blocks moved, and what was tried. The page
    stands alone: it loads nothing.
    """
    from tangentune.reports.model_page import write_report

    with working(quiet=False):
        fitted = saved_model(model, True, {})
        path = write_report(fitted, Path(model) / "report.html" if out is None else out, model, originals)
    click.echo(f"Report written to {shown(str(path))}")
