"""The command that asks a saved model about new pictures: `tangentune predict`."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import IO, TYPE_CHECKING, Any

import click

from tangentune.cli.models import (
    MODEL,
    PICTURES,
    check_folder,
    listed,
    own_rank,
    reading,
    saved_model,
    several,
    skipped,
)
from tangentune.cli.options import STREAMS, Command, option, shared_options
from tangentune.cli.rows import PIPE, check_out, table_at
from tangentune.cli.run import print_json, working
from tangentune.cli.tables import folded, new_table, percent, print_table
from tangentune.errors import shown

if TYPE_CHECKING:
    from tangentune.cli.models import Estimator
    from tangentune.pictures.ranks import Shared
    from tangentune.reports.answers import Answer, AnswerJob


@click.command(cls=Command, short_help="Predict the labels of pictures.")
@click.argument("model", type=MODEL)
@click.argument("pictures", type=PICTURES)
@option(STREAMS, "--out", "Write a table, a row a picture: .csv, .parquet, or - for standard output.", metavar="FILE")
@option(
    STREAMS,
    "--unlike/--no-unlike",
    "How unlike the training pictures each one is, which takes those through the network; tables say it if not told.",
    default=None,
)
@shared_options
def predict(
    model: str, pictures: str, out: str | None, unlike: bool | None, as_json: bool, quiet: bool, **options: Any
) -> None:
    """Predict the labels of PICTURES with the saved MODEL.

    PICTURES is a picture, any folder of pictures or of tar files, or a CSV file with the column path; there may be more
    than memory holds. A picture that the model was fitted on, known by its pixels, is answered by the model fitted
    without it (leave-one-out), and marked.

    A terminal shows a table. A pipe and --out get CSV (or Parquet) with the columns id, prediction, probability,
    second_choice, second_probability, unlike_training, familiarity and fitted_on. unlike_training is up to 1 the share
    of training pictures that lie nearer to the others than the picture does, and above 1 if none is as far away.

    `torchrun -m tangentune predict ... --out FILE` shares the pictures among processes.
    """
    from tangentune.pictures.ranks import parts_folder, sharing
    from tangentune.reports.answers import AnswerJob

    facts: dict[str, Any]
    check_out(out)
    if as_json and out == PIPE:
        raise click.UsageError("--json and --out - both take standard output; leave one out")
    read, rank = reading(options), own_rank(options)
    quiet |= not rank.leads
    where = "several processes share their answers in a folder beside the table; give --out FILE"
    check_folder(rank, None if out == PIPE else out, where)
    with working(quiet) as stdout:
        out = PIPE if out is None and not as_json and not stdout.isatty() else out
        fitted = saved_model(model, quiet, options)
        asked = _unlike(fitted, out is not None) if unlike is None else unlike
        job = AnswerJob(fitted, listed(pictures, fitted, read, False), read["on_error"], asked)
        left_out: list[tuple[str, str]] = []
        if out is not None:
            with sharing(parts_folder(out, job.digest) if rank.count > 1 else None, rank) as shared:
                answers = told_answers(job, left_out, quiet, shared)
                facts = {"n": _write(fitted, answers, out, stdout), "out": out}
            if not rank.leads:
                return
        else:
            answers = told_answers(job, left_out, quiet)
            rows = [one for some in answers for one in some]
            facts = {"n": len(rows)}
            if as_json:
                facts["predictions"] = [_document(fitted, one) for one in rows]
            else:
                _show(fitted, rows, asked, stdout)
    if as_json:
        print_json({"model": model, **facts, "skipped": skipped(left_out)})
    elif out not in (None, PIPE):
        stdout.write(f"{facts['n']:,} predictions written to {shown(str(out))}\n")


def _unlike(fitted: Estimator, told: bool) -> bool:
    """Whether to ask how unlike the training pictures are, if nobody said: of tables, where the model can tell."""
    if told and not fitted.fitted_.training.has_pictures:
        sentence = "this model was saved without its pictures: unlike_training and familiarity stay empty."
        warnings.warn(sentence, stacklevel=2)
        return False
    return told


def told_answers(
    job: AnswerJob, left_out: list[tuple[str, str]], quiet: bool, shared: Shared | None = None
) -> Iterator[list[Answer]]:
    """Answers a portion at a time, with one progress bar, and at the end what there is to say about them all."""
    from tangentune.estimators.scores import known_sentence
    from tangentune.memory import progress
    from tangentune.pictures.pictures import skip_sentence

    job.model.set_params(verbose=0)
    known = done = 0
    with progress(label="predicting", total=len(job.listing), unit="picture", verbose=not quiet) as bar:
        for found in job.answers(left_out, shared):
            known, done = known + sum(one.fitted_on is not None for one in found), done + len(found)
            bar.update(len(found))
            yield found
    if known:
        warnings.warn(known_sentence(known, done), stacklevel=2)
    if sentence := skip_sentence(left_out, done):
        warnings.warn(sentence, stacklevel=2)


def _write(fitted: Estimator, answers: Iterator[list[Answer]], out: str, stdout: IO[str]) -> int:
    from tangentune.reports.answers import cells, columns

    count, found = 0, next(answers, [])  # there is no table yet where a rank ends here, or nothing can be read
    with table_at(out, columns(fitted), stdout) as write:
        while found:
            write([cells(fitted, one) for one in found])
            count, found = count + len(found), next(answers, [])
    return count


def _show(fitted: Estimator, rows: list[Answer], unlike: bool, stream: IO[str]) -> None:
    """A table for people."""
    from tangentune.reports.answers import familiar, given_labels
    from tangentune.reports.explanation import numbers_text
    from tangentune.reports.pages import is_classifier

    sure, known = is_classifier(fitted) and not several(fitted), any(row.fitted_on is not None for row in rows)
    more = [*(["Familiarity"] if unlike else []), *(["Fitted on"] if known else [])]
    table = new_table(
        "Picture",
        "Prediction",
        *(["Confidence"] if sure else []),
        *more,
        numbers=() if several(fitted) else (2,) if sure else (1,),
    )
    for row in rows:
        if several(fitted):
            answer = [", ".join(f"{name} {percent(share)}" for name, share in given_labels(fitted, row)) or "none"]
        elif is_classifier(fitted):
            best = max(range(len(row.values)), key=row.values.__getitem__)
            answer = [str(fitted.classes_[best]), percent(row.values[best])]
        else:
            answer = [numbers_text(row.values)]
        far = [] if row.distance is None else [familiar(row.distance)]
        table.add_row(*folded(row.id, *answer, *far, *([row.fitted_on or ""] if known else [])))
    print_table(table, stream)


def _document(fitted: Estimator, row: Answer) -> dict[str, Any]:
    """An answer for JSON: id, label, confidence and all probabilities, or id and value; and which of the fit it is."""
    from tangentune.reports.answers import familiar, given_labels
    from tangentune.reports.pages import is_classifier

    found: dict[str, Any] = {"id": row.id}
    if several(fitted):
        names = [str(name) for name in fitted.classes_]
        found["labels"] = [name for name, _ in given_labels(fitted, row)]
        found["probabilities"] = dict(zip(names, row.values, strict=True))
    elif is_classifier(fitted):
        names = [str(name) for name in fitted.classes_]
        best = max(range(len(names)), key=row.values.__getitem__)
        found |= {"label": names[best], "confidence": row.values[best]}
        found |= {"probabilities": dict(zip(names, row.values, strict=True))}
    else:
        found["value"] = row.values[0] if fitted.targets_.ndim == 1 else list(row.values)
    if row.distance is not None:
        found |= {"unlike_training": row.distance, "familiarity": familiar(row.distance)}
    return found | {"fitted_on": row.fitted_on}
