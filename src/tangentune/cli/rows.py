"""Where a table goes that grows while it is made: CSV into a pipe or a file, or a Parquet file; whole or not at all."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import click

from tangentune.errors import cannot_import, shown

PIPE = "-"
Write = Callable[[Sequence[Sequence[Any]]], None]  # some more rows


def check_out(out: str | None) -> None:
    """Refuse, before the work, a file that could not be written, or that would be of an unknown kind."""
    if out is None or out == PIPE:
        return
    kind = Path(out).suffix.lower()
    if kind not in (".csv", ".parquet"):
        raise click.UsageError(f"--out {out} must end in .csv or .parquet; - stands for CSV on standard output")
    from tangentune.methods.source_selection.manifest import check_place

    check_place(Path(out))
    if kind == ".parquet":
        _parquet()


@contextmanager
def table_at(out: str, columns: Mapping[str, type], stdout: IO[str]) -> Iterator[Write]:
    """What takes rows of these columns, and writes them to `out` as they come.

    A file is put in place at the end, if all went well; until then a former one stays as it is.
    """
    from tangentune._files import replaced_file

    if out == PIPE:
        yield _csv(stdout, columns)
        return
    with replaced_file(out) as part:
        if Path(out).suffix.lower() == ".csv":
            with open(part, "w", encoding="utf-8", errors="backslashreplace", newline="") as file:
                yield _csv(file, columns)
            return
        pyarrow, parquet = _parquet()
        kinds = {str: pyarrow.string(), float: pyarrow.float64()}
        schema = pyarrow.schema([(name, kinds[kind]) for name, kind in columns.items()])
        with parquet.ParquetWriter(part, schema) as writer:

            def write(rows: Sequence[Sequence[Any]]) -> None:
                arrays = [list(column) for column in zip(*rows, strict=True)]
                writer.write_table(pyarrow.table(dict(zip(columns, arrays, strict=True)), schema=schema))

            yield write


def _csv(stream: IO[str], columns: Mapping[str, type]) -> Write:
    """The names of the columns come with the first rows: what fails before has said nothing."""
    writer, begun = csv.writer(stream, lineterminator="\n"), False

    def write(rows: Sequence[Sequence[Any]]) -> None:
        nonlocal begun
        if not begun:
            writer.writerow(columns)
            begun = True
        for row in rows:
            writer.writerow(map(_cell, row))
        stream.flush()

    return write


def _cell(value: Any) -> str:
    """A value as it may stand in a spreadsheet, which would calculate formulas, and on a terminal."""
    from tangentune.pictures.tables import quoted

    if value is None:
        return ""
    return f"{value:.6g}" if isinstance(value, float) else quoted(shown(value))


def _parquet() -> tuple[Any, Any]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise cannot_import("pyarrow", error, 'pip install "tangentune[parquet]"') from error
    return pyarrow, parquet
