"""Tables that the command line shows to people."""

from __future__ import annotations

from collections.abc import Sequence
from typing import IO, TYPE_CHECKING

from tangentune.errors import nice_number, shown

if TYPE_CHECKING:  # rich is imported when a table is made, so that help and mistakes in the options are quick
    from rich.table import Table
    from rich.text import Text

    from tangentune.estimators.summary import LabelScore


def new_table(*columns: str, numbers: tuple[int, ...] = (), header: bool = True) -> Table:
    """An empty table in the style of every command; `numbers` are the columns that are right-aligned."""
    from rich.table import Table

    table = Table(box=None, show_header=header, header_style="bold", pad_edge=False, padding=(0, 2, 0, 0))
    for i, name in enumerate(columns):
        table.add_column(name, justify="right" if i in numbers else "left", no_wrap=i in numbers)
    return table


def folded(*cells: str) -> list[Text]:
    """Cells that hold the user's own words: shown as they are, to their last letter."""
    from rich.text import Text

    return [Text(shown(cell), overflow="fold") for cell in cells]


def print_table(table: Table, stream: IO[str]) -> None:
    """As wide as the terminal; in a file or pipe no line is folded. No blanks at the ends of lines."""
    from rich.console import Console

    console = Console(file=stream, highlight=False, width=None if stream.isatty() else 4000)
    with console.capture() as capture:
        console.print(table)
    stream.writelines(line.rstrip() + "\n" for line in capture.get().splitlines())


def print_facts(rows: list[tuple[str, str]], stream: IO[str]) -> None:
    """Names and values, one pair a line."""
    table = new_table("", "", header=False)
    for row in rows:
        table.add_row(*folded(*row))
    print_table(table, stream)


def print_labels(rows: Sequence[LabelScore], stream: IO[str]) -> None:
    """How well each of several labels is found, one line a label."""
    names = ("Label", "Pictures", "Average precision", "F1", "Precision", "Recall", "Threshold")
    table = new_table(*names, numbers=tuple(range(1, len(names))))
    for row in rows:
        shares = (row.average_precision, row.f1, row.precision, row.recall, row.threshold)
        table.add_row(*folded(row.name), f"{row.pictures:,}", *["" if one is None else f"{one:.3f}" for one in shares])
    print_table(table, stream)


def percent(share: float | None) -> str:
    """A share for people; nothing where there is none."""
    return "" if share is None else f"{100 * share:.1f} %"


def score_rows(scores: dict[str, float], interval: tuple[float, float] | None) -> list[tuple[str, str]]:
    """The scores of a classifier, its accuracy with an interval, of several labels or of a regressor: names, values."""
    if "macro_f1" in scores:
        return [
            ("average precision, mean over labels", f"{scores['average_precision']:.4f}"),
            ("macro F1", f"{scores['macro_f1']:.4f}"),
            ("micro F1", f"{scores['micro_f1']:.4f}"),
            ("pictures with every label right", percent(scores["subset_accuracy"])),
            ("negative log-likelihood of a label", f"{scores['nll']:.4f}"),
            ("calibration error", percent(scores["ece"])),
        ]
    if "accuracy" not in scores:
        return [("R²", f"{scores['r2']:.4f}"), ("root mean squared error", nice_number(scores["rmse"], 4))]
    between = "" if interval is None else f" (95 % interval {100 * interval[0]:.1f} to {100 * interval[1]:.1f} %)"
    return [
        ("accuracy", percent(scores["accuracy"]) + between),
        ("negative log-likelihood", f"{scores['nll']:.4f}"),
        ("calibration error", percent(scores["ece"])),
        ("Brier score", f"{scores['brier']:.4f}"),
    ]
