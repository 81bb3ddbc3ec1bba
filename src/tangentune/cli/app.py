"""The entry of the command line: `tangentune COMMAND`, one file a command.

Torch and everything heavy is imported when a command runs, so that help and mistakes in the options are quick.
"""

from __future__ import annotations

import click

from tangentune._version import __version__
from tangentune.cli.compare import compare
from tangentune.cli.deploy import export, strip
from tangentune.cli.edit import add, forget, relabel
from tangentune.cli.evaluate import evaluate
from tangentune.cli.explain import explain, report, suspects
from tangentune.cli.fit import fit
from tangentune.cli.labels import labels
from tangentune.cli.options import with_hyphens
from tangentune.cli.owners import map_command, merge, score, sums
from tangentune.cli.predict import predict
from tangentune.cli.run import run
from tangentune.cli.select import select
from tangentune.cli.serve import serve
from tangentune.cli.suggest import suggest


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; the exit code (0 done, 2 the user's mistake, 130 interrupted, 1 nobody reads on)."""
    return run(lambda: cli.main(arguments, prog_name="tangentune", standalone_mode=False))


@click.group(context_settings={"help_option_names": ["--help", "-h"], "token_normalize_func": with_hyphens})
@click.version_option(__version__, prog_name="tangentune", message="%(prog)s %(version)s")
def cli() -> None:
    """Fine-tune a whole pre-trained network by solving one least-squares problem."""


_ASKING = (fit, predict, evaluate, report, select, compare, explain, suspects, suggest)
for command in (*_ASKING, forget, add, relabel, labels, serve, export, strip, map_command, sums, score, merge):
    cli.add_command(command)
