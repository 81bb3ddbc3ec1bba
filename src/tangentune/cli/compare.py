"""The command `tangentune compare`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, final

import click

from tangentune.cli.options import COUNT, MIRROR, NETWORK, STREAMS, Command, network_options, option, shared_options
from tangentune.cli.run import check_device, print_json, working
from tangentune.comparison.methods import METHODS
from tangentune.comparison.plan import ALL, read_methods, read_shots
from tangentune.errors import InputError

if TYPE_CHECKING:
    from tangentune.comparison import Comparison

COMPARISON = "Comparison"


@final
class Words(click.ParamType):
    """Words with commas between them, read by a function that refuses bad ones in a sentence."""

    name = "words"

    def __init__(self, read: Callable[[list[str]], list[Any]]) -> None:
        self.read = read

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The list of what the words mean; otherwise a usage error."""
        if not isinstance(value, str):
            return value
        try:
            return self.read(value.replace(",", " ").split())
        except InputError as error:
            self.fail(str(error), param, ctx)


def _numbers(words: list[str]) -> list[Any]:
    if not words:
        message = f"no number of pictures a class is given; give whole numbers, or {ALL}"
        raise InputError(message)
    return [read_shots(word) for word in words]


@click.command(cls=Command, short_help="Compare methods on small numbers of labelled pictures.")
@click.argument("pictures", type=click.Path(exists=True))
@option(
    COMPARISON,
    "--methods",
    f"Any of {', '.join(METHODS)}, with commas between.",
    type=Words(read_methods),
    default=",".join(METHODS),
    metavar="NAMES",
)
@option(
    COMPARISON,
    "--shots",
    f"Training pictures a class, with commas between; {ALL} takes every one.",
    type=Words(_numbers),
    default="5,10,50",
    metavar="NUMBERS",
)
@option(
    COMPARISON, "--seeds", "Random draws of training pictures for each number.", type=COUNT, default=3, metavar="COUNT"
)
@option(
    COMPARISON,
    "--test",
    "Labelled pictures for the test, as PICTURES; a share of PICTURES if not given.",
    type=click.Path(exists=True),
    metavar="PICTURES",
)
@option(
    COMPARISON,
    "--test-share",
    "The share of each class that is kept for the test; 0.3 if not given.",
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    metavar="SHARE",
)
@option(
    STREAMS,
    "--out",
    "Directory for comparison.json, .md and .png. Run again with it, only what is missing is measured.",
    default="comparison",
    metavar="DIR",
    type=click.Path(),
)
@network_options
@option(
    NETWORK,
    "--augment",
    "flip: a mirrored picture shows the same class, and every method uses that; or none.",
    type=MIRROR,
    default="flip",
    metavar="WORD",
)
@shared_options
def compare(
    pictures: str,
    test_share: float | None,
    augment: str | None,
    batch_size: int | None,
    as_json: bool,
    quiet: bool,
    **options: Any,
) -> None:
    """Compare methods on labelled PICTURES: accuracy, calibration, time and memory.

    PICTURES is a folder with one sub-folder for each class, or a CSV file with the columns path,label.

    All methods are fitted to the same few pictures a class and scored on the same test pictures. Every result
    is kept in the directory of --out at once, so that a run that was stopped goes on where it was.
    """
    if options["test"] is not None and test_share is not None:
        message = "give --test or --test-share, not both"
        raise click.UsageError(message)
    check_device(options["device"])

    from tangentune.comparison import compare as run_comparison
    from tangentune.comparison.page import write_files

    given = {"test_share": test_share, "batch_size": batch_size}
    given = {name: value for name, value in given.items() if value is not None}  # else the defaults there
    with working(quiet) as stdout:
        try:
            found = run_comparison(pictures, flip=augment == "flip", verbose=0 if quiet else 1, **given, **options)
        except KeyboardInterrupt:
            if not quiet:
                click.echo(f"note: what was measured is kept in {options['out']}; the same command goes on", err=True)
            raise
        write_files(found, Path(options["out"]))
    if not any(row.means for row in found.rows):
        message = f"not one of {len(found.cells)} cells could be measured; the first: {found.cells[0].failed}"
        raise InputError(message)
    if as_json:
        print_json(found.document() | {"out": options["out"]})
    else:
        _show(found, options["out"], stdout)


def _show(comparison: Comparison, directory: str, stream: IO[str]) -> None:
    """One line a method and number of pictures, then what a reader must know to judge them."""
    from rich.text import Text

    from tangentune.cli.tables import new_table, print_table
    from tangentune.comparison.page import COLUMNS, notes, table_lines

    table = new_table(*COLUMNS, numbers=(0, 2, 3, 4, 5, 6, 7))
    for line in table_lines(comparison.rows):
        table.add_row(*[Text(words, "bold" if words.endswith("*") else "") for words in line])
    print_table(table, stream)
    stream.write("\n")
    for note in notes(comparison):
        stream.write(f"{note}\n")
    stream.write(f"Table, figure and all results written to {directory}\n")
