"""What the command line shows to people: a sentence and a small table each (the JSON form is in `cli`)."""

from __future__ import annotations

from collections import defaultdict
from typing import IO, Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from tangentune.compare import Comparison
from tangentune.compare.tables import COLUMNS, notes, table_lines
from tangentune.summary import SETTINGS, Summary, nice_bytes, nice_seconds, nice_setting


def show_plan(plan: dict[str, Any], name: str, stream: IO[str]) -> None:
    """The cost of a fit before it starts: one sentence, and how the layers' kernels will be computed."""
    passes = "one pass" if plan["passes"] == 1 else f"{plan['passes']} passes"
    groups: dict[tuple[str, str], list[int]] = defaultdict(list)
    for layer in plan["layers"]:
        groups[layer["held_as"], layer["gram"]].append(layer["bytes_per_picture"])
    stream.write(
        f"Fitting {plan['parameters']:,} parameters of {name} to {plan['n']:,} pictures will take about "
        f"{nice_seconds(plan['seconds'])} and {nice_bytes(plan['peak_bytes'])} of memory, in {passes} over the "
        "pictures.\n"
    )
    table = _table("Layers", "Kept as", "Kernel from", "Memory a picture", numbers=(0, 3))
    words = {"pairs": "patch pairs"}
    for (held, gram), sizes in sorted(groups.items(), key=lambda item: -sum(item[1])):
        names = (words.get(held, held), words.get(gram, gram))
        table.add_row(str(len(sizes)), *names, nice_bytes(sum(sizes)))
    if groups:
        _print(table, stream)


def show_fit(facts: Summary, directory: str, stream: IO[str]) -> None:
    """The leave-one-out scores and the choices of a finished fit."""
    table = _table("", "", header=False)
    for name, value in _scores(facts.scores, facts.interval):
        table.add_row(f"leave-one-out {name}", value)
    for key, value in facts.settings.items():
        if value is not None:
            table.add_row(SETTINGS[key], nice_setting(value))
    table.add_row("time, peak memory", f"{nice_seconds(facts.seconds)}, {nice_bytes(facts.peak_bytes)}")
    if facts.skipped:
        table.add_row("pictures left out", str(len(facts.skipped)))
    _print(table, stream)
    stream.write(f"Model written to {directory}\n")


def show_predictions(rows: list[dict[str, Any]], stream: IO[str]) -> None:
    """One line a picture: name, predicted label or number, and the label's probability."""
    sure = bool(rows) and "confidence" in rows[0]
    table = _table("Picture", "Prediction", *(["Confidence"] if sure else []), numbers=(2,) if sure else (1,))
    for row in rows:
        label = row["label"] if sure else _numbers(row["value"])
        cells = [row["id"], label] + ([f"{100 * row['confidence']:.1f} %"] if sure else [])
        table.add_row(*[Text(cell, overflow="fold") for cell in cells])
    _print(table, stream)


def show_scores(scores: dict[str, float], n: int, interval: tuple[float, float] | None, stream: IO[str]) -> None:
    """The scores of a model on labelled pictures."""
    table = _table("", "", header=False)
    table.add_row("pictures", f"{n:,}")
    for name, value in _scores(scores, interval):
        table.add_row(name, value)
    _print(table, stream)


def show_comparison(comparison: Comparison, directory: str, stream: IO[str]) -> None:
    """One line a method and number of pictures, then what a reader must know to judge them."""
    table = _table(*COLUMNS, numbers=(0, 2, 3, 4, 5, 6, 7))
    for entries in table_lines(comparison.rows):
        marked = [f"{entry.text} *" if entry.best else entry.text for entry in entries]
        table.add_row(*[Text(words, "bold" if words.endswith("*") else "") for words in marked])
    _print(table, stream)
    stream.write("\n")
    for note in notes(comparison.settings, comparison.cells, comparison.rows):
        stream.write(f"{note}\n")
    stream.write(f"Table, figure and all results written to {directory}\n")


def _scores(scores: dict[str, float], interval: tuple[float, float] | None) -> list[tuple[str, str]]:
    rows = []
    if "accuracy" in scores:
        low, high = interval or (float("nan"), float("nan"))
        between = f" (95 % interval {100 * low:.1f} to {100 * high:.1f} %)"
        rows.append(("accuracy", f"{100 * scores['accuracy']:.1f} %{between}"))
        rows.append(("negative log-likelihood", f"{scores['nll']:.4f}"))
        rows.append(("calibration error", f"{100 * scores['ece']:.1f} %"))
        rows.append(("Brier score", f"{scores['brier']:.4f}"))
    if "r2" in scores:
        rows.append(("R²", f"{scores['r2']:.4f}"))
        rows.append(("root mean squared error", f"{scores['rmse']:.4g}"))
    return rows


def _print(table: Table, stream: IO[str]) -> None:
    """As wide as the terminal; in a file or pipe no line is folded. No blanks at the ends of lines."""
    console = Console(file=stream, highlight=False, width=None if stream.isatty() else 4000)
    with console.capture() as capture:
        console.print(table)
    stream.writelines(line.rstrip() + "\n" for line in capture.get().splitlines())


def _numbers(value: float | list[float]) -> str:
    return ", ".join(f"{number:.4g}" for number in (value if isinstance(value, list) else [value]))


def _table(*columns: str, numbers: tuple[int, ...] = (), header: bool = True) -> Table:
    table = Table(box=None, show_header=header, header_style="bold", pad_edge=False, padding=(0, 2, 0, 0))
    for i, name in enumerate(columns):
        table.add_column(name, justify="right" if i in numbers else "left", no_wrap=i in numbers)
    return table
