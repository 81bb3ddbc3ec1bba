"""The command `tangentune compare`."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import click

from tangentune.cli.models import PICTURES
from tangentune.cli.options import COUNT, MIRROR, NETWORK, STREAMS, Command, described, network_options, set_options
from tangentune.cli.run import check_device, print_json, working
from tangentune.cli.tables import new_table, print_table
from tangentune.comparison.methods import METHODS
from tangentune.comparison.plan import ALL, read_methods, read_shots
from tangentune.errors import InputError, shown

if TYPE_CHECKING:
    from tangentune.comparison import Comparison


def _words(read: Callable[[list[str]], list[Any]]) -> Callable[..., list[Any]]:
    """For words with commas between them: what a function reads in them, which refuses bad ones in a sentence."""

    def convert(context: click.Context, parameter: click.Parameter, value: str) -> list[Any]:
        try:
            return read(value.replace(",", " ").split())
        except InputError as error:
            raise click.BadParameter(str(error), context, parameter) from error

    return convert


def _numbers(words: list[str]) -> list[Any]:
    if not words:
        raise InputError(f"no number of pictures a class is given; give whole numbers, or {ALL}")
    return [read_shots(word) for word in words]


_HELP = {
    "methods": f"Any of {', '.join(METHODS)}, with commas between.",
    "shots": f"Training pictures a class, with commas between; {ALL} takes every one.",
    "seeds": "Random draws of training pictures for each number.",
    "test": "Labelled pictures for the test, as PICTURES; a share of PICTURES if not given.",
    "test_share": "The share of each class that is kept for the test; 0.3 if not given.",
    "out": "Directory for comparison.json, .md and .png. Run again with it, only what is missing is measured.",
    "augment": "flip: a mirrored picture shows the same class, and every method uses that; or none.",
}
_option = partial(described, _HELP)
_comparison = partial(_option, "Comparison")
_SHARE = click.FloatRange(0, 1, min_open=True, max_open=True)


@click.command(cls=Command, short_help="Compare methods on small numbers of labelled pictures.")
@click.argument("pictures", type=PICTURES)
@_comparison("--methods", callback=_words(read_methods), default=",".join(METHODS), metavar="NAMES")
@_comparison("--shots", callback=_words(_numbers), default="5,10,50", metavar="NUMBERS")
@_comparison("--seeds", type=COUNT, default=3, metavar="COUNT")
@_comparison("--test", type=PICTURES, metavar="PICTURES")
@_comparison("--test-share", type=_SHARE, metavar="SHARE")
@_option(STREAMS, "--out", default="comparison", metavar="DIR", type=click.Path())
@network_options
@_option(NETWORK, "--augment", type=MIRROR, default="flip", metavar="WORD")
@set_options
def compare(pictures: str, augment: str | None, as_json: bool, quiet: bool, **options: Any) -> None:
    """Compare methods on labelled PICTURES: accuracy, calibration, time and memory.

    PICTURES is a folder with one sub-folder for each class, or a CSV file with the columns path,label.

    All methods are fitted to the same few pictures a class and scored on the same test pictures. Every result
    is kept in the directory of --out at once, so that a run that was stopped goes on where it was.
    """
    given = {key: value for key, value in options.items() if value is not None}  # else the defaults there
    if {"test", "test_share"} <= given.keys():
        raise click.UsageError("give --test or --test-share, not both")
    check_device(options["device"])

    from tangentune.comparison import compare as run_comparison
    from tangentune.comparison.page import write_files
    from tangentune.networks.own_code import is_own, named_backbone

    with working(quiet, options["out"]) as stdout:
        if is_own(given["backbone"]):
            given["backbone"] = named_backbone(given["backbone"], given.get("input_size"))
        found = run_comparison(pictures, flip=augment == "flip", verbose=0 if quiet else 1, **given)
        write_files(found, Path(options["out"]))
    if not any(row.means for row in found.rows):
        raise InputError(f"not one of {len(found.cells)} cells could be measured; the first: {found.cells[0].failed}")
    if as_json:
        print_json(found.document() | {"out": options["out"]})
    else:
        _show(found, options["out"], stdout)


def _show(found: Comparison, directory: str, stream: IO[str]) -> None:
    """One line a method and number of pictures, then what a reader must know to judge them."""
    from rich.text import Text

    from tangentune.comparison.page import COLUMNS, notes, table_lines

    table = new_table(*COLUMNS, numbers=(0, 2, 3, 4, 5, 6, 7))
    for line in table_lines(found.rows):
        table.add_row(*[Text(words, "bold" if words.endswith("*") else "") for words in line])
    print_table(table, stream)
    stream.write("\n")
    for note in notes(found):
        stream.write(f"{shown(note)}\n")
    stream.write(f"Table, figure and all results written to {shown(directory)}\n")
