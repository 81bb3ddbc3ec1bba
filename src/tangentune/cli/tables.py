"""What the command line shows to people: a sentence and a small table each (the JSON form is in `cli`)."""

from __future__ import annotations

import math
from collections import defaultdict
from typing import IO, Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from tangentune.comparison import Comparison
from tangentune.comparison.tables import COLUMNS, notes, table_lines
from tangentune.estimators.summary import Summary, nice_bytes, nice_seconds, nice_settings
from tangentune.reports.explanation import Explanation, PictureEffect, familiarity


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
    table = new_table("Layers", "Kept as", "Kernel from", "Memory a picture", numbers=(0, 3))
    words = {"pairs": "patch pairs"}
    for (held, gram), sizes in sorted(groups.items(), key=lambda item: -sum(item[1])):
        names = (words.get(held, held), words.get(gram, gram))
        table.add_row(str(len(sizes)), *names, nice_bytes(sum(sizes)))
    if groups:
        print_table(table, stream)


def show_fit(facts: Summary, directory: str, stream: IO[str]) -> None:
    """The leave-one-out scores and the choices of a finished fit."""
    table = new_table("", "", header=False)
    for name, value in _scores(facts.scores, facts.interval):
        table.add_row(f"leave-one-out {name}", value)
    for name, value in nice_settings(facts):
        table.add_row(name, value)
    table.add_row("time, peak memory", f"{nice_seconds(facts.seconds)}, {nice_bytes(facts.peak_bytes)}")
    if facts.skipped:
        table.add_row("pictures left out", str(len(facts.skipped)))
    print_table(table, stream)
    stream.write(f"Model written to {directory}\n")


def show_predictions(rows: list[dict[str, Any]], stream: IO[str]) -> None:
    """One line a picture: name, predicted label or number, and the label's probability."""
    sure = bool(rows) and "confidence" in rows[0]
    table = new_table("Picture", "Prediction", *(["Confidence"] if sure else []), numbers=(2,) if sure else (1,))
    for row in rows:
        label = row["label"] if sure else _numbers(row["value"])
        cells = [row["id"], label] + ([f"{100 * row['confidence']:.1f} %"] if sure else [])
        table.add_row(*[Text(cell, overflow="fold") for cell in cells])
    print_table(table, stream)


def show_scores(scores: dict[str, float], n: int, interval: tuple[float, float] | None, stream: IO[str]) -> None:
    """The scores of a model on labelled pictures."""
    table = new_table("", "", header=False)
    table.add_row("pictures", f"{n:,}")
    for name, value in _scores(scores, interval):
        table.add_row(name, value)
    print_table(table, stream)


def show_comparison(comparison: Comparison, directory: str, stream: IO[str]) -> None:
    """One line a method and number of pictures, then what a reader must know to judge them."""
    table = new_table(*COLUMNS, numbers=(0, 2, 3, 4, 5, 6, 7))
    for entries in table_lines(comparison.rows):
        marked = [f"{entry.text} *" if entry.best else entry.text for entry in entries]
        table.add_row(*[Text(words, "bold" if words.endswith("*") else "") for words in marked])
    print_table(table, stream)
    stream.write("\n")
    for note in notes(comparison.settings, comparison.cells, comparison.rows):
        stream.write(f"{note}\n")
    stream.write(f"Table, figure and all results written to {directory}\n")


def show_explanation(one: Explanation, stream: IO[str]) -> None:
    """An answer, how familiar the picture is, and the training pictures that made the answer."""
    if one.given is not None:
        stream.write(f"{one.id} is a training picture, labelled {one.given}: the model without it answers.\n")
    for account in one.attributions:
        answer, rival, strongest = account.answer, account.against, account.strongest
        says = f"{answer.label} ({_percent(answer.confidence)})" if rival else answer.label
        more = f", ahead of {rival.label} by {account.total:.3f}" if rival else f" ± {account.error:.2g}"
        stream.write(f"{one.id}: {account.name + ' ' if account.name else ''}{says}{more}\n")
        stream.write(f"{familiarity(one.distance)}\n")
        if strongest is not None and strongest.without is not None:
            then = strongest.without
            changed = f"{then.label} ({_percent(then.confidence)})" if rival else then.label
            stream.write(f"Without {strongest.id} the answer would be {changed}.\n")
        table = new_table("Influence", "Label", "Without it", "Training picture", numbers=(0,))
        for pull in (*account.raised, *reversed(account.lowered)):
            number = f"{pull.influence:+.3f}" if rival else f"{pull.influence:+.3g}"
            table.add_row(number, *[Text(word, overflow="fold") for word in (pull.label, _without(pull), pull.id)])
        print_table(table, stream)
        stream.write("\n")


