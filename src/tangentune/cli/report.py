"""The command `tangentune report`."""

from __future__ import annotations

from pathlib import Path

import click

from tangentune.cli.models import MODEL, saved_model
from tangentune.cli.options import STREAMS, Command, option
from tangentune.cli.run import working


@click.command(cls=Command, short_help="Write an HTML page about a model.")
@click.argument("model", type=MODEL)
@option(
    STREAMS,
    "--out",
    "The page to write; MODEL/report.html if not given.",
    metavar="FILE.html",
    type=click.Path(dir_okay=False),
)
def report(model: str, out: str | None) -> None:
    """Write an HTML page about the saved MODEL.

    Scores, hardest pictures (the likely label mistakes), which blocks moved, and what was tried. The page
    stands alone: it loads nothing.
    """
    from tangentune.reports.model_page import write_report

    with working(quiet=False):
        fitted = saved_model(model, True, {})
        path = write_report(fitted, Path(model) / "report.html" if out is None else out)
    click.echo(f"Report written to {path}")
