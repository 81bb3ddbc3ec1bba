"""The command that says which unlabelled pictures are worth labelling next: `tangentune suggest`."""

from __future__ import annotations

from dataclasses import asdict
from typing import IO, TYPE_CHECKING, Any

import click

from tangentune.cli.models import (
    MODEL,
    PICTURES,
    load,
    own_rank,
    reading,
    saved_model,
    shards_place,
    skipped,
    work_option,
)
from tangentune.cli.options import STREAMS, Command, option, shared_options
from tangentune.cli.run import print_json, working
from tangentune.cli.tables import folded, new_table, percent, print_table
from tangentune.errors import shown

if TYPE_CHECKING:
    from tangentune.cli.models import Estimator
    from tangentune.workbench.suggest import Suggestions

_COUNT = click.IntRange(1, 1000)  # the library's own bound, which would be told after the pictures are read
_BUDGET = option(STREAMS, "--budget", "How many pictures to name.", type=_COUNT, metavar="COUNT", required=True)


@click.command(cls=Command, short_help="Say which pictures to label next.")
@click.argument("model", type=MODEL)
@click.argument("unlabelled", type=PICTURES)
@_BUDGET
@work_option
@shared_options
def suggest(
    model: str, unlabelled: str, budget: int, work: str | None, as_json: bool, quiet: bool, **options: Any
) -> None:
    """Say which of the pictures in UNLABELLED are worth labelling next for the saved MODEL, most useful first.

    UNLABELLED is any folder of pictures, or a CSV file with the column path. While the model guesses, these are
    pictures that stand for many others; once leave-one-out finds it better, those whose labels say most about open
    answers. `torchrun -m tangentune suggest ... --work DIR` shares portions of 2,000 pictures among processes.
    """
    from tangentune.pictures.ranks import job_digest, sharing
    from tangentune.workbench.suggest import check_suggests, suggest_next

    read, rank = reading(options), own_rank(options)
    quiet |= not rank.leads
    with working(quiet) as stdout:
        fitted = saved_model(model, quiet, options)
        check_suggests(fitted.fitted_)
        loaded = load(unlabelled, fitted.backbone_, fitted, read, False)
        version = fitted.fitted_.version
        digest = job_digest((version and version.seal, fitted.batch_size, budget, loaded.digests), ())
        tell = None if quiet else lambda sentence: click.echo(f"note: {sentence}", err=True)
        with sharing(shards_place(work, rank, "suggest", digest), rank) as shared:
            found = suggest_next(fitted, loaded, budget, tell, shared)
    if not rank.leads:
        return
    if as_json:
        facts = {name: value for name, value in asdict(found).items() if name != "pictures"}
        pictures = [asdict(one) for one in found.pictures]
        print_json({"model": model, **facts, "suggestions": pictures, "skipped": skipped(loaded.skipped)})
    else:
        _show(fitted, found, model, stdout)


def _show(fitted: Estimator, found: Suggestions, model: str, stream: IO[str]) -> None:
    """One line a picture, most useful first, why these, and the command that takes their labels in."""
    from tangentune.reports.explanation import label_text
    from tangentune.workbench.suggest import reason

    sure = found.pictures[0].probability is not None
    names = ("Unseen", "Guess", *(["Probability"] if sure else []), "Picture")
    table = new_table(*names, numbers=(0, 2) if sure else (0,))
    for one in found.pictures:
        guess = label_text(fitted, one.guess)
        table.add_row(percent(one.unseen), *folded(guess, *([percent(one.probability)] if sure else []), one.id))
    print_table(table, stream)
    stream.write(f"{reason(found)}\nUnseen is the share of a picture's variance that the labelled ones leave open.\n")
    left = {"equal to labelled ones": found.known, "equal to another": found.copies}
    told = "".join(f"; left out as {words}: {count:,}" for words, count in left.items() if count)
    stream.write(f"Unlabelled pictures: {found.unlabelled:,}{told}\n")
    stream.write(f"Once they are labelled: tangentune add {shown(model)} LABELLED\n")
