"""The command that scores a saved model on labelled pictures: `tangentune evaluate`."""

from __future__ import annotations

from dataclasses import asdict
from typing import IO, TYPE_CHECKING, Any

import click

from tangentune.cli.models import (
    MODEL,
    PICTURES,
    folder_of,
    listed,
    load,
    own_rank,
    reading,
    saved_model,
    shards_place,
    skipped,
    work_option,
)
from tangentune.cli.options import Command, label_options, page_option
from tangentune.cli.run import print_json, working
from tangentune.cli.tables import folded, new_table, percent, print_facts, print_labels, print_table, score_rows
from tangentune.errors import shown

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tangentune import Pictures
    from tangentune.pictures.encoded import Listing
    from tangentune.reports.evaluation import Evaluation

_MATRIX = 12  # classes of which a terminal still shows the whole confusion matrix


@click.command(cls=Command, short_help="Score a model on labelled pictures.")
@click.argument("model", type=MODEL)
@click.argument("pictures", type=PICTURES)
@page_option("--page")
@work_option
@label_options
def evaluate(
    model: str, pictures: str, page: str | None, work: str | None, as_json: bool, quiet: bool, **options: Any
) -> None:
    """Score the saved MODEL on labelled PICTURES that it has not seen, as a whole and by class.

    PICTURES is a folder with one sub-folder for each class, or a CSV file with the columns path,label. A picture
    that the model was fitted on all the same is answered by the model fitted without it (leave-one-out).
    `torchrun -m tangentune evaluate ... --work DIR` shares the pictures among processes.
    """
    import numpy as np

    from tangentune.cli.predict import told_answers
    from tangentune.estimators.scores import Answers, targets_of
    from tangentune.pictures.ranks import sharing
    from tangentune.reports.answers import AnswerJob
    from tangentune.reports.evaluation import evaluate as judged
    from tangentune.reports.evaluation import render_evaluation
    from tangentune.reports.pages import is_classifier

    read, rank = reading(options), own_rank(options)
    quiet |= not rank.leads
    with working(quiet) as stdout:
        fitted = saved_model(model, quiet, options)
        listing = listed(pictures, fitted, read, True)
        targets_of(fitted, _labelled(listing, range(len(listing)), []))  # refused before the work
        job, found, left_out = AnswerJob(fitted, listing, read["on_error"], False), None, list[tuple[str, str]]()
        with sharing(shards_place(work, rank, "evaluate", job.digest), rank) as shared:
            rows = [one for some in told_answers(job, left_out, quiet, shared) for one in some]
            if page is not None:  # which shows them
                loaded = load(pictures, fitted.backbone_, fitted, read, True)
            else:
                answered = {one.id for one in rows}
                kept = [i for i, name in enumerate(listing.ids) if name in answered]
                loaded = _labelled(listing, kept, left_out)
            values = np.array([one.values for one in rows], np.float64)
            values = values if is_classifier(fitted) else values.reshape(len(rows), *fitted.targets_.shape[1:])
            found = judged(fitted, loaded, Answers(values, [one.fitted_on for one in rows]))
        if found is None:
            return
        if page is not None:
            from tangentune.reports.gallery import links
            from tangentune.reports.pages import write_page

            link = links(folder_of(pictures), page)
            write_page(render_evaluation(fitted, found, link), page, fitted.fitted_.version)
    if as_json:
        print_json({**_document(found), "skipped": skipped(left_out)})
        return
    interval = found.intervals.get("accuracy")
    rows = [("pictures", f"{len(found.pictures):,}"), *score_rows(found.scores, interval)]
    if found.known:
        how = "each scored by the model fitted without it (leave-one-out)"
        rows.insert(1, ("of them fitted on", f"{found.known:,}, {how}"))
    print_facts(rows, stdout)
    if found.classes:
        _show_classes(found, stdout)
    if found.judged.labels:
        print_labels(list(found.judged.labels), stdout)
    if page is not None:
        stdout.write(f"Page written to {shown(page)}\n")


def _labelled(listing: Listing, places: Sequence[int], left_out: list[tuple[str, str]]) -> Pictures:
    """Some of the pictures of a listing with their labels, and without pixels."""
    import torch

    from tangentune.pictures.checks import label_array
    from tangentune.pictures.pictures import Pictures

    labels = label_array(listing.labels if listing.sets is None else listing.sets)[list(places)]
    pixels = torch.zeros((), dtype=torch.uint8).expand(len(places), 3, 1, 1)
    return Pictures(pixels, labels, [listing.ids[i] for i in places], left_out)


def _show_classes(found: Evaluation, stream: IO[str]) -> None:
    """What became of each class, and which ones are taken for which."""
    from tangentune.reports.tables import class_rows, commonest_confusions

    rows, count = class_rows(found.confusion, found.classes), len(found.classes)
    columns = ("Class", "Pictures", "Found", "95 %", "Precision", "Most taken for")
    table = new_table(*columns, numbers=(1, 2, 3, 4))
    for row in rows:
        low, high = row["interval"]
        between, there = f"{100 * low:.0f} to {100 * high:.0f}", row["count"] > 0
        told = f"{row['mistaken']} ({row['times']})" if row["mistaken"] else ""
        named = percent(row["precision"] if row["named"] else None)
        numbers = [f"{row['count']:,}", *([percent(row["found"]), between] if there else ["", ""]), named]
        table.add_row(*folded(row["name"], *numbers, told))
    stream.write("\n")
    print_table(table, stream)
    if len(rows) < count:
        stream.write(f"the {len(rows)} found worst of {count} classes; --json has all\n")
    stream.write("\n")
    if count <= _MATRIX:
        matrix = new_table(
            "Given, and predicted as", *map(str, range(1, count + 1)), numbers=tuple(range(1, count + 1))
        )
        for i, name in enumerate(found.classes):
            matrix.add_row(*folded(f"{i + 1} {name}", *(str(one) if one else "·" for one in found.confusion[i])))
        print_table(matrix, stream)
        return
    pairs = new_table("Given", "Predicted", "Pictures", numbers=(2,))
    for given, predicted, times in commonest_confusions(found.confusion, found.classes):
        pairs.add_row(*folded(given, predicted, str(times)))
    print_table(pairs, stream)


def _document(found: Evaluation) -> dict[str, Any]:
    """All of it for JSON."""
    from tangentune.reports.tables import class_rows

    document = {**found.scores, "n": len(found.pictures), "fitted_on": found.known, "intervals": found.intervals}
    if found.judged.labels:
        document["labels"] = [asdict(row) for row in found.judged.labels]
    if found.classes:
        rows = class_rows(found.confusion, found.classes, most=len(found.classes))
        document["confusion"] = {"classes": list(found.classes), "counts": found.confusion.tolist()}
        document["classes"] = [
            {name: row[name] for name in ("name", "count", "found", "interval", "named", "precision")} for row in rows
        ]
    return document
