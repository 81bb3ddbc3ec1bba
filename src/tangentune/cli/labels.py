"""The command that takes corrected labels out of a model, so that they outlive it: `tangentune labels`."""

from __future__ import annotations

import os
from dataclasses import asdict, replace
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import click

from tangentune.cli.models import MODEL, PICTURES, saved_model
from tangentune.cli.options import STREAMS, Command, option, table_options
from tangentune.cli.run import print_json, working
from tangentune.cli.tables import folded, new_table, print_table
from tangentune.errors import InputError, shown

if TYPE_CHECKING:
    from tangentune.workbench.corrections import LabelRow
    from tangentune.workbench.moves import Plan

MOST = 50  # rows that people are shown


@click.command(cls=Command, short_help="Take corrected labels out of a model.")
@click.argument("model", type=MODEL)
@option(STREAMS, "--out", "Write a table of all pictures and their labels.", metavar="FILE.csv", type=click.Path())
@option(
    STREAMS, "--apply source", "The folder or table of the fit, to be corrected.", metavar="PICTURES", type=PICTURES
)
@option(
    STREAMS, "--forgotten", "With --apply: move what the model has forgotten here.", metavar="DIR", type=click.Path()
)
@option(STREAMS, "--dry-run", "Say what would be written or moved, and do nothing.", is_flag=True)
@table_options
def labels(
    model: str,
    out: str | None,
    source: str | None,
    forgotten: str | None,
    dry_run: bool,
    as_json: bool,
    quiet: bool,
    backbone: str | None,
    path_column: str | None,
    label_column: str | None,
    n_jobs: int | None,
) -> None:
    """List the labels of the saved MODEL that were corrected; write them, or take them back to the pictures.

    --out writes the columns id,original,current,when,why, a line for each picture that the model stands on; beside the
    folders or the table of the fit, `tangentune fit FILE.csv` starts from it. --apply moves files of PICTURES to
    the folders of their classes, or writes a corrected copy of a table. Nothing is ever overwritten.
    """
    from tangentune.workbench import corrections, moves

    if forgotten is not None and source is None:
        raise click.UsageError("--forgotten needs --apply, which says where the pictures are")
    _check_new(out)
    plan = None
    with working(quiet) as stdout:
        fitted = saved_model(model, quiet, {"n_jobs": n_jobs, "backbone": backbone}).fitted_
        rows = corrections.label_rows(fitted)
        if source is not None:
            from tangentune.pictures.tables import Columns

            hashes = moves.read_hashes(fitted, n_jobs, 0 if quiet else 1)
            plan = moves.plan_moves(fitted, source, hashes, Columns(path_column, label_column), forgotten)
        places = {} if plan is None else plan.renamed  # where the files will be
        table = corrections.labels_table([replace(row, id=places.get(row.id, row.id)) for row in rows])
        if not dry_run:
            _carry_out(out, table, plan)
    corrected, gone = [row for row in rows if row.why], len(corrections.forgotten(fitted))
    if as_json:
        facts = {"n": len(rows), "forgotten": gone, "labels": [asdict(row) for row in corrected]}
        print_json({"model": model, "done": not dry_run, **facts, "out": out, "apply": _document(plan)})
        return
    _show(corrected, len(rows), gone, stdout)
    would = "Would be " if dry_run else ""
    if plan is not None:
        _show_plan(plan, would, stdout)
    if out is not None:
        line = f"{would}written to {shown(out)}: {len(rows):,} labels; {_use(out, rows[0].id)}"
        stdout.write(f"{line[0].upper()}{line[1:]}\n")


def _carry_out(out: str | None, table: str, plan: Plan | None) -> None:
    """Write the table and make the moves, or neither."""
    from tangentune._files import write_new
    from tangentune.workbench.moves import carry_out

    if out is not None:
        write_new(Path(out), table)
    try:
        if plan is not None:
            carry_out(plan)
    except BaseException:
        if out is not None:
            Path(out).unlink(missing_ok=True)
        raise


def _check_new(out: str | None) -> None:
    """Refuse, before the work, a table that could not be written, or would overwrite something."""
    if out is None:
        return
    from tangentune.methods.source_selection.manifest import check_place

    if os.path.lexists(out):
        raise InputError(f"{out} is there already, and is not overwritten; give another name with --out")
    if Path(out).suffix.lower() != ".csv":
        raise InputError(f"--out {out} must end in .csv, or no fit would take it for a table")
    check_place(Path(out))


def _show(rows: list[LabelRow], count: int, gone: int, stream: IO[str]) -> None:
    """Pictures that were edited."""
    table = new_table("Label at first", "Now", "When", "How", "Training picture")
    for row in rows[:MOST]:
        first = "not known any more" if row.original is None else row.original
        table.add_row(*folded(first, row.current, row.when[:16].replace("T", " "), row.why, row.id))
    if rows:
        print_table(table, stream)
    if len(rows) > MOST:
        stream.write(f"and {len(rows) - MOST:,} more, which --json lists\n")
    changed = sum(row.corrected for row in rows)
    stream.write(f"Labels corrected: {changed:,} of {count:,}; pictures forgotten: {gone:,}\n")


def _show_plan(plan: Plan, would: str, stream: IO[str]) -> None:
    """What is moved, and what is left."""
    table = new_table("From", "To", *(["Picture"] if plan.text is not None else []))
    for move in plan.moves[:MOST]:
        names = (move.original, move.current, move.id) if plan.text is not None else (move.source, move.target)
        table.add_row(*folded(*names))
    if plan.moves:
        print_table(table, stream)
    if len(plan.moves) > MOST:
        stream.write(f"and {len(plan.moves) - MOST:,} more\n")
    what = f"corrected in {shown(str(plan.target))}" if plan.text is not None else "moved"
    line = f"{would}{what}: {len(plan.moves):,}; corrected there already: {plan.done:,}"
    stream.write(f"{line[0].upper()}{line[1:]}\n")
    told = {
        "Changed there since the fit, and left alone": plan.changed,
        "Corrected, but not there": plan.missing,
        "Forgotten by the model": plan.gone,
    }
    for words, names in told.items():
        if names:
            stream.write(f"{words}: {len(names):,}, such as {shown(names[0])}\n")


def _document(plan: Plan | None) -> dict[str, Any] | None:
    if plan is None:
        return None
    facts = {name: list(getattr(plan, name)) for name in ("changed", "missing", "gone")}
    moves = [asdict(move) for move in plan.moves]
    return {"target": str(plan.target), "table": plan.text is not None, "moves": moves, "before": plan.done, **facts}


def _use(out: str, first: str) -> str:
    """How to go on: the ids are paths from where the pictures are."""
    if (Path(out).parent / first).exists():
        return f"`tangentune fit {shown(out)}` starts from them"
    return "`tangentune fit` starts from them once the table lies beside the pictures, which its ids are paths to"
