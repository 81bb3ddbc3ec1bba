"""`tangentune serve`: the workbench, a page on this machine on which labels are corrected."""

from __future__ import annotations

import contextlib
from functools import partial

import click

from tangentune.cli.models import MODEL, own_network
from tangentune.cli.options import STREAMS, Command, option, own_option
from tangentune.cli.run import working

_FOLDER = click.Path(exists=True, file_okay=False)
_serve = partial(option, "Server")


@click.command(cls=Command, short_help="Correct a model's labels in the browser.")
@click.argument("model", type=MODEL)
@_serve("--originals", "The pictures of the fit, shown at their own size.", type=_FOLDER, metavar="DIR")
@_serve("--unlabelled", "Pictures without labels, to choose from which are worth one.", type=_FOLDER, metavar="DIR")
@_serve("--port", "Where to listen; 0 takes a free port.", type=click.IntRange(0, 65535), default=0, metavar="PORT")
@_serve("--open", "Open the page in the browser.", is_flag=True)
@_serve("--host", "Another address than this machine's own 127.0.0.1.", metavar="ADDRESS")
@_serve(
    "--i-know-what-this-means",
    "Of --host: whoever has the address may see the pictures and change the model; nothing is encrypted.",
    is_flag=True,
)
@own_option
@option(STREAMS, "--quiet -q", "Print the address and nothing else.", is_flag=True)
def serve(
    model: str,
    originals: str | None,
    unlabelled: str | None,
    port: int,
    open: bool,
    host: str | None,
    i_know_what_this_means: bool,
    backbone: str | None,
    quiet: bool,
) -> None:
    """Open the workbench on the saved MODEL: a page in the browser, served by this machine to this machine.

    It shows the labels that look like mistakes. Each correction is exact and at once: the page shows what it does to
    the whole model, as if that had been fitted again. Nothing is written to MODEL until Save. Ctrl-C ends it.
    """
    with working(quiet) as stdout:
        from tangentune.workbench.server import LOCAL, prepare, show

        away, network = i_know_what_this_means, own_network(model, backbone)
        serving = prepare(
            model, originals=originals, unlabelled=unlabelled, host=host or LOCAL, port=port, exposed=away,
            backbone=network,
        )  # fmt: skip
        stdout.write(f"{serving.address}\n" if quiet else f"The workbench is at {serving.address}\nCtrl-C ends it.\n")
        stdout.flush()
        if open and not show(serving.address):
            click.echo("note: no browser was found; open the address above", err=True)
        with contextlib.suppress(KeyboardInterrupt):  # its usual end
            serving.run()
        if (count := serving.desk.session.unsaved) and not quiet:
            kept = f"{count} edit{'s' if count > 1 else ''} not saved; the next start offers them again"
            click.echo(f"note: {kept}", err=True)