def _without(pull: PictureEffect) -> str:
    if pull.without is None:
        return ""
    sure = "" if pull.without.confidence is None else f" {_percent(pull.without.confidence)}"
    return pull.without.label + sure


def _percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.1f} %"


def show_suspects(rows: list[dict[str, Any]], directory: str, stream: IO[str]) -> None:
    """One line a doubtful label, worst first, and how to correct one."""
    sure = bool(rows) and rows[0]["probability"] is not None
    names = ("Doubt", "Given", *(["Probability"] if sure else []), "Suggested", "Training picture")
    table = new_table(*names, numbers=(0, 2) if sure else (0,))
    for row in rows:
        doubt = f"{row['score']:.2f}" if sure else f"{row['score']:.3g}"
        cells = [row["label"], *([_percent(row["probability"])] if sure else []), row["suggestion"], row["id"]]
        table.add_row(doubt, *[Text(cell, overflow="fold") for cell in cells])
    print_table(table, stream)
    stream.write(f"Look at each; correct one with: tangentune relabel {directory} ID LABEL\n")


def show_change(facts: dict[str, Any], stream: IO[str]) -> None:
    """What an edit did to a model, and how exactly it was done."""
    edit, n, loo = facts["edit"], facts["n"], facts["loo"]
    table = new_table("", "before", "after", numbers=(1, 2))
    table.add_row("pictures", f"{n['before']:,}", f"{n['after']:,}")
    known = [{k: math.nan if v is None else v for k, v in loo[when].items()} for when in ("before", "after")]
    before, after = (dict(_scores(scores, None)) for scores in known)
    for name, value in before.items():
        table.add_row(f"leave-one-out {name}", value, after[name])
    table.add_row("error of the solution", *[f"{edit[f'residual_{when}']:.1e}" for when in ("before", "after")])
    print_table(table, stream)
    for word, names in facts["classes"].items():
        if names:
            stream.write(f"{word.capitalize()} {'class' if len(names) == 1 else 'classes'}: {', '.join(names)}\n")
    if facts.get("skipped"):
        stream.write(f"Pictures left out: {len(facts['skipped'])}\n")
    stream.write(
        f"Checked by one step of iterative refinement, which moves the solution by {edit['verification']:.1e} of its "
        f"size. Pictures concerned: {len(edit['pictures'])}; time with reading and writing: "
        f"{nice_seconds(facts['seconds'])}\n"
    )
    where = f"Model in {facts['model']}"
    stream.write(
        f"{where} replaced; seal of the edit {edit['seal'][:16]}\n" if facts["saved"] else f"{where} left as it was\n"
    )


def _scores(scores: dict[str, float], interval: tuple[float, float] | None) -> list[tuple[str, str]]:
    rows = []
    if "accuracy" in scores:
        between = ""
        if interval is not None:
            between = f" (95 % interval {100 * interval[0]:.1f} to {100 * interval[1]:.1f} %)"
        rows.append(("accuracy", f"{100 * scores['accuracy']:.1f} %{between}"))
        rows.append(("negative log-likelihood", f"{scores['nll']:.4f}"))
        rows.append(("calibration error", f"{100 * scores['ece']:.1f} %"))
        rows.append(("Brier score", f"{scores['brier']:.4f}"))
    if "r2" in scores:
        rows.append(("R²", f"{scores['r2']:.4f}"))
        rows.append(("root mean squared error", f"{scores['rmse']:.4g}"))
    return rows


def print_table(table: Table, stream: IO[str]) -> None:
    """As wide as the terminal; in a file or pipe no line is folded. No blanks at the ends of lines."""
    console = Console(file=stream, highlight=False, width=None if stream.isatty() else 4000)
    with console.capture() as capture:
        console.print(table)
    stream.writelines(line.rstrip() + "\n" for line in capture.get().splitlines())


def _numbers(value: float | list[float]) -> str:
    return ", ".join(f"{number:.4g}" for number in (value if isinstance(value, list) else [value]))


def new_table(*columns: str, numbers: tuple[int, ...] = (), header: bool = True) -> Table:
    """An empty table in the style of every command; `numbers` are the columns that are right-aligned."""
    table = Table(box=None, show_header=header, header_style="bold", pad_edge=False, padding=(0, 2, 0, 0))
    for i, name in enumerate(columns):
        table.add_column(name, justify="right" if i in numbers else "left", no_wrap=i in numbers)
    return table
